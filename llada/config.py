"""Configuration of the dense LLaDA family, in the field names of the published `config.json` files.

Every published field falls into one of three groups. Fields that change the numbers are computed (they are the
attributes below) or refused by name (`_SUPPORTED`). Fields that only hint at speed, memory or initialisation
(`flash_attention`, `init_fn`, `precision`, `use_cache`, ...) are kept in the file and ignored.
"""

from transformers import PreTrainedConfig

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


class LLaDAConfig(PreTrainedConfig):
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
            raise ValueError(
                f"config field num_experts={kwargs['num_experts']!r} describes a LLaDA-MoE checkpoint; "
                "this version loads the dense family only"
            )
        for field, supported in _SUPPORTED.items():
            if field in kwargs and kwargs[field] not in supported:
                allowed = " or ".join(repr(value) for value in supported)
                raise ValueError(f"config field {field}={kwargs[field]!r} is not supported: it must be {allowed}")
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
