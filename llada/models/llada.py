"""Dense LLaDA (arXiv 2502.09992): a bidirectional transformer that predicts the clean token at every masked position.

    x = wte(ids);  per block: x += attn_out(attention(rms(x))),  x += ff_out(silu(ff_proj h) * up_proj h), h = rms(x)

It uses RMSNorm, rotary positions (half-split), SwiGLU and no causal mask (ib., Table 5; the config field `causal` asks
for one, as the paper's autoregressive baseline has). Tensor names are those of the published checkpoints
(`model.transformer.blocks.0.q_proj.weight`, ...; note that a block's `ff_proj` is the gate, its `ff_out` the down
projection, and the top-level `ff_out` the language-model head), so weights load and save with no conversion.

Shapes: B sequences, L tokens, D width, H heads, K key/value heads, C head size.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from llada.checks import PositiveFloat, PositiveInt
from llada.kv_cache import KeyValueCache
from llada.models.common.attention import AttentionContext, QuerySubset, attend, attention_context, split_heads
from llada.models.common.base import MaskedLM, RMSNorm
from llada.models.common.config import FamilyConfig, RopeTheta, check_supported
from llada.models.common.head import Head
from llada.models.registry import register

# The values that this code implements. Any other value would change the output, so it raises instead of being ignored.
_SUPPORTED = {
    "alibi": (False,),
    "rope": (True,),
    "rope_full_precision": (True,),
    "rope_scaling": (None,),
    "activation_type": ("silu",),
    "block_type": ("llama",),
    "block_group_size": (1, None),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False,),
    "include_bias": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "clip_qkv": (None,),
    "multi_query_attention": (False, None),
    "attention_dropout": (0.0,),
    "residual_dropout": (0.0,),
    "embedding_dropout": (0.0,),
}


class LLaDAConfig(FamilyConfig, PreTrainedConfig):
    """Shape and special ids of a dense LLaDA (LLaDA-8B, LLaDA 1.5, iLLaDA).

    Defaults are LLaDA-8B's (LLaDA, arXiv 2502.09992, Table 5, and the released config). `n_kv_heads` below `n_heads`
    means grouped-query attention, `weight_tying` shares the input embedding with the head, `include_qkv_bias` adds a
    bias to the query, key and value projections. `causal`, which no published file has, makes it an autoregressive
    model of the same form: a token sees those before it, and the output at its position predicts the next one.
    `eot_token_id` (end of a chat turn) is not in the published files; it is set when a tokenizer supplies it.

    Raises:
        ValueError: a field has a value that this code does not implement and that would change the output, or sizes
            are inconsistent.
    """

    model_type = "llada"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "tie_word_embeddings": "weight_tying",
    }

    d_model: PositiveInt = 4096
    n_layers: PositiveInt = 32
    n_heads: PositiveInt = 32
    n_kv_heads: PositiveInt | None = None
    mlp_hidden_size: PositiveInt | None = None
    mlp_ratio: PositiveInt = 4
    vocab_size: PositiveInt = 126464
    embedding_size: PositiveInt | None = None
    max_sequence_length: PositiveInt = 4096
    rope_theta: RopeTheta = 500000.0
    rms_norm_eps: PositiveFloat = 1e-5
    include_qkv_bias: bool = False
    weight_tying: bool = False
    causal: bool = False
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if "num_experts" in kwargs:
            raise ValueError("config field num_experts is of a mixture of experts: use LLaDAMoEConfig or AutoConfig")
        check_supported(kwargs, _SUPPORTED)
        self.check_declared(PreTrainedConfig)
        # `rope_theta` stays the published plain field: the base class would turn it into `rope_parameters`.
        self.n_kv_heads = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        self.mlp_hidden_size = self.mlp_ratio * self.d_model if self.mlp_hidden_size is None else self.mlp_hidden_size
        self.embedding_size = self.vocab_size if self.embedding_size is None else self.embedding_size
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"config field d_model={self.d_model} must be n_heads={self.n_heads} times an even head size"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"config field n_kv_heads={self.n_kv_heads} must divide n_heads={self.n_heads}")
        if self.embedding_size < self.vocab_size:
            raise ValueError(
                f"config field embedding_size={self.embedding_size} must be at least vocab_size={self.vocab_size}"
            )
        self.check_ids()
        super().__post_init__(**kwargs)


class LLaDABlock(GradientCheckpointingLayer):
    """Pre-norm transformer block; the transformers attention interface receives it as `module`."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.config = config
        self.is_causal = config.causal
        self.head_size = config.d_model // config.n_heads
        kv_heads = config.n_kv_heads or config.n_heads  # for the type checker: the config has set it
        self.num_key_value_groups = config.n_heads // kv_heads
        width, kv_width, bias = config.d_model, kv_heads * self.head_size, config.include_qkv_bias
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(self.up_proj.out_features, width, bias=False)

    def forward(self, x_BLD: Tensor, context: AttentionContext, subset: QuerySubset | None = None) -> Tensor:
        h_BLD = self.attn_norm(x_BLD)
        k, v = (split_heads(p(h_BLD), self.head_size) for p in (self.k_proj, self.v_proj))
        if subset is not None:
            x_BLD, h_BLD = subset.pick(x_BLD), subset.pick(h_BLD)
        q = split_heads(self.q_proj(h_BLD), self.head_size)
        x_BLD = x_BLD + self.attn_out(attend(self, q, k, v, context, subset))
        h_BLD = self.ff_norm(x_BLD)
        return x_BLD + self.ff_out(F.silu(self.ff_proj(h_BLD)) * self.up_proj(h_BLD))


class LLaDAModel(nn.Module):
    """The transformer without its head (`MaskedLM` applies it), under the published prefix `model.transformer`."""

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

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        kv_cache: KeyValueCache | None,
        subset: QuerySubset | None,
    ) -> tuple[Tensor, None]:
        """Final normalised hidden states [B, L, D], and None in place of router losses (see `MaskedLM`)."""
        x_BLD = self.transformer.wte(input_ids)
        head_size = self.config.d_model // self.config.n_heads
        context = attention_context(self.config, x_BLD, attention_mask, segment_ids, kv_cache, head_size)
        *blocks, last = self.transformer.blocks
        for block in blocks:
            x_BLD = block(x_BLD, context)
        x_BLD = last(x_BLD, context, subset)
        return self.transformer.ln_f(x_BLD), None


class LLaDAModelLM(MaskedLM):
    """LLaDA with its head, under the class name of the published checkpoints."""

    config: LLaDAConfig
    config_class = LLaDAConfig
    _no_split_modules = ["LLaDABlock"]
    # A regular expression, not a list of names: `ff_out` is also the name of the language-model head.
    lora_targets = r".*\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)"
    _tied_weights_keys: dict[str, str] = {}  # a tied checkpoint has no head tensor: the head reads `wte`

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def residual_projections(self) -> list[nn.Linear]:
        return [linear for block in self.model.transformer.blocks for linear in (block.attn_out, block.ff_out)]

    def first_up_projection(self) -> list[nn.Parameter]:
        return list(self.model.transformer.blocks[0].up_proj.parameters())

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer.wte

    def get_output_embeddings(self) -> nn.Module:
        transformer = self.model.transformer
        return transformer.wte if self.config.weight_tying else transformer.ff_out


register(LLaDAConfig, LLaDAModelLM)
