"""Which design and n to train with, from the share of the gradient's noise that their masks add.

With the variance b of a gradient between pairs and e(n) of the estimator at n draws (`vrpo.gradient_noise`):

pairs to spare
    A pair costs c draws to make and n to train on, and is used once. A compute of C draws makes a gradient of
    C / (c + n) pairs, whose variance is (c + n) (b + e(n)) / C. The best n has the least (c + n) (b + e(n)) for any C.
a fixed set of pairs
    Used in E epochs with fresh masks in each, a pair's E gradients have a mean of variance b + e(n) / E. More draws
    reduce the second term only. The best n is the smallest at which that term is a share of at most q.

Everything follows from the shares s(n) = e(n) / (b + e(n)), for b + e(n) = b / (1 - s(n)).
"""

import math
from typing import Any

Row = dict[str, Any]  # a row of the variance table, with its design's n and the cell estimator_share


def share_over_epochs(share: float, epochs: int) -> float:
    """The estimator's share of the noise once masks have averaged out over epochs.

    Example: 0.75 in one epoch (e = 3, b = 1) is 0.5 in three (e / 3 = 1).
    """
    return share / (share + epochs * (1 - share))


def epochs_for(share: float, wanted: float) -> int:
    """The fewest epochs over which the estimator's share falls to at most `wanted`.

    Example: from 0.75 to 0.25, that is from e = 3 b to e / E = b / 3, takes 9.
    """
    return max(1, math.ceil(share * (1 - wanted) / (wanted * (1 - share)) - 1e-9))


def noise_per_compute(row: Row, pair_cost: float) -> float:
    """The variance of a gradient of fresh pairs at equal compute, in units of that between pairs in a draw each."""
    return (pair_cost + row["n"]) / (1 - row["estimator_share"]["value"])


def with_pairs_to_spare(rows: list[Row], pair_cost: float) -> Row:
    """The row with the least noise at equal compute, where there are fresh pairs for all of it."""
    return min(rows, key=lambda row: noise_per_compute(row, pair_cost))


def with_fixed_pairs(rows: list[Row], epochs: int, wanted: float) -> Row | None:
    """The row with the fewest draws whose share over the epochs is at most `wanted`; None if there is none.

    Among rows of equal n it is the one with the smallest share.
    """
    quiet = [row for row in rows if share_over_epochs(row["estimator_share"]["value"], epochs) <= wanted]
    return min(quiet, key=lambda row: (row["n"], row["estimator_share"]["value"]), default=None)
