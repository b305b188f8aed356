"""Sample answers from a model, check them, and write right and wrong ones as preference pairs.

    vrpo make-pairs --model runs/tiny_sft --prompts FILE.jsonl --output pairs.jsonl

FILE has a `prompt` column (text or messages) and what the verifier needs: `same_as_answer` and `same_last_number`
compare a sampled answer with the column `answer` of its row; `FILE.py:function` is any `function(row, answer) -> bool`.
The command samples as `llada generate` does (several processes, a killed run resumes), at temperature 1 by default.
Without a single pair it fails and writes no file.
"""

from dataclasses import dataclass, field
from typing import Any

from llada.cli.arguments import IMPORTING, CompletionArguments, SamplerOptions, saying
from llada.cli.recipe import RecipeParser, parse
from llada.errors import RecipeError
from llada.evaluation import VERIFIERS, load_verifier
from vrpo.rollouts import DIVERSE, pair_up


@dataclass
class Arguments(CompletionArguments):
    verifier: str = field(
        default="same_as_answer",
        metadata={
            "help": f"{' or '.join(sorted(VERIFIERS))}, which compare with the column 'answer' of the prompts, or "
            "FILE.py:function, which gets the whole row and the sampled answer."
        },
    )
    samples: int = field(default=4, metadata={"help": "Answers to each prompt."})
    pairs_per_prompt: int = field(default=1, metadata={"help": "Maximum number of pairs for each prompt."})


def check_reference_answers(args: Arguments, rows: list[dict[str, Any]]) -> None:
    """Raise RecipeError if a row lacks the answer with which one of the package's verifiers compares."""
    if args.verifier not in VERIFIERS:
        return
    if "answer" not in rows[0]:
        raise RecipeError(f"{args.prompts}: columns are {sorted(rows[0])}; verifier={args.verifier} needs 'answer'")
    for index, row in enumerate(rows):
        try:
            VERIFIERS[args.verifier](row, "")
        except ValueError as error:
            raise RecipeError(f"{args.prompts}: row {index} (counted from 0) {error}") from error


def no_pairs(args: Arguments, right: int, total: int) -> str:
    """The message for answers of which no right and wrong one to the same prompt could be paired.

    Args:
        right: the number of right answers among all `total` ones.
    """
    return (
        f"no pairs: {right} of {total} answers are right by {args.verifier}, and a pair needs a right and a wrong one, "
        f"both not empty, to the same prompt. {args.output} is not written. The answers are kept beside it: the same "
        "command with another --verifier checks them again. For more --samples, a higher --temperature or another "
        "--model, add --overwrite true"
    )


def parser() -> RecipeParser:
    """The parser of all options."""
    return RecipeParser((Arguments, SamplerOptions), __doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command: sample answers, check them and write the pairs."""
    args, options = parse((Arguments, SamplerOptions), argv, __doc__)
    verify = load_verifier(args.verifier)
    if args.samples < 2 or args.pairs_per_prompt < 1:
        raise RecipeError(
            f"samples={args.samples} must be at least 2, since a pair needs two answers, and pairs_per_prompt="
            f"{args.pairs_per_prompt} at least 1"
        )
    with saying(IMPORTING):  # after parsing: they load torch
        from llada.cli.completions import Completions
        from llada.training.distributed import check_launcher

    check_launcher()
    run = Completions(args, options, args.samples, **DIVERSE)
    check_reference_answers(args, run.rows)
    found = run.make()
    if found is not None:
        right = sum(verify(row, text) for row, texts in zip(run.rows, found, strict=True) for text in texts)
        by_row = [
            pair_up(row, texts, verify, args.pairs_per_prompt) for row, texts in zip(run.rows, found, strict=True)
        ]
        pairs = [pair for pairs in by_row for pair in pairs]
        if not pairs:
            raise RecipeError(no_pairs(args, right, len(by_row) * args.samples))
        run.files.finish(pairs)
        print(
            f"{len(pairs)} pairs from {sum(map(bool, by_row))} of {len(by_row)} prompts; "
            f"{right / (len(by_row) * args.samples):.1%} of answers right"
        )
    run.state.destroy_process_group()
