"""Bias of a loss under noisy log-ratios, E[loss(estimate)] - loss(exact); docs/losses.md derives it for each loss.

Shapes: R redraws, P pairs. Log-ratios are in nats.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vrpo.losses.pairwise import LossInputs, PreferenceLoss
from vrpo.scores import PairScores


def loss_of_ratio(loss: PreferenceLoss, ratio: PairScores, length: PairScores) -> Tensor:
    """The loss of each pair as a function of its log-ratios, [..., P], with the reference's ELBOs set to 0.

    Raises:
        ValueError: the loss of a pair depends on more than that (`PreferenceLoss.of_single_pairs`).
    """
    if not loss.of_single_pairs:
        raise ValueError(
            f"loss_type={list(loss.names)} with use_weighting={loss.use_weighting} is no function of the log-ratios of "
            "single pairs, whose noise is judged here: use another loss_type than 'aot' and 'aot_unpaired', and "
            "use_weighting=False"
        )
    return loss(LossInputs(ratio, ratio, length))


def second_order_bias(loss: PreferenceLoss, ratio: PairScores, variance: PairScores, length: PairScores) -> Tensor:
    """Bias of the loss to second order, [P]: (f_ww Var[r_w] + f_ll Var[r_l]) / 2 for independent sides.

    Args:
        ratio: log-ratios at which the second derivatives are taken; variance: that of the log-ratios, nats^2.

    Raises:
        ValueError: see `loss_of_ratio`.
    """
    terms = []
    sides = [side.detach().double().requires_grad_() for side in (ratio.chosen, ratio.rejected)]
    variances = variance.chosen.double(), variance.rejected.double()
    for name, weight in zip(loss.names, loss.weights, strict=True):
        with torch.enable_grad():
            one = replace(loss, names=(name,), weights=(1.0,))
            value = loss_of_ratio(one, PairScores(*sides), length.map(Tensor.double))
            slopes = torch.autograd.grad(value.sum(), sides, create_graph=True, materialize_grads=True)
            curvatures = [
                torch.autograd.grad(slope.sum(), side, retain_graph=True, materialize_grads=True)[0]
                if slope.requires_grad
                else 0 * side
                for slope, side in zip(slopes, sides, strict=True)
            ]
        bias_P = sum(c * v for c, v in zip(curvatures, variances, strict=True)).detach() / 2
        terms.append(weight * bias_P)
    return torch.stack(terms).sum(0)


def loss_bias(
    loss: PreferenceLoss, redrawn: PairScores, exact: PairScores, exact_variance: PairScores, length: PairScores
) -> Tensor:
    """Mean loss over redraws minus the loss at the exact log-ratios, [P].

    Args:
        redrawn: log-ratios [R, P] of each side; exact, exact_variance: their best estimate and its variance
            (`vrpo.analysis.statistics.inverse_variance_mean`), whose own second-order bias is subtracted.
    """
    mean_P, exact_P = loss_of_ratio(loss, redrawn, length).mean(0), loss_of_ratio(loss, exact, length)
    return mean_P - exact_P + second_order_bias(loss, exact, exact_variance, length).to(mean_P)
