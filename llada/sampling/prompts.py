"""Checks of what a caller of the sampler gives: token ids, attention masks, special ids.

Shapes: B rows, L positions of a text.
"""

from typing import Any

import torch
from torch import Tensor

from llada.denoiser import DenoiserSpec


def check_text(input_ids: Tensor, attention_mask: Tensor | None, spec: DenoiserSpec, room: int) -> Tensor:
    """The attention mask of a text that is to be filled or continued, [B, L] bool, True on tokens.

    Args:
        input_ids: [B, L] token ids.
        attention_mask: [B, L], 0 on padding, which is on the left, and 1 elsewhere; None for no padding.
        room: maximal length of the text.

    Raises:
        ValueError: one of the two is no such tensor, a row is empty, too long or padded elsewhere than on the left, or
            an id is outside the vocabulary. The message names the row and the value.
    """
    if not isinstance(input_ids, Tensor):
        raise ValueError(f"input_ids must be a tensor of token ids [B, L], and is a {type(input_ids).__name__}")
    if input_ids.dim() != 2 or not len(input_ids):
        raise ValueError(f"input_ids {tuple(input_ids.shape)} must be [B, L] with at least one row")
    if input_ids.dtype != torch.long:
        value = f", such as {input_ids[0, 0].item()} in row 0" if input_ids.numel() else ""
        raise ValueError(f"input_ids must be token ids (torch.long), and are {input_ids.dtype}{value}")
    real_BL = (
        torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else real(input_ids, attention_mask)
    )
    if input_ids.shape[1] > room:
        raise ValueError(f"a text of {input_ids.shape[1]} tokens does not fit: context less gen_length is {room}")
    if not input_ids.shape[1] or not real_BL.any(-1).all():
        raise ValueError(f"empty prompt in row {first_row(~real_BL.any(-1))}")
    gaps_BL = real_BL[:, :-1] & ~real_BL[:, 1:]
    if gaps_BL.any():
        raise ValueError(
            f"row {first_row(gaps_BL.any(-1))}: prompts must be padded on the left (attention_mask rows must be "
            "0...01...1)"
        )
    outside_BL = (input_ids < 0) | (input_ids >= spec.vocabulary)
    if outside_BL.any():
        row, position = outside_BL.nonzero()[0].tolist()
        padding = "" if real_BL[row, position] else " (padding)"
        raise ValueError(
            f"row {row}: the token id {input_ids[row, position].item()} at position {position}{padding} is outside the "
            f"model's vocabulary, 0 to {spec.vocabulary - 1}"
        )
    return real_BL


def real(input_ids: Tensor, attention_mask: Any) -> Tensor:
    """An attention mask as booleans, [B, L].

    Raises:
        ValueError: it is no tensor of the shape of `input_ids`, or has another value than 0 and 1.
    """
    if not isinstance(attention_mask, Tensor):
        raise ValueError(f"attention_mask must be a tensor [B, L], and is a {type(attention_mask).__name__}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)} must be [B, L] alike"
        )
    wrong_BL = (attention_mask != 0) & (attention_mask != 1)  # nan is neither
    if wrong_BL.any():
        row, position = wrong_BL.nonzero()[0].tolist()
        raise ValueError(
            f"row {row}: attention_mask must be 0 or 1, and is {attention_mask[row, position].item()} at position "
            f"{position}"
        )
    return attention_mask.bool()


def first_row(is_wrong_B: Tensor) -> int:
    """The first row that is marked; 0 if none is, for texts without a column."""
    return int(is_wrong_B.long().argmax())


def check_special_id(name: str, value: Any, spec: DenoiserSpec) -> None:
    """Raise ValueError unless a special id is None or a token id of the model's vocabulary."""
    if value is not None and (type(value) is not int or not 0 <= value < spec.vocabulary):
        raise ValueError(f"{name}={value!r} must be a token id of the model's vocabulary, 0 to {spec.vocabulary - 1}")
