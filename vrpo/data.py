"""Preference rows in TRL's formats -> tokenized pairs -> batches, whose `example_id` seeds their masks.

Columns in: `prompt`, `chosen`, `rejected`, as text or as messages; or `chosen` and `rejected` alone, whose common
beginning is the prompt (TRL's implicit prompt). Rows out: `chosen_ids` and `rejected_ids` (prompt and response),
`prompt_length`, `length` (the longer side), `example_id` (a 64-bit hash of the tokens) and `row`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from llada.data.formats import ROWS_VERSION, example_id, keep_fitting, name_rows
from llada.data.loading import column_names
from llada.data.tokenizer import SpecialIds, encode_pair
from llada.errors import DataError, PairError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def prepare_pairs(
    dataset: "Dataset | IterableDataset",
    tokenizer: PreTrainedTokenizerBase,
    ids: SpecialIds,
    max_length: int,
    eos_tail: int = 1,
    drop_overlong: bool = False,
    allow_identical: bool = False,
    source: str = "dataset",
) -> "Dataset | IterableDataset":
    """Tokenize preference pairs.

    Args:
        ids: special ids (`llada.data.tokenizer.special_ids`).
        max_length: largest number of tokens of prompt, response and EOS tail together, for each side.
        drop_overlong: drop pairs with an over-long side, with a warning that counts them, instead of raising.
        allow_identical: keep pairs whose chosen and rejected tokens are equal (their score is noise around 0).
        source: name of the dataset in messages, such as its file.

    Raises:
        DataError: columns missing, an empty prompt, chosen or rejected, identical sides, a prompt that leaves no room
            or a side over `max_length`. A streamed dataset is checked as it is read.
    """
    columns = column_names(dataset)
    if not {"chosen", "rejected"} <= set(columns):
        raise DataError(f"{source}: columns are {sorted(columns)}; needed are 'prompt', 'chosen' and 'rejected'")
    room = None if drop_overlong else max_length - eos_tail
    dataset = dataset.map(_PairsOut(tokenizer, ids, source, room), with_indices=True, remove_columns=columns)
    if not allow_identical:
        dataset = _refuse_identical(dataset, source)
    return keep_fitting(dataset, max_length, eos_tail, drop_overlong, source)


def _refuse_identical(dataset, source: str):
    def message(rows: list[int]) -> str:
        what = f"{len(rows)} rows have identical 'chosen' and 'rejected'"
        return f"{source}: {what}: {name_rows(rows, len(rows))}. Remove them, or set allow_identical"

    if hasattr(dataset, "__len__"):
        rows = dataset.filter(lambda row: row["chosen_ids"] == row["rejected_ids"])["row"]
        if len(rows):
            raise DataError(message(list(rows)))
        return dataset

    def check(row: dict[str, Any]) -> bool:
        if row["chosen_ids"] == row["rejected_ids"]:
            raise DataError(message([row["row"]]))
        return True

    return dataset.filter(check)


@dataclass
class _PairsOut:
    tokenizer: PreTrainedTokenizerBase
    ids: SpecialIds
    source: str
    room: int | None  # tokens for prompt and response; a prompt that fills them raises (None: no check)

    def __post_init__(self):
        self.version = ROWS_VERSION

    def __call__(self, example: dict[str, Any], row: int) -> dict[str, Any]:
        from trl.data_utils import maybe_extract_prompt

        for column in {"prompt", "chosen", "rejected"} & set(example):
            if example[column] is None:
                raise self.error(row, column, "the value is missing")
        example = maybe_extract_prompt(example)
        sides = {}
        for column in ("chosen", "rejected"):
            try:
                prompt_ids, response_ids = encode_pair(self.tokenizer, example["prompt"], example[column])
            except PairError as error:
                raise self.error(row, "prompt" if error.part == "prompt" else column, error) from error
            for part, ids in (("prompt", prompt_ids), (column, response_ids)):
                if self.ids.mask in ids:
                    raise self.error(row, part, f"the text spells the mask token (id {self.ids.mask})")
            sides[column] = prompt_ids + response_ids
            if self.room is not None and len(prompt_ids) >= self.room:
                what = f"the prompt has {len(prompt_ids)} tokens and leaves no room for a response in {self.room}"
                raise self.error(row, "prompt", what)
        return {
            "chosen_ids": sides["chosen"],
            "rejected_ids": sides["rejected"],
            "prompt_length": len(prompt_ids),
            "length": max(map(len, sides.values())),
            # The hash covers both sides: if it covered one response, pairs that share it would share their draws.
            "example_id": example_id(sides["chosen"] + sides["rejected"], len(sides["chosen"])),
            "row": row,
        }

    def error(self, row: int, column: str, what: object) -> DataError:
        return DataError(f"{self.source}, row {row} (counted from 0), column '{column}': {what}")
