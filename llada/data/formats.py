"""Dataset formats of pretraining and SFT: from columns to tokenized rows.

Input columns (TRL's names)   -> output rows
  text                        -> packed documents, every token scored           (pretraining)
  prompt, completion          -> prompt never masked, response scored           (SFT; text or messages)
  messages or conversations   -> prompt and response of each assistant turn     (SFT; LLaDA, App. B.1)
  input_ids                   -> the row as it is; `labels`, `completion_mask` and `assistant_masks` say what is scored

`RowForm` changes what is scored and packed. The columns `tools` and `chat_template_kwargs` go to the chat template
(`llada.data.encoding`). Messages may have the keys `from` and `value` instead of `role` and `content`.

An output row has `input_ids`, `labels` (the token where it is scored, -100 elsewhere), `length`, `prompt_length` (0 for
a row that gets no EOS tail), `example_id` (a 64-bit hash of its tokens, from which its masks are seeded; filtering,
shuffling, streaming and caching do not change it; equal rows share it, and thus their masks within an epoch), `row`
(the index of its input row, for error messages) and `text_bytes` (UTF-8 bytes of the scored text, for bits per byte).
"""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from llada.data.flaws import FLAW_COLUMNS, Filter, Room, keep_valid
from llada.data.loading import check_columns
from llada.data.packing import DocumentRows, pack_whole
from llada.data.rows import (
    ROW_NUMBER,
    ROW_TYPES,
    DialogueRows,
    PairRows,
    RowForm,
    RowsOut,
    TokenizedRows,
    features_of,
)
from llada.data.tokenizer import SpecialIds
from llada.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHUFFLE_BUFFER = 10_000  # rows of a stream among which it is shuffled
AS_DEFAULT = RowForm()


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
    form: RowForm = AS_DEFAULT,
    shuffle_seed: int | None = None,
) -> "Dataset | IterableDataset":
    """Tokenize a dataset for pretraining or SFT; its columns decide which (see the module docstring).

    Args:
        ids: special ids (`llada.data.tokenizer.special_ids`).
        max_length: tokens of a packed row, or the maximum for prompt, response and EOS tail together.
        eos_tail: EOS tokens that the collator will append ("batch": at least one), counted against `max_length`.
        drop_overlong: leave out rows over `max_length` with a warning instead of raising. Rows are never truncated,
            because a truncated response has no end.
        drop_invalid: leave out all rows that cannot be trained on, with a warning that lists them.
        num_proc: processes that tokenize; documents that are concatenated are tokenized in one, so that their rows do
            not depend on it.
        source: the dataset's name in messages, such as its file.
        form: what is scored and packed.
        shuffle_seed: shuffle the rows first; None keeps their order.

    Raises:
        DataError: columns are missing or do not go with `form`, or rows cannot be trained on: one report lists them all
            (`llada.data.flaws`). A streamed dataset is checked while it is read.
    """
    kind = row_kind(check_columns(dataset, source), source, form.dataset_text_field)
    check_form(kind, dataset.column_names or list(next(iter(dataset))), form, eos_tail, source)
    strategy, tail = form.strategy(kind), 1 if eos_tail == "batch" else int(eos_tail)
    if shuffle_seed is not None:
        dataset = shuffled(dataset, shuffle_seed)
    length = max_length if strategy == "wrapped" else None
    rows = tokenize_rows(dataset, tokenizer, ids, source, form, length, num_proc)
    cut = kind == "text" and strategy in ("wrapped", "bfd_split")
    room = None if cut else Room(max_length, 0 if form.whole(kind) else tail)
    rows = keep_valid(rows, Filter(source, room, drop_invalid, drop_overlong, row_count(dataset)))
    return rows if strategy in (None, "wrapped") else pack_whole(rows, strategy, max_length, ids, tail)


def row_kind(columns: list[str], source: str, text_field: str = "text") -> str:
    """What is trained on: "input_ids", "prompt and completion", "messages", "conversations" or "text".

    text_field: the column of documents.

    Raises:
        DataError: none of these columns is there.
    """
    if "input_ids" in columns:
        return "input_ids"
    if {"prompt", "completion"} <= set(columns):
        return "prompt and completion"
    for kind in ("messages", "conversations"):
        if kind in columns:
            return kind
    if text_field in columns:
        return "text"
    raise DataError(
        f"{source}: columns are {sorted(columns)}; needed are 'prompt' and 'completion', or 'messages', or "
        f"{text_field!r}"
    )


