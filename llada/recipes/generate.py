"""Write a completion for every prompt, on one process or several; a killed run resumes where it stopped.

    llada generate --model runs/tiny_sft --prompts FILE.jsonl --output completions.jsonl

FILE has a `prompt` column (text or messages). Rows keep their columns and get `completion`. Options set the fields of
`llada.SamplerSettings` by name; the other fields come from `--preset` (`llada.preset`) or, without one, from the
settings saved with the model. A completion ends before the first EOS or, from a model that was trained on turns, the
first end of a turn; one that is empty is kept, and its row is reported. SIGTERM and Ctrl-C keep what has been sampled.
"""

from llada.cli.arguments import IMPORTING, CompletionArguments, SamplerOptions, saying
from llada.cli.recipe import RecipeParser, parse
from llada.errors import RecipeError

OPTIONS = (CompletionArguments, SamplerOptions)


def parser() -> RecipeParser:
    """The parser of all options."""
    return RecipeParser(OPTIONS, __doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command: sample a completion for every prompt and write the file."""
    args, options = parse(OPTIONS, argv, __doc__)
    with saying(IMPORTING):  # after parsing: they load torch
        from llada.cli.completions import Completions
        from llada.training.distributed import check_launcher

    check_launcher()
    run = Completions(args, options)
    if "completion" in run.rows[0]:
        raise RecipeError(f"{args.prompts} has a column 'completion' already, which would be replaced: rename it")
    found = run.make()
    if found is not None:
        run.files.finish(row | {"completion": text} for row, (text,) in zip(run.rows, found, strict=True))
        print(f"{len(found)} completions in {args.output}")
    run.state.destroy_process_group()
