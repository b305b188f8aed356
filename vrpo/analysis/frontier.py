"""The best reward for each distance from a base model, and how much of a policy's distance was needed for its reward.

Among all policies with a given mean reward, the one nearest to the base model, in KL(policy || base), is an exponential
tilt of it, whose reward and distance follow from the rewards of samples of the base model:

    pi_l(y) = pi_base(y) exp(l r(y)) / Z(l),   Z(l) = E_base[exp(l r)]
    reward(l) = E_base[r exp(l r)] / Z(l),     KL(l) = l reward(l) - log Z(l)

It is also the policy that DPO's loss asks for, with l = 1/beta for a reward in the units of the loss. The tilt with the
policy's reward has the smallest KL that could give it, and

    KL efficiency = smallest KL / KL of the policy,   1 at best.

All KLs are in nats, of whole responses. N samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_EFFECTIVE = 100.0  # effective sample size below which the samples do not show what a tilt would sample


@dataclass(frozen=True)
class Tilt:
    """An exponential tilt of the base model: its strength l, its mean reward, its KL from the base, and the effective
    number of samples, (sum w)^2 / sum w^2, from which these were computed."""

    strength: float
    reward: float
    kl: float
    effective: float


def tilt(rewards_N: Tensor, strength: float) -> Tilt:
    """The tilt of a given strength, from rewards of independent samples of the base model, [N]."""
    rewards_N = rewards_N.double()
    exponent_N = strength * rewards_N
    log_normalizer = exponent_N.logsumexp(0) - math.log(len(rewards_N))
    weight_N = exponent_N.softmax(0)
    reward = float(weight_N @ rewards_N)
    kl = max(0.0, strength * reward - float(log_normalizer))
    return Tilt(strength, reward, kl, float(1 / weight_N.square().sum()))


def tilt_to(rewards_N: Tensor, reward: float) -> Tilt | None:
    """The tilt with a given mean reward; None where it is beyond what the samples show (`MIN_EFFECTIVE`).

    A reward below the base model's mean has a tilt of negative strength.
    """
    rewards_N = rewards_N.double()
    scale = float(rewards_N.std())
    if not scale > 0 or not float(rewards_N.min()) < reward < float(rewards_N.max()):
        return None
    low, high = -1.0 / scale, 1.0 / scale
    while tilt(rewards_N, low).reward > reward:
        low *= 2
    while tilt(rewards_N, high).reward < reward:
        high *= 2
    # The reward of a tilt rises with its strength: its slope is the reward's variance.
    return between(rewards_N, low, high, lambda found: found.reward < reward)


def tilt_at(rewards_N: Tensor, kl: float) -> Tilt | None:
    """The tilt of positive strength with a given KL, the best policy at that distance; None where it is beyond what the
    samples show (`MIN_EFFECTIVE`).

    Raises:
        ValueError: `kl` is negative.
    """
    if kl < 0:
        raise ValueError(f"kl={kl} must not be negative")
    rewards_N = rewards_N.double()
    scale = float(rewards_N.std())
    largest = -math.log(float((rewards_N == rewards_N.max()).double().mean()))  # of a tilt that has the best only
    if not scale > 0 or not kl < largest:
        return None
    high = 1.0 / scale
    while tilt(rewards_N, high).kl < kl:
        high *= 2
    # The KL of a tilt rises with its strength l > 0: its slope is l times the reward's variance.
    return between(rewards_N, 0.0, high, lambda found: found.kl < kl)


def between(rewards_N: Tensor, low: float, high: float, too_weak: Callable[[Tilt], bool]) -> Tilt | None:
    """The tilt between two strengths below which all are too weak, by bisection."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if too_weak(tilt(rewards_N, middle)) else (low, middle)
    found = tilt(rewards_N, (low + high) / 2)
    return found if found.effective >= MIN_EFFECTIVE else None


def kl_efficiency(rewards_N: Tensor, reward: float, kl: float) -> float | None:
    """The smallest KL that gives a reward over the KL of a policy that has it; None where the samples do not show it.

    Args:
        rewards_N: of samples of the base model. reward, kl: the policy's mean reward, and its KL from the base model.

    Raises:
        ValueError: `kl` is not positive.
    """
    if not kl > 0:
        raise ValueError(f"kl={kl} must be positive")
    found = tilt_to(rewards_N, reward)
    return None if found is None else found.kl / kl


def best_of(rewards_N: Tensor, k: int) -> Tilt:
    """Taking the best of k samples: its mean reward, and its KL from the base model, log k - (k - 1)/k for rewards
    without ties (an upper bound with ties; Beirami et al., arXiv 2401.01879). Its strength is not defined.

    The mean is exact for the empirical distribution: the m-th smallest of N samples is the best of k, drawn with
    replacement, with probability (m/N)^k - ((m-1)/N)^k.
    """
    sorted_N = rewards_N.double().sort().values
    rank_N = torch.arange(1, len(sorted_N) + 1, dtype=torch.float64) / len(sorted_N)
    weight_N = rank_N**k - (rank_N - 1 / len(sorted_N)) ** k
    kl = math.log(k) - (k - 1) / k
    return Tilt(math.nan, float(weight_N @ sorted_N), kl, float(1 / weight_N.square().sum()))
