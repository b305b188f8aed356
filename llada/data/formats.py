"""Dataset formats of pretraining and SFT: tokenization with example ids, and packing of documents.

Input columns (TRL's names)   -> output rows
  text                        -> packed documents, every token scored           (pretraining)
  prompt, completion          -> prompt never masked, response scored           (SFT; text or messages)
  messages                    -> prompt and response of each assistant turn     (SFT; LLaDA, App. B.1)

An output row has `input_ids`, `length`, `prompt_length` (0 for a document), `example_id` (a 64-bit hash of its tokens,
from which its masks are seeded; filtering, shuffling, streaming and caching do not change it), `row` (the index of its
input row, for error messages) and `text_bytes` (UTF-8 bytes of the scored text, for bits per byte).
"""

import hashlib
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llada.data.loading import column_names
from llada.data.tokenizer import SpecialIds, encode_pair, texts_of
from llada.errors import DataError, PairError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)
NAMED_ROWS = 10  # an error about many rows lists at most this many of them


# `datasets` caches tokenized rows by a hash of the arguments, not of this code: increase it when output rows change.
ROWS_VERSION = 1


def example_id(input_ids: list[int], prompt_length: int) -> int:
    """Signed 64-bit hash of a tokenized row and its prompt length."""
    content = array("q", [prompt_length, *input_ids]).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def prepare_rows(
    dataset: "Dataset | IterableDataset",
    tokenizer: PreTrainedTokenizerBase,
    ids: SpecialIds,
    max_length: int,
    eos_tail: int | str = 1,
    drop_overlong: bool = False,
    source: str = "dataset",
) -> "Dataset | IterableDataset":
    """Tokenize a dataset for pretraining or SFT; its columns decide which (see the module docstring).

    Args:
        ids: special ids (`llada.data.tokenizer.special_ids`).
        max_length: tokens of a packed row, or the maximum for prompt, response and EOS tail together.
        eos_tail: EOS tokens that the collator will append ("batch": at least one), counted against `max_length`.
        drop_overlong: drop rows over `max_length` with a warning instead of raising. Rows are never truncated, because
            a truncated response has no end.
        source: the dataset's name in messages, such as its file.

    Raises:
        DataError: columns are missing, a prompt, completion or text is empty or malformed, a text contains the mask
            token, or rows are over `max_length`. A streamed dataset is checked while it is read.
    """
    columns = column_names(dataset)
    if {"prompt", "completion"} <= set(columns):
        rows_out: _RowsOut = _PairRows(tokenizer, ids, source)
    elif "messages" in columns:
        rows_out = _DialogueRows(tokenizer, ids, source)
    elif "text" in columns:
        rows_out = _PackedRows(tokenizer, ids, source, max_length)
    else:
        raise DataError(
            f"{source}: columns are {sorted(columns)}; needed are 'prompt' and 'completion', or 'messages', or 'text'"
        )
    dataset = dataset.map(rows_out, batched=True, with_indices=True, remove_columns=columns)
    if isinstance(rows_out, _PackedRows):
        return dataset
    return keep_fitting(dataset, max_length, 1 if eos_tail == "batch" else int(eos_tail), drop_overlong, source)


def name_rows(rows: list[int], count: int) -> str:
    """List the first of `count` rows for a message."""
    return f"rows {', '.join(map(str, rows[:NAMED_ROWS]))}{', ...' if count > NAMED_ROWS else ''} (counted from 0)"


def keep_fitting(dataset, max_length: int, tail: int, drop_overlong: bool, source: str):
    """The rows whose `length` and EOS tail fit `max_length`; the others raise, or are dropped with a warning.

    Raises:
        DataError: there are over-long rows and `drop_overlong` is off, or no row is left.
    """
    room = max_length - tail

    def report(count: int, rows: list[int]) -> str:
        what = f"{count} rows are longer than {room} tokens (max_length={max_length} less an EOS tail of {tail})"
        message = f"{source}: {what}: {name_rows(rows, count)}"
        if not drop_overlong:
            raise DataError(f"{message}. Raise max_length, or set drop_overlong to leave them out")
        return message

    if not hasattr(dataset, "__len__"):

        def fits(row: dict[str, Any]) -> bool:
            if row["length"] > room:
                logger.warning("%s: dropped", report(1, [row["row"]]))
            return row["length"] <= room

        return dataset.filter(fits)
    lengths = np.array(dataset["length"])
    overlong = np.flatnonzero(lengths > room)
    if not len(overlong):
        return dataset
    message = report(len(overlong), dataset.select(overlong[:NAMED_ROWS])["row"])
    if len(overlong) == len(lengths):
        raise DataError(f"{message}: nothing is left to train on")
    logger.warning("%s: dropped, %d of %d remain", message, len(lengths) - len(overlong), len(lengths))
    return dataset.select(np.flatnonzero(lengths <= room))


