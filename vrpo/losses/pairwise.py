"""Losses of preference optimization, as functions of log-ratios, the policy's ELBOs and response lengths.

    r_w = B_theta(y_w) - B_ref(y_w),   r_l = B_theta(y_l) - B_ref(y_l),   s = beta (r_w - r_l)

Log-ratios are in nats, summed over response tokens and averaged over draws. Names and definitions are TRL's, so that
settings carry over. Each function takes the inputs and the `PreferenceLoss` that holds its settings, and returns one
value for each pair; the caller reduces. docs/losses.md derives the bias that estimator noise adds to each.

Shapes: P pairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from llada.checks import NOT_EMPTY, OneOf, PositiveFloat, Range, check, check_fields, own_fields
from vrpo.losses.divergences import Divergence, divergence_score
from vrpo.scores import PairScores


@dataclass(frozen=True)
class LossInputs:
    """The inputs of a loss, [..., P] for each side.

    ratio: log-ratios of policy and reference, nats; policy: the policy's ELBOs in these ratios, nats; length: response
    tokens; unweighted: the policy's ELBOs where `ratio` and `policy` weigh tokens (`vrpo.scores.length_weights`).
    """

    ratio: PairScores
    policy: PairScores
    length: PairScores
    unweighted: PairScores | None = None

    @property
    def elbo(self) -> PairScores:
        """The policy's ELBOs with all tokens at weight 1, nats."""
        return self.policy if self.unweighted is None else self.unweighted


