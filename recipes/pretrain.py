"""Pretrain a LLaDA on documents (LLaDA, arXiv 2502.09992, Alg. 1).

python recipes/pretrain.py --config recipes/tiny_pretrain.yaml
"""

import llada
from llada.cli import failure
from llada.cli.recipe import short_help
from llada.training.options import MaskedDiffusionOptions

COLUMNS = (("text",),)


def main(argv: list[str] | None = None) -> None:
    short_help(MaskedDiffusionOptions, __doc__, argv)
    from llada.cli import train
    from vrpo.report import write_page

    train.main(llada.MaskedDiffusionTrainer, llada.MaskedDiffusionConfig, COLUMNS, argv, write_page)


if __name__ == "__main__":
    failure.run(main)
