"""What a data file holds: its format, the rows that cannot be trained on, and the lengths of the others in tokens."""

from dataclasses import dataclass

import numpy as np

from llada.cli.checkpoint import load_config
from llada.data.flaws import Filter, Report, Room
from llada.data.formats import row_kind, tokenize_rows
from llada.data.loading import check_columns, load_rows
from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.training.inputs import row_length
from vrpo.data import tokenize_pairs

EOS_TAIL = 1  # the trainers' default
PERCENTILES = {"median": 50, "90%": 90, "99%": 99, "longest": 100}


@dataclass
class CheckedRows:
    """What `check` found; as text it is the report of `python -m vrpo.check`.

    kind: what the rows are. report: the flawed rows. model: whose tokens are counted, None for bytes. lengths: tokens
    of each part of the rows that could be tokenized. longest: tokens of the longest row and its EOS; 0 without rows.
    """

    kind: str
    report: Report
    model: str | None
    lengths: dict[str, np.ndarray]
    longest: int

    def __str__(self) -> str:
        lines = [f"{self.report.source}: {self.report.total} rows, {self.kind}"]
        lines += [str(self.report)] if self.report.rows else []
        if not self.longest:
            return "\n".join([*lines, f"Recommendation: {self.report.advice}"])
        tokenizer = f"of {self.model}" if self.model else "one for each byte, because no --model is given"
        lines += [f"Tokens ({tokenizer}):", " " * 12 + "".join(f"{name:>10}" for name in PERCENTILES)]
        for part, lengths_N in self.lengths.items():
            values = np.percentile(lengths_N, list(PERCENTILES.values()), method="higher")
            lines.append(f"  {part:10}" + "".join(f"{value:10}" for value in values))
        return "\n".join([*lines, f"Recommendation: {self.recommendation}"])

    @property
    def recommendation(self) -> str:
        """One line on what to do."""
        advice = self.report.advice if self.report.rows else "Train on them as they are"
        if self.kind == "documents":
            return advice
        return f"{advice}. The longest row needs max_length={self.longest}, an EOS included"


def check(source: str, model: str | None = None, max_length: int | None = None) -> CheckedRows:
    """Tokenize a file's rows as the trainers do and say which cannot be trained on.

    Args:
        model: a model whose tokenizer and context count; None counts bytes.
        max_length: tokens of a row, an EOS tail of one included; None is the model's context, or without a limit.

    Raises:
        FileNotFoundError, ValueError: the file, its columns or the model cannot be used, or `max_length` is over the
            model's context.
    """
    rows = load_rows(source)
    columns = check_columns(rows, source)
    if model is None:
        tokenizer, ids, limit = byte_tokenizer(), special_ids(byte_tokenizer()), max_length
    else:
        tokenizer, config = load_config(model)
        ids, limit = special_ids(tokenizer, config.denoiser_spec), row_length(max_length, config.denoiser_spec.context)
    if {"chosen", "rejected"} <= set(columns):
        kind, parts = "preference pairs", ["prompt", "chosen", "rejected"]
        tokenized = tokenize_pairs(rows, tokenizer, ids, source)
    else:
        kind, parts = row_kind(columns, source), ["prompt", "completion"]
        tokenized = tokenize_rows(rows, tokenizer, ids, source)
    if kind == "text":
        kind, parts, limit = "documents", ["text"], None
    tail = EOS_TAIL
    if kind == "input_ids":  # taken as they are
        kind, parts, tail = "tokenized rows", ["input_ids"], 0
    room = None if limit is None else Room(limit, tail)
    report, _ = Filter(source, room, total=len(rows)).find(tokenized)
    lengths = part_lengths(tokenized, parts)
    longest = max((row["length"] for row in tokenized.select_columns("length")), default=0)
    return CheckedRows(kind, report, model, lengths, longest + tail if longest else 0)


def part_lengths(tokenized, parts: list[str]) -> dict[str, np.ndarray]:
    """Tokens of each part of the rows that could be tokenized, an array [rows] for each."""
    lengths: dict[str, list[int]] = {part: [] for part in parts}
    for row in tokenized.remove_columns("example_id"):
        if row["flaw"]:
            continue
        if "chosen" in parts:
            values = [len(row[f"{part}_ids"]) for part in parts]
        elif "prompt" in parts:
            values = [row["prompt_length"], row["length"] - row["prompt_length"]]
        else:
            values = [row["length"]]
        for part, value in zip(parts, values, strict=True):
            lengths[part].append(value)
    return {part: np.array(values, dtype=int) for part, values in lengths.items()}
