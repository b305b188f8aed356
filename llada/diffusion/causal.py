"""Likelihood of an autoregressive model: exact, by one forward pass over the clean text.

    log p(y | x) = sum_i log p(y_i | x, y_<i)                                         (LLaDA, arXiv 2502.09992, eq. 2)

Such a model is a `llada.denoiser.Denoiser` whose `spec` has `attention` "causal" and `shifted` logits: its `log_probs`
of clean tokens are the terms of the sum. The first token of a text has none before it and is not predicted, so a text
begins with a prompt or BOS.

Shapes: B sequences, L tokens.
"""

import torch
from torch import Tensor, nn

from llada.denoiser import NOT_SCORED, Denoiser, DenoiserSpec, as_denoiser


def check_causal(spec: DenoiserSpec) -> None:
    """Raise ValueError unless a model is autoregressive."""
    if spec.attention != "causal":
        raise ValueError(
            f"the model's attention is {spec.attention}, and this needs an autoregressive model (config field "
            "causal=True). Of a masked diffusion model, use log_likelihood and generate"
        )


def has_previous(
    attention_mask: Tensor | None, segment_ids: Tensor | None, shape: torch.Size, device: torch.device
) -> Tensor:
    """Which tokens have one before them in their text, [B, L] bool: not the first of a row or of a packed segment.

    Args:
        attention_mask: [B, L], 0 on padding. segment_ids: [B, L], of packed rows. shape: [B, L].
    """
    found_BL = torch.ones(shape, dtype=torch.bool, device=device)
    found_BL[:, :1] = False
    if attention_mask is not None:
        found_BL[:, 1:] &= attention_mask[:, :-1].bool()
    if segment_ids is not None:
        found_BL[:, 1:] &= segment_ids[:, 1:] == segment_ids[:, :-1]
    return found_BL


def causal_log_likelihood(
    model: nn.Module | Denoiser, tokens_BL: Tensor, response_mask_BL: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """log p(response | what is before it) of each row, [B], nats, summed over tokens; differentiable.

    Args:
        tokens_BL: [B, L] clean tokens: a prompt or BOS, and the response.
        response_mask_BL: [B, L] bool, the tokens whose log-probabilities are summed.
        attention_mask: [B, L], 0 on padding, on either side; None for no padding.

    Raises:
        ValueError: the model is no autoregressive one, or a response begins with the first token of its row, which
            nothing predicts.
    """
    denoiser = as_denoiser(model)
    check_causal(denoiser.spec)
    first_BL = response_mask_BL & ~has_previous(attention_mask, None, tokens_BL.shape, tokens_BL.device)
    if first_BL.any():
        row = int(first_BL.any(-1).long().argmax())
        raise ValueError(f"row {row}: the response has no token before it that predicts its first: put BOS there")
    target_BL = tokens_BL.masked_fill(~response_mask_BL, NOT_SCORED)
    return denoiser.log_probs(tokens_BL, target_BL, attention_mask).sum(-1)
