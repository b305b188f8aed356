"""The contract with a model: all that sampler, likelihood, estimators, trainers and evaluation may use of one.

A *denoiser* predicts clean tokens from noisy ones, p_theta(x_0^i | x_t). It has

    spec                                        ids, context, vocabulary, and how its logits and attention are laid out
    logits(request)                             [N, V], at the N positions that a request marks
    log_probs(noisy, target, attention_mask)    [B, L], nats, of the targets; 0 where a target is NOT_SCORED

Position i of either answer is about token i, whatever the model does inside. Guidance (`llada.sampling.guidance`) and
block caches (`llada.sampling.block_cache`) are denoisers that wrap another one.

A module becomes a denoiser through `as_denoiser` if it has the property `denoiser_spec` (a `DenoiserSpec`) and the call

    module(input_ids, attention_mask=None, target_ids=None, logits_at=None) -> an object with `logits` or `log_probs`

    target_ids [B, L]: return `log_probs` [B, L] of these tokens, 0 where they are `NOT_SCORED`
    logits_at [B, L] bool: return `logits` [N, V] there, in row-major order

and, where the spec says so, `kv_cache=` (`llada.kv_cache.KeyValueCache`) and an output `auxiliary_losses`. Trainers
call the module itself, so engines that wrap it (DDP, FSDP, DeepSpeed) see every forward pass. No other part of the
package looks at a model's class, at its config or at the names of its parameters.

Shapes: B rows, L positions of a row, Q positions that are forwarded, N marked positions, V vocabulary, A losses.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from llada.kv_cache import KeyValueCache

NOT_SCORED = -100  # in `target_ids`: this token is not predicted (the value that torch's losses ignore)
ATTENTION = ("bidirectional", "block_causal")


@dataclass(frozen=True)
class DenoiserSpec:
    """What a model is to everything that uses it.

    mask_id, eos_id, pad_id, eot_id: special ids, None where the model's files do not say; `eot_id` ends a chat turn.
    context: the most tokens of a row; vocabulary: rows of the embedding.
    shifted: the module's output at position i predicts token i + 1, as in models adapted from autoregressive ones.
    attention: "bidirectional", or "block_causal" (a block sees itself and earlier blocks).
    kv_cache: whether the module takes `kv_cache=`, which block caches need.
    auxiliary_losses: weights of the columns of the module's output `auxiliary_losses` [B, A] by the names they are
        logged under. The training loss adds the weighted mean over sequences; empty where there are none.

    Raises:
        ValueError: an unknown kind of attention.
    """

    mask_id: int | None
    context: int
    vocabulary: int
    eos_id: int | None = None
    pad_id: int | None = None
    eot_id: int | None = None
    shifted: bool = False
    attention: str = "bidirectional"
    kv_cache: bool = False
    auxiliary_losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.attention not in ATTENTION:
            raise ValueError(f"attention={self.attention!r} is unknown: it must be one of {ATTENTION}")


@dataclass(frozen=True)
class Request:
    """Rows of tokens, and where logits are wanted.

    tokens_BQ: the tokens to forward: whole rows, or the positions that `kv_cache` names.
    attention_BL: bool, False on padding, of the whole rows. at_BQ: bool, where logits are wanted.

    The rest is for denoisers that remember earlier steps of a sampler, one entry for each row: its id, the same in all
    steps; the first position of its current block and the one after it; whether it enters that block with this step.
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
    """See the module docstring."""

    @property
    def spec(self) -> DenoiserSpec: ...

    def logits(self, request: Request) -> Tensor:
        """Logits at the marked positions, [N, V], in row-major order."""

    def log_probs(self, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Log-probability of each target in nats, [B, L]; 0 where the target is `NOT_SCORED`."""


class ModuleDenoiser:
    """A module as a denoiser; the one place that knows what shifted logits are.

    auxiliary_losses: [B, A] of every `log_probs` call so far whose forward pass returned them.

    Raises:
        ValueError: from `logits` and `log_probs`, if the first token of a row is to be predicted by shifted logits.
    """

    def __init__(self, module: nn.Module, spec: DenoiserSpec):
        self.module, self.spec = module, spec
        self.auxiliary_losses: list[Tensor] = []

    def logits(self, request: Request) -> Tensor:
        at_BQ = self._predicting(request.at_BQ, False)
        mask = None if request.attention_BL.all() else request.attention_BL
        cache = {} if request.kv_cache is None else {"kv_cache": request.kv_cache}
        return self.module(request.tokens_BQ, attention_mask=mask, logits_at=at_BQ, **cache).logits

    def log_probs(self, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        target_BL = self._predicting(target_BL, NOT_SCORED)
        output = self.module(input_ids=noisy_BL, attention_mask=attention_mask, target_ids=target_BL)
        if getattr(output, "auxiliary_losses", None) is not None:
            self.auxiliary_losses.append(output.auxiliary_losses)
        return output.log_probs.roll(1, -1) if self.spec.shifted else output.log_probs

    def _predicting(self, values_BL: Tensor, nothing: int) -> Tensor:
        """Values about tokens, moved to the positions whose output predicts those tokens."""
        if not self.spec.shifted:
            return values_BL
        if (values_BL[:, 0] != nothing).any():
            raise ValueError("the first token of a row cannot be predicted: this model's logits are shifted by one")
        return torch.cat([values_BL[:, 1:], torch.full_like(values_BL[:, :1], nothing)], -1)


def as_denoiser(model: nn.Module | Denoiser) -> Denoiser:
    """The denoiser of a module that has a `denoiser_spec`; a denoiser is returned as it is.

    Raises:
        TypeError: neither.
    """
    if all(hasattr(model, name) for name in ("spec", "logits", "log_probs")):
        return model
    spec = getattr(model, "denoiser_spec", None)
    if not isinstance(spec, DenoiserSpec):
        raise TypeError(f"{type(model).__name__} has no denoiser_spec: llada.denoiser says what a model must have")
    return ModuleDenoiser(model, spec)


def log_probs_of_logits(
    denoiser: Denoiser, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """`Denoiser.log_probs` of a denoiser that computes logits only, such as a guided one."""
    at_BL = target_BL != NOT_SCORED
    attention_BL = torch.ones_like(at_BL) if attention_mask is None else attention_mask.bool()
    logits_NV = denoiser.logits(Request(noisy_BL, attention_BL, at_BL))
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    values_N = logits_NV.gather(-1, target_BL[at_BL][:, None])[:, 0] - logits_NV.logsumexp(-1)
    return values_N.new_zeros(target_BL.shape).masked_scatter(at_BL, values_N)
