"""The language-model head: logits, or log-probabilities of targets in chunks, without a [B, L, V] tensor in training.

    d log p(target) / dh = W[target] - sum_v p(v) W[v]        d log p(target) / dW = (onehot(target) - p) h^T

Shapes: N chosen positions, C positions of a chunk, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Logits of a chunk. On an accelerator: 1,061 positions of a vocabulary of 126,464, 0.5 GB in fp32. A CPU is faster with
# chunks that stay in its cache.
CHUNK_ON_ACCELERATOR, CHUNK_ON_CPU = 2**27, 2**22
KEPT = 2**24  # at most so many numbers of the softmax stay for the backward pass of a trained head: 64 MiB in fp32


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of steps that are computed in fp32 whatever the model's dtype; a float64 model stays float64."""
    return torch.promote_types(dtype, torch.float32)


def log_probs_of(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """log p(target), [C], and the normalizer of the logits, [C, 1]."""
    normalizer_C1 = logits_CV.logsumexp(-1, keepdim=True)
    return (logits_CV.gather(-1, targets_C[:, None]) - normalizer_C1)[:, 0], normalizer_C1


def slopes_(logits_CV: Tensor, targets_C: Tensor, normalizer_C1: Tensor) -> Tensor:
    """d log p(target) / dlogits = onehot(target) - p, [C, V], in the place of the logits."""
    minus_probs_CV = logits_CV.sub_(normalizer_C1).exp_().neg_()
    return minus_probs_CV.scatter_add_(-1, targets_C[:, None], torch.ones_like(normalizer_C1))


def chunk_of(weight_VD: Tensor) -> int:
    """The number of positions of a chunk."""
    return max(1, (CHUNK_ON_CPU if weight_VD.device.type == "cpu" else CHUNK_ON_ACCELERATOR) // len(weight_VD))


class HeadLogProbs(torch.autograd.Function):
    """Log-probabilities of targets under softmax(W h), with the derivative by the logits at hand in the forward pass.

    If W is fixed, the derivative by h is computed there, and the D numbers of a position stay for the backward pass.
    Otherwise its V numbers stay, up to `KEPT` in all; with more, the logits are computed again in the backward pass.
    """

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
        trained, size = ctx.needs_input_grad[2], chunk_of(weight_VD)
        ctx.keeps = len(hidden_ND) * len(weight_VD) <= KEPT
        found, kept = [], []
        for hidden_CD, targets_C in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
            logits_CV = F.linear(hidden_CD, weight_VD)
            ctx.compute = logits_CV.dtype
            logits_CV = logits_CV.to(at_least_fp32(ctx.compute))
            log_probs_C, normalizer_C1 = log_probs_of(logits_CV, targets_C)
            found.append(log_probs_C)
            if ctx.keeps or not trained:
                slope_CV = slopes_(logits_CV, targets_C, normalizer_C1).to(ctx.compute)
                kept.append(slope_CV if trained else slope_CV @ weight_VD.to(ctx.compute))
        ctx.save_for_backward(*kept, *((hidden_ND, targets_N, weight_VD) if trained else ()))
        return torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients: Tensor):
        factor_N1 = gradients[0][:, None].to(ctx.compute)
        if not ctx.needs_input_grad[2]:
            return factor_N1 * torch.cat(ctx.saved_tensors), None, None
        *kept, hidden_ND, targets_N, weight_VD = ctx.saved_tensors
        size, weight, of_hidden = chunk_of(weight_VD), weight_VD.to(ctx.compute), []
        of_weight = torch.zeros_like(weight)
        parts = (values.split(size) for values in (hidden_ND.to(ctx.compute), targets_N, factor_N1))
        for index, (hidden_CD, targets_C, factor_C1) in enumerate(zip(*parts, strict=True)):
            if ctx.keeps:
                slope_CV = kept[index]
            else:
                logits_CV = F.linear(hidden_CD, weight).to(at_least_fp32(ctx.compute))
                slope_CV = slopes_(logits_CV, targets_C, log_probs_of(logits_CV, targets_C)[1]).to(ctx.compute)
            of_hidden.append(factor_C1 * (slope_CV @ weight))
            torch.addmm(of_weight, slope_CV.T, factor_C1 * hidden_CD, out=of_weight)
        return torch.cat(of_hidden).to(hidden_ND.dtype), None, of_weight.to(weight_VD.dtype)


def chunked_log_probs(hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    """Log-probability of each target under softmax(W h), [N], in chunks of the positions.

    There is at least one chunk, which may be empty: every process must use the head in every step.
    """
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
        return HeadLogProbs.apply(hidden_ND, targets_N, weight_VD)
    size, found = chunk_of(weight_VD), []
    for hidden_CD, targets_C in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
        logits_CV = F.linear(hidden_CD, weight_VD)
        found.append(log_probs_of(logits_CV.to(at_least_fp32(logits_CV.dtype)), targets_C)[0])
    return torch.cat(found)


class Head(nn.Linear):
    """The language-model head: logits, or log-probabilities of targets.

    The loop over chunks is inside one call of the module: engines that shard parameters (ZeRO-3) gather the weight once
    for each call, so all processes must make the same number of calls although their numbers of targets differ.
    """

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None) -> Tensor:
        return super().forward(hidden) if targets_N is None else chunked_log_probs(hidden, targets_N, self.weight)
