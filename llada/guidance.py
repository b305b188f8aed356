"""Classifier-free guidance without a trained condition (LLaDA, arXiv 2502.09992, eq. 16): a wrapper of the predictor.

    log p~(r_0 | p, r_t) = u + (1 + w) (c - u) + const,   c: logits given the prompt, u: logits with the prompt masked

The sampler and the likelihood never learn of it: they see one `Predictor`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llada.masking import NOT_SCORED

# (canvas_BL, attention_BL, at_BL) -> logits_NV at the N positions where `at_BL` is True, in row-major order.
Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]


def guided(predict: Predictor, given_BL: Tensor, scale: float, mask_id: int) -> Predictor:
    """Guide `predict` by `scale` (w above; the official samplers' `cfg_scale`; 0 changes nothing).

    given_BL: bool, the prompt and its padding: what the unconditional half has masked. One forward of twice the rows.
    """

    def predict_guided(canvas_BL: Tensor, attention_BL: Tensor, at_BL: Tensor) -> Tensor:
        blind_BL = canvas_BL.masked_fill(given_BL, mask_id)
        both = predict(torch.cat([canvas_BL, blind_BL]), attention_BL.repeat(2, 1), at_BL.repeat(2, 1))
        conditional_NV, unconditional_NV = both.chunk(2)
        return unconditional_NV + (scale + 1) * (conditional_NV - unconditional_NV)

    return predict_guided


def log_probs_from(predict: Predictor) -> Callable[[Tensor, Tensor], Tensor]:
    """A predictor, guided or not, as the `log_probs` function that `llada.likelihood` scores (rows without padding)."""

    def log_probs(noisy_BL: Tensor, target_BL: Tensor) -> Tensor:
        at_BL = target_BL != NOT_SCORED
        logits_NV = predict(noisy_BL, torch.ones_like(at_BL), at_BL)
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        values_N = logits_NV.gather(-1, target_BL[at_BL][:, None])[:, 0] - logits_NV.logsumexp(-1)
        return values_N.new_zeros(target_BL.shape).masked_scatter(at_BL, values_N)

    return log_probs