RowOut = tuple[int, list[int], int, int]  # row, input_ids, prompt_length, text_bytes


@dataclass
class _RowsOut:
    """Maps a batch of input rows to the columns of output rows; subclasses define `rows`."""

    tokenizer: PreTrainedTokenizerBase
    ids: SpecialIds
    source: str

    def __post_init__(self):
        self.version = ROWS_VERSION

    def __call__(self, batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        out: dict[str, list] = {
            key: [] for key in ("input_ids", "length", "prompt_length", "example_id", "row", "text_bytes")
        }
        for row, input_ids, prompt_length, text_bytes in self.rows(batch, rows):
            out["input_ids"].append(input_ids)
            out["length"].append(len(input_ids))
            out["prompt_length"].append(prompt_length)
            out["example_id"].append(example_id(input_ids, prompt_length))
            out["row"].append(row)
            out["text_bytes"].append(text_bytes)
        return out

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        raise NotImplementedError

    def error(self, row: int, column: str, what: object) -> DataError:
        return DataError(f"{self.source}, row {row} (counted from 0), column '{column}': {what}")

    def refuse_mask(self, input_ids: list[int], row: int, column: str) -> None:
        if self.ids.mask in input_ids:
            raise self.error(row, column, f"the text spells the mask token (id {self.ids.mask})")


class _PairRows(_RowsOut):
    columns = {"prompt": "prompt", "completion": "completion"}

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        for row, prompt, completion in zip(rows, batch["prompt"], batch["completion"], strict=True):
            yield self.encode(row, prompt, completion)

    def encode(self, row: int, prompt, completion) -> RowOut:
        try:
            prompt_ids, response_ids = encode_pair(self.tokenizer, prompt, completion)
        except PairError as error:
            raise self.error(row, self.columns[error.part], error) from error
        self.refuse_mask(prompt_ids, row, self.columns["prompt"])
        self.refuse_mask(response_ids, row, self.columns["completion"])
        text_bytes = sum(len(text.encode()) for text in texts_of("completion", completion))
        return row, prompt_ids + response_ids, len(prompt_ids), text_bytes


class _DialogueRows(_PairRows):
    columns = {"prompt": "messages", "completion": "messages"}

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        for row, messages in zip(rows, batch["messages"], strict=True):
            turns = [turn for turn, message in enumerate(messages or []) if message.get("role") == "assistant"]
            if not turns:
                raise self.error(row, "messages", "there is no assistant turn")
            for turn in turns:
                yield self.encode(row, messages[:turn], messages[turn : turn + 1])


@dataclass
class _PackedRows(_RowsOut):
    """Concatenate documents, each followed by EOS, and cut them to rows of `length`; a batch's last row is shorter."""

    length: int

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        stream: list[int] = []
        owner: list[int] = []  # the document to which each token belongs
        text_bytes: list[int] = []
        for row, text in zip(rows, batch["text"], strict=True):
            if not text:
                raise self.error(row, "text", "the document is empty")
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            self.refuse_mask(encoded.input_ids, row, "text")
            stream += [*encoded.input_ids, self.ids.eos]
            owner += [row] * (len(encoded.input_ids) + 1)
            text_bytes += [*token_bytes(text, encoded.offset_mapping), 0]
        for start in range(0, len(stream), self.length):
            piece = slice(start, start + self.length)
            yield owner[start], stream[piece], 0, sum(text_bytes[piece])


def token_bytes(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """The number of UTF-8 bytes that each token covers; the sum is that of the whole text.

    offsets: character spans. If several tokens share one character (byte-level tokenizers), the first counts its bytes.
    """
    code = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    before = np.concatenate([[0], np.cumsum(1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF))])
    end = np.maximum.accumulate(before[[stop for _, stop in offsets]])
    return np.diff(end, prepend=0).tolist()
