"""From input rows to tokenized rows: which class of `RowsOut` reads a dataset depends on its columns and options.

A tokenized row states its scored tokens in `labels` (TRL's name): the token id, or `UNSCORED` for context. The collator
appends the EOS tail to rows with a `prompt_length`; rows whose `prompt_length` is 0 are taken as they are.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from transformers import PreTrainedTokenizerBase

from llada.data.encoding import (
    EMPTY,
    MALFORMED,
    MISSING,
    TEMPLATE_COLUMNS,
    check_type,
    encode_pair,
    remark_on,
    template_options,
    texts_of,
)
from llada.data.flaws import FLAW_COLUMNS
from llada.data.tokenizer import SpecialIds
from llada.errors import PairError

# `datasets` caches tokenized rows by a hash of the arguments, not of this code: increase it when output rows change.
ROWS_VERSION = 4
ROW_TYPES: dict[str, Any] = {"input_ids": ["int64"], "labels": ["int64"], "length": "int64", "prompt_length": "int64"}
ROW_TYPES |= {"example_id": "int64", "row": "int64", "text_bytes": "int64"}
ROW_COLUMNS = frozenset(ROW_TYPES)
ROW_NUMBER = "__row_number"  # column of the numbers of input rows that were shuffled
UNSCORED = -100
NO_ASSISTANT = "have no assistant turn in {part}"
TEXT_WITHOUT_TURNS = "have text in {part}, where assistant_only_loss needs messages"
NOT_A_TOKEN = "have token ids in 'input_ids' outside the tokenizer's vocabulary"
HOLDS_MASK = "have the mask token in 'input_ids'"
NOT_WHOLE = "have something else than whole numbers in 'input_ids'"
OTHER_LENGTH = "have another number of values in {part} than in 'input_ids'"
OTHER_LABELS = "have 'labels' that are neither -100 nor the token of their position"
NOTHING_SCORED = "have no scored token"
PADDED = "have padding (0 in 'attention_mask')"
MASK_COLUMNS = ("completion_mask", "assistant_masks")


@dataclass(frozen=True)
class RowForm:
    """What is made of a dataset's rows, by TRL's options of these names (`llada.training.options`).

    allow_special_tokens, which TRL does not have: plain text may spell special tokens.
    """

    dataset_text_field: str = "text"
    completion_only_loss: bool | None = None
    assistant_only_loss: bool | None = None
    packing: bool | None = None
    packing_strategy: str | None = None
    allow_special_tokens: bool = False

    def strategy(self, kind: str) -> str | None:
        """How rows of this kind (`llada.data.formats.row_kind`) are packed; None: they are not."""
        if self.packing is None:
            return (self.packing_strategy or "wrapped") if kind == "text" else None
        return (self.packing_strategy or "bfd") if self.packing else None

    def whole(self, kind: str) -> bool:
        """Whether all tokens of a row are scored, the prompt's too, so that it ends with one EOS like a document."""
        if kind == "prompt and completion":
            return self.completion_only_loss is False and not self.assistant_only_loss
        if kind in ("messages", "conversations"):
            if self.assistant_only_loss is None:
                return self.completion_only_loss is False
            return not self.assistant_only_loss
        return True


def features_of(types: dict[str, Any]):
    """`datasets.Features` of columns with these types, a list of one type for lists of it."""
    from datasets import Features, List, Value

    return Features({
        name: List(Value(kind[0])) if isinstance(kind, list) else Value(kind) for name, kind in types.items()
    })  # fmt: skip


def example_id(input_ids: list[int], prompt_length: int, labels: list[int] | None = None) -> int:
    """Signed 64-bit hash of a tokenized row and its scored tokens, which are all after the prompt without `labels`."""
    content = array("q", [prompt_length, *input_ids, *(labels or ())]).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


