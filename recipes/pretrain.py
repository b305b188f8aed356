"""Pretrain a LLaDA on documents (LLaDA, arXiv 2502.09992, Alg. 1).

python recipes/pretrain.py --config recipes/tiny_pretrain.yaml
"""

import llada
from llada.cli import failure
from llada.cli.arguments import IMPORTING, saying
from llada.cli.recipe import short_help
from llada.training.options import MaskedDiffusionOptions

COLUMNS = (("text",),)


def main(argv: list[str] | None = None) -> None:
    short_help(MaskedDiffusionOptions, __doc__, argv)
    with saying(IMPORTING):
        from llada.cli import train

        trainer, config = llada.MaskedDiffusionTrainer, llada.MaskedDiffusionConfig
    train.main(trainer, config, COLUMNS, argv)


if __name__ == "__main__":
    failure.run(main)
