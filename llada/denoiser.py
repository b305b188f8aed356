"""The interface to a model: all that sampler, likelihood, estimators, trainers and evaluation may use of it.

A *denoiser* predicts clean tokens from noisy ones, p_theta(x_0^i | x_t). It has

    spec                                        special ids, context, vocabulary, and the kind of logits and attention
    logits(request)                             [N, V], at the N positions that a request marks
    log_probs(noisy, target, attention_mask)    [B, L], nats, of the targets; 0 where a target is NOT_SCORED

Position i of either result belongs to token i, also for models with shifted logits. Guidance
(`llada.sampling.guidance`) and block caches (`llada.sampling.block_cache`) are denoisers that wrap another one.

`as_denoiser` makes a denoiser of any module that has the property `denoiser_spec` (a `DenoiserSpec`) and the call

    module(input_ids, attention_mask=None, target_ids=None, logits_at=None) -> an object with `logits` or `log_probs`

    target_ids [B, L]: return `log_probs` [B, L] of these tokens, 0 where they are `NOT_SCORED`
    logits_at [B, L] bool: return `logits` [N, V] there, in row-major order

and, where the spec says so, `kv_cache=` (`llada.kv_cache.KeyValueCache`) and an output `auxiliary_losses`. Trainers
call the module itself, so engines that wrap it (DDP, FSDP, DeepSpeed) see every forward pass. No other part of the
package depends on a model's class, on its config or on the names of its parameters.

Shapes: B rows, L positions of a row, Q forwarded positions, N marked positions, V vocabulary, A auxiliary losses.
"""

from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
from torch import Tensor, nn

from llada.checks import OneOf, PositiveInt, Range, check, check_fields
from llada.kv_cache import KeyValueCache

NOT_SCORED = -100  # the target of a token that is not predicted (torch's losses ignore the same value)
ATTENTION = ("bidirectional", "block_causal", "causal")


@dataclass(frozen=True)
class DenoiserSpec:
    """The properties of a model that the rest of the package uses.

    mask_id, eos_id, pad_id, eot_id: special ids, None if the model's files lack it; `eot_id` ends a chat turn.
    context: maximal tokens of a row; vocabulary: rows of the embedding.
    shifted: the module's output at position i predicts token i + 1, as in models adapted from autoregressive ones.
    attention: "bidirectional", "block_causal" (a block sees itself and earlier blocks), or "causal": the model is
        autoregressive (`llada.diffusion.causal`), and nothing that needs a model of masked tokens runs on it.
    kv_cache: whether the module accepts `kv_cache=`, which block caches need.
    auxiliary_losses: for each column of the module's output `auxiliary_losses` [B, A], the name under which it is
        logged and its weight. The training loss adds the weighted mean over sequences. Empty if there are none.

    Raises:
        ValueError: `attention` is unknown, a size is below 1, or an id is outside the vocabulary.
    """

    mask_id: int | None
    context: PositiveInt
    vocabulary: PositiveInt
    eos_id: int | None = None
    pad_id: int | None = None
    eot_id: int | None = None
    shifted: bool = False
    attention: Annotated[str, OneOf(ATTENTION)] = "bidirectional"
    kv_cache: bool = False
    auxiliary_losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        check_fields(self)
        for name in ("mask_id", "eos_id", "pad_id", "eot_id"):
            check(name, getattr(self, name), Annotated[int, Range(at_least=0, below=self.vocabulary)] | None)


@dataclass(frozen=True)
class Request:
    """One call of `Denoiser.logits`: rows of tokens, and the positions at which logits are wanted.

    tokens_BQ: the tokens to forward: whole rows, or the positions in `kv_cache.positions_RQ`.
    attention_BL: bool, False on padding, for whole rows. at_BQ: bool, True where logits are wanted.

    The other fields are for denoisers with a state across sampling steps. They have one entry for each row: an id, the
    same in all steps; start and end (exclusive) of the current block; whether the row enters that block in this step.
    """

    tokens_BQ: Tensor
    attention_BL: Tensor
    at_BQ: Tensor
    row_ids: tuple[int, ...] = ()
    block_starts: tuple[int, ...] = ()
    block_ends: tuple[int, ...] = ()
    enters_block: tuple[bool, ...] = ()
    kv_cache: KeyValueCache | None = None


