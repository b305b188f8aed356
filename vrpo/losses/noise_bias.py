"""What the noise of a score adds to a loss on average, which docs/losses.md derives for every loss.

Shapes: R redraws, P pairs, B responses. Log-ratios are in nats.
"""

import torch
from torch import Tensor

from vrpo.losses.pairwise import total_loss


def loss_of(
    chosen_P: Tensor, rejected_P: Tensor, length_B: Tensor, loss_type: str, beta: float, label_smoothing: float
) -> Tensor:
    """The loss of each pair from its log-ratios, [..., P] (`vrpo.losses.pairwise`, without an SFT term)."""
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
