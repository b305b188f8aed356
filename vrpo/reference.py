"""The reference of a preference run: a second model, or the policy with its adapters off."""

import copy

from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel


def make_reference(
    model: PreTrainedModel, ref_model: PreTrainedModel | str | None, adapters: bool
) -> PreTrainedModel | None:
    """The frozen reference, or None where adapters off will do.

    Raises:
        ValueError: a reference with another vocabulary, the policy itself, or a policy that already has adapters and
            no `ref_model` (with them off, it would be compared with their base instead of with where they start).
    """
    if ref_model is None:
        if hasattr(model, "peft_config"):
            raise ValueError(
                "the model already has adapters, which the reference would lack: merge them (merge_and_unload()) and "
                "pass peft_config, or pass ref_model"
            )
        if adapters:
            return None
        reference = copy.deepcopy(model)
    elif isinstance(ref_model, str):
        reference = AutoModelForCausalLM.from_pretrained(ref_model, dtype=model.dtype)
    else:
        reference = ref_model
    if reference is model:
        raise ValueError("ref_model is the model itself, which training changes: pass None for a frozen copy")
    for field in ("embedding_size", "mask_token_id"):
        ours, theirs = getattr(model.config, field), getattr(reference.config, field)
        if ours != theirs:
            raise ValueError(f"the reference has another vocabulary: {field} is {theirs}, and {ours} in the model")
    return reference.requires_grad_(False).eval()


def prepare_reference(reference: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """Place the reference where the policy is: sharded under DeepSpeed ZeRO-3 and FSDP, on the device otherwise."""
    if accelerator.distributed_type == "DEEPSPEED":
        from trl.models.utils import prepare_deepspeed

        return prepare_deepspeed(reference, accelerator)
    if accelerator.distributed_type == "FSDP":
        from trl.models.utils import prepare_fsdp

        return prepare_fsdp(reference, accelerator)
    return accelerator.prepare_model(reference, evaluation_mode=True)
