"""A value with its 95% interval, and that of a share of successes. Importing it does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def proportion(right: Sequence[float]) -> Interval:
    """A share of successes and Wilson's 95% interval, which has a width even where all or none succeed.

    Args:
        right: 1 or True for a success, 0 or False for none; 1/2 for a tie. Scores that are ties scatter less than
            successes with the same mean, so that the interval is then wider than it need be.
    """
    n, z = len(right), NormalDist().inv_cdf(0.975)
    share = float(sum(right)) / n
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((middle + side) / (1 + z**2 / n) for side in (-half, half))
    return Interval(share, max(0.0, low), min(1.0, high))
