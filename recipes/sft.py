"""Fine-tune a LLaDA on prompts and responses (SFT; LLaDA, arXiv 2502.09992, Alg. 2).

accelerate launch recipes/sft.py --config recipes/tiny_sft.yaml
"""

from trl import ModelConfig

from llada.cli import train
from llada.cli.loading import RecipeArguments
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer

ARGUMENTS = (RecipeArguments, ModelConfig, MaskedDiffusionConfig)
COLUMNS = (("prompt", "completion"), ("messages",))


def main(argv: list[str] | None = None) -> None:
    train.main(MaskedDiffusionTrainer, ARGUMENTS, COLUMNS, argv)


if __name__ == "__main__":
    main()
