"""What every model of the family is made of: norm, rotary positions, attention, the head, and the outer model class.

    p_theta(x_0^i | x_t) = softmax(head(rms(x)))_i                (LLaDA, arXiv 2502.09992, eq. 11: no time input)

Attention is bidirectional and goes through the transformers attention interface. The head runs inside `forward`, at
chosen positions only.

Shapes: B sequences, L tokens, D width, H heads, K key/value heads, C head size, V vocabulary, N chosen positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.core_model_loading import revert_weight_conversion
from transformers.masking_utils import create_bidirectional_mask, packed_sequence_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from llada.cache import KeyValueCache
from llada.checkpoints import failures_explained, refuse_incomplete
from llada.head import Head, at_least_fp32, chunked_log_probs
from llada.masking import NOT_SCORED


@dataclass
class MaskedLMOutput(ModelOutput):
    """What `forward` returns: logits or log_probs, never both.

    logits: [B, L, V], or [N, V] when `logits_at` chose N positions (row-major order).
    log_probs: [B, L] log-probability of `target_ids`, nats, 0 where the target is `NOT_SCORED`.
    router_losses: [B, 2] load-balance and z-loss of each sequence (`llada.moe`), of a mixture of experts in training.
    """

    logits: Tensor | None = None
    log_probs: Tensor | None = None
    router_losses: Tensor | None = None


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(at_least_fp32(x.dtype))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


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
    """Plain attention, the form the other backends are held against."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=at_least_fp32(scores.dtype)).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def residual_linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection back into the residual stream; only its initialisation differs from that of others.

    A mark, not a subclass: quantization replaces plain `nn.Linear` only.
    """
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.into_residual_stream = True
    return linear


def heads_of(x_BLD: Tensor, head_size: int) -> Tensor:
    """[B, L, H C] as [B, H, L, C]."""
    return x_BLD.view(*x_BLD.shape[:2], -1, head_size).transpose(1, 2)


@dataclass(frozen=True)
class Places:
    """Where tokens stand and which of them see each other: the same for every block of a forward pass."""

    positions_BL: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    cache: KeyValueCache | None = None

    def to(self, *args, **kwargs) -> "Places":
        """What accelerate calls where the layers of a model are on several devices (`device_map`)."""
        mask = self.mask.to(*args, **kwargs) if isinstance(self.mask, Tensor) else self.mask
        positions_BL, cos, sin = (x.to(*args, **kwargs) for x in (self.positions_BL, self.cos, self.sin))
        return Places(positions_BL, cos, sin, mask, self.cache)


def attend(block: nn.Module, q: Tensor, k: Tensor, v: Tensor, places: Places) -> Tensor:
    """Rotate queries and keys and attend, [B, L, H C]; `block` is the `module` that attention backends inspect."""
    q, k = (rotate(x, places.cos, places.sin) for x in (q, k))
    if places.cache is not None:
        k, v = places.cache.merge(block, k, v)
    backend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(block.config._attn_implementation, eager_attention)
    out_BLHC, _ = backend(
        block,
        q,
        k,
        v,
        places.mask,
        scaling=q.shape[-1] ** -0.5,
        dropout=0.0,
        position_ids=places.positions_BL,  # variable-length flash attention finds packed segments by it
    )
    return out_BLHC.flatten(2)


def segment_positions(segment_ids_BL: Tensor) -> Tensor:
    """Positions that restart at 0 wherever the segment id changes, [B, L]."""
    index_L = torch.arange(segment_ids_BL.shape[1], device=segment_ids_BL.device)
    starts = torch.ones_like(segment_ids_BL, dtype=torch.bool)
    starts[:, 1:] = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    return index_L - torch.where(starts, index_L, 0).cummax(-1).values


def places_of(
    config: PreTrainedConfig, x_BLD: Tensor, attention_mask: Tensor | None, segment_ids: Tensor | None,
    cache: KeyValueCache | None, head_size: int,
) -> Places:  # fmt: skip
    """Positions, rotary angles and the attention mask of a batch.

    Raises:
        ValueError: segments, or padding with a cache, that the attention backend cannot take.
    """
    backend, same_segment = config._attn_implementation, None
    padded = attention_mask is not None and not bool(attention_mask.all())
    positions_BL = torch.arange(x_BLD.shape[1], device=x_BLD.device)[None]
    if segment_ids is not None:
        if "flash" in backend and (len(segment_ids) > 1 or padded):
            raise ValueError(
                f"attn_implementation={backend!r} takes segment_ids for one row without padding only: pack into one "
                "row, or use 'sdpa' or 'flex_attention'"
            )
        positions_BL = segment_positions(segment_ids)
        same_segment = packed_sequence_mask_function(segment_ids)
    if cache is not None and cache.positions_RQ is not None:
        positions_BL, mask = cache.positions_RQ, None
        if padded:  # queries are fewer than keys, and all see the same ones
            if backend not in ("sdpa", "eager"):
                raise ValueError(f"attn_implementation={backend!r} takes no padding with a cache: use 'sdpa'")
            assert attention_mask is not None
            mask = attention_mask[:, None, None, :].bool()
            if backend == "eager":
                mask = torch.zeros_like(mask, dtype=x_BLD.dtype).masked_fill(~mask, torch.finfo(x_BLD.dtype).min)
    else:
        mask = create_bidirectional_mask(config, x_BLD, attention_mask, and_mask_function=same_segment)
    cos, sin = rotary_angles(positions_BL, head_size, config.rope_theta, at_least_fp32(x_BLD.dtype))
    return Places(positions_BL, cos, sin, mask, cache)


class MaskedLM(PreTrainedModel):
    """A masked diffusion language model with its head; a subclass has the body and says where the head's weight is."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """`PreTrainedModel.from_pretrained`, strict.

        Raises:
            ValueError: tensors are missing, unknown or misshapen, or a file is truncated; they are named.
        """
        source = str(pretrained_model_name_or_path)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refused below, with all the others

        def published_names():
            config = kwargs.get("config") or AutoConfig.from_pretrained(source)
            with torch.device("meta"):
                empty = cls(config)
            return revert_weight_conversion(empty, empty.state_dict())

        with failures_explained(source, published_names):
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        refuse_incomplete(info, source)
        return (model, info) if output_loading_info else model

    def body(
        self, input_ids: Tensor, attention_mask: Tensor | None, segment_ids: Tensor | None, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor | None]:
        """Final normalised hidden states [B, L, D], and router losses [B, 2] or None."""
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        # Fan-in scaling; projections back into the residual stream shrink with depth, so that its variance does not
        # grow with the number of layers. (`init_*` fields of published configs matter to new models only.)
        if isinstance(module, nn.Linear):
            into_residual = getattr(module, "into_residual_stream", False)
            depth = 2 * self.config.num_hidden_layers if into_residual else 1
            init.normal_(module.weight, 0.0, (depth * module.in_features) ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, self.config.hidden_size**-0.5)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)

    def head(self, hidden: Tensor, targets_N: Tensor | None = None) -> Tensor:
        module = self.get_output_embeddings()
        if isinstance(module, Head):
            return module(hidden, targets_N)
        weight_VD = module.weight  # tied: the embedding is the head
        return F.linear(hidden, weight_VD) if targets_N is None else chunked_log_probs(hidden, targets_N, weight_VD)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        target_ids: Tensor | None = None,
        logits_at: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> MaskedLMOutput:
        """Predict clean tokens.

        Args:
            input_ids: [B, L] noisy tokens.
            attention_mask: [B, L], 0 on padding: padded keys are not attended to. Pads may stand on either side
                (rotary positions are relative).
            segment_ids: [B, L] for several sequences packed into one row: attention stays inside a segment and
                positions restart. Neighbouring segments must have different ids.
            target_ids: [B, L] clean tokens where they are to be scored and `NOT_SCORED` elsewhere. The head then runs
                at those positions only, `HEAD_CHUNK` at a time with recomputation, and `log_probs` [B, L] is returned:
                no [B, L, V] tensor exists in training.
            logits_at: [B, L] bool, where logits are wanted; None means everywhere.
            cache: keys and values of earlier forwards (`llada.cache`). `input_ids` are then the positions that it
                names, `attention_mask` is of the whole canvas.

        Raises:
            ValueError: both `target_ids` and `logits_at`, or a sequence longer than `max_sequence_length`.
        """
        if target_ids is not None and logits_at is not None:
            raise ValueError("pass target_ids (training) or logits_at (sampling), not both")
        if input_ids.shape[1] > self.config.max_sequence_length:
            raise ValueError(
                f"a sequence of {input_ids.shape[1]} tokens does not fit the model's context of "
                f"{self.config.max_sequence_length}"
            )
        hidden_BLD, router_losses = self.body(input_ids, attention_mask, segment_ids, cache)
        if target_ids is None:
            logits = self.head(hidden_BLD if logits_at is None else hidden_BLD[logits_at])
            return MaskedLMOutput(logits=logits, router_losses=router_losses)
        scored_BL = target_ids != NOT_SCORED
        scored_log_probs = self.head(hidden_BLD[scored_BL], target_ids[scored_BL])
        log_probs_BL = scored_log_probs.new_zeros(target_ids.shape)
        log_probs_BL = log_probs_BL.masked_scatter(scored_BL, scored_log_probs)
        return MaskedLMOutput(log_probs=log_probs_BL, router_losses=router_losses)
