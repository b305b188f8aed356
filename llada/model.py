"""Dense LLaDA: a bidirectional transformer that predicts the clean token at every masked position.

    x = wte(ids);  per block: x += attn_out(attention(rms(x))),  x += ff_out(silu(ff_proj h) * up_proj h), h = rms(x)

RMSNorm, rotary positions (half-split), SwiGLU, no causal mask (LLaDA, arXiv 2502.09992, Table 5). Tensor names are
those of the published checkpoints (`model.transformer.blocks.0.q_proj.weight`, ...; note that a block's `ff_proj` is
the gate, its `ff_out` the down projection, and the top-level `ff_out` the language-model head), so weights load and
save with no conversion.

Shapes: B sequences, L tokens, D width, H heads, K key/value heads, C head size.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from llada.attention import Narrow, Places, attend, heads_of, places_of
from llada.config import LLaDAConfig
from llada.head import Head
from llada.kv_cache import KeyValueCache
from llada.layers import MaskedLM, RMSNorm, residual_linear


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
        self.attn_out = residual_linear(width, width)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = residual_linear(self.up_proj.out_features, width)

    def forward(self, x_BLD: Tensor, places: Places, narrow: Narrow | None = None) -> Tensor:
        h_BLD = self.attn_norm(x_BLD)
        k, v = (heads_of(p(h_BLD), self.head_size) for p in (self.k_proj, self.v_proj))
        if narrow is not None:
            x_BLD, h_BLD = narrow.pick(x_BLD), narrow.pick(h_BLD)
        q = heads_of(self.q_proj(h_BLD), self.head_size)
        x_BLD = x_BLD + self.attn_out(attend(self, q, k, v, places, narrow))
        h_BLD = self.ff_norm(x_BLD)
        return x_BLD + self.ff_out(F.silu(self.ff_proj(h_BLD)) * self.up_proj(h_BLD))


class LLaDAModel(nn.Module):
    """The body under the published prefix `model.transformer`; the head is applied by `MaskedLM`."""

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
        narrow: Narrow | None,
    ) -> tuple[Tensor, None]:
        """Final normalised hidden states, and None for router losses (`MaskedLM`)."""
        x_BLD = self.transformer.wte(input_ids)
        head_size = self.config.d_model // self.config.n_heads
        places = places_of(self.config, x_BLD, attention_mask, segment_ids, kv_cache, head_size)
        *blocks, last = self.transformer.blocks
        for block in blocks:
            x_BLD = block(x_BLD, places)
        x_BLD = last(x_BLD, places, narrow)
        return self.transformer.ln_f(x_BLD), None


class LLaDAModelLM(MaskedLM):
    """LLaDA with its head, under the class name of the published checkpoints."""

    config: LLaDAConfig
    config_class = LLaDAConfig
    _no_split_modules = ["LLaDABlock"]
    _tied_weights_keys: dict[str, str] = {}  # a tied checkpoint has no head tensor: the head reads `wte`

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer.wte

    def get_output_embeddings(self) -> nn.Module:
        transformer = self.model.transformer
        return transformer.wte if self.config.weight_tying else transformer.ff_out
