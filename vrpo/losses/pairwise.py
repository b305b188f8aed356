"""Losses of preference optimization, as functions of log-ratios, the policy's ELBOs, response lengths and beta.

    r_w = B_theta(y_w) - B_ref(y_w),   r_l = B_theta(y_l) - B_ref(y_l),   s = beta (r_w - r_l)

Log-ratios are in nats, summed over response tokens and averaged over draws. Names and definitions are TRL's, so that
settings carry over. Each function returns one value for each pair; the caller reduces. docs/losses.md derives the bias
that estimator noise adds to each.

Shapes: P pairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vrpo.scores import PairScores


@dataclass(frozen=True)
class LossInputs:
    """The inputs of a loss, [..., P] for each side.

    ratio: log-ratios of policy and reference, nats; policy: ELBOs of the policy, nats; length: response tokens.
    """

    ratio: PairScores
    policy: PairScores
    length: PairScores


def sigmoid(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """-log sigmoid(s) (DPO, arXiv 2305.18290, eq. 7; with ELBOs, LLaDA 1.5, arXiv 2505.19223, eq. 7).

    Example: r_w = 2, r_l = -1, beta = 0.2: s = 0.6, loss = log(1 + e^-0.6) = 0.437488.
    """
    return -F.logsigmoid(beta * p.ratio.margin)


def robust(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """[(1 - e) l(s) - e l(-s)] / (1 - 2e), l = -log sigmoid: unbiased if labels flip at rate e (arXiv 2403.00409).

    Example: s = 0.6, e = 0.1: (0.9 * 0.437488 - 0.1 * 1.037488) / 0.8 = 0.362488.
    """
    score_P = beta * p.ratio.margin
    kept_P, flipped_P = -F.logsigmoid(score_P), -F.logsigmoid(-score_P)
    return ((1 - label_smoothing) * kept_P - label_smoothing * flipped_P) / (1 - 2 * label_smoothing)


def ipo(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """(r_w / L_w - r_l / L_l - 1 / (2 beta))^2 (IPO, arXiv 2310.12036, eq. 17; log-ratios per token, as in TRL).

    Example: r_w = 2, L_w = 4, r_l = -1, L_l = 5, beta = 0.2: (0.5 + 0.2 - 2.5)^2 = 3.24.
    """
    return (p.ratio.chosen / p.length.chosen - p.ratio.rejected / p.length.rejected - 1 / (2 * beta)).square()


def hinge(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """max(0, 1 - s) (SLiC, arXiv 2305.10425, as in RSO, arXiv 2309.06657).

    Example: s = 0.6: loss = 0.4.
    """
    return torch.relu(1 - beta * p.ratio.margin)


def exo_pair(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """KL of softmax(beta r_w, beta r_l) from (1 - e, e) (EXO-pref, arXiv 2402.00856, eq. 16, two responses; e > 0).

    Example: s = 0.6, e = 0.1, q = sigmoid(s) = 0.645656: q log(q / 0.9) + (1 - q) log((1 - q) / 0.1) = 0.233839.
    """
    score_P = beta * p.ratio.margin
    kept_P = torch.sigmoid(score_P) * (F.logsigmoid(score_P) - math.log(1 - label_smoothing))
    return kept_P + torch.sigmoid(-score_P) * (F.logsigmoid(-score_P) - math.log(label_smoothing))


def nca_pair(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """l(a) + l(-a) / 2 + l(-b) / 2, a = beta r_w, b = beta r_l, l = -log sigmoid (NCA, arXiv 2402.05369, section 4).

    Example: a = 0.4, b = -0.2: 0.513015 + 0.913015 / 2 + 0.598139 / 2 = 1.268592.
    """
    a_P, b_P = beta * p.ratio.chosen, beta * p.ratio.rejected
    return -F.logsigmoid(a_P) - F.logsigmoid(-a_P) / 2 - F.logsigmoid(-b_P) / 2


def bco_pair(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """l(a) + l(-b), a = beta r_w, b = beta r_l: classifies good and bad (BCO, arXiv 2404.04656, theorem 1, no shift).

    Example: a = 0.4, b = -0.2: 0.513015 + 0.598139 = 1.111154.
    """
    return -F.logsigmoid(beta * p.ratio.chosen) - F.logsigmoid(-beta * p.ratio.rejected)


def sppo_hard(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2 (SPPO, arXiv 2405.00675, eq. 4.7 with win rates 1 and 0).

    Example: r_w = 2, r_l = -1, beta = 0.2: (2 - 2.5)^2 + (-1 + 2.5)^2 = 2.5.
    """
    return (p.ratio.chosen - 1 / (2 * beta)).square() + (p.ratio.rejected + 1 / (2 * beta)).square()


