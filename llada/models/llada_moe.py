"""LLaDA-MoE: LLaDA with a mixture of experts in place of the dense feed-forward layers.

    x += o_proj(attention(q_norm q, k_norm k, v)),   x += sum_{e in top k} p_e expert_e(h),   p = softmax(gate h)

(LLaDA-MoE, arXiv 2509.24389, and the released modelling file.) Queries and keys are normalised per head before they are
rotated; the router's softmax is over all experts in fp32 and its k weights are not renormalised, whatever
`norm_topk_prob` says (the released code ignores it). Tensor names on disk are the published ones; in memory the experts
of a layer are two stacked tensors, as the transformers experts interface needs them (`experts_implementation`).

The router's auxiliary losses are means over a sequence's tokens (without padding) and over layers. Computed for each
sequence, they average over draws and processes, unlike the batch form of Switch (arXiv 2101.03961, eq. 4-6):

    load balance  E sum_e f_e P_e     f_e: share of tokens that choose e, P_e: mean probability of e; k when balanced
    z             mean of logsumexp(gate h)^2                                         (ST-MoE, arXiv 2202.08906, eq. 5)

Shapes: B sequences, L tokens, N = B L, D width, E experts, I their inner width, K chosen experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
from transformers.integrations.moe import use_experts_implementation
from transformers.modeling_layers import GradientCheckpointingLayer

from llada.checks import NonNegativeFloat, PositiveFloat, PositiveInt
from llada.kv_cache import KeyValueCache
from llada.models.common.attention import AttentionContext, QuerySubset, attend, attention_context, split_heads
from llada.models.common.base import MaskedLM, RMSNorm
from llada.models.common.config import FamilyConfig, RopeTheta, check_supported
from llada.models.common.head import Head, at_least_fp32
from llada.models.registry import register

_SUPPORTED_MOE = {
    "hidden_act": ("silu",),
    "qk_layernorm": (True,),
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "clip_qkv": (None,),
    "partial_rotary_factor": (1, None),
    "rope_scaling": (None,),
    "shared_expert_intermediate_size": (None,),
    "moe_router_enable_expert_bias": (False, None),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
}


class LLaDAMoEConfig(FamilyConfig, PreTrainedConfig):
    """Shape and special ids of a LLaDA-MoE. Defaults are those of LLaDA-MoE-7B-A1B's released config.

    `moe_layer_freq` has a 1 for each layer with experts and a 0 for each dense one. `router_aux_loss_coef` and
    `router_z_loss_coef` weigh the router's losses in training; the first is a published field, the second has
    LLaDA-MoE's value (arXiv 2509.24389). 0 turns a loss off. `causal`: see `LLaDAConfig`.

    Raises:
        ValueError: a field has a value that this code does not implement and that would change the output, or sizes
            are inconsistent.
    """

    model_type = "llada"
    attribute_map = {"max_sequence_length": "max_position_embeddings", "embedding_size": "vocab_size"}

    vocab_size: PositiveInt = 157184
    hidden_size: PositiveInt = 2048
    dense_intermediate_size: PositiveInt = 8192
    expert_intermediate_size: PositiveInt = 1024
    num_hidden_layers: PositiveInt = 16
    num_attention_heads: PositiveInt = 16
    num_key_value_heads: PositiveInt | None = None
    num_experts: PositiveInt = 64
    num_experts_per_tok: PositiveInt = 8
    moe_layer_freq: list[int] | None = None
    max_position_embeddings: PositiveInt = 8192
    rope_theta: RopeTheta = 50000.0
    rms_norm_eps: PositiveFloat = 1e-5
    tie_word_embeddings: bool = False
    causal: bool = False
    router_aux_loss_coef: NonNegativeFloat = 0.01
    router_z_loss_coef: NonNegativeFloat = 0.001
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        check_supported(kwargs, _SUPPORTED_MOE)
        self.check_declared(PreTrainedConfig)
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.moe_layer_freq = [1] * self.num_hidden_layers if self.moe_layer_freq is None else list(self.moe_layer_freq)
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"config field hidden_size={self.hidden_size} must be num_attention_heads={self.num_attention_heads} "
                "times an even head size"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"config field num_key_value_heads={self.num_key_value_heads} must divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if len(self.moe_layer_freq) != self.num_hidden_layers or set(self.moe_layer_freq) - {0, 1}:
            raise ValueError(
                f"config field moe_layer_freq={self.moe_layer_freq} must have 0 or 1 for each of "
                f"num_hidden_layers={self.num_hidden_layers}"
            )
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"config field num_experts_per_tok={self.num_experts_per_tok} must be between 1 and "
                f"num_experts={self.num_experts}"
            )
        self.check_ids()
        super().__post_init__(**kwargs)

    def feed_forward(self) -> str:
        return f"{self.num_experts_per_tok} of {self.num_experts} experts"

    def auxiliary_losses(self) -> dict[str, float]:
        return {"aux_loss": self.router_aux_loss_coef, "router/z_loss": self.router_z_loss_coef}


# Checkpoints have one matrix for each expert. The model has gate and up of all experts in one tensor, down in another.
register_checkpoint_conversion_mapping(
    "LLaDAMoEModelLM",
    [
        WeightConverter(
            ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
            "mlp.experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[MergeModulelist(dim=0)]),
    ],
    overwrite=True,
)


def experts_by_slices(experts: "Experts", h_ND: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """Output of the experts, [N, D], in any dtype. Pairs (token, choice) are sorted by expert, one slice for each."""
    k = chosen_NK.shape[-1]
    expert_S, order_S = chosen_NK.flatten().sort(stable=True)
    counts = torch.bincount(expert_S, minlength=experts.num_experts).tolist()
    # Experts without a token are run too: every process must use the same parameters in every step.
    slices = zip(h_ND[order_S // k].split(counts), experts.gate_up_proj, experts.down_proj, strict=True)
    outputs = []
    for h_SD, gate_up, down in slices:
        gate, up = F.linear(h_SD, gate_up).chunk(2, -1)
        outputs.append(F.linear(F.silu(gate) * up, down))
    back_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    out_NKD = torch.cat(outputs)[back_S].view(*chosen_NK.shape, -1)
    return (out_NKD * weight_NK[..., None]).sum(1)


@use_experts_implementation
class StackedExperts(nn.Module):
    """The experts of a layer, run by the transformers experts interface; `forward` is its `eager` implementation."""

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__()
        self.num_experts = config.num_experts
        width, inner = config.hidden_size, config.expert_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, inner))
        self.act_fn = nn.SiLU()

    def forward(self, h_ND: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
        return experts_by_slices(self, h_ND, chosen_NK, weight_NK)


class Experts(StackedExperts):
    """`StackedExperts` for any dtype and size: falls back to `experts_by_slices` where the interface cannot run."""

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the chosen implementation supports this dtype.

        grouped_mm, the default, supports neither float64 nor rows whose size is no multiple of 16 bytes.
        """
        sizes = (self.down_proj.shape[-1], self.down_proj.shape[-2])
        aligned = all(size * dtype.itemsize % 16 == 0 for size in sizes)
        return self.config._experts_implementation != "grouped_mm" or (dtype != torch.float64 and aligned)

    def forward(self, h_ND: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
        if self.takes(h_ND.dtype):
            return super().forward(h_ND, chosen_NK, weight_NK)
        return experts_by_slices(self, h_ND, chosen_NK, weight_NK)


class Router(nn.Linear):
    """The linear layer that scores the experts; a class of its own, so that quantization skips it."""


class MoE(nn.Module):
    """Router and experts of one layer."""

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__()
        self.k = config.num_experts_per_tok
        self.gate = Router(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)

    def forward(self, h_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Output [B, L, D], and the router's logits [B, L, E]."""
        h_ND = h_BLD.flatten(0, 1)
        logits_NE = self.gate(h_ND)
        weight_NK, chosen_NK = logits_NE.softmax(-1, dtype=at_least_fp32(logits_NE.dtype)).topk(self.k, -1)
        out_ND = self.experts(h_ND, chosen_NK, weight_NK.to(h_ND.dtype))
        return out_ND.view_as(h_BLD), logits_NE.view(*h_BLD.shape[:2], -1)


def router_losses(logits_BLE: Tensor, real_BL: Tensor, k: int) -> Tensor:
    """Load-balance loss and z-loss of each sequence in one layer, over its tokens without padding, [B, 2].

    With E = 2, k = 1 and one token whose logits are (log 3, 0): f = (1, 0), P = (3/4, 1/4), so the load balance is
    2 * 3/4 = 1.5 (1 when balanced), and z = (log 4)^2 = 1.9218.
    """
    logits_BLE = logits_BLE.to(at_least_fp32(logits_BLE.dtype))
    share_BL = real_BL.to(logits_BLE.dtype) / real_BL.sum(-1, keepdim=True)
    probability_BLE = logits_BLE.softmax(-1)
    chosen_BLE = torch.zeros_like(logits_BLE).scatter(-1, logits_BLE.topk(k, -1).indices, 1.0)
    frequency_BE = (share_BL[..., None] * chosen_BLE).sum(1)
    mean_BE = (share_BL[..., None] * probability_BLE).sum(1)
    balance_B = logits_BLE.shape[-1] * (frequency_BE * mean_BE).sum(-1)
    z_B = (share_BL * logits_BLE.logsumexp(-1).square()).sum(-1)
    return torch.stack([balance_B, z_B], -1)


class FeedForward(nn.Module):
    """The dense SwiGLU of a layer without experts."""

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__()
        width, inner = config.hidden_size, config.dense_intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, h_BLD: Tensor) -> tuple[Tensor, None]:
        return self.down_proj(F.silu(self.gate_proj(h_BLD)) * self.up_proj(h_BLD)), None


class Attention(nn.Module):
    """Attention with per-head norms of queries and keys; the attention interface's `module`."""

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__()
        self.config = config
        self.is_causal = config.causal
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
        self.head_size = config.hidden_size // heads
        self.num_key_value_groups = heads // kv_heads
        width, kv_width = config.hidden_size, kv_heads * self.head_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(self.head_size, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_size, config.rms_norm_eps)

    def forward(self, h_BLD: Tensor, context: AttentionContext, subset: QuerySubset | None) -> Tensor:
        k, v = (split_heads(p(h_BLD), self.head_size) for p in (self.k_proj, self.v_proj))
        q = split_heads(self.q_proj(h_BLD if subset is None else subset.pick(h_BLD)), self.head_size)
        return self.o_proj(attend(self, self.q_norm(q), self.k_norm(k), v, context, subset))


class LLaDAMoELayer(GradientCheckpointingLayer):
    """Pre-norm transformer block with experts, or dense where `moe_layer_freq` is 0."""

    def __init__(self, config: LLaDAMoEConfig, has_experts: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if has_experts else FeedForward(config)

    def forward(
        self, x_BLD: Tensor, context: AttentionContext, subset: QuerySubset | None = None
    ) -> tuple[Tensor, Tensor | None]:
        h_BLD = self.self_attn(self.input_layernorm(x_BLD), context, subset)
        x_BLD = h_BLD + (x_BLD if subset is None else subset.pick(x_BLD))
        out_BLD, router_logits = self.mlp(self.post_attention_layernorm(x_BLD))
        return x_BLD + out_BLD, router_logits


class LLaDAMoEModel(nn.Module):
    """The transformer without its head; tensors have the published prefix `model`."""

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LLaDAMoELayer(config, bool(experts)) for experts in config.moe_layer_freq or [])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        kv_cache: KeyValueCache | None,
        subset: QuerySubset | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Final normalised hidden states [B, L, D]; in training, router losses [B, 2], averaged over MoE layers."""
        x_BLD = self.embed_tokens(input_ids)
        head_size = self.config.hidden_size // self.config.num_attention_heads
        context = attention_context(self.config, x_BLD, attention_mask, segment_ids, kv_cache, head_size)
        real_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        losses = []
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            x_BLD, router_logits = layer(x_BLD, context, subset if last else None)
            if self.training and subset is None and router_logits is not None:
                losses.append(router_losses(router_logits, real_BL, self.config.num_experts_per_tok))
        return self.norm(x_BLD), torch.stack(losses).mean(0) if losses else None


class LLaDAMoEModelLM(MaskedLM):
    """LLaDA-MoE with its head, under the class name of the published checkpoints."""

    config: LLaDAMoEConfig
    config_class = LLaDAMoEConfig
    _no_split_modules = ["LLaDAMoELayer"]
    # Attention and dense layers. Experts are stacked tensors, which LoraConfig's `target_parameters` can name
    # (mlp.experts.gate_up_proj, mlp.experts.down_proj). Training the router would change which experts run.
    lora_targets = r".*\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
    _tied_weights_keys: dict[str, str] = {}  # a tied checkpoint has no head tensor: the head reads the embedding

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__(config)
        self.model = LLaDAMoEModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def residual_projections(self) -> list[nn.Linear]:
        dense = [layer.mlp.down_proj for layer in self.model.layers if isinstance(layer.mlp, FeedForward)]
        return [*(layer.self_attn.o_proj for layer in self.model.layers), *dense]

    def first_up_projection(self) -> list[nn.Parameter]:
        mlp = self.model.layers[0].mlp
        return list(mlp.up_proj.parameters()) if isinstance(mlp, FeedForward) else [mlp.experts.gate_up_proj]

    def active_share(self, module: nn.Module) -> float:
        return self.config.num_experts_per_tok / self.config.num_experts if isinstance(module, Experts) else 1.0

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Experts):
            depth = 2 * self.config.num_hidden_layers
            init.normal_(module.gate_up_proj, 0.0, module.gate_up_proj.shape[-1] ** -0.5)
            init.normal_(module.down_proj, 0.0, (depth * module.down_proj.shape[-1]) ** -0.5)


register(LLaDAMoEConfig, LLaDAMoEModelLM)
