"""Losses of preference optimization, as functions of the two log-ratios, beta and the response lengths.

    r_w = B_theta(y_w) - B_ref(y_w),   r_l = B_theta(y_l) - B_ref(y_l),   s = beta (r_w - r_l)

Log-ratios are in nats, summed over response tokens and averaged over draws. Names and definitions are TRL's, so that
settings carry over. Each function returns one value for each pair; the caller reduces. How estimator noise biases each
is derived in docs/losses.md.

Shapes: P pairs.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """-log sigmoid(s) (DPO, arXiv 2305.18290, eq. 7; with ELBOs, LLaDA 1.5, arXiv 2505.19223, eq. 7).

    Worked: r_w = 2, r_l = -1, beta = 0.2: s = 0.6, loss = log(1 + e^-0.6) = 0.437488.
    """
    return -F.logsigmoid(beta * (chosen_ratio_P - rejected_ratio_P))


def robust(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """[(1 - e) l(s) - e l(-s)] / (1 - 2e), l = -log sigmoid: unbiased if labels flip at rate e (arXiv 2403.00409).

    Worked: s = 0.6, e = 0.1: (0.9 * 0.437488 - 0.1 * 1.037488) / 0.8 = 0.362488.
    """
    score_P = beta * (chosen_ratio_P - rejected_ratio_P)
    kept_P, flipped_P = -F.logsigmoid(score_P), -F.logsigmoid(-score_P)
    return ((1 - label_smoothing) * kept_P - label_smoothing * flipped_P) / (1 - 2 * label_smoothing)


def ipo(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """(r_w / L_w - r_l / L_l - 1 / (2 beta))^2 (IPO, arXiv 2310.12036, eq. 17; log-ratios per token, as in TRL).

    Worked: r_w = 2, L_w = 4, r_l = -1, L_l = 5, beta = 0.2: (0.5 + 0.2 - 2.5)^2 = 3.24.
    """
    return (chosen_ratio_P / chosen_length_P - rejected_ratio_P / rejected_length_P - 1 / (2 * beta)).square()


def hinge(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """max(0, 1 - s) (SLiC, arXiv 2305.10425, as in RSO, arXiv 2309.06657).

    Worked: s = 0.6: loss = 0.4.
    """
    return torch.relu(1 - beta * (chosen_ratio_P - rejected_ratio_P))


def exo_pair(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """KL of softmax(beta r_w, beta r_l) from (1 - e, e) (EXO-pref, arXiv 2402.00856, eq. 16, two responses; e > 0).

    Worked: s = 0.6, e = 0.1, q = sigmoid(s) = 0.645656: q log(q / 0.9) + (1 - q) log((1 - q) / 0.1) = 0.233839.
    """
    score_P = beta * (chosen_ratio_P - rejected_ratio_P)
    kept_P = torch.sigmoid(score_P) * (F.logsigmoid(score_P) - math.log(1 - label_smoothing))
    return kept_P + torch.sigmoid(-score_P) * (F.logsigmoid(-score_P) - math.log(label_smoothing))


def nca_pair(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """l(a) + l(-a) / 2 + l(-b) / 2, a = beta r_w, b = beta r_l, l = -log sigmoid (NCA, arXiv 2402.05369, section 4).

    Worked: a = 0.4, b = -0.2: 0.513015 + 0.913015 / 2 + 0.598139 / 2 = 1.268592.
    """
    a_P, b_P = beta * chosen_ratio_P, beta * rejected_ratio_P
    return -F.logsigmoid(a_P) - F.logsigmoid(-a_P) / 2 - F.logsigmoid(-b_P) / 2


def bco_pair(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """l(a) + l(-b), a = beta r_w, b = beta r_l: tells good from bad (BCO, arXiv 2404.04656, theorem 1, no shift).

    Worked: a = 0.4, b = -0.2: 0.513015 + 0.598139 = 1.111154.
    """
    return -F.logsigmoid(beta * chosen_ratio_P) - F.logsigmoid(-beta * rejected_ratio_P)


def sppo_hard(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2 (SPPO, arXiv 2405.00675, eq. 4.7 with win rates 1 and 0).

    Worked: r_w = 2, r_l = -1, beta = 0.2: (2 - 2.5)^2 + (-1 + 2.5)^2 = 2.5.
    """
    return (chosen_ratio_P - 1 / (2 * beta)).square() + (rejected_ratio_P + 1 / (2 * beta)).square()


