"""What a data file holds: its format, the rows that cannot be trained on, and the lengths of the others in tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llada.cli.checkpoint import load_config
from llada.data.encoding import encode_prompt
from llada.data.flaws import Filter, Report, Room
from llada.data.formats import map_rows, row_kind, tokenize_rows
from llada.data.loading import check_columns, load_rows
from llada.data.rows import RowForm
from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.errors import DataError, PairError
from llada.training.inputs import row_length
from vrpo.data import tokenize_pairs

EOS_TAIL = 1  # the trainers' default
FORMATS = (
    "'prompt', 'chosen' and 'rejected' (preference pairs), or 'prompt' and 'completion', 'messages', 'conversations', "
    "'text' or 'input_ids' (pretraining and SFT), or 'prompt' alone or with 'answer' (prompts to be answered)"
)
PROMPT_TYPES: dict[str, Any] = {"length": "int64", "prompt_length": "int64", "row": "int64"}
PERCENTILES = {"median": 50, "90%": 90, "99%": 99, "longest": 100}


@dataclass
class CheckedRows:
    """What `check` found; as text it is the report of `vrpo check`.

    kind: what the rows are. report: the flawed rows. remarks: rows that are trained on, with what a user should know of
    them. model: whose tokens are counted, None for bytes. lengths: tokens of each part of the rows that could be
    tokenized. longest: tokens of the longest row and its EOS; 0 without rows.
    """

    kind: str
    report: Report
    remarks: Report
    model: str | None
    lengths: dict[str, np.ndarray]
    longest: int

    def __str__(self) -> str:
        lines = [f"{self.report.source}: {self.report.total} rows, {self.kind}"]
        lines += [str(self.report)] if self.report.rows else []
        lines += self.remarks.kinds
        if not self.longest:
            advice = "Remove them" if self.kind == "prompts" else self.report.advice
            return "\n".join([*lines, f"Recommendation: {advice}"])
        tokenizer = f"of {self.model}" if self.model else "one for each byte, because no --model is given"
        lines += [f"Tokens ({tokenizer}):", " " * 12 + "".join(f"{name:>10}" for name in PERCENTILES)]
        for part, lengths_N in self.lengths.items():
            values = np.percentile(lengths_N, list(PERCENTILES.values()), method="higher")
            lines.append(f"  {part:10}" + "".join(f"{value:10}" for value in values))
        return "\n".join([*lines, f"Recommendation: {self.recommendation}"])

    @property
    def recommendation(self) -> str:
        """One line on what to do."""
        if self.kind == "prompts":
            return (
                f"{'Remove these rows. ' if self.report.rows else ''}`llada generate` answers the prompts, "
                f"`vrpo make-pairs` makes preference pairs of them; the longest has {self.longest} tokens, and the "
                "model's context must hold gen_length more. Training needs further columns: 'completion', or 'chosen' "
                "and 'rejected'"
            )
        advice = self.report.advice if self.report.rows else "Train on them as they are"
        if self.kind == "documents":
            return advice
        return f"{advice}. The longest row needs max_length={self.longest}, an EOS included"


def check(
    source: str, model: str | None = None, max_length: int | None = None, allow_special_tokens: bool = False
) -> CheckedRows:
    """Tokenize a file's rows as the trainers do and say which cannot be trained on.

    Args:
        model: a model whose tokenizer and context count; None counts bytes.
        max_length: tokens of a row, an EOS tail of one included; None is the model's context, or without a limit.
        allow_special_tokens: as in training, plain text may spell special tokens.

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
    kind, tail = kind_of(columns, source), EOS_TAIL
    if kind == "preference pairs":
        parts, tokenized = (
            ["prompt", "chosen", "rejected"],
            tokenize_pairs(rows, tokenizer, ids, source, allow_special_tokens=allow_special_tokens),
        )
    elif kind == "prompts":
        parts, tail = ["prompt"], 0
        tokenized = map_rows(rows, PromptsOut(tokenizer, ids.mask, allow_special_tokens), PROMPT_TYPES, columns, None)
    else:
        parts, tokenized = (
            ["prompt", "completion"],
            tokenize_rows(rows, tokenizer, ids, source, RowForm(allow_special_tokens=allow_special_tokens)),
        )
    if kind == "text":
        kind, parts, limit = "documents", ["text"], None
    if kind == "input_ids":  # taken as they are
        kind, parts, tail = "tokenized rows", ["input_ids"], 0
    room = None if limit is None else Room(limit, tail)
    report, _, remarks = Filter(source, room, total=len(rows)).find(tokenized)
    report.use = "answered" if kind == "prompts" else report.use
    lengths = part_lengths(tokenized, parts)
    longest = max((row["length"] for row in tokenized.select_columns("length")), default=0)
    return CheckedRows(kind, report, remarks, model, lengths, longest + tail if longest else 0)


def kind_of(columns: list[str], source: str) -> str:
    """What rows with these columns are: "preference pairs", a kind of `row_kind`, or "prompts".

    Raises:
        DataError: they are none of these.
    """
    if {"chosen", "rejected"} <= set(columns):
        return "preference pairs"
    try:
        return row_kind(columns, source)
    except DataError:
        one_side = {"chosen", "rejected"} & set(columns)
        if "prompt" in columns and not one_side:
            return "prompts"
        missing = f" {({'chosen', 'rejected'} - one_side).pop()!r} is missing;" if one_side else ""
        raise DataError(f"{source}: columns are {sorted(columns)};{missing} needed are {FORMATS}") from None


@dataclass
class PromptsOut:
    """Tokenizes a prompt (text or messages) as in sampling; what is wrong with it is in the columns of flaws."""

    tokenizer: PreTrainedTokenizerBase
    mask_id: int
    allow_special_tokens: bool

    def __call__(self, example: dict[str, Any], row: int) -> dict[str, Any]:
        length, flaw, detail = 0, "", ""
        try:
            length = len(encode_prompt(self.tokenizer, example["prompt"], self.mask_id, self.allow_special_tokens))
        except PairError as error:
            flaw, detail = error.flaw.format(part="'prompt'"), error.detail
        return {
            "length": length,
            "prompt_length": length,
            "row": row,
            "flaw": flaw,
            "flaw_detail": detail,
            "remark": "",
        }


def part_lengths(tokenized, parts: list[str]) -> dict[str, np.ndarray]:
    """Tokens of each part of the rows that could be tokenized, an array [rows] for each."""
    lengths: dict[str, list[int]] = {part: [] for part in parts}
    for row in tokenized:
        if row["flaw"]:
            continue
        if "chosen" in parts:
            values = [len(row[f"{part}_ids"]) for part in parts]
        elif "completion" in parts:
            values = [row["prompt_length"], row["length"] - row["prompt_length"]]
        else:
            values = [row["length"]]
        for part, value in zip(parts, values, strict=True):
            lengths[part].append(value)
    return {part: np.array(values, dtype=int) for part, values in lengths.items()}
