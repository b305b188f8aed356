"""The base class of all models, with strict loading, the head and `forward`; and RMSNorm.

    p_theta(x_0^i | x_t) = softmax(head(rms(x)))_i                (LLaDA, arXiv 2502.09992, eq. 11: no time input)

The head runs inside `forward`, only at the positions that are asked for.

Shapes: B sequences, L tokens, D width, V vocabulary, N chosen positions, Q the largest number of them in a row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers import initialization as init
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import ModelOutput

from llada.denoiser import NOT_SCORED, DenoiserSpec
from llada.kv_cache import KeyValueCache
from llada.models.common.attention import QuerySubset
from llada.models.common.checkpoints import check_loading_info, check_source, explain_load_errors
from llada.models.common.config import check_dtype
from llada.models.common.head import Head, at_least_fp32, chunked_log_probs


@dataclass
class MaskedLMOutput(ModelOutput):
    """The output of `forward`: either logits or log_probs.

    logits: [B, L, V], or [N, V] when `logits_at` chose N positions (row-major order).
    log_probs: [B, L] log-probability of `target_ids`, nats, 0 where the target is `NOT_SCORED`.
    auxiliary_losses: [B, A], in training only; `DenoiserSpec.auxiliary_losses` names the A columns.
    """

    logits: Tensor | None = None
    log_probs: Tensor | None = None
    auxiliary_losses: Tensor | None = None


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(at_least_fp32(x.dtype))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class MaskedLM(PreTrainedModel):
    """A masked diffusion language model, or, with the config field `causal`, an autoregressive one of the same form,
    whose output at position i predicts token i + 1. A subclass provides the output embeddings (the head) and a module
    `model`:

    (input_ids, attention_mask, segment_ids, kv_cache, subset) -> final normalised hidden states [B, L, D] ([B, Q, D]
    with a `subset`), and auxiliary losses [B, A] (in training, if the model has any; else None).
    """

    base_model_prefix = "model"
    lora_targets: str  # regular expression of module names: the blocks' linear layers without the head
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """`PreTrainedModel.from_pretrained`, but a checkpoint that does not fit the model exactly is an error.

        Raises:
            ValueError: tensors are missing, unknown or misshapen, a file is absent or truncated, the weights are no
                safetensors, or `dtype` is unknown. The message names them.
        """
        source = str(pretrained_model_name_or_path)
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors=False asks for pickled weights, which are not loaded: leave it out")
        check_dtype(kwargs.get("dtype"))
        check_source(source, kwargs)
        kwargs |= {"use_safetensors": True}
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # raised below, together

        def published_names():
            config = kwargs.get("config") or AutoConfig.from_pretrained(source)
            with torch.device("meta"):
                empty = cls(config)
            return revert_weight_conversion(empty, empty.state_dict())

        with explain_load_errors(source, published_names):
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        check_loading_info(info, source)
        return (model, info) if output_loading_info else model

    @classmethod
    def can_generate(cls) -> bool:
        return False  # transformers' `generate` writes from left to right; `llada.generate` samples from these models

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """Raises: `peft.PeftModelForCausalLM` only asks that the method exists."""
        raise NotImplementedError("transformers' generate does not sample from a diffusion model: use llada.generate")

    def _init_weights(self, module: nn.Module) -> None:
        # Fan-in scaling. Projections into the residual stream are scaled down with depth, so that its variance does not
        # grow with the number of layers. Published `init_*` fields, used for new models only, are ignored.
        if isinstance(module, nn.Linear):
            into_residual = any(module is projection for projection in self.residual_projections())
            depth = 2 * self.config.num_hidden_layers if into_residual else 1
            init.normal_(module.weight, 0.0, (depth * module.in_features) ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, self.config.hidden_size**-0.5)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)

    def residual_projections(self) -> list[nn.Linear]:
        """The projections into the residual stream, whose initialisation is scaled down with depth."""
        raise NotImplementedError

    def first_up_projection(self) -> list[nn.Parameter]:
        """The first block's up-projection (of all its experts), for which the VRPO paper reports gradient variance."""
        raise NotImplementedError

    def active_share(self, module: nn.Module) -> float:
        """The share of a module's own parameters that are used for one token."""
        return 1.0

    def active_parameters(self) -> int:
        """The number of parameters that are used for one token."""
        own = ((module, weight) for module in self.modules() for weight in module.parameters(recurse=False))
        return round(sum(self.active_share(module) * weight.numel() for module, weight in own))

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """`PreTrainedModel.resize_token_embeddings`; new rows of embedding and head are drawn around the old mean.

        The config's `vocab_size` and `embedding_size` become the number of rows.

        Raises:
            ValueError: a number is not a positive integer, or a special id of the config would have no row.
        """
        for name, value in ("new_num_tokens", new_num_tokens), ("pad_to_multiple_of", pad_to_multiple_of):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} must be a positive integer")
        names = ("mask_token_id", "bos_token_id", "eos_token_id", "eot_token_id", "pad_token_id")
        ids = {name: number for name in names if (number := getattr(self.config, name)) is not None}
        lost = [f"{name}={number}" for name, number in ids.items() if new_num_tokens and number >= new_num_tokens]
        if lost:
            raise ValueError(
                f"new_num_tokens={new_num_tokens} leaves no row for {', '.join(lost)}: it must be at least "
                f"{max(ids.values()) + 1}, or give the config other ids first"
            )
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.embedding_size = embedding.num_embeddings
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._replace(self.get_input_embeddings(), value)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        if type(new_embeddings) is nn.Linear:  # as transformers makes it: ours also scores targets in chunks
            linear = new_embeddings
            new_embeddings = Head(linear.in_features, linear.out_features, bias=False, device="meta")
            new_embeddings.weight = linear.weight
        self._replace(self.get_output_embeddings(), new_embeddings)

    def _replace(self, old: nn.Module, new: nn.Module) -> None:
        """Put a module where another one of this model is."""
        for parent in list(self.modules()):
            for name in [name for name, child in parent.named_children() if child is old]:
                setattr(parent, name, new)

    @property
    def last_block_may_skip(self) -> bool:
        """Whether the last block need compute only what the head reads.

        Attention backends other than these have no mask tensor that could be cut to a subset of the queries, a causal
        mask differs between queries, and router losses are those of all tokens.
        """
        routed = self.training and bool(self.config.auxiliary_losses())
        return self.config._attn_implementation in ("sdpa", "eager") and not routed and not self.config.causal

    @property
    def denoiser_spec(self) -> DenoiserSpec:
        """The description of this model for the rest of the package (`llada.denoiser`)."""
        return self.config.denoiser_spec

    def head(self, hidden: Tensor, targets_N: Tensor | None = None) -> Tensor:
        module = self.get_output_embeddings()
        if isinstance(module, Head):
            return module(hidden, targets_N)
        weight_VD = module.weight  # tied weights: the input embedding is the head's weight
        return F.linear(hidden, weight_VD) if targets_N is None else chunked_log_probs(hidden, targets_N, weight_VD)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        target_ids: Tensor | None = None,
        logits_at: Tensor | None = None,
        kv_cache: KeyValueCache | None = None,
        **of_causal_models: None,
    ) -> MaskedLMOutput:
        """Predict clean tokens: logits [B, L, V] or [N, V], or log-probabilities of targets.

        Args:
            input_ids: [B, L] noisy tokens.
            attention_mask: [B, L], 0 on padding: padded keys are not attended to. Padding may be on either side,
                because rotary positions are relative.
            segment_ids: [B, L], for several sequences packed into one row: attention stays inside a segment, and
                positions restart in each. A segment is a run of equal ids, so that neighbours must have different
                ones, and an id may come again.
            target_ids: [B, L] clean tokens where they are to be scored and `NOT_SCORED` elsewhere. The head then runs
                at those positions only, in chunks, and `log_probs` [B, L] is returned, so that training never needs a
                [B, L, V] tensor.
            logits_at: [B, L] bool, True where logits are wanted; None means everywhere.
            kv_cache: keys and values of earlier forward passes. `input_ids` are then the tokens at the cache's
                `positions_RQ`, and `attention_mask` covers all positions.
            of_causal_models: `labels`, `inputs_embeds` and others, which `peft.PeftModelForCausalLM` passes as None.

        Raises:
            TypeError: an argument that this method does not have.
            ValueError: both `target_ids` and `logits_at`, a sequence longer than `max_sequence_length`, or
                `segment_ids` that are no integers [B, L] or come with a `kv_cache`.
        """
        if unknown := [name for name, value in of_causal_models.items() if value is not None]:
            raise TypeError(f"forward() of a diffusion model takes no {', '.join(unknown)}; targets are `target_ids`")
        if target_ids is not None and logits_at is not None:
            raise ValueError("pass target_ids (training) or logits_at (sampling), not both")
        if input_ids.shape[1] > self.config.max_sequence_length:
            raise ValueError(
                f"a sequence of {input_ids.shape[1]} tokens does not fit the model's context of "
                f"{self.config.max_sequence_length}"
            )
        wanted_BL = logits_at if target_ids is None else target_ids != NOT_SCORED
        subset = None
        if wanted_BL is not None and segment_ids is None and self.last_block_may_skip:
            subset = QuerySubset.at(wanted_BL)
        hidden_BLD, auxiliary_losses = self.model(input_ids, attention_mask, segment_ids, kv_cache, subset)
        wanted = wanted_BL if subset is None else subset.wanted_BQ
        hidden = hidden_BLD if wanted is None else hidden_BLD[wanted.to(hidden_BLD.device)]
        if target_ids is None:
            return MaskedLMOutput(logits=self.head(hidden), auxiliary_losses=auxiliary_losses)
        assert wanted_BL is not None  # for the type checker
        scored_BL = wanted_BL
        scored_log_probs = self.head(hidden, target_ids[scored_BL])
        log_probs_BL = scored_log_probs.new_zeros(target_ids.shape)
        log_probs_BL = log_probs_BL.masked_scatter(scored_BL, scored_log_probs)
        return MaskedLMOutput(log_probs=log_probs_BL, auxiliary_losses=auxiliary_losses)
