"""Align a LLaDA with preference pairs (VRPO; LLaDA 1.5, arXiv 2505.19223).

python recipes/align.py --config recipes/tiny_vrpo.yaml
"""

import vrpo
from llada.cli import failure
from llada.cli.arguments import IMPORTING, saying
from llada.cli.recipe import short_help
from vrpo.training.options import VRPOOptions

COLUMNS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))


def main(argv: list[str] | None = None) -> None:
    short_help(VRPOOptions, __doc__, argv)
    with saying(IMPORTING):
        from llada.cli import train

        trainer, config = vrpo.VRPOTrainer, vrpo.VRPOConfig
    train.main(trainer, config, COLUMNS, argv)


if __name__ == "__main__":
    failure.run(main)