class Denoiser(Protocol):
    """A model that predicts clean tokens from noisy ones; the module docstring defines its members."""

    @property
    def spec(self) -> DenoiserSpec: ...

    def logits(self, request: Request) -> Tensor:
        """Logits at the marked positions, [N, V], in row-major order."""

    def log_probs(self, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Log-probability of each target in nats, [B, L]; 0 where the target is `NOT_SCORED`."""


class ModuleDenoiser:
    """A module as a denoiser. Only this class handles shifted logits.

    auxiliary_losses: a list of the [B, A] outputs of all `log_probs` calls so far, if the module returns any.
    segment_ids: [B, L], for `log_probs` of rows in which several sequences are packed; None: each is one.

    Raises:
        ValueError: by `logits` and `log_probs`, if shifted logits would have to predict the first token of a row.
    """

    def __init__(self, module: nn.Module, spec: DenoiserSpec, segment_ids: Tensor | None = None):
        self.module, self.spec, self.segment_ids = module, spec, segment_ids
        self.auxiliary_losses: list[Tensor] = []

    def logits(self, request: Request) -> Tensor:
        at_BQ = self._predicting(request.at_BQ, False)
        mask = None if request.attention_BL.all() else request.attention_BL
        cache = {} if request.kv_cache is None else {"kv_cache": request.kv_cache}
        return self.module(request.tokens_BQ, attention_mask=mask, logits_at=at_BQ, **cache).logits

    def log_probs(self, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        target_BL = self._predicting(target_BL, NOT_SCORED)
        packed = {} if self.segment_ids is None else {"segment_ids": self.segment_ids}
        output = self.module(input_ids=noisy_BL, attention_mask=attention_mask, target_ids=target_BL, **packed)
        if getattr(output, "auxiliary_losses", None) is not None:
            self.auxiliary_losses.append(output.auxiliary_losses)
        return output.log_probs.roll(1, -1) if self.spec.shifted else output.log_probs

    def _predicting(self, values_BL: Tensor, nothing: int) -> Tensor:
        """Move each token's value to the position whose output predicts that token."""
        if not self.spec.shifted:
            return values_BL
        if (values_BL[:, 0] != nothing).any():
            raise ValueError("the first token of a row cannot be predicted: this model's logits are shifted by one")
        return torch.cat([values_BL[:, 1:], torch.full_like(values_BL[:, :1], nothing)], -1)


def as_denoiser(model: nn.Module | Denoiser) -> Denoiser:
    """Wrap a module that has a `denoiser_spec`; a denoiser is returned unchanged.

    Raises:
        TypeError: `model` is neither of the two.
    """
    if all(hasattr(model, name) for name in ("spec", "logits", "log_probs")):
        return model
    spec = getattr(model, "denoiser_spec", None)
    if not isinstance(spec, DenoiserSpec):
        raise TypeError(f"{type(model).__name__} has no denoiser_spec: llada.denoiser says what a model must have")
    return ModuleDenoiser(model, spec)


def check_masked(spec: DenoiserSpec) -> None:
    """Raise ValueError if a model is autoregressive, which has learnt to predict the next token and no masked ones."""
    if spec.attention == "causal":
        raise ValueError(
            "the model is autoregressive (config field causal=True), and this needs a masked diffusion model. An "
            "autoregressive model is trained by `llada pretrain` and `llada sft`, sampled from by "
            "llada.causal_generate and scored by llada.causal_log_likelihood"
        )


def log_probs_of_logits(
    denoiser: Denoiser, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Compute `Denoiser.log_probs` from logits, for denoisers such as guidance that modify the logits."""
    at_BL = target_BL != NOT_SCORED
    attention_BL = torch.ones_like(at_BL) if attention_mask is None else attention_mask.bool()
    logits_NV = denoiser.logits(Request(noisy_BL, attention_BL, at_BL))
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    values_N = logits_NV.gather(-1, target_BL[at_BL][:, None])[:, 0] - logits_NV.logsumexp(-1)
    return values_N.new_zeros(target_BL.shape).masked_scatter(at_BL, values_N)
