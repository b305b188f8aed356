"""Configurations of the LLaDA family, in the field names of the published `config.json` files.

Every published field falls into one of three groups. Fields that change the numbers are computed (they are the
attributes below) or refused by name (`_SUPPORTED`, `_SUPPORTED_MOE`). Fields that only hint at speed, memory or
initialisation (`flash_attention`, `init_fn`, `precision`, `use_cache`, ...), and those that the published MoE code
reads but never computes with (docs/checkpoints.md lists them), are kept in the file and ignored.

Both published layouts say `model_type: "llada"`: a config with `num_experts` is a mixture of experts.
"""

from typing import Any

from transformers import PreTrainedConfig

from llada.denoiser import DenoiserSpec

# What the architecture computes; any other value would change the output, so it is refused instead of ignored.
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


def refuse_others(fields: dict, supported: dict[str, tuple]) -> None:
    """Raise ValueError on the first field whose value is not supported, with what is."""
    for field, values in supported.items():
        if field in fields and fields[field] not in values:
            allowed = " or ".join(repr(value) for value in values)
            raise ValueError(f"config field {field}={fields[field]!r} is not supported: it must be {allowed}")


class FamilyConfig:
    """Mixed into the configurations of the family: what they say of a model to the rest of the package."""

    def auxiliary_losses(self) -> dict[str, float]:
        """Names and weights of the losses that the model returns in training beside its log-probabilities."""
        return {}

    def set_special_ids(self, mask: int, eos: int, pad: int, eot: int | None) -> None:
        """Write down ids that the published files lack and a tokenizer has."""
        for name, value in ("mask", mask), ("eos", eos), ("pad", pad), ("eot", eot):
            setattr(self, f"{name}_token_id", value)

    @property
    def denoiser_spec(self: Any) -> DenoiserSpec:
        """What `llada.denoiser` asks for; the sizes' names are `attribute_map`'s where a layout has others."""
        ids = {f"{name}_id": getattr(self, f"{name}_token_id") for name in ("mask", "eos", "pad", "eot")}
        sizes = {"context": self.max_sequence_length, "vocabulary": self.embedding_size}
        return DenoiserSpec(**ids, **sizes, kv_cache=True, auxiliary_losses=self.auxiliary_losses())


class LLaDAConfig(FamilyConfig, PreTrainedConfig):
    """Shape and special ids of a dense LLaDA (LLaDA-8B, LLaDA 1.5, iLLaDA).

    Defaults are LLaDA-8B's (LLaDA, arXiv 2502.09992, Table 5, and the released config). `n_kv_heads` below `n_heads`
    is grouped-query attention, `weight_tying` shares the input embedding with the head, `include_qkv_bias` adds a bias
    to the query, key and value projections. `eot_token_id` (end of a chat turn) is not in the published files; it is
    kept here when a tokenizer supplies it.

    Raises:
        ValueError: a field that changes the numbers has a value that this architecture does not compute, or the
            sizes do not fit each other.
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

    d_model: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    mlp_hidden_size: int | None = None
    mlp_ratio: int = 4
    vocab_size: int = 126464
    embedding_size: int | None = None
    max_sequence_length: int = 4096
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    include_qkv_bias: bool = False
    weight_tying: bool = False
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if "num_experts" in kwargs:
            raise ValueError("config field num_experts is of a mixture of experts: use LLaDAMoEConfig or AutoConfig")
        refuse_others(kwargs, _SUPPORTED)
        # `rope_theta` must stay a plain published field: the base class would turn it into `rope_parameters`.
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
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        if cls is LLaDAConfig and "num_experts" in config_dict:
            return LLaDAMoEConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)


class LLaDAMoEConfig(FamilyConfig, PreTrainedConfig):
    """Shape and special ids of a LLaDA-MoE. Defaults are LLaDA-MoE-7B-A1B's (its released config).

    `moe_layer_freq` has a 1 for each layer with experts and a 0 for each dense one. `router_aux_loss_coef` and
    `router_z_loss_coef` weigh the router's losses in training (the published field, and the value of LLaDA-MoE,
    arXiv 2509.24389); 0 turns one off.

    Raises:
        ValueError: a field that changes the numbers has a value that this architecture does not compute, or the
            sizes do not fit each other.
    """

    model_type = "llada"
    attribute_map = {"max_sequence_length": "max_position_embeddings", "embedding_size": "vocab_size"}

    vocab_size: int = 157184
    hidden_size: int = 2048
    dense_intermediate_size: int = 8192
    expert_intermediate_size: int = 1024
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    num_experts: int = 64
    num_experts_per_tok: int = 8
    moe_layer_freq: list[int] | None = None
    max_position_embeddings: int = 8192
    rope_theta: float = 50000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    router_aux_loss_coef: float = 0.01
    router_z_loss_coef: float = 0.001
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        refuse_others(kwargs, _SUPPORTED_MOE)
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
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"config field num_experts_per_tok={self.num_experts_per_tok} must be between 1 and "
                f"num_experts={self.num_experts}"
            )
        super().__post_init__(**kwargs)

    def auxiliary_losses(self) -> dict[str, float]:
        return {"router/load_balance": self.router_aux_loss_coef, "router/z_loss": self.router_z_loss_coef}