def sigmoid(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """-log sigmoid(s) (DPO, arXiv 2305.18290, eq. 7; with ELBOs, LLaDA 1.5, arXiv 2505.19223, eq. 7).

    Example: r_w = 2, r_l = -1, beta = 0.2: s = 0.6, loss = log(1 + e^-0.6) = 0.437488.
    """
    return -F.logsigmoid(o.beta * p.ratio.margin)


def robust(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """[(1 - e) l(s) - e l(-s)] / (1 - 2e), l = -log sigmoid: unbiased if labels flip at rate e (arXiv 2403.00409).

    Example: s = 0.6, e = 0.1: (0.9 * 0.437488 - 0.1 * 1.037488) / 0.8 = 0.362488.
    """
    score_P = o.beta * p.ratio.margin
    kept_P, flipped_P = -F.logsigmoid(score_P), -F.logsigmoid(-score_P)
    return ((1 - o.label_smoothing) * kept_P - o.label_smoothing * flipped_P) / (1 - 2 * o.label_smoothing)


def ipo(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """(r_w / L_w - r_l / L_l - 1 / (2 beta))^2 (IPO, arXiv 2310.12036, eq. 17; log-ratios per token, as in TRL).

    Example: r_w = 2, L_w = 4, r_l = -1, L_l = 5, beta = 0.2: (0.5 + 0.2 - 2.5)^2 = 3.24.
    """
    return (p.ratio.chosen / p.length.chosen - p.ratio.rejected / p.length.rejected - 1 / (2 * o.beta)).square()


def hinge(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """max(0, 1 - s) (SLiC, arXiv 2305.10425, as in RSO, arXiv 2309.06657).

    Example: s = 0.6: loss = 0.4.
    """
    return torch.relu(1 - o.beta * p.ratio.margin)


def exo_pair(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """KL of softmax(beta r_w, beta r_l) from (1 - e, e) (EXO-pref, arXiv 2402.00856, eq. 16, two responses; e > 0).

    Example: s = 0.6, e = 0.1, q = sigmoid(s) = 0.645656: q log(q / 0.9) + (1 - q) log((1 - q) / 0.1) = 0.233839.
    """
    score_P = o.beta * p.ratio.margin
    kept_P = torch.sigmoid(score_P) * (F.logsigmoid(score_P) - math.log(1 - o.label_smoothing))
    return kept_P + torch.sigmoid(-score_P) * (F.logsigmoid(-score_P) - math.log(o.label_smoothing))


def nca_pair(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """l(a) + l(-a) / 2 + l(-b) / 2, a = beta r_w, b = beta r_l, l = -log sigmoid (NCA, arXiv 2402.05369, section 4).

    Example: a = 0.4, b = -0.2: 0.513015 + 0.913015 / 2 + 0.598139 / 2 = 1.268592.
    """
    a_P, b_P = o.beta * p.ratio.chosen, o.beta * p.ratio.rejected
    return -F.logsigmoid(a_P) - F.logsigmoid(-a_P) / 2 - F.logsigmoid(-b_P) / 2


def bco_pair(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """l(a) + l(-b), a = beta r_w, b = beta r_l: classifies good and bad (BCO, arXiv 2404.04656, theorem 1, no shift).

    Example: a = 0.4, b = -0.2: 0.513015 + 0.598139 = 1.111154.
    """
    return -F.logsigmoid(o.beta * p.ratio.chosen) - F.logsigmoid(-o.beta * p.ratio.rejected)


def sppo_hard(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2 (SPPO, arXiv 2405.00675, eq. 4.7 with win rates 1 and 0).

    Example: r_w = 2, r_l = -1, beta = 0.2: (2 - 2.5)^2 + (-1 + 2.5)^2 = 2.5.
    """
    return (p.ratio.chosen - 1 / (2 * o.beta)).square() + (p.ratio.rejected + 1 / (2 * o.beta)).square()


def apo_zero(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """1 - sigmoid(a) + sigmoid(b), a = beta r_w, b = beta r_l: chosen up, rejected down (APO, arXiv 2408.06266, eq. 7).

    Example: a = 0.4, b = -0.2: 1 - 0.598688 + 0.450166 = 0.851478.
    """
    return torch.sigmoid(-o.beta * p.ratio.chosen) + torch.sigmoid(o.beta * p.ratio.rejected)


def apo_down(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """sigmoid(a) + 1 - sigmoid(s), a = beta r_w: chosen down, rejected further down (APO, arXiv 2408.06266, eq. 8).

    Example: a = 0.4, s = 0.6: 0.598688 + 1 - 0.645656 = 0.953031.
    """
    score_P = o.beta * p.ratio.margin
    return torch.sigmoid(o.beta * p.ratio.chosen) + torch.sigmoid(-score_P)


def sigmoid_norm(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """-log sigmoid(beta (r_w / L_w - r_l / L_l)): DPO per token (length-normalised, Tulu 3, arXiv 2411.15124).

    Example: r_w = 2, L_w = 4, r_l = -1, L_l = 5, beta = 0.2: -log sigmoid(0.14) = 0.625595.
    """
    return -F.logsigmoid(o.beta * (p.ratio.chosen / p.length.chosen - p.ratio.rejected / p.length.rejected))


def sft(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """-B_theta(y_w) / L_w, the SFT loss of the chosen response on the same draws (LLaDA 1.5 adds 0.05 of it).

    Example: an ELBO of -6 nats over 4 tokens: loss = 1.5.
    """
    return -p.elbo.chosen / p.length.chosen


def discopop(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """(1 - m) l(s) + m e^-s, m = sigmoid(s / tau), l = -log sigmoid (DiscoPOP's LRML, arXiv 2406.08414, eq. 5).

    Example: s = 0.6, tau = 0.6, m = sigmoid(1) = 0.731059: 0.268941 * 0.437488 + 0.731059 * 0.548812 = 0.518872.
    """
    score_P = o.beta * p.ratio.margin
    logit_P = score_P / o.discopop_tau
    # m e^-s as one exponential: e^-s alone overflows where m is 0.
    return torch.sigmoid(-logit_P) * -F.logsigmoid(score_P) + torch.exp(F.logsigmoid(logit_P) - score_P)


def smoothed_sigmoid(score: Tensor, label_smoothing: float) -> Tensor:
    """(1 - e) l(s) + e l(-s), l = -log sigmoid, for scores of any shape."""
    return -(1 - label_smoothing) * F.logsigmoid(score) - label_smoothing * F.logsigmoid(-score)


def aot(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """Smoothed -log sigmoid of beta (k-th smallest M_theta - k-th smallest M_ref), M = B(y_w) - B(y_l) of each pair.

    The P pairs of the micro-batch are sorted (AOT for paired data, arXiv 2406.05882), so value k is of a rank, not of a
    pair, and the loss depends on the micro-batch: P = 1 is the smoothed sigmoid.

    Example: M_theta = (3, -1), M_ref = (0, 1), beta = 0.2, e = 0: sorted (-1, 3) - (0, 1) = (-1, 2), loss
    (l(-0.2), l(0.4)) = (0.798139, 0.513015).
    """
    policy_P, reference_P = p.policy.margin, (p.policy - p.ratio).margin
    score_P = o.beta * (policy_P.sort(-1).values - reference_P.sort(-1).values)
    return smoothed_sigmoid(score_P, o.label_smoothing)


def aot_unpaired(p: LossInputs, o: "PreferenceLoss") -> Tensor:
    """Smoothed -log sigmoid of beta (k-th smallest r_w - k-th smallest r_l) (AOT, unpaired data, arXiv 2406.05882).

    As for `aot`, value k is of a rank, and the loss depends on the micro-batch.

    Example: r_w = (2, -1), r_l = (-3, 0), beta = 0.2, e = 0: sorted (-1, 2) - (-3, 0) = (2, 2), loss l(0.4) = 0.513015
    twice.
    """
    score_P = o.beta * (p.ratio.chosen.sort(-1).values - p.ratio.rejected.sort(-1).values)
    return smoothed_sigmoid(score_P, o.label_smoothing)


def on_policy_weight(p: LossInputs) -> Tensor:
    """exp(B_w / L_w) exp(B_l / L_l), [..., P], detached: how likely the policy is to write the pair (WPO, 2406.11827).

    TRL has the paper's aligned weight, which divides the probability of each token by the sum of squared probabilities
    at its position (eq. 2). It needs the conditional distribution of each token; an ELBO bounds the whole response.

    Example: B_w = -6 over 4 tokens, B_l = -9 over 5: exp(-1.5 - 1.8) = 0.036883.
    """
    return torch.exp(p.elbo.chosen / p.length.chosen + p.elbo.rejected / p.length.rejected).detach()


# Losses that noise moves in first order, at a kink or at a bend sharper than usual noise (discopop with a small tau): a
# second-order bias would mislead.
KINKED = {"hinge", "discopop", "aot", "aot_unpaired"}
# Losses that sort the pairs of a batch.
SORTED = {"aot", "aot_unpaired"}
# Losses of the difference of two rewards, and sft, which has none: those that f_divergence_type takes.
OF_DIFFERENCE = {"sigmoid", "robust", "ipo", "hinge", "exo_pair", "sigmoid_norm", "discopop", "sft"}

PairLoss = Callable[[LossInputs, "PreferenceLoss"], Tensor]
LOSSES: dict[str, PairLoss] = {
    loss.__name__: loss
    for loss in (
        sigmoid, robust, ipo, hinge, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, sigmoid_norm, sft,
        discopop, aot, aot_unpaired,
    )
}  # fmt: skip


@dataclass(frozen=True)
class PreferenceLoss:
    """A weighted sum of losses, with TRL's options.

    names: keys of `LOSSES`; weights: one for each; beta: scale of the log-ratios in the score, 1/nats.
    label_smoothing: the assumed rate of flipped labels, for `robust`, `exo_pair`, `aot` and `aot_unpaired`.
    f_divergence_type: one of `DIVERGENCES`; f_alpha_divergence_coef: a of the last one (`vrpo.losses.divergences`).
    discopop_tau: scale of s on which `discopop` passes from one loss to the other.
    use_weighting: multiply the loss of each pair by `on_policy_weight`.

    Raises:
        ValueError: an unknown name, a missing weight, a value out of range, or options that exclude each other; the
            message names the option and what is allowed.
    """

    names: Annotated[tuple[str, ...], NOT_EMPTY]
    weights: Annotated[tuple[float, ...], NOT_EMPTY]
    beta: PositiveFloat
    label_smoothing: Annotated[float, Range(at_least=0, below=0.5)] = 0.0
    f_divergence_type: Divergence = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    discopop_tau: PositiveFloat = 0.05
    use_weighting: bool = False

    def __post_init__(self):
        declared = own_fields(type(self))
        check("loss_type", self.names, declared.pop("names"))  # by the names of the trainer's options
        check("loss_weights", self.weights, declared.pop("weights"))
        check_fields(self, declared)
        for name in self.names:
            check("loss_type", name, Annotated[str, OneOf(list(LOSSES))])
        if len(self.names) != len(self.weights):
            raise ValueError(
                f"loss_weights={list(self.weights)} must have one weight for each of loss_type={list(self.names)}"
            )
        if not any(self.weights):
            raise ValueError(f"loss_weights={list(self.weights)} are all 0: the loss would train nothing")
        if "exo_pair" in self.names and self.label_smoothing == 0:
            raise ValueError("label_smoothing=0 makes exo_pair infinite: set it above 0 (TRL takes 1e-3)")
        others = [name for name in self.names if name not in OF_DIFFERENCE]
        if self.f_divergence_type != "reverse_kl" and others:
            raise ValueError(
                f"f_divergence_type={self.f_divergence_type!r} does not go with loss_type={others[0]!r}, which is no "
                f"function of the difference of two rewards: use 'reverse_kl', or of {sorted(OF_DIFFERENCE)}"
            )
        if self.use_weighting and (found := sorted(SORTED.intersection(self.names))):
            raise ValueError(
                f"use_weighting=True does not go with loss_type={found[0]!r}, which sorts the pairs of a batch: a "
                "weight is of a pair. Use another loss, or use_weighting=False"
            )

    @property
    def of_single_pairs(self) -> bool:
        """Whether log-ratios and lengths of a pair decide its loss (but for sft, which is linear in the ELBO)."""
        return not self.use_weighting and not SORTED.intersection(self.names)

    @property
    def has_second_order_bias(self) -> bool:
        """Whether `vrpo.losses.noise_bias.second_order_bias` says what noise does to this loss."""
        return self.of_single_pairs and not KINKED.intersection(self.names)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss of each pair (of each rank, for `aot` and `aot_unpaired`), [..., P]."""
        if self.f_divergence_type != "reverse_kl":
            to_score = partial(divergence_score, divergence=self.f_divergence_type, alpha=self.f_alpha_divergence_coef)
            inputs = replace(inputs, ratio=inputs.ratio.map(to_score))
        total_P = torch.zeros_like(inputs.ratio.chosen)
        for name, weight in zip(self.names, self.weights, strict=True):
            total_P = total_P + weight * LOSSES[name](inputs, self)
        return total_P * on_policy_weight(inputs) if self.use_weighting else total_P
