"""The gradient of a loss of mean ELBOs, without a forward pass that is not needed.

A loss depends on the parameters through mean ELBOs B_b = (1/n) sum_k B_bk alone, so that with slope_b = dloss / dB_b

    grad loss = sum_b slope_b grad B_b = (1/n) sum_k grad [ sum_b slope_b B_bk ]

The slopes are known when both sides of a pair are scored. There are two ways not to forward a row again by then:

`graph_gradient` keeps the graphs of some rows and forwards the others a second time, one forward pass after another.
`unit_gradient` computes each response's grad B_b with its scores, in a buffer, and weighs it when its slope is known.
    Memory grows with n only until a forward pass is full. It needs two buffers of the trained parameters, a loss in
    which a pair's slopes depend on no other pair, and one ELBO of each response.

Both are exact for every such loss, and equal up to rounding.

Shapes: S draws, B responses, R rows of a forward pass (each one draw of one response), K ELBOs with different token
weights of each row.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from llada.diffusion.forwards import Forward

Elbos = Callable[[Forward], Tensor]  # the ELBOs of the rows of a forward pass, [K, R], with a graph where enabled
Gradients = list[Tensor | None]


def graph_gradient(
    elbos: Elbos,
    slopes: Callable[[list[Tensor]], Tensor],
    backward: Callable[[Tensor], None],
    kept: list[Forward],
    replayed: list[Forward],
    around: Callable[[bool], AbstractContextManager],
) -> None:
    """Add the gradient, with the graphs of `kept` alive at once and then one of `replayed` after another.

    Args:
        slopes: gets the ELBOs of all rows, [K, R] for each of `replayed` and then of `kept`; returns dloss / dB_bk,
            [K, B], the same for all draws.
        backward: adds the gradient of a scalar to the parameters.
        around: makes a context for each backward pass from whether it is the last one.
    """
    with torch.no_grad():
        values = [elbos(rows) for rows in replayed]
    graphs = [elbos(rows) for rows in kept]
    slope_KB = slopes(values + [graph.detach() for graph in graphs])
    if kept:
        with around(not replayed):
            backward(sum(sloped(slope_KB, rows, graph) for rows, graph in zip(kept, graphs, strict=True)))
    del graphs
    for index, rows in enumerate(replayed):
        with around(index == len(replayed) - 1):
            backward(sloped(slope_KB, rows, elbos(rows)))


def sloped(slope_KB: Tensor, rows: Forward, elbos_KR: Tensor) -> Tensor:
    """sum over rows and ELBOs of slope times ELBO, a scalar with its graph."""
    return (slope_KB[:, list(rows.sequences)].to(elbos_KR) * elbos_KR).sum()


def unit_gradient(
    parameters: list[nn.Parameter],
    pairs: int,
    elbos: Elbos,
    slopes: Callable[[int, Tensor], list[float]],
    backward: Callable[[Tensor], None],
    forwards: list[list[Forward]],
) -> None:
    """Add the gradient, one pair after another, and one side of it after the other.

    Args:
        parameters: those that are trained. pairs: P; the responses are P chosen, then P rejected ones.
        slopes: gets a pair's number and the ELBOs of its two responses, [1, S, 2]; returns dloss / dB_bk of both.
        forwards: for each of the 2P responses, forward passes of its draws in their order.
    """
    total = taken(parameters)
    for pair in range(pairs):
        values, buffers = [], []
        for response in (pair, pairs + pair):
            found = []
            for rows in forwards[response]:
                elbos_1R = elbos(rows)
                backward(elbos_1R.sum())
                found.append(elbos_1R.detach())
            values.append(torch.cat(found, 1))
            buffers.append(taken(parameters))
        for buffer, slope in zip(buffers, slopes(pair, torch.stack(values, -1)), strict=True):
            add(total, buffer, slope)
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient


def taken(parameters: list[nn.Parameter]) -> Gradients:
    """The gradients of parameters, which have none afterwards."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def add(total: Gradients, gradients: Gradients, factor: float) -> None:
    """total += factor * gradients, in place; a parameter without a gradient counts as 0."""
    both = [index for index, gradient in enumerate(gradients) if gradient is not None and total[index] is not None]
    if both:
        torch._foreach_add_([total[index] for index in both], [gradients[index] for index in both], alpha=factor)
    for index, gradient in enumerate(gradients):
        if gradient is not None and total[index] is None:
            total[index] = gradient.mul_(factor)
