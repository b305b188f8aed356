"""Which rows of a batch a trainer forwards together, as its model and its engine allow it."""

from torch import Tensor

from llada.diffusion.forwards import Forward, of_sequence, row_lengths, similar_lengths, whole_batches
from llada.training.distributed import is_sharded


def tokens_of_forward(attention_BL: Tensor, draws_per_forward: int | None) -> int:
    """The most tokens of a forward pass: by default, as many as one draw of the batch has.

    So the graph of a forward pass needs no more memory with many draws than with one.
    """
    return sum(row_lengths(attention_BL)) * (draws_per_forward or 1)


def forwards_of(trainer, attention_BL: Tensor, draws: range, draws_per_forward: int | None = None) -> list[Forward]:
    """Forward passes of some draws of all rows of a batch.

    Auxiliary losses are averages over the rows of a draw, which then stay together. Engines that shard parameters need
    the same number of forward passes on all processes, whatever their rows' lengths are: there, each row has its own,
    with as many of its draws as the batch has rows.
    """
    lengths, (rows, width) = row_lengths(attention_BL), attention_BL.shape
    if any(trainer.spec.auxiliary_losses.values()) or (is_sharded(trainer.accelerator) and len(draws) == 1):
        return whole_batches(draws, lengths, width)
    if is_sharded(trainer.accelerator):
        together = rows * (draws_per_forward or 1)
        return [each for b, length in enumerate(lengths) for each in of_sequence(b, length, draws, together)]
    return similar_lengths(draws, lengths, tokens_of_forward(attention_BL, draws_per_forward))
