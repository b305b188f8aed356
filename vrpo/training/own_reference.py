"""A policy with adapters as its own reference: with its adapters off, or with a frozen copy of them.

That reference is the initial policy if the adapters change nothing before training, and if training changes nothing but
the adapters. Both are checked here, for every method of PEFT alike.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from llada.denoiser import NOT_SCORED, ModuleDenoiser

REFERENCE_ADAPTER = "ref"  # TRL's name
TOKENS = 8  # of the row on which policy and reference are compared
# Nats a token, in single and in half precision. Adapters that start at zero differ by 0; those that start as a product
# which is the identity (DoRA, HRA) by rounding.
BOUNDS = (1e-3, 0.05)
MOVE = 0.02  # what is added to the adapters' weights, which may be without effect or noise as long as they are 0


def check_start(peft_config) -> None:
    """Raise ValueError if new adapters change the model before training, as far as their configuration says so.

    Under ZeRO-3, where `check_adapters` cannot run, only LoRA's configuration is known to say enough.
    """
    start = getattr(peft_config, "init_lora_weights", True)
    if start not in (True, "gaussian"):
        raise ValueError(
            f"init_lora_weights={start!r} changes the model before training, so that with its adapters off it is not "
            "the initial policy: use True or 'gaussian', or pass ref_model"
        )
    if getattr(peft_config, "kasa_config", None) is not None:
        raise ValueError(
            "kasa_config takes components out of the base model's weights, so that with its adapters off it is not the "
            "initial policy: leave it out, or pass ref_model"
        )
    if is_deepspeed_zero3_enabled() and type(peft_config).__name__ != "LoraConfig":
        raise ValueError(
            f"under ZeRO-3 it cannot be checked that a model without its {type(peft_config).__name__} adapters is the "
            "initial policy: use LoraConfig, or pass ref_model"
        )


def freeze_adapter(model) -> None:
    """Copy the adapter that a model comes with to a frozen adapter, `REFERENCE_ADAPTER`: the initial policy, as in TRL.

    Raises:
        ValueError: the model has several adapters, or one that PEFT cannot copy.
    """
    names = list(model.peft_config)
    if len(names) != 1:
        raise ValueError(f"the model has the adapters {names}: keep the one to train, or pass ref_model")
    trained = names[0]
    try:
        model.add_adapter(REFERENCE_ADAPTER, model.peft_config[trained])
    except ValueError as error:
        raise ValueError(
            f"PEFT cannot add a frozen copy of the adapter ({error}): merge it (merge_and_unload()) and pass "
            "peft_config, or pass ref_model"
        ) from error
    weights = dict(model.named_parameters())
    copied = [name for name in weights if f".{trained}." in name or name.endswith(f".{trained}")]
    for name in copied:
        copy_of = name.replace(f".{trained}", f".{REFERENCE_ADAPTER}")
        weights[copy_of].data.copy_(weights[name].data)
    model.set_adapter(trained)


@contextlib.contextmanager
def reference_adapters(model) -> Iterator[None]:
    """Let a model with adapters compute as the initial policy: with `REFERENCE_ADAPTER`, or without adapters."""
    if REFERENCE_ADAPTER not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    trained = model.active_adapter
    model.set_adapter(REFERENCE_ADAPTER)
    try:
        yield
    finally:
        model.set_adapter(trained)


def check_adapters(model, denoiser: ModuleDenoiser, own_reference: bool) -> None:
    """Stop unless a policy with adapters has one score for each plan of masks, and a reference that stays as it is.

    Args:
        model: the policy, whose dropout is off; denoiser: the same model.
        own_reference: whether the reference is this model too, without its adapters or with the frozen copy.

    Raises:
        ValueError: the adapters cannot run on this model or are random; or, with `own_reference`, they change the model
            before training, or training would change weights that the reference has too (LoRA's `bias`).
    """
    adapter = type(model.active_peft_config).__name__
    trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    if own_reference:
        check_shared(trained, model.active_adapter, model.active_peft_config)
    if is_deepspeed_zero3_enabled():
        return  # weights are in pieces until the engine runs the model
    mode = model.training
    model.train()  # as in a step
    try:
        policy = tiny_scores(denoiser)
        with moved(list(trained.values())):
            once, twice = tiny_scores(denoiser), tiny_scores(denoiser)
            with reference_adapters(model) if own_reference else contextlib.nullcontext():
                reference = tiny_scores(denoiser) if own_reference else policy
    except Exception as error:
        raise ValueError(f"{adapter} does not run on this model: {type(error).__name__}: {error}") from error
    finally:
        model.train(mode)
    bound = BOUNDS[next(model.parameters()).dtype in (torch.bfloat16, torch.float16)]
    # A nan is the model's own, and training names its row.
    noise, change = ((a - b).abs().nan_to_num().max() for a, b in ((once, twice), (policy, reference)))
    if noise > bound or getattr(model.active_peft_config, "monteclora_config", None) is not None:
        raise ValueError(
            f"these adapters ({adapter}) draw random numbers in each pass, as dropout does, which would add noise to "
            "the score. Leave out the option that draws them (monteclora_config), or use LoraConfig"
        )
    if change > bound:
        raise ValueError(
            f"these adapters ({adapter}) change the model before training: policy and reference, the model without "
            f"them, differ by {change:.2g} nats a token. Choose an initialization that leaves the model as it is (of "
            "most methods the default), or pass ref_model"
        )


def check_shared(trained: dict[str, nn.Parameter], name: str, config) -> None:
    """Raise ValueError if weights are trained that do not belong to the adapter of this name: they have no copy."""
    shared = [key for key in trained if name not in key.split(".")]
    if not shared:
        return
    bias = getattr(config, "bias", "none")
    what = f"bias={bias!r} trains" if bias != "none" else f"with {type(config).__name__}, training changes"
    raise ValueError(
        f"{what} {len(shared)} weights that are no adapter's, such as {shared[0]}, and the reference, which is this "
        f"model without its adapters, would move with them: {'use bias=none' if bias != 'none' else 'freeze them'}, or "
        "pass ref_model"
    )


@contextlib.contextmanager
def moved(weights: list[nn.Parameter]) -> Iterator[None]:
    """Add `MOVE` to weights for a while; they get back the very tensors they had."""
    kept = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data + MOVE
        yield
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data


@torch.no_grad()
def tiny_scores(denoiser: ModuleDenoiser) -> Tensor:
    """Log-probabilities of a few tokens, half of them masked, in nats."""
    device = next(denoiser.module.parameters()).device
    spec = denoiser.spec
    target = torch.arange(1, 1 + min(TOKENS, spec.context), device=device)[None] % spec.vocabulary
    masked = torch.arange(target.shape[1], device=device)[None] % 2 == 1
    noisy = target.masked_fill(masked, spec.mask_id)
    return denoiser.log_probs(noisy, target.masked_fill(~masked, NOT_SCORED))
