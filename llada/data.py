"""From rows of text to batches: loading, tokenization with example ids, packing, collation.

Columns in (TRL's names)      -> rows out
  text                        -> packed documents: every token scored           (pretraining)
  prompt, completion          -> prompt clean, response scored                  (SFT; text or messages)
  messages                    -> one such row for each assistant turn           (SFT; LLaDA, App. B.1)

A row out holds `input_ids`, `length`, `prompt_length` (0 for a document), `example_id` (a 64-bit hash of its tokens and
the key of its masks: it survives filtering, shuffling, streaming and caching), `row` (where it came from, for messages)
and `text_bytes` (UTF-8 bytes of the scored text, for bits per byte).
"""

import hashlib
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llada.tokenizer import encode_pair, texts_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
NAMED_ROWS = 10  # an error about many rows names this many of them


class DataError(ValueError):
    """A row that cannot be trained on; the message names source, row and column."""


def load_rows(
    source: str, name: str | None = None, split: str = "train", streaming: bool = False
) -> "Dataset | IterableDataset":
    """Load a local file (.jsonl, .json, .parquet, .csv, or .txt as one document) or a dataset of the hub.

    Raises:
        FileNotFoundError: `source` looks like a file and does not exist.
    """
    from datasets import load_dataset

    path = Path(source)
    if path.suffix not in LOADERS:
        return load_dataset(source, name, split=split, streaming=streaming)
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {source}")
    loader = LOADERS[path.suffix]
    options = {"sample_by": "document"} if loader == "text" else {}
    return load_dataset(loader, data_files=str(path), split="train", streaming=streaming, **options)


def example_id(input_ids: list[int], prompt_length: int) -> int:
    """Signed 64-bit hash of a tokenized row."""
    content = array("q", [prompt_length, *input_ids]).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def is_prepared(dataset: "Dataset | IterableDataset") -> bool:
    """Whether the dataset holds rows out (as `prepare_rows` returns them) rather than text."""
    return "example_id" in (dataset.column_names or next(iter(dataset)))


