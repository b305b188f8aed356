"""Align a LLaDA with preference pairs (VRPO; LLaDA 1.5, arXiv 2505.19223).

python recipes/align.py --config recipes/tiny_vrpo.yaml
"""

import vrpo
from llada.cli import failure
from llada.cli.recipe import short_help
from vrpo.training.options import VRPOOptions

COLUMNS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))


def main(argv: list[str] | None = None) -> None:
    short_help(VRPOOptions, __doc__, argv)
    from llada.cli import train
    from vrpo.report import write_page

    train.main(vrpo.VRPOTrainer, vrpo.VRPOConfig, COLUMNS, argv, write_page)


if __name__ == "__main__":
    failure.run(main)
