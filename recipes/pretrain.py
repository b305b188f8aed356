"""Pretrain a LLaDA on documents (LLaDA, arXiv 2502.09992, Alg. 1).

accelerate launch recipes/pretrain.py --config recipes/tiny_pretrain.yaml
"""

from trl import ModelConfig

from llada import launch
from llada.inputs import RecipeArguments
from llada.trainer import MaskedDiffusionConfig, MaskedDiffusionTrainer

ARGUMENTS = (RecipeArguments, ModelConfig, MaskedDiffusionConfig)
COLUMNS = (("text",),)


def main(argv: list[str] | None = None) -> None:
    launch.main(MaskedDiffusionTrainer, ARGUMENTS, COLUMNS, argv)


if __name__ == "__main__":
    main()
