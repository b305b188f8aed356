"""Where the noise of a preference score comes from and what it does: pure functions of redrawn and of banked values.

A response's draws are redrawn R times with everything else fixed; what varies is the estimator's noise. A *bank* holds
S(M), the summed log-ratios of the masked tokens, for several masks at several masked counts l; its moments

    m(l) = E[S(M) | l],   v(l) = Var[S(M) | l]

give the variance of any design with independent draws without simulating it, by the law of total variance:

    L/l form:  Var_l[(L/l) m(l)]  +  E_l[(L/l)^2 v(l)]                                     count, mask pattern
    1/t form:  Var_t[g(t)]  +  E_t[Var_{l|t} m(l) / t^2]  +  E_t[E_{l|t} v(l) / t^2]       level, count, mask pattern
               with l | t binomial and g(t) = E_{l|t} m(l) / t

(LLaDA 1.5, arXiv 2505.19223, Lemma 5, with the noise of its masks split in two.) The 1/t form is heavy-tailed, so that
few redraws misjudge it; computed this way it is exact up to the bank.

Shapes: R redraws, S draws, P pairs, B responses, K counts of a bank. Log-ratios are in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llada.masking import BERNOULLI_FLOOR
from vrpo.losses import total_loss

SATURATED = 6.0  # |s| above which the sigmoid's slope is below 0.25%: a pair that no longer teaches


@dataclass(frozen=True)
class Interval:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def jackknife(statistic: Callable[..., Tensor], *samples: Tensor) -> Interval:
    """A statistic of independent items and its 95% interval, from standard errors by leaving out one item at a time.

    The interval is Student's, with one degree of freedom less than there are items.

    Args:
        statistic: a scalar function of the samples, such as the ratio of two means.
        samples: tensors with the same number of items (at least 2) along their first dimension.
    """
    items = len(samples[0])
    keep = ~torch.eye(items, dtype=torch.bool)
    left_out = torch.stack([statistic(*(sample[keep[i]] for sample in samples)) for i in range(items)])
    error = ((items - 1) / items * (left_out - left_out.mean()).square().sum()).sqrt()
    value, half = float(statistic(*samples)), student_t(items - 1) * float(error)
    return Interval(value, value - half, value + half)


def student_t(freedom: int) -> float:
    """97.5% quantile of Student's t: a table for 1 and 2 degrees of freedom, Cornish-Fisher (within 1%) above."""
    if freedom < 3:
        return {1: 12.706, 2: 4.303}[freedom]
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def ratio_of_means(a: Tensor, b: Tensor) -> Tensor:
    return a.mean() / b.mean()


@dataclass(frozen=True)
class Split:
    """Variance of one draw of a response's log-ratio, nats^2, by its source.

    Estimates without bias, so that those of a single response may be below 0; means over responses tell.
    """

    level: float
    count: float
    pattern: float

    def of(self, n_t: int, n_y: int = 1) -> float:
        """Variance of the mean over n_t levels and n_y masks at each."""
        return self.level / n_t + (self.count + self.pattern) / (n_t * n_y)


@dataclass(frozen=True)
class Bank:
    """Masked sums S(M) of one response: counts [K], increasing and within 1..length, and values [K, masks at each]."""

    count_K: Tensor
    value_KM: Tensor
    length: int

    def moments(self) -> tuple[Tensor, Tensor]:
        """m(l) and v(l) for l = 1..length, [length] each; linear between banked counts."""
        line_LK = self.lines()
        return line_LK @ self.value_KM.mean(1), line_LK @ self.value_KM.var(1)

    def errors(self) -> Tensor:
        """Squared errors of the banked means, [K]; they are independent of each other."""
        return self.value_KM.var(1) / self.value_KM.shape[1]

    def lines(self) -> Tensor:
        """Weights of the banked counts in each count, [length, K]."""
        count_L = torch.arange(1, self.length + 1, dtype=torch.float64)
        upper = torch.searchsorted(self.count_K, count_L.long()).clamp(1, max(len(self.count_K) - 1, 1))
        upper = upper.clamp(max=len(self.count_K) - 1)
        lower = (upper - 1).clamp(min=0)
        low, high = self.count_K[lower].double(), self.count_K[upper].double()
        share = torch.where(high > low, (count_L - low) / (high - low).clamp(min=1), 0.0).clamp(0, 1)

        one_KK = torch.eye(len(self.count_K), dtype=torch.float64)
        return one_KK[lower] * (1 - share)[:, None] + one_KK[upper] * share[:, None]


