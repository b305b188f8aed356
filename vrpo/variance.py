"""The variance table of a checkpoint: variance of its scores, losses and gradients caused by mask sampling.

    vrpo variance --model POLICY --ref_model REFERENCE --data PAIRS.jsonl

`vrpo.analysis.table` describes the measurement, `vrpo.analysis.noise_split` how much of a gradient's noise comes from
masks, and `vrpo.analysis.suggestion` which design and n follow. The command writes variance.json, .csv and .png.
"""

from llada.cli import failure
from llada.cli.arguments import IMPORTING, saying
from llada.cli.recipe import RecipeParser, parse
from vrpo.analysis.settings import TableArguments


def parser() -> RecipeParser:
    """The parser of all options."""
    return RecipeParser((TableArguments,), __doc__)


def main(argv: list[str] | None = None) -> None:
    """Measure the models and pairs that the command line names, write the table and print it.

    Raises:
        ValueError: a setting that is missing or out of range, or a cause that `vrpo.analysis.run.run` lists.
    """
    (args,) = parse((TableArguments,), argv, __doc__)
    with saying(IMPORTING):
        from vrpo.analysis.run import run  # imported after parsing

    run(args)


if __name__ == "__main__":
    failure.run(main)
