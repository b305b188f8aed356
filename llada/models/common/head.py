"""The language-model head: logits, or log-probabilities of targets in chunks, without a [B, L, V] tensor in training.

Shapes: N chosen positions, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Positions per chunk of the head in training: 1024 x 126464 fp32 logits are 0.5 GB, recomputed in the backward pass.
HEAD_CHUNK = 1024


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of steps that are computed in fp32 whatever the model's dtype; a float64 model stays float64."""
    return torch.promote_types(dtype, torch.float32)


def log_probs_of(hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_ND, weight_VD)
    logits_NV = logits_NV.to(at_least_fp32(logits_NV.dtype))
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def chunked_log_probs(hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    """Log-probability of each target under softmax(W h), [N], in recomputed chunks of `HEAD_CHUNK` positions.

    There is at least one chunk, which may be empty: every process must use the head in every step.
    """
    chunks = zip(hidden_ND.split(HEAD_CHUNK), targets_N.split(HEAD_CHUNK), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(log_probs_of, h, t, weight_VD, use_reentrant=False) for h, t in chunks])
    return torch.cat([log_probs_of(h, t, weight_VD) for h, t in chunks])


class Head(nn.Linear):
    """The language-model head: logits, or log-probabilities of targets.

    The loop over chunks is inside one call of the module: engines that shard parameters (ZeRO-3) gather the weight once
    for each call, so all processes must make the same number of calls although their numbers of targets differ.
    """

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None) -> Tensor:
        return super().forward(hidden) if targets_N is None else chunked_log_probs(hidden, targets_N, self.weight)
