"""Dataset formats of pretraining and SFT: tokenization with example ids, and packing of documents.

Input columns (TRL's names)   -> output rows
  text                        -> packed documents, every token scored           (pretraining)
  prompt, completion          -> prompt never masked, response scored           (SFT; text or messages)
  messages or conversations   -> prompt and response of each assistant turn     (SFT; LLaDA, App. B.1)

The columns `tools` and `chat_template_kwargs` go to the chat template (`llada.data.encoding`). Messages may have the
keys `from` and `value` instead of `role` and `content`.

An output row has `input_ids`, `length`, `prompt_length` (0 for a document), `example_id` (a 64-bit hash of its tokens,
from which its masks are seeded; filtering, shuffling, streaming and caching do not change it), `row` (the index of its
input row, for error messages) and `text_bytes` (UTF-8 bytes of the scored text, for bits per byte).
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llada.data.encoding import (
    EMPTY,
    MALFORMED,
    MISSING,
    SPELLS_MASK,
    TEMPLATE_COLUMNS,
    encode_pair,
    template_options,
    texts_of,
)
from llada.data.flaws import FLAW_COLUMNS, Filter, Room, keep_valid
from llada.data.loading import check_columns
from llada.data.tokenizer import SpecialIds
from llada.errors import DataError, PairError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# `datasets` caches tokenized rows by a hash of the arguments, not of this code: increase it when output rows change.
ROWS_VERSION = 2
ROW_TYPES: dict[str, Any] = {"input_ids": ["int64"], "length": "int64", "prompt_length": "int64"}
ROW_TYPES |= {"example_id": "int64", "row": "int64", "text_bytes": "int64"}
ROW_COLUMNS = frozenset(ROW_TYPES)
NO_ASSISTANT = "have no assistant turn in {part}"


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
    drop_invalid: bool = False,
    num_proc: int | None = None,
    source: str = "dataset",
) -> "Dataset | IterableDataset":
    """Tokenize a dataset for pretraining or SFT; its columns decide which (see the module docstring).

    Args:
        ids: special ids (`llada.data.tokenizer.special_ids`).
        max_length: tokens of a packed row, or the maximum for prompt, response and EOS tail together.
        eos_tail: EOS tokens that the collator will append ("batch": at least one), counted against `max_length`.
        drop_overlong: leave out rows over `max_length` with a warning instead of raising. Rows are never truncated,
            because a truncated response has no end.
        drop_invalid: leave out all rows that cannot be trained on, with a warning that lists them.
        num_proc: processes that tokenize; documents are packed in one, so that their rows do not depend on it.
        source: the dataset's name in messages, such as its file.

    Raises:
        DataError: columns are missing, or rows cannot be trained on: one report lists them all (`llada.data.flaws`).
            A streamed dataset is checked while it is read.
    """
    rows = tokenize_rows(dataset, tokenizer, ids, source, packed_length=max_length, num_proc=num_proc)
    packed = row_kind(check_columns(dataset, source), source) == "text"
    room = None if packed else Room(max_length, 1 if eos_tail == "batch" else int(eos_tail))
    return keep_valid(rows, Filter(source, room, drop_invalid, drop_overlong, row_count(dataset)))


def row_kind(columns: list[str], source: str) -> str:
    """Which columns of a dataset are trained on: "prompt and completion", "messages", "conversations" or "text".

    Raises:
        DataError: none of them is there.
    """
    if {"prompt", "completion"} <= set(columns):
        return "prompt and completion"
    for kind in ("messages", "conversations", "text"):
        if kind in columns:
            return kind
    raise DataError(
        f"{source}: columns are {sorted(columns)}; needed are 'prompt' and 'completion', or 'messages', or 'text'"
    )


def row_count(dataset: "Dataset | IterableDataset") -> int | None:
    """The number of rows; None for a stream."""
    return len(dataset) if hasattr(dataset, "__len__") else None


def tokenize_rows(
    dataset: "Dataset | IterableDataset",
    tokenizer: PreTrainedTokenizerBase,
    ids: SpecialIds,
    source: str,
    packed_length: int,
    num_proc: int | None = None,
    batch_size: int = 1000,
) -> "Dataset | IterableDataset":
    """Tokenized rows, those with a flaw among them (columns `flaw` and `flaw_detail`, see `llada.data.flaws`).

    packed_length, batch_size: tokens of a packed row, and how many documents are packed together.
    """
    columns = check_columns(dataset, source)
    kind = row_kind(columns, source)
    if kind == "text":
        rows_out: _RowsOut = _PackedRows(tokenizer, ids, packed_length)
        num_proc = None
    elif kind == "prompt and completion":
        rows_out = _PairRows(tokenizer, ids)
    else:
        rows_out = _DialogueRows(tokenizer, ids, kind)
    return map_rows(dataset, rows_out, ROW_TYPES, columns, num_proc, batched=True, batch_size=batch_size)


def map_rows(dataset, rows_out, types: dict[str, Any], columns: list[str], num_proc: int | None, **options):
    """`dataset.map` to rows of these columns and of the columns of flaws; a stream ignores `num_proc`.

    types: the type of each column, or a list of it for lists.
    """
    from datasets import Features, List, Value

    # Types are given, because a first batch of flawed rows would leave them open.
    features = Features({
        name: List(Value(kind[0])) if isinstance(kind, list) else Value(kind)
        for name, kind in (types | dict.fromkeys(FLAW_COLUMNS, "string")).items()
    })  # fmt: skip
    if hasattr(dataset, "__len__"):
        options |= {"num_proc": num_proc, "desc": "tokenizing"}
    return dataset.map(rows_out, with_indices=True, remove_columns=columns, features=features, **options)


@dataclass
class RowOut:
    """A tokenized row: its input row, token ids, prompt length in tokens and bytes of its scored text."""

    row: int
    input_ids: list[int]
    prompt_length: int
    text_bytes: int
    flaw: str = ""
    flaw_detail: str = ""

    @classmethod
    def flawed(cls, row: int, error: PairError, names: dict[str, str]) -> "RowOut":
        """A row that cannot be trained on. names: the columns that hold its prompt and its completion."""
        return cls(row, [], 0, 0, error.flaw.format(part=repr(names[error.part])), error.detail)


@dataclass
class _RowsOut:
    """Maps a batch of input rows to the columns of output rows; subclasses define `rows`."""

    tokenizer: PreTrainedTokenizerBase
    ids: SpecialIds

    def __post_init__(self):
        self.version = ROWS_VERSION

    def __call__(self, batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        out: dict[str, list] = {key: [] for key in (*ROW_TYPES, *FLAW_COLUMNS)}
        for row in self.rows(batch, rows):
            values = vars(row) | {"length": len(row.input_ids)}
            for key in out:
                hashed = key == "example_id"
                out[key].append(example_id(row.input_ids, row.prompt_length) if hashed else values[key])
        return out

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        raise NotImplementedError


class _PairRows(_RowsOut):
    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        names = {"prompt": "prompt", "completion": "completion"}
        for index, row in enumerate(rows):
            try:
                options = template_options(columns_of(batch, index))
                yield self.encode(row, batch["prompt"][index], batch["completion"][index], options)
            except PairError as error:
                yield RowOut.flawed(row, error, names)

    def encode(self, row: int, prompt, completion, options: dict[str, Any]) -> RowOut:
        prompt_ids, response_ids = encode_pair(self.tokenizer, prompt, completion, options, self.ids.mask)
        text_bytes = sum(len(text.encode()) for text in texts_of("completion", completion))
        return RowOut(row, prompt_ids + response_ids, len(prompt_ids), text_bytes)


def columns_of(batch: dict[str, list], index: int) -> dict[str, Any]:
    """What a row of a batch holds for its chat template."""
    return {column: batch[column][index] for column in TEMPLATE_COLUMNS if column in batch}


@dataclass
class _DialogueRows(_PairRows):
    column: str

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        for index, row in enumerate(rows):
            try:
                # All turns are encoded before the first is given: a row is trained on as a whole or not at all.
                yield from list(self.turns(row, batch[self.column][index], template_options(columns_of(batch, index))))
            except PairError as error:
                yield RowOut.flawed(row, error, {"prompt": self.column, "completion": self.column})

    def turns(self, row: int, messages, options: dict[str, Any]) -> Iterator[RowOut]:
        if messages is None:
            raise PairError("prompt", MISSING)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise PairError("prompt", MALFORMED, f"found {messages!r}")
        messages = [renamed(message) for message in messages]
        roles = [message.get("role") for message in messages]
        if "assistant" not in roles:
            raise PairError("prompt", NO_ASSISTANT, f"its roles are {', '.join(map(str, roles)) or 'none'}")
        for turn, role in enumerate(roles):
            if role == "assistant":
                yield self.encode(row, messages[:turn], messages[turn : turn + 1], options)


def renamed(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose keys `from` and `value` are called `role` and `content`."""
    return {{"from": "role", "value": "content"}.get(key, key): value for key, value in message.items()}


