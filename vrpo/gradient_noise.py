"""The noise of a preference gradient, split into what the drawn pairs and what the drawn masks add.

A pair p and one redraw r of its masks give the gradient g_pr of the pair's loss. Pairs are independent, and so are the
redraws of a pair. The gradient of a pair drawn at random, with masks drawn at random, has the total variance (the trace
of its covariance)

    tr Cov[g_pr]  =  tr Cov_p[ E_r g_pr ]  +  E_p[ tr Cov_r[ g_pr ] ]          between pairs + estimator

by the law of total variance, and a batch of B pairs has a B-th of it. With |G|^2 = |E g_pr|^2, the squared signal,

    gradient noise scale  =  tr Cov[g_pr] / |G|^2        in pairs (McCandlish et al., arXiv 1812.06162, eq. 2.9)

is the number of pairs in a batch whose noise is as large as its signal. The variance from masks includes that of the
loss's slope, which a redraw of the scores changes too.

For P pairs with R redraws each, let m_p be the mean of g_pr over r and v_p its sample variance over r. Without bias,

    estimator      =  mean of v_p
    signal         =  mean of m_p . m_q over p != q
    between pairs  =  mean of |m_p|^2  -  signal  -  estimator / R

so that only inner products of the m_p are needed. `between` equals the sample variance of the m_p over pairs minus
estimator / R. Both it and `signal` may be negative by chance.

Shapes: P pairs, D numbers of a gradient, K of its projection.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KEPT = 2**20  # numbers of a pair's mean gradient that are kept


@dataclass(frozen=True)
class PairGradients:
    """Redrawn gradients of P pairs, reduced to what the estimates need.

    gram_PP: inner products of the pairs' mean gradients m_p; variance_P: v_p, the sample variance over redraws, summed
    over parameters; redraws: R, at least 2. The unit is that of a squared gradient.
    """

    gram_PP: Tensor
    variance_P: Tensor
    redraws: int

    def of(self, pairs: Tensor) -> "PairGradients":
        """Those of some pairs, given by their numbers."""
        return PairGradients(self.gram_PP[pairs][:, pairs], self.variance_P[pairs], self.redraws)

    @property
    def estimator(self) -> Tensor:
        """Variance of a pair's gradient over redraws of its masks, a mean over pairs."""
        return self.variance_P.mean()

    @property
    def signal(self) -> Tensor:
        """Squared norm of the expected gradient; from at least 2 pairs."""
        pairs = len(self.gram_PP)
        return (self.gram_PP.sum() - self.gram_PP.trace()) / (pairs * (pairs - 1))

    @property
    def between(self) -> Tensor:
        """Variance over pairs of a pair's expected gradient; from at least 2 pairs."""
        return self.gram_PP.diagonal().mean() - self.signal - self.estimator / self.redraws


class GradientSums:
    """Sums over pairs with two redraws each, which add up over processes: all that the estimates need of them.

    With M the sum of the m_p, the sum of m_p . m_q over p != q is |M|^2 minus the sum of |m_p|^2, so that no pair's
    gradient is kept. The estimates are those of `PairGradients`.

    Args:
        size: K, the numbers of a gradient that are kept (`projection`).
    """

    def __init__(self, size: int):
        # The sum of the projected m_p, then: pairs, sums of |projected m_p|^2, of |m_p|^2 and of v_p.
        self.size, self.flat = size, torch.zeros(size + 4, dtype=torch.float64)

    def add(self, first: list[Tensor], second: list[Tensor]) -> None:
        """Add a pair by the gradients of its two redraws, one tensor for each parameter. `first` is overwritten."""
        halves, squares = list[Tensor](), list[Tensor]()
        for one, other in zip(first, second, strict=True):
            halves.append((one.double() - other.double()).square().sum() / 2)
            squares.append(one.add_(other).div_(2).double().square().sum())
        kept_K = projection(first, self.size, torch.float64)
        scalars = torch.stack([torch.stack(squares).sum(), torch.stack(halves).sum()]).cpu()
        self.flat += torch.cat([kept_K, kept_K.new_ones(1), kept_K.square().sum()[None], scalars])

    @property
    def pairs(self) -> int:
        return int(self.flat[self.size])

    @property
    def estimator(self) -> float:
        return float(self.flat[-1]) / self.pairs

    @property
    def signal(self) -> float:
        total = self.flat[: self.size].square().sum() - self.flat[self.size + 1]
        return float(total) / (self.pairs * (self.pairs - 1))

    @property
    def between(self) -> float:
        return float(self.flat[-2]) / self.pairs - self.signal - self.estimator / 2


def estimator_share(estimator: Tensor, between: Tensor) -> Tensor:
    """The part of a gradient's variance that comes from masks. Example: estimator 3, between 1: 0.75."""
    return estimator / (estimator + between)


def signal_to_noise(estimator: Tensor, between: Tensor, signal: Tensor) -> Tensor:
    """Squared signal over the variance of one pair's gradient: the inverse of the gradient noise scale, 1 / pairs."""
    return signal / (estimator + between)


def projection(gradient: list[Tensor], size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A gradient as one vector of at most `size` numbers whose inner products with others are kept.

    Up to `size` numbers are kept as they are. Of more, each is added with a random sign to a random one of `size` sums;
    signs and places are the same in every call. An inner product a . b of such vectors is unbiased, with a standard
    error of at most sqrt(2 / size) |a| |b| (Charikar, Chen and Farach-Colton's count sketch, 2002).

    Args:
        gradient: of each parameter, in any shape, D numbers in all. dtype: of the result.

    Returns:
        [D] or [size], on the CPU.
    """
    if sum(part.numel() for part in gradient) <= size:
        return torch.cat([part.flatten().to(dtype).cpu() for part in gradient])
    sums_K = torch.zeros(size, dtype=torch.float64)
    for number, part in enumerate(gradient):
        generator = torch.Generator(part.device).manual_seed(number)
        place = torch.randint(size, (part.numel(),), generator=generator, device=part.device)
        sign = 2 * torch.randint(2, (part.numel(),), generator=generator, device=part.device) - 1
        added_K = torch.zeros(size, dtype=torch.float64, device=part.device)
        sums_K += added_K.index_add_(0, place, sign * part.flatten().double()).cpu()
    return sums_K.to(dtype)
