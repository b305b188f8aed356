"""The reference of a preference run: a second model, or the policy with its adapters off."""

import copy

from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from llada.denoiser import as_denoiser


def make_reference(
    model: PreTrainedModel, ref_model: PreTrainedModel | str | None, peft_config=None
) -> PreTrainedModel | None:
    """The frozen reference, or None if the policy with its adapters off serves as one.

    Raises:
        ValueError: the reference has another vocabulary or is the policy itself; the policy already has adapters and
            there is no `ref_model` (without them it is their base model, not the initial policy); new adapters do not
            start at zero, so that without them the model is not the initial policy either.
    """
    if ref_model is None and hasattr(model, "peft_config"):
        raise ValueError(
            "the model already has adapters, which the reference would lack: merge them (merge_and_unload()) and pass "
            "peft_config, or pass ref_model"
        )
    if ref_model is None and peft_config is not None:
        start = getattr(peft_config, "init_lora_weights", True)
        if start not in (True, "gaussian"):
            raise ValueError(
                f"init_lora_weights={start!r} changes the model before training, so that with its adapters off it is "
                "not the initial policy: use True or 'gaussian', or pass ref_model"
            )
        return None
    if ref_model is None and is_deepspeed_zero3_enabled():
        ref_model = model.config._name_or_path  # a sharded model cannot be copied
        if not ref_model:
            raise ValueError("under ZeRO-3 a model without a saved copy cannot be its own reference: pass ref_model")
    if ref_model is None:
        reference = copy.deepcopy(model)
    elif isinstance(ref_model, str):
        reference = AutoModelForCausalLM.from_pretrained(ref_model, dtype=model.dtype)
    else:
        reference = ref_model
    if reference is model:
        raise ValueError("ref_model is the model itself, which training changes: pass None for a frozen copy")
    policy, other = as_denoiser(model).spec, as_denoiser(reference).spec
    for name, ours, theirs in (
        ("embedding_size", policy.vocabulary, other.vocabulary),
        ("mask_token_id", policy.mask_id, other.mask_id),
        ("shifted", policy.shifted, other.shifted),
    ):
        if ours != theirs:
            raise ValueError(f"the reference has another vocabulary: {name} is {theirs}, and {ours} in the model")
    return reference.requires_grad_(False).eval()


def prepare_reference(reference: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """Place the reference as the policy is placed: sharded under DeepSpeed ZeRO-3 and FSDP, on the device otherwise."""
    if accelerator.distributed_type == "DEEPSPEED":
        from trl.models.utils import prepare_deepspeed

        return prepare_deepspeed(reference, accelerator)
    if accelerator.distributed_type == "FSDP":
        from trl.models.utils import prepare_fsdp

        return prepare_fsdp(reference, accelerator)
    return accelerator.prepare_model(reference, evaluation_mode=True)
