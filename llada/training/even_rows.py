"""The loss of a step is the mean over its rows, however they are split, and no row is in a step twice.

It does not depend on micro-batches and processes, and in the last, shorter step of a pass too, a micro-batch weighs by
its share of the step's rows.

Engines need the same number of batches on every process. accelerate evens them out with rows from the start of the
data, which would then count twice in a step. Here the rows that fill up are marked (`PADDING`), and weigh nothing in
loss, gradient and metrics.
"""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import Trainer

PADDING = "is_padding"  # key of a row that only fills up a batch
PADDING_INDEX = -1
FILLER = "is_filler"  # key of a micro-batch that is skipped


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

    multiple: the length to a multiple of which batches are padded with `pad_id`, which is neither attended to nor
        scored.

    Raises:
        ValueError: on a batch of a user's collator that lacks a key that the trainers need.
    """

    def __init__(self, collator, pad_id: int, multiple: int | None):
        self.collator, self.pad_id, self.multiple = collator, pad_id, multiple

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        real = [row for row in rows if not row.get(PADDING)] or rows
        # Padding is replaced by a row of the batch, so that it does not set the batch's length.
        batch = dict(self.collator([real[0] if row.get(PADDING) else row for row in rows]))
        if missing := [key for key in COLLATED if key not in batch]:
            raise ValueError(
                f"data_collator ({type(self.collator).__name__}) returns {sorted(batch)} without {missing}: masks are "
                "drawn on response_mask from example_id, and errors name row. See llada.data.collator and vrpo.collator"
            )
        extra = 0 if self.multiple is None else -batch["input_ids"].shape[1] % self.multiple
        for key in ("input_ids", "attention_mask", "response_mask", "segment_ids"):
            if extra and key in batch:
                value = self.pad_id if key == "input_ids" else 0
                batch[key] = torch.nn.functional.pad(batch[key], (0, extra), value=value)
        return batch | {"row_weight": torch.tensor([0.0 if row.get(PADDING) else 1.0 for row in rows])}


def pad_sampler(loader: DataLoader, multiple: int) -> None:
    """Fill up the rows of a loader that accelerate has prepared; its dataset must be a `PaddedRows`.

    This comes after the preparation because accelerate replaces samplers by those that shuffle alike on all processes.
    """
    shard = getattr(loader, "batch_sampler", None)
    if isinstance(shard, BatchSamplerShard) and hasattr(shard.batch_sampler, "sampler"):
        shard.batch_sampler.sampler = PaddedSampler(shard.batch_sampler.sampler, multiple)


def real_rows(batch: dict[str, Any]) -> list[int]:
    """The rows of the dataset in a micro-batch, without those that fill it up."""
    return [] if batch.get(FILLER) else batch["row"][batch["row_weight"] > 0].tolist()


class MeanOverRows(Trainer):
    """A `Trainer` whose loss of a step is the mean over its rows: a subclass weighs each row's loss by `share`."""

    train_dataset: Any
    loss_is_scaled_for_ga = True  # `share` divides by the rows of the whole step

    def get_train_dataloader(self) -> DataLoader:
        if self.args.world_size == 1 or self.args.dataloader_drop_last:
            return super().get_train_dataloader()
        rows, multiple = self.train_dataset, self._train_batch_size * self.args.world_size
        self.train_dataset = PaddedRows(rows) if hasattr(rows, "__len__") else PaddedStream(rows, multiple)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset = rows
        pad_sampler(loader, multiple)
        return loader

    def _get_train_sampler(self, train_dataset=None):
        # A sampler that groups rows by length reads the column `length`, which only the dataset itself has.
        return super()._get_train_sampler(getattr(train_dataset, "rows", train_dataset))

    def get_batch_samples(self, epoch_iterator, num_batches: int, device) -> tuple[list, Tensor]:
        """The micro-batches of a step, and the number of their rows on all processes (padding does not count).

        At the end of a pass over a stream there may be fewer micro-batches than a step has, and the Trainer, which does
        not know the stream's length, would add their gradient to the first step of the next pass. Micro-batches that
        are skipped (`FILLER`) come before them, so that the step ends with them.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = sum((batch["row_weight"].sum() for batch in batches), torch.zeros(()))
        rows = self.accelerator.reduce(rows.to(device), "sum")
        if 0 < len(batches) < num_batches and not hasattr(self.train_dataset, "__len__"):
            batches = [batches[0] | {FILLER: True}] * (num_batches - len(batches)) + batches
        return batches, rows

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        if inputs.get(FILLER):
            return torch.zeros((), device=self.args.device)
        return self.training_step_of_rows(model, inputs, num_items_in_batch)

    def training_step_of_rows(self, model, inputs, num_items_in_batch) -> Tensor:
        """The training step of a micro-batch that has rows."""
        return super().training_step(model, inputs, num_items_in_batch)

    def share(self, inputs: dict[str, Tensor], rows: Tensor | None) -> Tensor:
        """The factor of each row's loss in this process's loss of a micro-batch, [rows of the micro-batch].

        Engines average gradients over processes, so that the factors are (processes / rows of the step), 0 for padding.

        Args:
            rows: the number of rows of the step on all processes; None outside a step: the mean over this batch.
        """
        weight_B = inputs["row_weight"]
        return weight_B / weight_B.sum() if rows is None else weight_B * (self.args.world_size / rows)
