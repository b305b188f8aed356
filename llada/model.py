"""Dense LLaDA: a bidirectional transformer that predicts the clean token at every masked position.

    x = wte(ids);  per block: x += attn_out(attention(rms(x))),  x += ff_out(silu(ff_proj h) * up_proj h), h = rms(x)
    p_theta(x_0^i | x_t) = softmax(ff_out(rms(x)))_i              (LLaDA, arXiv 2502.09992, eq. 11: no time input)

RMSNorm, rotary positions (half-split), SwiGLU, no causal mask. Tensor names are those of the published checkpoints
(`model.transformer.blocks.0.q_proj.weight`, ...; note that a block's `ff_proj` is the gate, its `ff_out` the down
projection, and the top-level `ff_out` the language-model head), so weights load and save with no conversion.

Shapes: B sequences, L tokens, D width, H heads, K key/value heads, C head size, V vocabulary, N chosen positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, packed_sequence_mask_function
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from llada.config import LLaDAConfig
from llada.masking import NOT_SCORED

# Rows of the head evaluated at once in training: 1024 x 126464 fp32 logits are 0.5 GB, recomputed in the backward.
HEAD_CHUNK = 1024


@dataclass
class LLaDAOutput(ModelOutput):
    """What `forward` returns: exactly one of the two.

    logits: [B, L, V], or [N, V] when `logits_at` chose N positions (row-major order).
    log_probs: [B, L] log-probability of `target_ids`, nats, 0 where the target is `NOT_SCORED`.
    """

    logits: Tensor | None = None
    log_probs: Tensor | None = None


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the steps that checkpoints compute in fp32; a float64 model stays float64 throughout."""
    return torch.promote_types(dtype, torch.float32)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(_at_least_fp32(x.dtype))
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
    wide = x_BHLC.to(_at_least_fp32(x_BHLC.dtype))
    first, second = wide.chunk(2, -1)
    return (wide * cos + torch.cat([-second, first], -1) * sin).to(x_BHLC.dtype)


def eager_attention(module, query, key, value, attention_mask, scaling, **_) -> tuple[Tensor, Tensor]:
    """Plain attention, the form the other backends are held against."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=_at_least_fp32(scores.dtype)).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class ResidualLinear(nn.Linear):
    """A projection back into the residual stream; only its initialisation differs from `nn.Linear`."""


def log_probs_of(hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_ND, weight_VD)
    logits_NV = logits_NV.to(_at_least_fp32(logits_NV.dtype))
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def chunked_log_probs(hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    """Log-probability of each target under softmax(W h), [N], `HEAD_CHUNK` rows at a time, recomputed in the backward.

    One chunk at least, if an empty one: every process must use the head in every step.
    """
    chunks = zip(hidden_ND.split(HEAD_CHUNK), targets_N.split(HEAD_CHUNK), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(log_probs_of, h, t, weight_VD, use_reentrant=False) for h, t in chunks])
    return torch.cat([log_probs_of(h, t, weight_VD) for h, t in chunks])


class Head(nn.Linear):
    """The language-model head: logits, or log-probabilities of targets.

    The loop over chunks is inside one call of the module: processes have different numbers of targets, and engines that
    shard parameters (ZeRO-3) gather the weight once for each call, so all must make the same number of calls.
    """

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None) -> Tensor:
        return super().forward(hidden) if targets_N is None else chunked_log_probs(hidden, targets_N, self.weight)


class LLaDABlock(GradientCheckpointingLayer):
    """Pre-norm transformer block; also the `module` that the attention interface inspects."""

    is_causal = False

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.config = config
        self.head_size = config.d_model // config.n_heads
        kv_heads = config.n_kv_heads or config.n_heads  # the config has filled it in; the type checker does not know
        self.num_key_value_groups = config.n_heads // kv_heads
        width, kv_width, bias = config.d_model, kv_heads * self.head_size, config.include_qkv_bias
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.attn_out = ResidualLinear(width, width, bias=False)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = ResidualLinear(config.mlp_hidden_size, width, bias=False)

    def forward(self, x_BLD: Tensor, attention_mask, position_ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attend(self.attn_norm(x_BLD), attention_mask, position_ids, cos, sin)
        h_BLD = self.ff_norm(x_BLD)
        return x_BLD + self.ff_out(F.silu(self.ff_proj(h_BLD)) * self.up_proj(h_BLD))

    def attend(self, h_BLD: Tensor, attention_mask, position_ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (*h_BLD.shape[:2], -1, self.head_size)
        q, k, v = (p(h_BLD).view(heads).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        backend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out_BLHC, _ = backend(
            self,
            rotate(q, cos, sin),
            rotate(k, cos, sin),
            v,
            attention_mask,
            scaling=self.head_size**-0.5,
            dropout=0.0,
            position_ids=position_ids,  # variable-length flash attention finds packed segments by it
        )
        return self.attn_out(out_BLHC.reshape(h_BLD.shape))


def segment_positions(segment_ids_BL: Tensor) -> Tensor:
    """Positions that restart at 0 wherever the segment id changes, [B, L]."""
    index_L = torch.arange(segment_ids_BL.shape[1], device=segment_ids_BL.device)
    starts = torch.ones_like(segment_ids_BL, dtype=torch.bool)
    starts[:, 1:] = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    return index_L - torch.where(starts, index_L, 0).cummax(-1).values


class LLaDAModel(nn.Module):
    """The body under the published prefix `model.transformer`; the head is applied by `LLaDAModelLM`."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.config = config
        modules = {
            "wte": nn.Embedding(config.embedding_size, config.d_model),
            "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
            "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
        }
        if not config.weight_tying:
            modules["ff_out"] = Head(config.d_model, config.embedding_size, bias=False)
        self.transformer = nn.ModuleDict(modules)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, segment_ids: Tensor | None) -> Tensor:
        """Final normalised hidden states [B, L, D]."""
        x_BLD = self.transformer.wte(input_ids)
        if segment_ids is None:
            positions_BL = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
            same_segment = None
        else:
            padded = attention_mask is not None and not bool(attention_mask.all())
            if "flash" in self.config._attn_implementation and (len(segment_ids) > 1 or padded):
                raise ValueError(
                    f"attn_implementation={self.config._attn_implementation!r} takes segment_ids for one row without "
                    "padding only: pack into one row, or use 'sdpa' or 'flex_attention'"
                )
            positions_BL = segment_positions(segment_ids)
            same_segment = packed_sequence_mask_function(segment_ids)
        mask = create_bidirectional_mask(self.config, x_BLD, attention_mask, and_mask_function=same_segment)
        dtype = _at_least_fp32(x_BLD.dtype)
        cos, sin = rotary_angles(
            positions_BL, self.config.d_model // self.config.n_heads, self.config.rope_theta, dtype
        )
        for block in self.transformer.blocks:
            x_BLD = block(x_BLD, mask, positions_BL, cos, sin)
        return self.transformer.ln_f(x_BLD)


