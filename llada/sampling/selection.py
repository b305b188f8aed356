"""The choice of tokens in a denoising step: a token and a confidence for each candidate, and which are committed.

    top-k       the step's share of the block's masks, by rank of confidence     (LLaDA, arXiv 2502.09992, Alg. 5)
    threshold   every candidate with confidence >= tau, and always the best one  (Fast-dLLM, arXiv 2505.22618, Alg. 1)
    factor      the longest prefix by rank with confidence_r >= 1 - f / (r + 1)  (ib., section 3.3; r = 1, 2, ...)

Pure functions of tensors and a generator. Shapes: B rows, L canvas positions, N candidates, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class TokenProposal:
    """Chooses a token for each candidate position and its confidence, with the settings of one `generate` call."""

    remasking: str
    temperature: float
    forbidden: list[int]  # ids that are never emitted, but count in the softmax of the confidence
    removed: list[int]  # ids whose probability is set to 0, also in the confidence (`logits_eos_inf`)
    unconfident: list[int]  # ids that are emitted with confidence 0 (`confidence_eos_eot_inf`)
    generator: Generator | None

    def __call__(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N] and confidences [N] in [0, 1]; nan where logits are nan or infinity, or all are -infinity."""
        logits_NV = suppress(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), self.removed)
        choice_NV = suppress(logits_NV, self.forbidden)
        best_N, greedy_N = choice_NV.max(-1)  # the maximum of numbers of which one is nan is nan
        tokens_N = greedy_N
        if self.temperature > 0:
            tokens_N = self._perturbed(choice_NV).argmax(-1)
        if self.remasking == "random":
            confidence_N = torch.rand(len(tokens_N), device=logits_NV.device, generator=self.generator)
        else:
            confidence_NV = suppress(logits_NV, self.unconfident).softmax(-1)
            judged_N = tokens_N if self.remasking == "low_confidence" else greedy_N
            confidence_N = confidence_NV.gather(-1, judged_N[:, None])[:, 0]
        return tokens_N, confidence_N.masked_fill(~best_N.isfinite(), torch.nan)

    def _perturbed(self, logits_NV: Tensor) -> Tensor:
        # Gumbel-max in float64: argmax(logit - T log(-log u)) is a draw from softmax(logit / T). Low precision cuts off
        # the tail of the noise, which lowers the samples' quality (arXiv 2409.02908).
        noise = torch.rand(logits_NV.shape, dtype=torch.float64, device=logits_NV.device, generator=self.generator)
        return logits_NV.double() - self.temperature * (-noise.log()).log()


def suppress(logits_NV: Tensor, ids: list[int]) -> Tensor:
    """The logits with probability 0 for these token ids (a copy, or the tensor itself if there are none)."""
    return logits_NV.index_fill(-1, torch.tensor(ids, device=logits_NV.device), -torch.inf) if ids else logits_NV


def tokens_per_step(masks: int, steps: int) -> list[int]:
    """How many tokens each step commits: equal shares, and one more in the first steps if they do not divide."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]


def confidence_on_canvas(at_BL: Tensor, confidence_N: Tensor) -> Tensor:
    """Scatter confidences to the canvas, [B, L], -inf where there is no candidate."""
    empty_BL = torch.full(at_BL.shape, -torch.inf, device=at_BL.device, dtype=confidence_N.dtype)
    return empty_BL.masked_scatter(at_BL, confidence_N)


def confidence_ranks(score_BL: Tensor) -> Tensor:
    """The rank of each position in its row, 0 for the highest score (ties: leftmost first)."""
    return score_BL.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)


def select_top_k(at_BL: Tensor, confidence_N: Tensor, quota_B: Tensor) -> Tensor:
    """Each row's `quota_B` most confident candidates, [B, L] bool."""
    return at_BL & (confidence_ranks(confidence_on_canvas(at_BL, confidence_N)) < quota_B[:, None])


def select_top_k_official(at_BL: Tensor, confidence_N: Tensor, quota_B: Tensor, pads_B: Tensor) -> Tensor:
    """`select_top_k` with the official order of ties: that of `torch.topk` over a row (here without its left padding).

    Used for `confidence_eos_eot_inf`, where ties are frequent because every EOS has confidence 0, and their order
    changes the answer.
    """
    score_BL, chosen_BL = confidence_on_canvas(at_BL, confidence_N), torch.zeros_like(at_BL)
    for row, (quota, pads) in enumerate(zip(quota_B.tolist(), pads_B.tolist(), strict=True)):
        chosen_BL[row, pads + score_BL[row, pads:].topk(quota).indices] = True
    return chosen_BL & at_BL


def select_by_threshold(at_BL: Tensor, confidence_N: Tensor, threshold: float) -> Tensor:
    """Candidates with at least this confidence, and always each row's most confident one, [B, L] bool."""
    score_BL = confidence_on_canvas(at_BL, confidence_N)
    return at_BL & ((score_BL >= threshold) | (confidence_ranks(score_BL) == 0))


def select_by_factor(at_BL: Tensor, confidence_N: Tensor, factor: float) -> Tensor:
    """The candidates by rank up to the first with confidence below 1 - factor / (rank + 1), ranks from 1, [B, L] bool.

    The first always passes. As in the released code, the last candidate also passes if all others do.
    """
    score_BL = confidence_on_canvas(at_BL, confidence_N)
    order_BL = score_BL.argsort(dim=-1, descending=True, stable=True)
    rank_L = torch.arange(1, score_BL.shape[1] + 1, device=score_BL.device)
    passes_BL = (score_BL.gather(1, order_BL) >= 1 - factor / (rank_L + 1)) | (rank_L == 1)
    number_B, candidates_B = passes_BL.long().cumprod(-1).sum(-1), at_BL.sum(-1)
    number_B = torch.where(number_B == candidates_B - 1, candidates_B, number_B)
    return at_BL & (confidence_ranks(score_BL) < number_B[:, None])


def answer_complete(answer_L: Tensor, mask_id: int, eos_id: int) -> bool:
    """Whether there is an EOS without a MASK before it, so that the text up to it is final."""
    eos = (answer_L == eos_id).nonzero()
    return len(eos) > 0 and not bool((answer_L[: eos[0, 0]] == mask_id).any())
