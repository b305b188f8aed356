"""The same number of rows on every process, so that each step has the rows of one process and no row twice.

Engines need the same number of batches on every process. accelerate evens them out with rows from the start of the
data, which would then count twice in a step. Here the rows that fill up are marked (`PADDING`), and weigh nothing in
loss, gradient and metrics.
"""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

PADDING = "is_padding"  # key of a row that only fills up a batch
PADDING_INDEX = -1


class PaddedRows(Dataset):
    """A dataset whose index `PADDING_INDEX` gives its first row, marked as padding."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[0] | {PADDING: True} if index == PADDING_INDEX else self.rows[index]


class PaddedSampler(Sampler):
    """The indices of a sampler, followed by `PADDING_INDEX` until their number is a multiple of `multiple`."""

    def __init__(self, sampler, multiple: int):
        self.sampler, self.multiple = sampler, multiple

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler
        yield from [PADDING_INDEX] * (len(self) - len(self.sampler))

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


class PaddedStream(IterableDataset):
    """The rows of a stream, followed by padding until their number is a multiple of `multiple`."""

    def __init__(self, rows, multiple: int):
        self.rows, self.multiple = rows, multiple

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count, row = 0, {}
        for row in self.rows:
            count += 1
            yield row
        yield from [row | {PADDING: True}] * (-count % self.multiple)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


COLLATED = ("input_ids", "attention_mask", "response_mask", "example_id", "row")


class WeighedCollator:
    """Adds `row_weight` [rows] to the batches of a collator: 0 for padding, 1 for all other rows.

    Raises:
        ValueError: on a batch of a user's collator that lacks a key that the trainers need.
    """

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collator(rows))
        if missing := [key for key in COLLATED if key not in batch]:
            raise ValueError(
                f"data_collator ({type(self.collator).__name__}) returns {sorted(batch)} without {missing}: masks are "
                "drawn on response_mask from example_id, and errors name row. See llada.data.collator and vrpo.collator"
            )
        return batch | {"row_weight": torch.tensor([0.0 if row.get(PADDING) else 1.0 for row in rows])}


def pad_sampler(loader: DataLoader, multiple: int) -> None:
    """Fill up the rows of a loader that accelerate has prepared; its dataset must be a `PaddedRows`.

    This comes after the preparation because accelerate replaces samplers by those that shuffle alike on all processes.
    """
    shard = getattr(loader, "batch_sampler", None)
    if isinstance(shard, BatchSamplerShard) and hasattr(shard.batch_sampler, "sampler"):
        shard.batch_sampler.sampler = PaddedSampler(shard.batch_sampler.sampler, multiple)
