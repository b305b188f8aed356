"""Documents, and rows that share a row: concatenated and cut, or packed as wholes that do not see each other.

"wrapped" is pretraining's way (LLaDA): a row is full of tokens, documents are cut at its end and attended across.
"bfd" and "bfd_split" are TRL's: whole rows are packed by best fit, and `seq_lengths` holds their lengths, from which
the collator makes the segments that attention stays in. The loss of a packed row is the mean over its scored tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import BatchEncoding

from llada.data.encoding import EMPTY, MISSING, NOT_TEXT, check_encoded
from llada.data.rows import ROW_TYPES, UNSCORED, RowOut, RowsOut, example_id, features_of
from llada.data.tokenizer import SpecialIds
from llada.errors import PairError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass
class DocumentRows(RowsOut):
    """Documents, each followed by EOS: rows of their own, or concatenated and cut to rows of `length`.

    length: None for rows of their own. The last row of a batch of documents is shorter, so that no token is lost.
    """

    column: str = "text"
    length: int | None = None
    allow_special_tokens: bool = False

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        stream: list[int] = []
        owner: list[int] = []  # the document to which each token belongs
        text_bytes: list[int] = []
        for row, text in zip(rows, batch[self.column], strict=True):
            try:
                encoded = self.encoded(text)
            except PairError as error:
                yield RowOut.flawed(row, error, {"completion": self.column})
                continue
            document = [*encoded.input_ids, self.ids.eos]
            if self.length is None:
                yield RowOut(row, document, 0, len(text.encode()))
                continue
            stream += document
            owner += [row] * len(document)
            text_bytes += [*token_bytes(text, encoded.offset_mapping), 0]
        for start in range(0, len(stream), self.length or 1):
            piece = slice(start, start + (self.length or 1))
            yield RowOut(owner[start], stream[piece], 0, sum(text_bytes[piece]))

    def encoded(self, text: Any) -> BatchEncoding:
        """Token ids and offsets of a document; PairError if it cannot be trained on."""
        if text is None:
            raise PairError("completion", MISSING)
        if not isinstance(text, str):
            raise PairError("completion", NOT_TEXT, f"found {text!r}")
        if not text.strip():
            raise PairError("completion", EMPTY)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        check_encoded(self.tokenizer, "completion", text, encoded.input_ids, self.ids.mask, self.allow_special_tokens)
        return encoded


def token_bytes(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """The number of UTF-8 bytes that each token covers; the sum is that of the whole text.

    offsets: character spans. If several tokens share one character (byte-level tokenizers), the first counts its bytes.
    """
    code = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    before = np.concatenate([[0], np.cumsum(1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF))])
    end = np.maximum.accumulate(before[[stop for _, stop in offsets]])
    return np.diff(end, prepend=0).tolist()


def pack_whole(
    dataset: "Dataset | IterableDataset", strategy: str, max_length: int, ids: SpecialIds, eos_tail: int
) -> "Dataset | IterableDataset":
    """Pack tokenized rows by TRL's `pack_dataset`; each keeps its EOS tail, and rows out have `seq_lengths`.

    strategy: "bfd", for rows that fit `max_length`, or "bfd_split", which cuts longer ones.
    """
    from trl import pack_dataset

    features = features_of({name: ["int64"] for name in TOKEN_COLUMNS})
    replaced = [name for name in ROW_TYPES if name not in TOKEN_COLUMNS]
    tokens = dataset.map(TokenColumns(ids.eos, eos_tail), batched=True, remove_columns=replaced, features=features)
    packed = pack_dataset(tokens, max_length, strategy)
    features = features_of(ROW_TYPES | {"seq_lengths": ["int64"]})
    return packed.map(packed_row, remove_columns=["owner", "scored_bytes"], features=features)


TOKEN_COLUMNS = ("input_ids", "labels", "owner", "scored_bytes")  # one value for each token


@dataclass
class TokenColumns:
    """Maps tokenized rows to columns that have a value for each token; a row's bytes count with its first token."""

    eos: int
    eos_tail: int

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        out: dict[str, list] = {name: [] for name in TOKEN_COLUMNS}
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            tail = [self.eos] * (self.eos_tail if row["prompt_length"] else 0)
            out["input_ids"].append(row["input_ids"] + tail)
            out["labels"].append(row["labels"] + tail)
            out["owner"].append([row["row"]] * (row["length"] + len(tail)))
            out["scored_bytes"].append([row["text_bytes"]] + [0] * (row["length"] + len(tail) - 1))
        return out


def packed_row(row: dict[str, list[int]]) -> dict[str, Any]:
    """The columns `ROW_TYPES` of a packed row; `row` is the number of the first input row in it."""
    return {
        "input_ids": row["input_ids"],
        "labels": row["labels"],
        "length": len(row["input_ids"]),
        "prompt_length": 0,
        "example_id": example_id(row["input_ids"], 0, row["labels"] if UNSCORED in row["labels"] else None),
        "row": row["owner"][0],
        "text_bytes": sum(row["scored_bytes"]),
        "seq_lengths": row["seq_lengths"],
    }