def check_form(kind: str, columns: list[str], form: RowForm, eos_tail: int | str, source: str) -> None:
    """Raise DataError if an option asks for what rows of this kind do not have."""
    has_completions = kind == "prompt and completion" or {"completion_mask", "labels"} & set(columns)
    if form.completion_only_loss and not has_completions:
        raise DataError(
            f"{source}: completion_only_loss=True needs the columns 'prompt' and 'completion', but rows are trained on "
            f"by {kind!r}. Leave it out: {'all tokens' if kind in ('text', 'input_ids') else 'assistant turns'} are "
            "scored"
        )
    has_turns = kind in ("prompt and completion", "messages", "conversations")
    if form.assistant_only_loss and not (has_turns or {"assistant_masks", "labels"} & set(columns)):
        raise DataError(
            f"{source}: assistant_only_loss=True needs messages, but the dataset is not conversational: its rows are "
            f"trained on by {kind!r}"
        )
    strategy = form.strategy(kind)
    if strategy == "wrapped" and kind != "text":
        raise DataError(
            f"{source}: packing_strategy='wrapped' cuts rows, and a response without its prompt or its end is another "
            "response. Use 'bfd', which packs whole rows"
        )
    if strategy is not None and eos_tail == "batch" and kind != "text":
        raise DataError(f"{source}: eos_tail='batch' fills a row with EOS, which packing avoids. Give a number")


def row_count(dataset: "Dataset | IterableDataset") -> int | None:
    """The number of rows; None for a stream."""
    return len(dataset) if hasattr(dataset, "__len__") else None


def shuffled(dataset: "Dataset | IterableDataset", seed: int) -> "Dataset | IterableDataset":
    """The rows in another order, with their numbers; of a stream within a buffer of `SHUFFLE_BUFFER` rows."""
    numbered = dataset.map(lambda row, number: row | {ROW_NUMBER: number}, with_indices=True)
    if hasattr(dataset, "__len__"):
        return numbered.shuffle(seed=seed)
    return numbered.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)


def tokenize_rows(
    dataset: "Dataset | IterableDataset",
    tokenizer: PreTrainedTokenizerBase,
    ids: SpecialIds,
    source: str,
    form: RowForm = AS_DEFAULT,
    cut_length: int | None = None,
    num_proc: int | None = None,
) -> "Dataset | IterableDataset":
    """Tokenized rows, those with a flaw among them (columns `flaw` and `flaw_detail`, see `llada.data.flaws`).

    cut_length: documents are concatenated and cut to rows of so many tokens; None: each has its own row.
    """
    columns = check_columns(dataset, source)
    rows_out = reader(row_kind(columns, source, form.dataset_text_field), tokenizer, ids, form, cut_length)
    num_proc = None if cut_length else num_proc
    return map_rows(dataset, rows_out, ROW_TYPES, columns, num_proc, batched=True)


def reader(
    kind: str, tokenizer: PreTrainedTokenizerBase, ids: SpecialIds, form: RowForm, cut_length: int | None
) -> RowsOut:
    """What reads rows of this kind (`row_kind`)."""
    if kind == "text":
        return DocumentRows(tokenizer, ids, form.dataset_text_field, cut_length, form.allow_special_tokens)
    if kind == "input_ids":
        return TokenizedRows(tokenizer, ids, form)
    if kind == "prompt and completion":
        return PairRows(tokenizer, ids, form)
    return DialogueRows(tokenizer, ids, form, kind)


def map_rows(dataset, rows_out, types: dict[str, Any], columns: list[str], num_proc: int | None, **options):
    """`dataset.map` to rows of these columns and of the columns of flaws; a stream ignores `num_proc`.

    types: the type of each column, or a list of it for lists.
    """
    # Types are given, because a first batch of flawed rows would leave them open.
    features = features_of(types | dict.fromkeys(FLAW_COLUMNS, "string"))
    if hasattr(dataset, "__len__"):
        options |= {"num_proc": num_proc, "desc": "tokenizing"}
    return dataset.map(rows_out, with_indices=True, remove_columns=columns, features=features, **options)
