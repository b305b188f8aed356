"""Variance of a response's log-ratio, decomposed by source, from a table of masked sums.

With the models and the response fixed, only the masks vary. A *table of masked sums* holds S(M), the summed log-ratios
of the masked tokens, for several masks M at several masked counts l. Its moments

    m(l) = E[S(M) | l],   v(l) = Var[S(M) | l]

give the variance of any design with independent draws without simulation, by the law of total variance:

    L/l form:  Var_l[(L/l) m(l)]  +  E_l[(L/l)^2 v(l)]                                     count, mask pattern
    1/t form:  Var_t[g(t)]  +  E_t[Var_{l|t} m(l) / t^2]  +  E_t[E_{l|t} v(l) / t^2]       level, count, mask pattern
               with l | t binomial and g(t) = E_{l|t} m(l) / t

(LLaDA 1.5, arXiv 2505.19223, Lemma 5, with the variance over masks split in two.) The 1/t form is heavy-tailed, so a
few redraws estimate its variance badly; computed this way it is exact up to the errors of the table.

Shapes: L tokens, K counts in a table, M masks at each count, T timesteps. Log-ratios are in nats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llada.diffusion.masking import BERNOULLI_FLOOR


@dataclass(frozen=True)
class VarianceBySource:
    """Variance of one draw of a response's log-ratio, nats^2, by its source.

    The estimates are unbiased, so the value for one response can be negative; average over responses.
    """

    level: float
    count: float
    pattern: float

    def of(self, n_t: int, n_y: int = 1) -> float:
        """Variance of the mean over n_t timesteps and n_y masks at each."""
        return self.level / n_t + (self.count + self.pattern) / (n_t * n_y)


@dataclass(frozen=True)
class MaskedSumTable:
    """Masked sums S(M) of one response: counts [K], increasing and within 1..length, and values [K, masks at each]."""

    count_K: Tensor
    value_KM: Tensor
    length: int

    def moments(self) -> tuple[Tensor, Tensor]:
        """m(l) and v(l) for l = 1..length, [length] each; linearly interpolated between the counts of the table."""
        line_LK = self.lines()
        return line_LK @ self.value_KM.mean(1), line_LK @ self.value_KM.var(1)

    def errors(self) -> Tensor:
        """Squared standard errors of the means in the table, [K]; they are independent of each other."""
        return self.value_KM.var(1) / self.value_KM.shape[1]

    def lines(self) -> Tensor:
        """Interpolation weights of the counts of the table for each count 1..length, [length, K]."""
        count_L = torch.arange(1, self.length + 1, dtype=torch.float64)
        upper = torch.searchsorted(self.count_K, count_L.long()).clamp(1, max(len(self.count_K) - 1, 1))
        upper = upper.clamp(max=len(self.count_K) - 1)
        lower = (upper - 1).clamp(min=0)
        low, high = self.count_K[lower].double(), self.count_K[upper].double()
        share = torch.where(high > low, (count_L - low) / (high - low).clamp(min=1), 0.0).clamp(0, 1)

        one_KK = torch.eye(len(self.count_K), dtype=torch.float64)
        return one_KK[lower] * (1 - share)[:, None] + one_KK[upper] * share[:, None]


def split_exact_count(table: MaskedSumTable) -> VarianceBySource:
    """Sources of the L/l form's variance; its timestep is the count itself, so `count` is 0 and `level` stands for it.

    Noise of the means in the table would pass for variation between counts; its contribution is subtracted.
    """
    mean_L, variance_L = table.moments()
    weight_L = table.length / torch.arange(1, table.length + 1, dtype=torch.float64)
    line_LK = weight_L[:, None] * table.lines()
    noise = line_LK.var(0, unbiased=False) @ table.errors()
    between = (weight_L * mean_L).var(unbiased=False) - noise
    return VarianceBySource(float(between), 0.0, float((weight_L.square() * variance_L).mean()))


def split_bernoulli(table: MaskedSumTable, eps: float = BERNOULLI_FLOOR, nodes: int = 2000) -> VarianceBySource:
    """Sources of the 1/t form's variance, t uniform on [eps, 1] (integrated on `nodes` midpoints in log t)."""
    (mean_L, variance_L), line_LK, error_K = table.moments(), table.lines(), table.errors()
    length, count_L = table.length, torch.arange(1, table.length + 1, dtype=torch.float64)
    edge_T = torch.linspace(torch.tensor(eps).log().item(), 0.0, nodes + 1, dtype=torch.float64).exp()
    t_T, share_T = (edge_T[1:] * edge_T[:-1]).sqrt(), edge_T.diff() / (1 - eps)
    log_choose_L = torch.lgamma(torch.tensor(length + 1.0).double()) - (
        torch.lgamma(count_L + 1) + torch.lgamma(length - count_L + 1)
    )
    rest_TL = torch.where(count_L < length, (length - count_L) * torch.log1p(-t_T)[:, None], 0.0)
    chance_TL = (log_choose_L + count_L * t_T.log()[:, None] + rest_TL).exp()
    g_T = chance_TL @ mean_L / t_T
    square_T = chance_TL @ (mean_L.square() - line_LK.square() @ error_K) / t_T.square()
    error_T = (chance_TL @ line_LK / t_T[:, None]).square() @ error_K  # squared error of g
    whole_L = (share_T / t_T) @ chance_TL  # the mean over timesteps, as weights of m(l)
    level = (
        (share_T * (g_T.square() - error_T)).sum()
        - (whole_L @ mean_L).square()
        + (whole_L @ line_LK).square() @ error_K
    )
    count = (share_T * (square_T - g_T.square() + error_T)).sum()
    pattern = (share_T * (chance_TL @ variance_L / t_T.square())).sum()
    return VarianceBySource(float(level), float(count), float(pattern))