@dataclass
class _PackedRows(_RowsOut):
    """Concatenate documents, each followed by EOS, and cut them to rows of `length`; a batch's last row is shorter."""

    length: int

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        stream: list[int] = []
        owner: list[int] = []  # the document to which each token belongs
        text_bytes: list[int] = []
        for row, text in zip(rows, batch["text"], strict=True):
            encoded = self.tokenizer(text or "", add_special_tokens=False, return_offsets_mapping=True)
            if not text or self.ids.mask in encoded.input_ids:
                flaw = MISSING if text is None else EMPTY if not text else SPELLS_MASK
                yield RowOut.flawed(row, PairError("completion", flaw), {"completion": "text"})
                continue
            stream += [*encoded.input_ids, self.ids.eos]
            owner += [row] * (len(encoded.input_ids) + 1)
            text_bytes += [*token_bytes(text, encoded.offset_mapping), 0]
        for start in range(0, len(stream), self.length):
            piece = slice(start, start + self.length)
            yield RowOut(owner[start], stream[piece], 0, sum(text_bytes[piece]))


def token_bytes(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """The number of UTF-8 bytes that each token covers; the sum is that of the whole text.

    offsets: character spans. If several tokens share one character (byte-level tokenizers), the first counts its bytes.
    """
    code = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    before = np.concatenate([[0], np.cumsum(1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF))])
    end = np.maximum.accumulate(before[[stop for _, stop in offsets]])
    return np.diff(end, prepend=0).tolist()
