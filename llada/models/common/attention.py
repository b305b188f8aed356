"""Attention through the transformers attention interface, bidirectional or causal, with its positions and masks.

Shapes: B sequences, L tokens, Q query positions of each, D width, H heads, K key/value heads, C head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask, packed_sequence_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llada.kv_cache import KeyValueCache
from llada.models.common.head import at_least_fp32


def rotary_angles(positions_BL: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i / C), each [B, 1, L, C] with the C/2 angles repeated (half-split layout)."""
    exponent = torch.arange(0, head_size, 2, device=positions_BL.device, dtype=dtype) / head_size
    angles = positions_BL[:, None, :, None].to(dtype) * theta**-exponent
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x_BHLC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions in at least fp32 (`rope_full_precision`) and return to the input's dtype."""
    wide = x_BHLC.to(at_least_fp32(x_BHLC.dtype))
    first, second = wide.chunk(2, -1)
    return (wide * cos + torch.cat([-second, first], -1) * sin).to(x_BHLC.dtype)


def eager_attention(module, query, key, value, attention_mask, scaling, **_) -> tuple[Tensor, Tensor]:
    """Attention by explicit softmax, [B, L, H, C], and its weights; tests compare the other backends with it."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=at_least_fp32(scores.dtype)).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def split_heads(x_BLD: Tensor, head_size: int) -> Tensor:
    """[B, L, H C] as [B, H, L, C]."""
    return x_BLD.view(*x_BLD.shape[:2], -1, head_size).transpose(1, 2)


@dataclass(frozen=True)
class AttentionContext:
    """Positions, rotary angles, attention mask and cache, which all blocks of a forward pass share."""

    positions_BL: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    cache: KeyValueCache | None = None

    def to(self, *args, **kwargs) -> "AttentionContext":
        """Move the tensors; accelerate calls this if a model's layers are on several devices (`device_map`)."""
        mask = self.mask.to(*args, **kwargs) if isinstance(self.mask, Tensor) else self.mask
        positions_BL, cos, sin = (x.to(*args, **kwargs) for x in (self.positions_BL, self.cos, self.sin))
        return AttentionContext(positions_BL, cos, sin, mask, self.cache)


@dataclass(frozen=True)
class QuerySubset:
    """The positions at which the last block computes queries, output and feed-forward: those whose logits are wanted.

    index_BQ: each row's wanted positions in order, then arbitrary ones up to Q; wanted_BQ: bool, which are wanted.
    """

    index_BQ: Tensor
    wanted_BQ: Tensor

    @classmethod
    def at(cls, at_BL: Tensor) -> "QuerySubset":
        """The subset of positions where `at_BL` [B, L] bool is True."""
        number_B = at_BL.sum(-1)
        most = max(1, int(number_B.max()))  # attention without any query is not supported everywhere
        index_BQ = at_BL.long().argsort(dim=-1, descending=True, stable=True)[:, :most]
        return cls(index_BQ, torch.arange(most, device=at_BL.device) < number_B[:, None])

    def to(self, *args, **kwargs) -> "QuerySubset":
        """See `AttentionContext.to`."""
        return QuerySubset(self.index_BQ.to(*args, **kwargs), self.wanted_BQ.to(*args, **kwargs))

    def pick(self, x_BLD: Tensor) -> Tensor:
        """The chosen positions of each row, [B, Q, D]."""
        return x_BLD.gather(1, self.index_BQ[..., None].expand(-1, -1, x_BLD.shape[-1]))


def attend(
    block: nn.Module, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, subset: QuerySubset | None = None
) -> Tensor:
    """Rotate queries and keys and attend, [B, L, H C]; attention backends receive `block` as their `module`."""
    k, mask = rotate(k, context.cos, context.sin), context.mask
    cos, sin = context.cos, context.sin
    if subset is not None:  # the mask is the same for all queries of a row
        rows = len(subset.index_BQ)
        cos, sin = (subset.pick(angles.expand(rows, -1, -1, -1)[:, 0])[:, None] for angles in (cos, sin))
        mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, : q.shape[2]]
    q = rotate(q, cos, sin)
    if context.cache is not None:
        k, v = context.cache.merge(block, k, v)
    backend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(block.config._attn_implementation, eager_attention)
    out_BLHC, _ = backend(
        block,
        q,
        k,
        v,
        mask,
        scaling=q.shape[-1] ** -0.5,
        dropout=0.0,
        position_ids=context.positions_BL,  # from which flash attention finds packed segments
    )
    return out_BLHC.flatten(2)


