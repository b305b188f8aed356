"""Classifier-free guidance without a trained condition (LLaDA, arXiv 2502.09992, eq. 16): a wrapper of the predictor.

    log p~(r_0 | p, r_t) = u + (1 + w) (c - u) + const,   c: logits given the prompt, u: logits with the prompt masked

The sampler and the likelihood never learn of it: they see one `Predictor`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llada.masking import NOT_SCORED


@dataclass(frozen=True)
class Step:
    """What a predictor is asked: a canvas, and where to predict.

    canvas_BL: tokens; attention_BL: bool, False on padding; at_BL: bool, the N candidates. The rest is for predictors
    that remember earlier steps (`llada.cache`), one entry for each row: its `name`, the same in all steps; the first
    position of its current block and the one after it; and whether it enters that block with this step.
    """

    canvas_BL: Tensor
    attention_BL: Tensor
    at_BL: Tensor
    names: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    entered: tuple[bool, ...] = ()


Predictor = Callable[[Step], Tensor]  # logits_NV at the candidates, in row-major order


def guided(predict: Predictor, given_of: Callable[[Step], Tensor], scale: float, mask_id: int) -> Predictor:
    """Guide `predict` by `scale` (w above; the official samplers' `cfg_scale`; 0 changes nothing).

    given_of: bool [B, L] of a step, the prompt and its padding: what the unconditional half has masked. One forward of
    twice the rows.
    """

    def predict_guided(step: Step) -> Tensor:
        blind_BL = step.canvas_BL.masked_fill(given_of(step), mask_id)
        both = Step(
            torch.cat([step.canvas_BL, blind_BL]), step.attention_BL.repeat(2, 1), step.at_BL.repeat(2, 1),
            (*step.names, *(-1 - name for name in step.names)), step.starts * 2, step.ends * 2, step.entered * 2,
        )  # fmt: skip
        conditional_NV, unconditional_NV = predict(both).chunk(2)
        return unconditional_NV + (scale + 1) * (conditional_NV - unconditional_NV)

    return predict_guided


def log_probs_from(predict: Predictor) -> Callable[[Tensor, Tensor], Tensor]:
    """A predictor, guided or not, as the `log_probs` function that `llada.likelihood` scores (rows without padding)."""

    def log_probs(noisy_BL: Tensor, target_BL: Tensor) -> Tensor:
        at_BL = target_BL != NOT_SCORED
        logits_NV = predict(Step(noisy_BL, torch.ones_like(at_BL), at_BL))
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        values_N = logits_NV.gather(-1, target_BL[at_BL][:, None])[:, 0] - logits_NV.logsumexp(-1)
        return values_N.new_zeros(target_BL.shape).masked_scatter(at_BL, values_N)

    return log_probs
