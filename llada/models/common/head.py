"""The language-model head: logits, or log-probabilities of targets in chunks, without a [B, L, V] tensor in training.

Shapes: N chosen positions, D width, V vocabulary.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Positions per chunk of the head in training: 1024 x 126464 fp32 logits are 0.5 GB.
HEAD_CHUNK = 1024
KEPT_LOGITS = 2**24  # at most so many logits stay for the backward pass: 64 MiB in fp32, and their softmax as much


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of steps that are computed in fp32 whatever the model's dtype; a float64 model stays float64."""
    return torch.promote_types(dtype, torch.float32)


def log_probs_of(hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_ND, weight_VD)
    logits_NV = logits_NV.to(at_least_fp32(logits_NV.dtype))
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


class FrozenHead(torch.autograd.Function):
    """Log-probabilities of targets under softmax(W h) with W fixed; the gradient of h is computed in the forward pass.

        d log p(target) / dh = W[target] - sum_v p(v) W[v]

    It takes the D numbers of a position from the forward to the backward pass, instead of V or a second softmax.
    """

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
        logits_NV = F.linear(hidden_ND, weight_VD)
        compute = logits_NV.dtype
        logits_NV = logits_NV.to(at_least_fp32(compute))
        normalizer_N1 = logits_NV.logsumexp(-1, keepdim=True)
        log_probs_N = (logits_NV.gather(-1, targets_N[:, None]) - normalizer_N1)[:, 0]
        minus_probs_NV = logits_NV.sub_(normalizer_N1).exp_().neg_()
        minus_probs_NV.scatter_add_(-1, targets_N[:, None], torch.ones_like(normalizer_N1))
        ctx.save_for_backward(minus_probs_NV.to(compute) @ weight_VD.to(compute))
        return log_probs_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients: Tensor):
        (slope_ND,) = ctx.saved_tensors
        return gradients[0][:, None].to(slope_ND) * slope_ND, None, None


def chunked_log_probs(hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    """Log-probability of each target under softmax(W h), [N], in chunks of `HEAD_CHUNK` positions.

    In training, the softmax of a chunk is kept for the backward pass if there is one chunk of at most `KEPT_LOGITS`
    numbers, and recomputed if there are more. A frozen head needs neither (`FrozenHead`).

    There is at least one chunk, which may be empty: every process must use the head in every step.
    """
    forward = log_probs_of
    if torch.is_grad_enabled() and hidden_ND.requires_grad and not weight_VD.requires_grad:
        forward = FrozenHead.apply
    elif torch.is_grad_enabled() and (len(hidden_ND) > HEAD_CHUNK or len(hidden_ND) * len(weight_VD) > KEPT_LOGITS):
        forward = partial(checkpoint, log_probs_of, use_reentrant=False)
    chunks = zip(hidden_ND.split(HEAD_CHUNK), targets_N.split(HEAD_CHUNK), strict=True)
    return torch.cat([forward(hidden_CD, targets_C, weight_VD) for hidden_CD, targets_C in chunks])


class Head(nn.Linear):
    """The language-model head: logits, or log-probabilities of targets.

    The loop over chunks is inside one call of the module: engines that shard parameters (ZeRO-3) gather the weight once
    for each call, so all processes must make the same number of calls although their numbers of targets differ.
    """

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None) -> Tensor:
        return super().forward(hidden) if targets_N is None else chunked_log_probs(hidden, targets_N, self.weight)
