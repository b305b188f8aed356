"""Align a LLaDA with preference pairs (VRPO; LLaDA 1.5, arXiv 2505.19223).

accelerate launch recipes/align.py --config recipes/tiny_vrpo.yaml
"""

from trl import ModelConfig

from llada.cli import train
from llada.cli.loading import RecipeArguments
from vrpo import VRPOConfig, VRPOTrainer

ARGUMENTS = (RecipeArguments, ModelConfig, VRPOConfig)
COLUMNS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))


def main(argv: list[str] | None = None) -> None:
    train.main(VRPOTrainer, ARGUMENTS, COLUMNS, argv)


if __name__ == "__main__":
    main()
