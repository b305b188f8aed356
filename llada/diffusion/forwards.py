"""Which rows go through the model together: rows of similar length, so that almost no padding is computed.

A *row* is one draw of one sequence. Rows of different draws may share a forward pass: a row's numbers do not depend on
the others.

Shapes: S draws, B sequences, L tokens, R rows of one forward pass.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from llada.diffusion.masking import MaskDraws

# A shorter row joins a forward pass if it adds at most this share of padding to it.
PADDING_SHARE = 0.02


@dataclass(frozen=True)
class Forward:
    """The rows of one forward pass: draw and sequence of each, R numbers, and the columns up to which they reach."""

    draws: tuple[int, ...]
    sequences: tuple[int, ...]
    width: int

    def __len__(self) -> int:
        return len(self.draws)

    def masks(self, draws: MaskDraws) -> tuple[Tensor, Tensor]:
        """Masks and weights of the rows, [R, width] each."""
        rows = (list(self.draws), list(self.sequences), slice(self.width))
        return draws.masked_SBL[rows], draws.weight_SBL[rows]


def row_lengths(attention_mask_BL: Tensor) -> list[int]:
    """The number of columns up to the last token of each sequence, B numbers; what is beyond is padding."""
    positions_L = torch.arange(1, attention_mask_BL.shape[1] + 1, device=attention_mask_BL.device)
    return (attention_mask_BL.bool() * positions_L).amax(-1).tolist()


def whole_batches(draws: Iterable[int], lengths: list[int], width: int) -> list[Forward]:
    """One forward pass for each draw, with all sequences of a batch in their order and width."""
    sequences = tuple(range(len(lengths)))
    return [Forward((draw,) * len(sequences), sequences, width) for draw in draws]


def of_sequence(sequence: int, length: int, draws: Iterable[int], together: int) -> list[Forward]:
    """Forward passes of one sequence, with up to `together` draws of it in each."""
    draws = list(draws)
    chunks = [draws[start : start + together] for start in range(0, len(draws), together)]
    return [Forward(tuple(chunk), (sequence,) * len(chunk), length) for chunk in chunks]


def similar_lengths(draws: Iterable[int], lengths: list[int], tokens: int) -> list[Forward]:
    """Forward passes of rows of similar length, the longest first, of at most `tokens` tokens (or of one row).

    Example: two draws of sequences of 900 and 100 tokens, and 1,800 tokens: [900, 900] and [100, 100].
    """
    draws = list(draws)
    rows = [(lengths[b], b, s) for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]) for s in draws]
    groups: list[list[tuple[int, int, int]]] = []
    padding = 0
    for length, sequence, draw in rows:
        width = groups[-1][0][0] if groups else 0
        size = width * (len(groups[-1]) + 1) if groups else 0
        if groups and size <= tokens and padding + width - length <= PADDING_SHARE * size:
            groups[-1].append((length, sequence, draw))
            padding += width - length
        else:
            groups.append([(length, sequence, draw)])
            padding = 0
    return [
        Forward(tuple(draw for _, _, draw in group), tuple(sequence for _, sequence, _ in group), group[0][0])
        for group in groups
    ]