def segment_runs(segment_ids_BL: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The number of each token's run of equal segment ids, and its position in that run, both [B, L].

    An id may come again later in a row: [0, 0, 1, 0] has the runs [0, 0, 1, 2] and the positions [0, 1, 0, 0]. Padding
    after a run belongs to it, so that its queries have keys and its output is a number on every backend.
    """
    index_L = torch.arange(segment_ids_BL.shape[1], device=segment_ids_BL.device)
    starts_BL = torch.ones_like(segment_ids_BL, dtype=torch.bool)
    starts_BL[:, 1:] = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    if attention_mask is not None:
        starts_BL[:, 1:] &= attention_mask[:, 1:].bool()
    return starts_BL.cumsum(-1) - 1, index_L - torch.where(starts_BL, index_L, 0).cummax(-1).values


def attention_context(
    config: PreTrainedConfig, x_BLD: Tensor, attention_mask: Tensor | None, segment_ids: Tensor | None,
    cache: KeyValueCache | None, head_size: int,
) -> AttentionContext:  # fmt: skip
    """Positions, rotary angles and the attention mask of a batch.

    A causal model (`config.causal`) with a cache forwards the whole text first and then one position at a time, which
    sees the tokens that `attention_mask` marks: those up to its own.

    Raises:
        ValueError: the segment ids are no integers [B, L] or come with a cache, or the attention backend does not
            support these segments, or padding with a cache.
    """
    padded, same_segment = attention_mask is not None and not bool(attention_mask.all()), None
    positions_BL = torch.arange(x_BLD.shape[1], device=x_BLD.device)[None]
    if segment_ids is not None:
        check_segments(config._attn_implementation, segment_ids, x_BLD.shape[:2], padded, cache is not None)
        runs_BL, positions_BL = segment_runs(segment_ids, attention_mask)
        same_segment = packed_sequence_mask_function(runs_BL)
    if cache is not None and cache.positions_RQ is not None:
        positions_BL = cache.positions_RQ
        assert not config.causal or positions_BL.shape[1] == 1
        mask = partial_query_mask(config._attn_implementation, attention_mask, x_BLD.dtype) if padded else None
    elif config.causal:
        mask = create_causal_mask(config, x_BLD, attention_mask, None, and_mask_function=same_segment)
    else:
        mask = create_bidirectional_mask(config, x_BLD, attention_mask, and_mask_function=same_segment)
    cos, sin = rotary_angles(positions_BL, head_size, config.rope_theta, at_least_fp32(x_BLD.dtype))
    return AttentionContext(positions_BL, cos, sin, mask, cache)


def check_segments(backend: str, segment_ids: Tensor, shape: torch.Size, padded: bool, cached: bool) -> None:
    """Raise ValueError if the ids do not mark segments of these rows, or would not keep them apart.

    Args:
        shape: [B, L] of the rows. padded: whether these have padding; cached: whether they come with a cache.
    """
    if segment_ids.shape != shape:
        raise ValueError(
            f"segment_ids have the shape {tuple(segment_ids.shape)}: there must be one for each token, {tuple(shape)}"
        )
    if segment_ids.is_floating_point() or segment_ids.is_complex() or segment_ids.dtype == torch.bool:
        raise ValueError(f"segment_ids are {segment_ids.dtype}: they must be integers")
    if cached:
        raise ValueError("segment_ids with a kv_cache are not supported: a cache is of rows of one sequence each")
    if "flash" in backend and (len(segment_ids) > 1 or padded):
        raise ValueError(
            f"attn_implementation={backend!r} takes segment_ids for one row without padding only: pack into one row, "
            "or use 'sdpa' or 'flex_attention'"
        )


def partial_query_mask(backend: str, attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The mask of padded keys for a subset of the queries, [B, 1, 1, L]: all queries attend to the same keys.

    Raises:
        ValueError: the backend does not take a mask of this form.
    """
    if backend not in ("sdpa", "eager"):
        raise ValueError(f"attn_implementation={backend!r} does not support padding with a cache: use 'sdpa'")
    assert attention_mask is not None
    mask = attention_mask[:, None, None, :].bool()
    if backend == "eager":
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask
