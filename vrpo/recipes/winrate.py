"""How often a model's answers are preferred to another model's, with a 95% interval.

    llada generate --model A --prompts FILE.jsonl --output a.jsonl
    llada generate --model B --prompts FILE.jsonl --output b.jsonl
    vrpo winrate --completions a.jsonl --baseline b.jsonl --reward FILE.py:function

`reward` is any `function(row, answer) -> number`; `judge` is a class with the interface of TRL's pairwise judges, which
prefers one of two answers, as in `vrpo iterate`. A judge is asked twice about each pair, with the answers in both
orders, because judges favour a place; to be preferred once and not the second time is a tie. A tie counts as half a
win.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from llada.checks import NOT_EMPTY, check_fields
from llada.cli.recipe import RecipeParser, parse
from llada.data.loading import column_names, load_rows
from llada.errors import RecipeError
from llada.files import replace_file
from llada.intervals import proportion
from vrpo.rollouts import Scorer, load_judge, load_reward


@dataclass
class Arguments:
    completions: Annotated[str, NOT_EMPTY] = field(
        default="", metadata={"help": "JSONL file with prompt and completion of the model in question (generate.py)."}
    )
    baseline: Annotated[str, NOT_EMPTY] = field(
        default="",
        metadata={"help": "The same for the model that it is compared with: the same prompts in the same order."},
    )
    reward: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "FILE.py:function, which gets the whole row and an answer; larger is better."}
    )
    judge: Annotated[str, NOT_EMPTY] | None = field(
        default=None,
        metadata={"help": "In place of reward: FILE.py:Class, with the interface of TRL's BasePairwiseJudge."},
    )
    output: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "JSON file for the result and the score of each row; replaced if it is there."}
    )

    def __post_init__(self):
        check_fields(self)


def load_completions(option: str, path: str) -> list[dict[str, Any]]:
    """The rows of a file of completions.

    Raises:
        RecipeError: it lacks a column, or a completion is no text; the message names option, file and row.
    """
    rows = load_rows(path)
    if absent := {"prompt", "completion"} - set(column_names(rows)):
        raise RecipeError(
            f"{option}={path}: columns are {sorted(column_names(rows))}; missing: {', '.join(sorted(absent))}"
        )
    rows = list(rows)
    for index, row in enumerate(rows):
        if not isinstance(row["completion"], str):
            raise RecipeError(f"{option}={path}: row {index} (counted from 0) has no text in 'completion'")
    return rows


def check_prompts(args: Arguments, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    """Raise RecipeError unless two files answer the same prompts in the same order."""
    if len(ours) != len(theirs):
        raise RecipeError(f"{args.completions} has {len(ours)} rows and {args.baseline} has {len(theirs)}")
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a["prompt"] != b["prompt"]:
            raise RecipeError(
                f"row {index} (counted from 0) of {args.completions} and {args.baseline} have different prompts: "
                f"{a['prompt']!r:.80} and {b['prompt']!r:.80}"
            )


def sign(score: Scorer, rows: list[dict[str, Any]], answers: list[list[str]]) -> list[int]:
    """1, 0 or -1 for each row: whether the first of two answers is better, as good, or worse."""
    return [(first > second) - (first < second) for first, second in score(rows, answers)]


def wins_by_reward(score: Scorer, rows: list[dict[str, Any]], pairs: list[list[str]]) -> list[float]:
    """1, 1/2 or 0 for each row: whether the first answer has the larger reward, the same, or the smaller."""
    return [(1 + each) / 2 for each in sign(score, rows, pairs)]


def wins_by_judge(score: Scorer, rows: list[dict[str, Any]], pairs: list[list[str]]) -> list[float]:
    """1, 1/2 or 0 for each row: whether the judge prefers the first answer in both orders, or the second in both.

    An empty answer is not shown to a judge: it loses to any other, and ties with another one.
    """
    forth = sign(score, rows, pairs)
    back = sign(score, rows, [pair[::-1] for pair in pairs])
    filled = [(bool(a.strip()), bool(b.strip())) for a, b in pairs]
    by_judge = [(1 + a) / 2 if a == -b else 0.5 for a, b in zip(forth, back, strict=True)]
    return [won if a and b else (1 + a - b) / 2 for won, (a, b) in zip(by_judge, filled, strict=True)]


def parser() -> RecipeParser:
    """The parser of all options."""
    return RecipeParser((Arguments,), __doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command: compare the two files and print the win rate."""
    (args,) = parse((Arguments,), argv, __doc__)
    if (args.reward is None) == (args.judge is None):
        raise RecipeError("give either reward (FILE.py:function) or judge (FILE.py:Class)")
    if args.reward is not None:
        score, wins_by = load_reward(args.reward, args.completions), wins_by_reward
    else:
        score, wins_by = load_judge(str(args.judge), args.completions), wins_by_judge
    ours, theirs = (load_completions(name, getattr(args, name)) for name in ("completions", "baseline"))
    check_prompts(args, ours, theirs)
    pairs = [[a["completion"], b["completion"]] for a, b in zip(ours, theirs, strict=True)]
    # The row that a function sees is that of the prompts, without the answer of either side.
    rows = [{name: value for name, value in row.items() if name != "completion"} for row in ours]
    wins = wins_by(score, rows, pairs)
    rate = proportion(wins)
    won, tied, lost = (wins.count(each) for each in (1, 0.5, 0))
    print(
        f"win rate {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] of {args.completions} against {args.baseline}: "
        f"{won} won, {tied} tied, {lost} lost of {len(wins)} prompts, by {args.reward or args.judge}"
    )
    if args.output is not None:
        result = vars(args) | {"win_rate": rate.value, "low": rate.low, "high": rate.high, "wins": wins}
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