def apo_zero(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """1 - sigmoid(a) + sigmoid(b), a = beta r_w, b = beta r_l: chosen up, rejected down (APO, arXiv 2408.06266, eq. 7).

    Worked: a = 0.4, b = -0.2: 1 - 0.598688 + 0.450166 = 0.851478.
    """
    return torch.sigmoid(-beta * chosen_ratio_P) + torch.sigmoid(beta * rejected_ratio_P)


def apo_down(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """sigmoid(a) + 1 - sigmoid(s), a = beta r_w: chosen down, rejected further down (APO, arXiv 2408.06266, eq. 8).

    Worked: a = 0.4, s = 0.6: 0.598688 + 1 - 0.645656 = 0.953031.
    """
    score_P = beta * (chosen_ratio_P - rejected_ratio_P)
    return torch.sigmoid(beta * chosen_ratio_P) + torch.sigmoid(-score_P)


def sigmoid_norm(chosen_ratio_P, rejected_ratio_P, chosen_length_P, rejected_length_P, beta, label_smoothing) -> Tensor:
    """-log sigmoid(beta (r_w / L_w - r_l / L_l)): DPO per token (length-normalised, Tulu 3, arXiv 2411.15124).

    Worked: r_w = 2, L_w = 4, r_l = -1, L_l = 5, beta = 0.2: -log sigmoid(0.14) = 0.625595.
    """
    return -F.logsigmoid(beta * (chosen_ratio_P / chosen_length_P - rejected_ratio_P / rejected_length_P))


def sft(chosen_elbo_P: Tensor, chosen_length_P: Tensor) -> Tensor:
    """-B_theta(y_w) / L_w, the SFT loss of the chosen response on the same draws (LLaDA 1.5 adds 0.05 of it).

    Worked: an ELBO of -6 nats over 4 tokens: loss = 1.5.
    """
    return -chosen_elbo_P / chosen_length_P


def check_loss_settings(loss_type: list[str], loss_weights: list[float], beta: float, label_smoothing: float) -> None:
    """Refuse what `total_loss` cannot compute, before anything is run.

    Raises:
        ValueError: the option, its value and what is allowed.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta} must be positive")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing} must be at least 0 and below 0.5")
    zero = torch.zeros(2)
    total_loss(zero, zero, zero + 1, loss_type, loss_weights, beta, label_smoothing)


PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]


LOSSES: dict[str, PairLoss] = {
    loss.__name__: loss
    for loss in (
        sigmoid, robust, ipo, hinge, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, sigmoid_norm,
    )
}  # fmt: skip


def total_loss(
    policy_B: Tensor,
    reference_B: Tensor,
    length_B: Tensor,
    loss_type: list[str],
    loss_weights: list[float],
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Weighted sum of the named losses for each pair, [P].

    Args:
        policy_B, reference_B: [2P] ELBOs (chosen, then rejected), nats, averaged over draws; length_B: scored tokens.
        loss_type: names of `LOSSES`, or "sft"; loss_weights: one for each.

    Raises:
        ValueError: an unknown name, another number of weights than of names, or exo_pair without label smoothing.
    """
    if len(loss_type) != len(loss_weights):
        raise ValueError(f"loss_weights={loss_weights} must have one weight for each of loss_type={loss_type}")
    if "exo_pair" in loss_type and label_smoothing == 0:
        raise ValueError("label_smoothing=0 makes exo_pair infinite: set it above 0 (TRL takes 1e-3)")
    ratios, lengths = (policy_B - reference_B).chunk(2), length_B.chunk(2)
    total_P = torch.zeros_like(ratios[0])
    for name, weight in zip(loss_type, loss_weights, strict=True):
        if name == "sft":
            total_P = total_P + weight * sft(policy_B.chunk(2)[0], lengths[0])
        elif name in LOSSES:
            total_P = total_P + weight * LOSSES[name](
                ratios[0], ratios[1], lengths[0], lengths[1], beta, label_smoothing
            )
        else:
            raise ValueError(f"loss_type={name!r} is unknown: it must be one of {[*LOSSES, 'sft']}")
    return total_P