def prepare_rows(
    dataset: "Dataset | IterableDataset",
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    eos_tail: int | str = 1,
    drop_overlong: bool = False,
    source: str = "dataset",
) -> "Dataset | IterableDataset":
    """Tokenize a dataset for pretraining or SFT, according to its columns.

    Args:
        max_length: tokens in a packed row, or the most that prompt, response and EOS tail may have.
        eos_tail: EOS tokens that the collator will append ("batch": at least one), counted against `max_length`.
        drop_overlong: leave out over-long rows (with a warning that counts them) instead of refusing them. They are
            never cut: a cut response has no end.
        source: what messages call the dataset, such as its file.

    Raises:
        DataError: columns missing, an empty prompt, completion or text, rows over `max_length`. A streamed dataset is
            checked as it is read.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    if {"prompt", "completion"} <= set(columns):
        rows_out = _PairRows(tokenizer, source)
    elif "messages" in columns:
        rows_out = _DialogueRows(tokenizer, source)
    elif "text" in columns:
        packed = _PackedRows(tokenizer, source, max_length)
        return dataset.map(packed, batched=True, with_indices=True, remove_columns=columns)
    else:
        raise DataError(
            f"{source}: columns are {sorted(columns)}; needed are 'prompt' and 'completion', or 'messages', or 'text'"
        )
    tail = 1 if eos_tail == "batch" else int(eos_tail)
    dataset = dataset.map(rows_out, batched=True, with_indices=True, remove_columns=columns)
    if hasattr(dataset, "__len__"):
        return _without_overlong(dataset, max_length - tail, tail, drop_overlong, source)
    return dataset.filter(_StreamFilter(max_length - tail, tail, drop_overlong, source))


def _overlong_message(source: str, rows: list[int], room: int, tail: int) -> str:
    names = ", ".join(map(str, rows[:NAMED_ROWS])) + (", ..." if len(rows) > NAMED_ROWS else "")
    return (
        f"{source}: {len(rows)} rows are longer than {room} tokens "
        f"(max_length={room + tail} less an EOS tail of {tail}): rows {names} (counted from 0)"
    )


def _without_overlong(dataset, room: int, tail: int, drop_overlong: bool, source: str):
    lengths = dataset["length"]
    overlong = [index for index, length in enumerate(lengths) if length > room]
    if not overlong:
        return dataset
    rows = dataset["row"]
    message = _overlong_message(source, [rows[index] for index in overlong], room, tail)
    if not drop_overlong:
        raise DataError(f"{message}. Raise max_length, or set drop_overlong to leave them out")
    logger.warning("%s: dropped, %d of %d remain", message, len(lengths) - len(overlong), len(lengths))
    if len(overlong) == len(lengths):
        raise DataError(f"{message}: nothing is left to train on")
    return dataset.select([index for index, length in enumerate(lengths) if length <= room])


@dataclass
class _StreamFilter:
    room: int
    tail: int
    drop_overlong: bool
    source: str

    def __call__(self, row: dict[str, Any]) -> bool:
        if len(row["input_ids"]) <= self.room:
            return True
        message = _overlong_message(self.source, [row["row"]], self.room, self.tail)
        if not self.drop_overlong:
            raise DataError(f"{message}. Raise max_length, or set drop_overlong to leave them out")
        logger.warning("%s: dropped", message)
        return False


def _columns_of(rows: Iterator[tuple[int, list[int], int, int]]) -> dict[str, list]:
    """(row, input_ids, prompt_length, text_bytes) -> the columns of the rows out."""
    out: dict[str, list] = {
        key: [] for key in ("input_ids", "length", "prompt_length", "example_id", "row", "text_bytes")
    }
    for row, input_ids, prompt_length, text_bytes in rows:
        out["input_ids"].append(input_ids)
        out["length"].append(len(input_ids))
        out["prompt_length"].append(prompt_length)
        out["example_id"].append(example_id(input_ids, prompt_length))
        out["row"].append(row)
        out["text_bytes"].append(text_bytes)
    return out


@dataclass
class _PairRows:
    tokenizer: PreTrainedTokenizerBase
    source: str

    def __call__(self, batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        return _columns_of(self._rows(batch, rows))

    def _rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[tuple[int, list[int], int, int]]:
        for row, prompt, completion in zip(rows, batch["prompt"], batch["completion"], strict=True):
            yield self.encode(row, prompt, completion)

    def encode(self, row: int, prompt, completion) -> tuple[int, list[int], int, int]:
        for column, value in (("prompt", prompt), ("completion", completion)):
            if value is None:
                raise DataError(f"{self.source}, row {row} (counted from 0), column '{column}': the value is missing")
        try:
            prompt_ids, response_ids = encode_pair(self.tokenizer, prompt, completion)
        except ValueError as error:
            column = "prompt" if "prompt is empty" in str(error) else "completion"
            raise DataError(f"{self.source}, row {row} (counted from 0), column '{column}': {error}") from error
        text_bytes = sum(len(text.encode()) for text in texts_of(completion))
        return row, prompt_ids + response_ids, len(prompt_ids), text_bytes


class _DialogueRows(_PairRows):
    def _rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[tuple[int, list[int], int, int]]:
        for row, messages in zip(rows, batch["messages"], strict=True):
            turns = [turn for turn, message in enumerate(messages or []) if message["role"] == "assistant"]
            if not turns:
                raise DataError(
                    f"{self.source}, row {row} (counted from 0), column 'messages': there is no assistant turn"
                )
            for turn in turns:
                yield self.encode(row, messages[:turn], messages[turn : turn + 1])


@dataclass
class _PackedRows:
    """Documents, each ended by EOS, concatenated and cut into rows of `length`; the last row of a batch is shorter."""

    tokenizer: PreTrainedTokenizerBase
    source: str
    length: int

    def __call__(self, batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        stream: list[int] = []
        for row, text in zip(rows, batch["text"], strict=True):
            if not text:
                raise DataError(f"{self.source}, row {row} (counted from 0), column 'text': the document is empty")
            stream += [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        pieces = [stream[start : start + self.length] for start in range(0, len(stream), self.length)]
        texts = self.tokenizer.batch_decode(pieces, skip_special_tokens=True)
        return _columns_of((rows[0], piece, 0, len(text.encode())) for piece, text in zip(pieces, texts, strict=True))


@dataclass(frozen=True)
class Collator:
    """Rows -> a batch, padded on the right.

    eos_tail: EOS tokens appended to each response as content, masked and scored like any token: a number, or "batch"
        (LLaDA's SFT: every response is filled to the longest row of the batch, and by one at least). A document
        (prompt_length 0) has its EOS already and gets no tail. Padding is not content: it is neither attended to nor
        scored.

    Returns a dict of input_ids [B, L], attention_mask [B, L], scored [B, L] bool, example_id [B], row [B] and
    text_bytes [B].
    """

    pad_id: int
    eos_id: int
    eos_tail: int | str = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        lengths = [row["length"] for row in rows]
        if self.eos_tail == "batch":
            ends = [max(lengths) + 1] * len(rows)
        else:
            ends = [length + int(self.eos_tail) for length in lengths]
        ends = [end if row["prompt_length"] else row["length"] for end, row in zip(ends, rows, strict=True)]
        input_ids = torch.full((len(rows), max(ends)), self.pad_id)
        for index, row in enumerate(rows):
            input_ids[index, : ends[index]] = self.eos_id
            input_ids[index, : lengths[index]] = torch.tensor(row["input_ids"])
        position_L, end_B = torch.arange(max(ends)), torch.tensor(ends)
        prompt_B = torch.tensor([row["prompt_length"] for row in rows])
        real = position_L < end_B[:, None]
        return {
            "input_ids": input_ids,
            "attention_mask": real.long(),
            "scored": real & (position_L >= prompt_B[:, None]),
            **{key: torch.tensor([row[key] for row in rows]) for key in ("example_id", "row", "text_bytes")},
        }
