"""Score, then replay: the gradient of a loss of mean ELBOs, with the memory of one draw.

A loss depends on the parameters through mean ELBOs B_b = (1/n) sum_k B_bk alone, so that with slope_b = dloss / dB_b

    grad loss = sum_b slope_b grad B_b = (1/n) sum_k grad [ sum_b slope_b B_bk ]

The slopes come from scores computed without a graph; then each draw is forwarded again, one graph at a time.

Shapes: S draws, B responses.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from llada.denoiser import Denoiser
from llada.diffusion.likelihood import elbo_draws
from llada.diffusion.masking import MaskDraws


def batch_elbos(
    denoiser: Denoiser, batch: dict[str, Tensor], draws: MaskDraws, token_weights: tuple[Tensor | None, ...] = (None,)
) -> Tensor:
    """ELBO draws [S, B] of a batch from `vrpo.collator.PairCollator`, nats; `token_weights`: see `elbo_draws`."""
    return elbo_draws(denoiser, batch["input_ids"], draws, batch["attention_mask"], token_weights)


def sloped_elbo(
    denoiser: Denoiser,
    batch: dict[str, Tensor],
    draw: MaskDraws,
    slope_B: Tensor,
    token_weights: tuple[Tensor | None, ...] = (None,),
) -> Tensor:
    """sum_b slope_b B_bk of one draw, a scalar with its graph; with K token weights, slope [K, B] and the sum over
    both."""
    elbo_B = batch_elbos(denoiser, batch, draw, token_weights)[..., 0, :]
    return (slope_B.to(elbo_B) * elbo_B).sum()


def replay(
    draws: MaskDraws,
    forward: Callable[[MaskDraws], Tensor],
    backward: Callable[[Tensor], None],
    around: Callable[[bool], AbstractContextManager] = lambda last: nullcontext(),
) -> None:
    """Run `backward(forward(draw))` for one draw after another.

    Args:
        around: makes a context for each draw from whether it is the last one, for instance to delay the reduction of
            gradients between processes until then.
    """
    for index in range(len(draws.masked_SBL)):
        with around(index == len(draws.masked_SBL) - 1):
            draw = MaskDraws(draws.masked_SBL[index : index + 1], draws.weight_SBL[index : index + 1])
            backward(forward(draw))
