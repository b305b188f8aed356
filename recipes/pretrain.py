"""Pretrain a LLaDA on documents (LLaDA, arXiv 2502.09992, Alg. 1).

accelerate launch recipes/pretrain.py --config recipes/tiny_pretrain.yaml
"""

from trl import ModelConfig

from llada.cli import train
from llada.cli.loading import RecipeArguments
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer

ARGUMENTS = (RecipeArguments, ModelConfig, MaskedDiffusionConfig)
COLUMNS = (("text",),)


def main(argv: list[str] | None = None) -> None:
    train.main(MaskedDiffusionTrainer, ARGUMENTS, COLUMNS, argv)


if __name__ == "__main__":
    main()
