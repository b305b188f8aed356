"""Align a LLaDA with preference pairs (VRPO; LLaDA 1.5, arXiv 2505.19223).

vrpo align --config recipes/tiny_vrpo.yaml
"""

from trl import ModelConfig

import vrpo
from llada.cli.arguments import IMPORTING, saying
from llada.cli.recipe import RecipeArguments, RecipeParser, short_help
from vrpo.training.options import VRPOOptions

COLUMNS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))


def parser() -> RecipeParser:
    """The parser of all options, those of transformers included, for which it imports torch."""
    return RecipeParser((RecipeArguments, ModelConfig, vrpo.VRPOConfig), __doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command: train, and save to output_dir."""
    short_help(VRPOOptions, __doc__, argv)
    with saying(IMPORTING):
        from llada.cli import train
        from vrpo.report import write_page

        trainer, config = vrpo.VRPOTrainer, vrpo.VRPOConfig
    train.main(trainer, config, COLUMNS, argv, write_page)