def apo_zero(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """1 - sigmoid(a) + sigmoid(b), a = beta r_w, b = beta r_l: chosen up, rejected down (APO, arXiv 2408.06266, eq. 7).

    Example: a = 0.4, b = -0.2: 1 - 0.598688 + 0.450166 = 0.851478.
    """
    return torch.sigmoid(-beta * p.ratio.chosen) + torch.sigmoid(beta * p.ratio.rejected)


def apo_down(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """sigmoid(a) + 1 - sigmoid(s), a = beta r_w: chosen down, rejected further down (APO, arXiv 2408.06266, eq. 8).

    Example: a = 0.4, s = 0.6: 0.598688 + 1 - 0.645656 = 0.953031.
    """
    score_P = beta * p.ratio.margin
    return torch.sigmoid(beta * p.ratio.chosen) + torch.sigmoid(-score_P)


def sigmoid_norm(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """-log sigmoid(beta (r_w / L_w - r_l / L_l)): DPO per token (length-normalised, Tulu 3, arXiv 2411.15124).

    Example: r_w = 2, L_w = 4, r_l = -1, L_l = 5, beta = 0.2: -log sigmoid(0.14) = 0.625595.
    """
    return -F.logsigmoid(beta * (p.ratio.chosen / p.length.chosen - p.ratio.rejected / p.length.rejected))


def sft(p: LossInputs, beta: float, label_smoothing: float) -> Tensor:
    """-B_theta(y_w) / L_w, the SFT loss of the chosen response on the same draws (LLaDA 1.5 adds 0.05 of it).

    Example: an ELBO of -6 nats over 4 tokens: loss = 1.5.
    """
    return -p.policy.chosen / p.length.chosen


# Losses with a kink, where noise adds to the mean loss in first order: a second-order bias would mislead.
KINKED = {"hinge"}

PairLoss = Callable[[LossInputs, float, float], Tensor]
LOSSES: dict[str, PairLoss] = {
    loss.__name__: loss
    for loss in (
        sigmoid, robust, ipo, hinge, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, sigmoid_norm, sft,
    )
}  # fmt: skip


@dataclass(frozen=True)
class PreferenceLoss:
    """A weighted sum of losses.

    names: keys of `LOSSES`; weights: one for each; beta: scale of the log-ratios in the score, 1/nats; label_smoothing:
    the assumed rate of flipped labels, for `robust` and `exo_pair`.

    Raises:
        ValueError: an unknown loss, a missing weight, or a value out of range; the message names the option.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    beta: float
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta} must be positive")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 0.5")
        if unknown := [name for name in self.names if name not in LOSSES]:
            raise ValueError(f"loss_type={unknown[0]!r} is unknown: it must be one of {list(LOSSES)}")
        if len(self.names) != len(self.weights):
            raise ValueError(
                f"loss_weights={list(self.weights)} must have one weight for each of loss_type={list(self.names)}"
            )
        if "exo_pair" in self.names and self.label_smoothing == 0:
            raise ValueError("label_smoothing=0 makes exo_pair infinite: set it above 0 (TRL takes 1e-3)")

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss of each pair, [..., P]."""
        total_P = torch.zeros_like(inputs.ratio.chosen)
        for name, weight in zip(self.names, self.weights, strict=True):
            total_P = total_P + weight * LOSSES[name](inputs, self.beta, self.label_smoothing)
        return total_P
