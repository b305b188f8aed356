"""Implicit rewards under other divergences from the reference than the reverse KL (f-DPO, arXiv 2309.16240, theorem 1).

    reward = beta f'(u),   u = pi_theta(y) / pi_ref(y),   r = log u, here the difference of two ELBOs

    reverse_kl        f'(u) = log u                          r
    forward_kl        f'(u) = 1 - 1 / u                      1 - e^-r
    js_divergence     f'(u) = log(2u / (1 + u))              log 2 + log sigmoid(r)
    alpha_divergence  f'(u) = (u^(a-1) - 1) / (a - 1)        (e^((a-1) r) - 1) / (a - 1)

a is TRL's `f_alpha_divergence_coef`: 1 minus the alpha of the paper's table 1. a = 0 is the forward KL, a -> 1 the
reverse KL. Constants that cancel in a difference of rewards are TRL's. Log-ratios are in nats.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from llada.checks import OneOf, check

DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
Divergence = Annotated[str, OneOf(DIVERGENCES)]
# e^80 is finite in float32, and at such ratios a loss is saturated. Beyond, infinity times a slope of 0 would be nan.
LARGEST_EXPONENT = 80.0


def divergence_score(ratio: Tensor, divergence: str, alpha: float = 0.5) -> Tensor:
    """f'(u) of log-ratios r of any shape; with beta, the implicit reward.

    The exponents of forward_kl and alpha_divergence are cut off at 80 (TRL cuts off the second one's), and the slope is
    0 there: a chosen response whose log-ratio is below -80 / (1 - a) is no longer pulled back (forward_kl: a = 0).

    Args:
        divergence: one of `DIVERGENCES`; alpha: a of alpha_divergence.

    Raises:
        ValueError: the divergence is unknown, or alpha is not finite.

    Example: r = 2: reverse_kl 2, forward_kl 1 - e^-2 = 0.864665, js_divergence 0.693147 - 0.126928 = 0.566219,
    alpha_divergence with a = 0.5: (e^-1 - 1) / -0.5 = 1.264241.
    """
    check("divergence", divergence, Divergence)
    check("alpha", alpha, float)
    if divergence == "js_divergence":
        return math.log(2) + F.logsigmoid(ratio)
    power = {"reverse_kl": 1.0, "forward_kl": 0.0, "alpha_divergence": alpha}[divergence] - 1
    if abs(power) < 1e-6:  # the limit log u; TRL has the same threshold
        return ratio
    return torch.expm1((power * ratio).clamp(max=LARGEST_EXPONENT)) / power