@dataclass
class RowOut:
    """A tokenized row: its input row, token ids, prompt length in tokens and bytes of its scored text.

    labels: the scored tokens where they are not all those after the prompt.
    """

    row: int
    input_ids: list[int]
    prompt_length: int
    text_bytes: int
    flaw: str = ""
    flaw_detail: str = ""
    remark: str = ""
    labels: list[int] = field(default_factory=list)

    @classmethod
    def flawed(cls, row: int, error: PairError, names: dict[str, str]) -> "RowOut":
        """A row that cannot be trained on. names: the columns that hold its prompt and its completion."""
        return cls(row, [], 0, 0, error.flaw.format(part=repr(names[error.part])), error.detail)

    def columns(self) -> dict[str, Any]:
        """The values of the columns `ROW_TYPES` and `FLAW_COLUMNS`."""
        prompt, response = self.input_ids[: self.prompt_length], self.input_ids[self.prompt_length :]
        return vars(self) | {
            "labels": self.labels or [UNSCORED] * len(prompt) + response,
            "length": len(self.input_ids),
            "example_id": example_id(self.input_ids, self.prompt_length, self.labels),
        }


@dataclass
class RowsOut:
    """Maps a batch of input rows to the columns of output rows; subclasses define `rows`."""

    tokenizer: PreTrainedTokenizerBase
    ids: SpecialIds

    def __post_init__(self):
        self.version = ROWS_VERSION

    def __call__(self, batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        out: dict[str, list] = {key: [] for key in (*ROW_TYPES, *FLAW_COLUMNS)}
        for row in self.rows(batch, batch.get(ROW_NUMBER, rows)):
            values = row.columns()
            for key in out:
                out[key].append(values[key])
        return out

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        """The output rows of a batch of input rows with these numbers."""
        raise NotImplementedError


@dataclass
class PairRows(RowsOut):
    """Prompts and completions: one row for each, or one for each assistant turn (`assistant_only_loss`)."""

    form: RowForm = RowForm()

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        names = {"prompt": "prompt", "completion": "completion"}
        for index, row in enumerate(rows):
            try:
                options = template_options(columns_of(batch, index))
                yield from list(self.encoded(row, batch["prompt"][index], batch["completion"][index], options))
            except PairError as error:
                yield RowOut.flawed(row, error, names)

    def encoded(self, row: int, prompt, completion, options: dict[str, Any]) -> Iterator[RowOut]:
        if not self.form.assistant_only_loss:
            yield self.encode(row, prompt, completion, options, self.form.whole("prompt and completion"))
            return
        for part, value in (("prompt", prompt), ("completion", completion)):
            if isinstance(value, str):
                raise PairError(part, TEXT_WITHOUT_TURNS)
            texts_of(part, value)  # checks that these are messages
        first = len(prompt) if self.form.completion_only_loss is not False else 0
        yield from self.turns(row, [*prompt, *completion], options, first, "completion")

    def encode(self, row: int, prompt, completion, options: dict[str, Any], whole: bool = False) -> RowOut:
        prompt_ids, response_ids = encode_pair(
            self.tokenizer, prompt, completion, options, self.ids.mask, self.form.allow_special_tokens
        )
        text_bytes = sum(len(text.encode()) for text in texts_of("completion", completion))
        if not whole:
            remark = remark_on("completion", completion)
            return RowOut(row, prompt_ids + response_ids, len(prompt_ids), text_bytes, remark=remark)
        text_bytes += sum(len(text.encode()) for text in texts_of("prompt", prompt))
        return RowOut(row, [*prompt_ids, *response_ids, self.ids.eos], 0, text_bytes)

    def turns(self, row: int, messages: list, options: dict[str, Any], first: int, part: str) -> Iterator[RowOut]:
        """A row for each assistant message from number `first` on."""
        roles = [message.get("role") for message in messages]
        if "assistant" not in roles[first:]:
            raise PairError(part, NO_ASSISTANT, f"its roles are {', '.join(map(str, roles)) or 'none'}")
        for turn, role in enumerate(roles):
            if role == "assistant" and turn >= first:
                yield self.encode(row, messages[:turn], messages[turn : turn + 1], options)


def columns_of(batch: dict[str, list], index: int) -> dict[str, Any]:
    """What a row of a batch holds for its chat template."""
    return {column: batch[column][index] for column in TEMPLATE_COLUMNS if column in batch}


@dataclass
class DialogueRows(PairRows):
    """Dialogues: a row for each assistant turn, or one row in which everything is scored."""

    column: str = "messages"

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        for index, row in enumerate(rows):
            try:
                # All turns are encoded before the first is given: a row is trained on as a whole or not at all.
                yield from list(
                    self.dialogue(row, batch[self.column][index], template_options(columns_of(batch, index)))
                )
            except PairError as error:
                yield RowOut.flawed(row, error, {"prompt": self.column, "completion": self.column})

    def dialogue(self, row: int, messages, options: dict[str, Any]) -> Iterator[RowOut]:
        if messages is None:
            raise PairError("prompt", MISSING)
        check_type("prompt", messages)
        if isinstance(messages, str) or not all(isinstance(message, dict) for message in messages):
            raise PairError("prompt", MALFORMED, f"found {messages!r}")
        messages = [renamed(message) for message in messages]
        roles = [message.get("role") for message in messages]
        if self.form.whole(self.column) and "assistant" in roles:
            last = len(roles) - 1 - roles[::-1].index("assistant")
            yield self.encode(row, messages[:last], messages[last:], options, whole=True)
        else:
            yield from self.turns(row, messages, options, 0, "prompt")


def renamed(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose keys `from` and `value` are called `role` and `content`."""
    return {{"from": "role", "value": "content"}.get(key, key): value for key, value in message.items()}


def as_list(value: Any) -> list:
    """A list as it is, and an empty one for anything else."""
    return value if isinstance(value, list) else []


def is_whole(token: Any) -> bool:
    """Whether a value is a whole number, as token ids are; `True` and 3.0 are none."""
    return isinstance(token, Integral) and not isinstance(token, bool)


@dataclass
class TokenizedRows(RowsOut):
    """Rows that are tokenized already, taken as they are, without an EOS tail.

    Scored are the tokens of `labels` that are not -100; without that column those that are 1 in each column of masks
    (`completion_mask` unless `completion_only_loss` is False, `assistant_masks`); without masks all.
    """

    form: RowForm = RowForm()

    def rows(self, batch: dict[str, list], rows: list[int]) -> Iterator[RowOut]:
        for index, row in enumerate(rows):
            try:
                yield self.read(row, {column: values[index] for column, values in batch.items()})
            except PairError as error:
                yield RowOut.flawed(row, error, {"prompt": "input_ids", "completion": error.detail})

    def read(self, row: int, given: dict[str, Any]) -> RowOut:
        """Raises PairError if the row cannot be trained on."""
        input_ids = given["input_ids"]
        if not input_ids:
            raise PairError("prompt", EMPTY)
        if not isinstance(input_ids, list):
            raise PairError("prompt", NOT_WHOLE, f"found {input_ids!r}")
        if wrong := [token for token in input_ids if not is_whole(token)]:
            raise PairError("prompt", NOT_WHOLE, f"found {wrong[0]!r}")
        masks = [mask for mask in MASK_COLUMNS if mask in given]
        if self.form.completion_only_loss is False:
            masks = [mask for mask in masks if mask != "completion_mask"]
        for column in ("labels", "attention_mask", *masks):
            if column in given and len(as_list(given[column])) != len(input_ids):
                raise PairError("completion", OTHER_LENGTH, column)
        if "attention_mask" in given and not all(given["attention_mask"]):
            raise PairError("prompt", PADDED)
        if not 0 <= min(input_ids) <= max(input_ids) < len(self.tokenizer):
            raise PairError("prompt", NOT_A_TOKEN, f"{min(input_ids)} to {max(input_ids)}")
        if self.ids.mask in input_ids:
            raise PairError("prompt", HOLDS_MASK)
        if "labels" in given:
            labels = list(given["labels"])
        else:
            scored = zip(*(given[mask] for mask in masks), strict=True) if masks else [(1,)] * len(input_ids)
            labels = [token if all(bits) else UNSCORED for token, bits in zip(input_ids, scored, strict=True)]
        if any(label not in (UNSCORED, token) for label, token in zip(labels, input_ids, strict=True)):
            raise PairError("prompt", OTHER_LABELS)
        tokens = [label for label in labels if label != UNSCORED]
        if not tokens:
            raise PairError("prompt", NOTHING_SCORED)
        text_bytes = len(self.tokenizer.decode(tokens, skip_special_tokens=True).encode())
        return RowOut(row, input_ids, 0, text_bytes, labels=[] if labels == input_ids else labels)
