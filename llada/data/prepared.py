"""Rows that were tokenized before a trainer got them: whether their token ids are those of its tokenizer."""

from typing import TYPE_CHECKING, Any

from llada.data.rows import UNSCORED
from llada.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ID_COLUMNS = ("input_ids", "labels", "prompt_ids", "chosen_ids", "rejected_ids")


def with_known_tokens(
    dataset: "Dataset | IterableDataset", vocabulary: int, source: str
) -> "Dataset | IterableDataset":
    """The dataset, if each of its token ids is at least 0 and below `vocabulary` (a label may be -100).

    Raises:
        DataError: one is not; the message names the row and the column. A stream raises as it is read.
    """

    def check(row: dict[str, Any], number: int) -> bool:
        for column in ID_COLUMNS:
            allowed = (UNSCORED,) if column == "labels" else ()
            for token in row.get(column, ()):
                if not 0 <= token < vocabulary and token not in allowed:
                    raise DataError(
                        f"{source}: row {number} (counted from 0) has the token id {token} in {column!r}, outside the "
                        f"tokenizer's {vocabulary} tokens: prepare the rows with this tokenizer"
                    )
        return True

    if not hasattr(dataset, "__len__"):
        return dataset.filter(check, with_indices=True)
    columns = [column for column in ID_COLUMNS if column in dataset.column_names]
    first = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        if any(not in_range(table.column(column), vocabulary, column) for column in columns):
            for number, row in enumerate(table.to_pylist(), first):
                check(row, number)
        first += len(table)
    return dataset


def in_range(lists: Any, vocabulary: int, column: str) -> bool:
    """Whether all ids of an Arrow column of lists are in the vocabulary."""
    import pyarrow.compute as pc

    ids = lists.combine_chunks().flatten()
    if column == "labels":
        ids = ids.filter(pc.not_equal(ids, UNSCORED))
    least, greatest = pc.min_max(ids).as_py().values()
    return least is None or 0 <= least <= greatest < vocabulary
