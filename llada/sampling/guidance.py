"""Unsupervised classifier-free guidance (LLaDA, arXiv 2502.09992, eq. 16), as a denoiser that wraps another one.

    log p~(r_0 | p, r_t) = u + (1 + w) (c - u) + const,   c: logits given the prompt, u: logits with the prompt masked

The sampler and the likelihood treat it like any other denoiser.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llada.denoiser import Denoiser, DenoiserSpec, Request, log_probs_of_logits


@dataclass(frozen=True)
class GuidedDenoiser:
    """A guided denoiser, which forwards twice the rows. `scale` is w above (the official `cfg_scale`; 0: none).

    given_BL: bool, the prompt and its padding, which are masked in the unconditional half. Row i belongs to the row
        with id i, or to the i-th row of a request without ids.
    """

    denoiser: Denoiser
    given_BL: Tensor
    scale: float

    @property
    def spec(self) -> DenoiserSpec:
        return self.denoiser.spec

    def logits(self, request: Request) -> Tensor:
        given_BL = self.given_BL[list(request.row_ids)] if request.row_ids else self.given_BL
        tokens_BQ = request.tokens_BQ
        unconditional_BQ = tokens_BQ.masked_fill(given_BL[:, : tokens_BQ.shape[1]], self.spec.mask_id)
        both = replace(
            request, tokens_BQ=torch.cat([tokens_BQ, unconditional_BQ]),
            attention_BL=request.attention_BL.repeat(2, 1), at_BQ=request.at_BQ.repeat(2, 1),
            row_ids=(*request.row_ids, *(-1 - row_id for row_id in request.row_ids)),
            block_starts=request.block_starts * 2, block_ends=request.block_ends * 2,
            enters_block=request.enters_block * 2,
        )  # fmt: skip
        conditional_NV, unconditional_NV = self.denoiser.logits(both).chunk(2)
        return unconditional_NV + (self.scale + 1) * (conditional_NV - unconditional_NV)

    def log_probs(self, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return log_probs_of_logits(self, noisy_BL, target_BL, attention_mask)
