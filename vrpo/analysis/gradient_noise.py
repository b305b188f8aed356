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


def estimator_share(estimator: Tensor, between: Tensor) -> Tensor:
    """The part of a gradient's variance that comes from masks. Example: estimator 3, between 1: 0.75."""
    return estimator / (estimator + between)


def signal_to_noise(estimator: Tensor, between: Tensor, signal: Tensor) -> Tensor:
    """Squared signal over the variance of one pair's gradient: the inverse of the gradient noise scale, 1 / pairs."""
    return signal / (estimator + between)


def projection(gradient: list[Tensor], size: int) -> Tensor:
    """A gradient as one vector of at most `size` numbers whose inner products with others are kept, float32.

    Up to `size` numbers are kept as they are. Of more, each is added with a random sign to a random one of `size` sums;
    signs and places are the same in every call. An inner product a . b of such vectors is unbiased, with a standard
    error of at most sqrt(2 / size) |a| |b| (Charikar, Chen and Farach-Colton's count sketch, 2002).

    Args:
        gradient: of each parameter, in any shape, D numbers in all.

    Returns:
        [D] or [size], on the CPU.
    """
    if sum(part.numel() for part in gradient) <= size:
        return torch.cat([part.flatten().float().cpu() for part in gradient])
    sums_K = torch.zeros(size, dtype=torch.float64)
    for number, part in enumerate(gradient):
        generator = torch.Generator(part.device).manual_seed(number)
        place = torch.randint(size, (part.numel(),), generator=generator, device=part.device)
        sign = 2 * torch.randint(2, (part.numel(),), generator=generator, device=part.device) - 1
        added_K = torch.zeros(size, dtype=torch.float64, device=part.device)
        sums_K += added_K.index_add_(0, place, sign * part.flatten().double()).cpu()
    return sums_K.float()
