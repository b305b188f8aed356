"""Fine-tune a LLaDA on prompts and responses (SFT; LLaDA, arXiv 2502.09992, Alg. 2).

accelerate launch recipes/sft.py --config recipes/tiny_sft.yaml
"""

from trl import ModelConfig

from llada import launch
from llada.inputs import RecipeArguments
from llada.trainer import MaskedDiffusionConfig, MaskedDiffusionTrainer

ARGUMENTS = (RecipeArguments, ModelConfig, MaskedDiffusionConfig)
COLUMNS = (("prompt", "completion"), ("messages",))


def main(argv: list[str] | None = None) -> None:
    launch.main(MaskedDiffusionTrainer, ARGUMENTS, COLUMNS, argv)


if __name__ == "__main__":
    main()
