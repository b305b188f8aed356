"""Losses of preference optimization, as functions of the two log-ratios, beta and the response lengths.

    r_w = B_theta(y_w) - B_ref(y_w),   r_l = B_theta(y_l) - B_ref(y_l),   s = beta (r_w - r_l)

Log-ratios are in nats, summed over response tokens and averaged over draws. Names and definitions are TRL's, so that
settings carry over. Each function returns one value for each pair; the caller reduces.

Shapes: P pairs.
"""

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


def sft(chosen_elbo_P: Tensor, chosen_length_P: Tensor) -> Tensor:
    """-B_theta(y_w) / L_w, the SFT loss of the chosen response on the same draws (LLaDA 1.5 adds 0.05 of it).

    Worked: an ELBO of -6 nats over 4 tokens: loss = 1.5.
    """
    return -chosen_elbo_P / chosen_length_P


PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]
LOSSES: dict[str, PairLoss] = {"sigmoid": sigmoid, "robust": robust, "ipo": ipo, "hinge": hinge}


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
        ValueError: an unknown name, or another number of weights than of names.
    """
    if len(loss_type) != len(loss_weights):
        raise ValueError(f"loss_weights={loss_weights} must have one weight for each of loss_type={loss_type}")
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