def split_exact_count(bank: Bank) -> Split:
    """Sources of the L/l form's variance. The level is the count: there is no third source.

    Banked means are noisy, which would count as variation between counts; what that adds is taken off.
    """
    mean_L, variance_L = bank.moments()
    weight_L = bank.length / torch.arange(1, bank.length + 1, dtype=torch.float64)
    line_LK = weight_L[:, None] * bank.lines()
    noise = line_LK.var(0, unbiased=False) @ bank.errors()
    between = (weight_L * mean_L).var(unbiased=False) - noise
    return Split(float(between), 0.0, float((weight_L.square() * variance_L).mean()))


def split_bernoulli(bank: Bank, eps: float = BERNOULLI_FLOOR, nodes: int = 2000) -> Split:
    """Sources of the 1/t form's variance, t uniform on [eps, 1] (integrated on `nodes` midpoints in log t)."""
    (mean_L, variance_L), line_LK, error_K = bank.moments(), bank.lines(), bank.errors()
    length, count_L = bank.length, torch.arange(1, bank.length + 1, dtype=torch.float64)
    edge_T = torch.linspace(torch.tensor(eps).log().item(), 0.0, nodes + 1, dtype=torch.float64).exp()
    t_T, share_T = (edge_T[1:] * edge_T[:-1]).sqrt(), edge_T.diff() / (1 - eps)
    log_choose_L = torch.lgamma(torch.tensor(length + 1.0).double()) - (
        torch.lgamma(count_L + 1) + torch.lgamma(length - count_L + 1)
    )
    rest_TL = torch.where(count_L < length, (length - count_L) * torch.log1p(-t_T)[:, None], 0.0)
    chance_TL = (log_choose_L + count_L * t_T.log()[:, None] + rest_TL).exp()
    g_T = chance_TL @ mean_L / t_T
    square_T = chance_TL @ (mean_L.square() - line_LK.square() @ error_K) / t_T.square()
    error_T = (chance_TL @ line_LK / t_T[:, None]).square() @ error_K  # of g, squared
    whole_L = (share_T / t_T) @ chance_TL  # the mean over levels, as weights of m(l)
    level = (
        (share_T * (g_T.square() - error_T)).sum()
        - (whole_L @ mean_L).square()
        + (whole_L @ line_LK).square() @ error_K
    )
    count = (share_T * (square_T - g_T.square() + error_T)).sum()
    pattern = (share_T * (chance_TL @ variance_L / t_T.square())).sum()
    return Split(float(level), float(count), float(pattern))


def loss_of(
    chosen_P: Tensor, rejected_P: Tensor, length_B: Tensor, loss_type: str, beta: float, label_smoothing: float
) -> Tensor:
    """The loss of each pair from its log-ratios, [..., P] (`vrpo.losses`, without an SFT term)."""
    shape = chosen_P.shape
    flat_B = torch.cat([chosen_P.flatten(), rejected_P.flatten()])
    lengths = [side.expand(shape).flatten() for side in length_B.chunk(2)]
    loss = total_loss(flat_B, torch.zeros_like(flat_B), torch.cat(lengths), [loss_type], [1.0], beta, label_smoothing)
    return loss.view(shape)


