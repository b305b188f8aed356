"""Fine-tune a LLaDA on prompts and responses (SFT; LLaDA, arXiv 2502.09992, Alg. 2).

llada sft --config recipes/tiny_sft.yaml
"""

from trl import ModelConfig

import llada
from llada.cli.arguments import IMPORTING, saying
from llada.cli.recipe import RecipeArguments, RecipeParser, short_help
from llada.training.options import MaskedDiffusionOptions

COLUMNS = (("prompt", "completion"), ("messages",))


def parser() -> RecipeParser:
    """The parser of all options, those of transformers included, for which it imports torch."""
    return RecipeParser((RecipeArguments, ModelConfig, llada.MaskedDiffusionConfig), __doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command: train, and save to output_dir."""
    short_help(MaskedDiffusionOptions, __doc__, argv)
    with saying(IMPORTING):
        from llada.cli import train
        from llada.recipes.page import write_page

        trainer, config = llada.MaskedDiffusionTrainer, llada.MaskedDiffusionConfig
    train.main(trainer, config, COLUMNS, argv, write_page)
