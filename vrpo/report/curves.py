"""Numbers behind the curves: fewer points, means over neighbouring log lines, means over runs."""

from dataclasses import dataclass

import numpy as np

from vrpo.report.reading import Series

POINTS = 1000  # of a curve, at most
SMOOTHED = 15  # log lines from which on a curve is smoothed
PARTS = 15  # the window is this part of the curve


@dataclass(frozen=True)
class Band:
    """A mean over runs and its 95% interval, by optimizer step [N]; nan where fewer than two runs have a value."""

    steps: np.ndarray
    mean: np.ndarray
    half_widths: np.ndarray


def size_of(lines: int, points: int = POINTS) -> int:
    """How many log lines make one point of a curve that may have `points` of them."""
    return max(1, -(-lines // points))


def thinned(series: Series, size: int) -> Series:
    """Means of `size` consecutive values, at the steps of their last ones, without intervals."""
    if size == 1 or not len(series):
        return series
    edges = np.arange(0, len(series), size)
    kept = np.isfinite(series.values)
    counts = np.add.reduceat(kept.astype(float), edges)
    sums = np.add.reduceat(np.where(kept, series.values, 0.0), edges)
    values = np.divide(sums, counts, out=np.full(len(edges), np.nan), where=counts > 0)
    last = np.minimum(edges + size, len(series)) - 1
    return Series(series.steps[last], values, np.full(len(edges), np.nan))


def window_of(points: int) -> int:
    """How many points are averaged into one of a smooth curve: an odd number, 1 for none."""
    return 1 if points < SMOOTHED else 2 * max(1, round(points / PARTS / 2)) + 1


def smooth(series: Series, window: int) -> Series:
    """The mean over a window around each point, over fewer points at both ends; gaps stay gaps."""
    if window <= 1 or not len(series):
        return series
    kept, side = np.isfinite(series.values), window // 2
    sums = np.concatenate([[0.0], np.cumsum(np.where(kept, series.values, 0.0))])
    counts = np.concatenate([[0.0], np.cumsum(kept.astype(float))])
    middle = np.arange(len(series))
    low, high = np.maximum(middle - side, 0), np.minimum(middle + side + 1, len(series))
    total, count = sums[high] - sums[low], counts[high] - counts[low]
    values = np.divide(total, count, out=np.full(len(series), np.nan), where=(count > 0) & kept)
    return Series(series.steps, values, series.half_widths)


def mean_and_half_width(values_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over R runs and half of its 95% interval, Student's with R - 1 degrees of freedom; nan for one run."""
    from scipy import stats  # slow to import, and needed for several runs only

    runs = len(values_RN)
    if runs < 2:
        return values_RN.mean(0), np.full(values_RN.shape[1:], np.nan)
    return values_RN.mean(0), float(stats.t.ppf(0.975, runs - 1)) * values_RN.std(0, ddof=1) / runs**0.5


def band_of(runs: list[Series]) -> Band:
    """The mean over runs at the steps that all of them have, and its interval (`mean_and_half_width`)."""
    steps = runs[0].steps
    for each in runs[1:]:
        steps = np.intersect1d(steps, each.steps)
    values_RN = np.stack([each.values[np.searchsorted(each.steps, steps)] for each in runs])
    return Band(steps, *mean_and_half_width(values_RN))