def second_order_bias(
    chosen_P: Tensor, rejected_P: Tensor, variance_B: Tensor, length_B: Tensor, loss_type: str, beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """What small noise adds to the mean loss, [P]: (f_ww Var[r_w] + f_ll Var[r_l]) / 2 (the sides are independent).

    Args:
        chosen_P, rejected_P: log-ratios without noise; variance_B: [2P] the variances of their estimates.
    """
    sides = [side.detach().double().requires_grad_() for side in (chosen_P, rejected_P)]
    with torch.enable_grad():
        loss = loss_of(sides[0], sides[1], length_B.double(), loss_type, beta, label_smoothing)
        slopes = torch.autograd.grad(loss.sum(), sides, create_graph=True)
        curvatures = [
            torch.autograd.grad(slope.sum(), side, retain_graph=True)[0] if slope.requires_grad else 0 * side
            for slope, side in zip(slopes, sides, strict=True)
        ]
    return sum(c * v for c, v in zip(curvatures, variance_B.double().chunk(2), strict=True)).detach() / 2


def pooled(redrawn: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Log-ratios from the redraws of several unbiased designs, and the variance of their error, [B] each.

    Designs weigh by the inverse of their mean variance: the least noisy ones decide, so that a noisy design is not
    judged by its own mean.

    Args:
        redrawn: [R, B] values of each design, for the same responses.
    """
    variance = torch.stack([values_RB.var(0) / len(values_RB) for values_RB in redrawn])
    weight = 1 / variance.mean(1, keepdim=True).clamp(min=1e-30)
    weight = weight / weight.sum()
    return (weight * torch.stack([values_RB.mean(0) for values_RB in redrawn])).sum(0), (weight**2 * variance).sum(0)


def loss_bias(
    ratio_RB: Tensor, exact_B: Tensor, left_B: Tensor, length_B: Tensor, loss_type: str, beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Mean loss over redraws minus the loss of the exact score, [P].

    Args:
        ratio_RB: redrawn log-ratios (chosen, then rejected); exact_B, left_B: the best estimate of them and its
            variance (`pooled`); what that adds to the loss of the estimate is taken off to second order.
    """
    settings = length_B, loss_type, beta, label_smoothing
    chosen_RP, rejected_RP = ratio_RB.chunk(2, -1)
    chosen_P, rejected_P = exact_B.chunk(2)
    mean_P, exact_P = loss_of(chosen_RP, rejected_RP, *settings).mean(0), loss_of(chosen_P, rejected_P, *settings)
    return mean_P - exact_P + second_order_bias(chosen_P, rejected_P, left_B, *settings).to(mean_P)


def covariances(policy_SB: Tensor, reference_SB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Covariance over draws of policy and reference ELBOs, and the variance of each, [B] each, nats^2."""
    policy, reference = policy_SB - policy_SB.mean(0), reference_SB - reference_SB.mean(0)
    freedom = len(policy_SB) - 1
    pairs = ((policy, reference), (policy, policy), (reference, reference))
    return tuple((a * b).sum(0) / freedom for a, b in pairs)


def left_by_coupling(covariance_P3: Tensor) -> Tensor:
    """1 - correlation of policy and reference, pooled over items, a scalar, from stacked `covariances`.

    What coupling cannot cancel: with variances alike, Var[policy - reference] is twice this share of either.
    """
    both, policy, reference = covariance_P3.sum(0)
    return 1 - both / (policy * reference).sqrt()


class GradientNoise:
    """Running total variance (trace of the covariance) of redrawn gradients; keeps one sum and two numbers."""

    def __init__(self):
        self.total = list[Tensor]()
        self.squares, self.redraws = 0.0, 0

    def add(self, gradients: list[Tensor]) -> None:
        gradients = [gradient.double() for gradient in gradients]
        self.total = [a + b for a, b in zip(self.total, gradients, strict=True)] if self.total else gradients
        self.squares += float(sum(gradient.square().sum() for gradient in gradients))
        self.redraws += 1

    @property
    def variance(self) -> float:
        return (self.squares - self.squared_mean * self.redraws) / (self.redraws - 1)

    @property
    def squared_mean(self) -> float:
        """Squared norm of the mean gradient."""
        return float(sum(total.square().sum() for total in self.total)) / self.redraws**2