class LLaDAModelLM(PreTrainedModel):
    """LLaDA with its head, under the class name of the published checkpoints."""

    config: LLaDAConfig
    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDABlock"]
    _tied_weights_keys: dict[str, str] = {}  # a tied checkpoint has no head tensor: the head reads `wte`
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer.wte

    def get_output_embeddings(self) -> nn.Module:
        transformer = self.model.transformer
        return transformer.wte if self.config.weight_tying else transformer.ff_out

    def _init_weights(self, module: nn.Module) -> None:
        # Fan-in scaling; projections back into the residual stream shrink with depth, so that its variance does not
        # grow with the number of layers. (`init_*` fields of published configs matter to new models only.)
        if isinstance(module, nn.Linear):
            depth = 2 * self.config.n_layers if isinstance(module, ResidualLinear) else 1
            init.normal_(module.weight, 0.0, (depth * module.in_features) ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, self.config.d_model**-0.5)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)

    def _head(self, hidden: Tensor, targets_N: Tensor | None = None) -> Tensor:
        if not self.config.weight_tying:
            return self.model.transformer.ff_out(hidden, targets_N)
        weight_VD = self.model.transformer.wte.weight
        return F.linear(hidden, weight_VD) if targets_N is None else chunked_log_probs(hidden, targets_N, weight_VD)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        target_ids: Tensor | None = None,
        logits_at: Tensor | None = None,
    ) -> LLaDAOutput:
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

        Raises:
            ValueError: both `target_ids` and `logits_at`, or a sequence longer than `max_sequence_length`.
        """
        if target_ids is not None and logits_at is not None:
            raise ValueError("pass target_ids (training) or logits_at (sampling), not both")
        if input_ids.shape[1] > self.config.max_sequence_length:
            raise ValueError(
                f"a sequence of {input_ids.shape[1]} tokens does not fit the model's context: "
                f"max_sequence_length={self.config.max_sequence_length}"
            )
        hidden_BLD = self.model(input_ids, attention_mask, segment_ids)
        if target_ids is None:
            return LLaDAOutput(logits=self._head(hidden_BLD if logits_at is None else hidden_BLD[logits_at]))
        scored_BL = target_ids != NOT_SCORED
        scored_log_probs = self._head(hidden_BLD[scored_BL], target_ids[scored_BL])
        log_probs_BL = scored_log_probs.new_zeros(target_ids.shape)
        return LLaDAOutput(log_probs=log_probs_BL.masked_scatter(scored_BL, scored_log_probs))
