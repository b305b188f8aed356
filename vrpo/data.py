"""Preference rows in TRL's formats -> tokenized pairs -> batches, whose `example_id` seeds their masks.

Columns in: `prompt`, `chosen`, `rejected`, as text or as messages; or `chosen` and `rejected` alone, whose common
beginning is the prompt (TRL's implicit prompt); and `tools` and `chat_template_kwargs` for the chat template. Rows out,
under TRL's names: `prompt_ids`, `chosen_ids` and `rejected_ids` (answers without the prompt), `length` (tokens of the
prompt and the longer answer), `example_id` (a 64-bit hash of the tokens) and `row`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from llada.data.encoding import EMPTY, MISSING, encode_pair, remark_on, template_options, texts_of
from llada.data.flaws import Filter, Room, keep_valid
from llada.data.formats import map_rows, row_count
from llada.data.loading import check_columns
from llada.data.rows import ROWS_VERSION, example_id
from llada.data.tokenizer import SpecialIds
from llada.errors import DataError, PairError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PAIR_TYPES: dict[str, Any] = {"prompt_ids": ["int64"], "chosen_ids": ["int64"], "rejected_ids": ["int64"]}
PAIR_TYPES |= {"length": "int64", "example_id": "int64", "row": "int64"}
PAIR_COLUMNS = frozenset(PAIR_TYPES)
IDENTICAL = "have identical 'chosen' and 'rejected' (set allow_identical to keep them)"
NO_COMMON_BEGINNING = "have no 'prompt', and 'chosen' and 'rejected' have no common beginning that could be one"


def prepare_pairs(
    dataset: "Dataset | IterableDataset",
    tokenizer: PreTrainedTokenizerBase,
    ids: SpecialIds,
    max_length: int,
    eos_tail: int = 1,
    drop_overlong: bool = False,
    allow_identical: bool = False,
    drop_invalid: bool = False,
    num_proc: int | None = None,
    source: str = "dataset",
    allow_special_tokens: bool = False,
) -> "Dataset | IterableDataset":
    """Tokenize preference pairs.

    Args:
        ids: special ids (`llada.data.tokenizer.special_ids`).
        max_length: largest number of tokens of prompt, response and EOS tail together, for each side.
        drop_overlong: leave out pairs with an over-long side, with a warning that lists them, instead of raising.
        allow_identical: keep pairs whose chosen and rejected tokens are equal (their score is noise around 0).
        drop_invalid: leave out all pairs that cannot be trained on, with a warning that lists them.
        num_proc: processes that tokenize.
        source: name of the dataset in messages, such as its file.
        allow_special_tokens: plain text may spell special tokens (`llada.data.encoding.encode_pair`).

    Raises:
        DataError: columns are missing, or pairs cannot be trained on: one report lists them all (`llada.data.flaws`).
            A streamed dataset is checked as it is read.
    """
    pairs = tokenize_pairs(dataset, tokenizer, ids, source, allow_identical, num_proc, allow_special_tokens)
    room = Room(max_length, eos_tail)
    return keep_valid(pairs, Filter(source, room, drop_invalid, drop_overlong, row_count(dataset)))


def tokenize_pairs(
    dataset: "Dataset | IterableDataset",
    tokenizer: PreTrainedTokenizerBase,
    ids: SpecialIds,
    source: str,
    allow_identical: bool = False,
    num_proc: int | None = None,
    allow_special_tokens: bool = False,
) -> "Dataset | IterableDataset":
    """Tokenized pairs, those with a flaw among them (columns `flaw` and `flaw_detail`, see `llada.data.flaws`).

    Raises:
        DataError: columns are missing.
    """
    columns = check_columns(dataset, source)
    if not {"chosen", "rejected"} <= set(columns):
        raise DataError(f"{source}: columns are {sorted(columns)}; needed are 'prompt', 'chosen' and 'rejected'")
    return map_rows(
        dataset, _PairsOut(tokenizer, ids, allow_identical, allow_special_tokens), PAIR_TYPES, columns, num_proc
    )


@dataclass
class _PairsOut:
    tokenizer: PreTrainedTokenizerBase
    ids: SpecialIds
    allow_identical: bool
    allow_special_tokens: bool

    def __post_init__(self):
        self.version = ROWS_VERSION

    def __call__(self, example: dict[str, Any], row: int) -> dict[str, Any]:
        prompt_ids: list[int] = []
        sides: dict[str, list[int]] = {"chosen": [], "rejected": []}
        flaw = detail = remark = ""
        column = "chosen"
        try:
            options = template_options(example)
            example = with_prompt(example)
            for column in sides:
                prompt_ids, sides[column] = encode_pair(
                    self.tokenizer,
                    example["prompt"],
                    example[column],
                    options,
                    self.ids.mask,
                    self.allow_special_tokens,
                )
            if sides["chosen"] == sides["rejected"] and not self.allow_identical:
                flaw = IDENTICAL
            remark = remark_on("chosen", example["chosen"]) or remark_on("rejected", example["rejected"])
        except PairError as error:
            part = column if error.part == "completion" else error.part
            flaw, detail = error.flaw.format(part=repr(part)), error.detail
        chosen, rejected = (prompt_ids + side for side in sides.values())
        return {
            "prompt_ids": prompt_ids,
            "chosen_ids": sides["chosen"],
            "rejected_ids": sides["rejected"],
            "length": max(len(chosen), len(rejected)),
            # The hash covers both sides: if it covered one response, pairs that share it would share their draws.
            "example_id": example_id(chosen + rejected, len(chosen)),
            "row": row,
            "flaw": flaw,
            "flaw_detail": detail,
            "remark": remark,
        }


def with_prompt(example: dict[str, Any]) -> dict[str, Any]:
    """A preference row with its prompt; where TRL takes the common beginning of the two answers, so does this.

    Raises:
        PairError: an answer is missing, empty or neither text nor messages, or there is no common beginning.
    """
    from trl.data_utils import maybe_extract_prompt

    if "prompt" in example and isinstance(example["prompt"], str) == isinstance(example["chosen"], str):
        return example
    for column in ("chosen", "rejected"):  # TRL's function fails on what is refused here
        value = example[column]
        if value is None:
            raise PairError(column, MISSING)
        texts_of(column, value)
        if not value:
            raise PairError(column, EMPTY)
    if not isinstance(example.get("prompt", ""), str):
        return example  # messages before texts: `encode_pair` says what is wrong
    extracted = maybe_extract_prompt(example)
    if extracted["prompt"]:
        return extracted
    if "prompt" in example:
        return example
    raise PairError("prompt", NO_COMMON_BEGINNING)
