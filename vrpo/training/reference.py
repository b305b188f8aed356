"""The reference of a preference run as a second model; `vrpo.training.own_reference` has the other kind.

It is given, or a copy of the policy. Its weights are the initial policy's, and it computes as the policy does.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from llada.denoiser import as_denoiser, check_masked
from llada.pretrained import check_config, from_files
from llada.training.inputs import has_adapters
from vrpo.training.own_reference import check_start

logger = logging.getLogger(__name__)


def make_reference(
    model: PreTrainedModel,
    ref_model: PreTrainedModel | str | None,
    peft_config=None,
    init_kwargs: dict[str, Any] | None = None,
) -> PreTrainedModel | None:
    """The frozen reference, or None if the policy serves as one with its adapters off or replaced.

    Args:
        init_kwargs: TRL's `model_init_kwargs`, with which a reference given by name is loaded; its dtype is the
            policy's.

    Raises:
        ValueError: the reference has another vocabulary or is the policy itself; new adapters do not start at zero,
            so that without them the model is not the initial policy; or, under ZeRO-3, the policy cannot be read a
            second time from where it was loaded.
    """
    check_masked(as_denoiser(model).spec)
    if ref_model is None and peft_config is not None:
        check_start(peft_config)
        return None
    if ref_model is None and has_adapters(model):
        return None  # `own_reference.freeze_adapter` makes the reference
    if ref_model is None and is_deepspeed_zero3_enabled():
        reference = loaded_again(model, init_kwargs)  # a sharded model cannot be copied
    elif ref_model is None:
        reference = copy.deepcopy(model)
    elif isinstance(ref_model, str):
        check_config(ref_model)
        reference = from_files(AutoModelForCausalLM, ref_model, **load_options(model, init_kwargs))
    else:
        reference = ref_model
    if reference is model:
        raise ValueError("ref_model is the model itself, which training changes: pass None for a frozen copy")
    policy, other = as_denoiser(model).spec, as_denoiser(reference).spec
    check_masked(other)
    for name, ours, theirs in (
        ("embedding_size", policy.vocabulary, other.vocabulary),
        ("mask_token_id", policy.mask_id, other.mask_id),
        ("shifted", policy.shifted, other.shifted),
    ):
        if ours != theirs and theirs is not None:  # an id that its config lacks is the tokenizer's
            raise ValueError(f"the reference has another vocabulary: {name} is {theirs}, and {ours} in the model")
    if ours_and_theirs := differences(model, reference):
        logger.warning(
            "the reference has %s: its scores differ from the policy's also where their weights are equal. Load both "
            "alike", ours_and_theirs,
        )  # fmt: skip
    return reference.requires_grad_(False).eval()


def load_options(model: PreTrainedModel, init_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments with which a reference is loaded that is to compute as the policy does."""
    options = {key: value for key, value in (init_kwargs or {}).items() if key != "torch_dtype"}
    if attention := getattr(model.config, "_attn_implementation", None):
        options.setdefault("attn_implementation", attention)
    return options | {"dtype": model.dtype}


def differences(policy: PreTrainedModel, reference: PreTrainedModel) -> str:
    """What makes the numbers of a reference others than the policy's, in words; empty if there is nothing."""
    theirs, ours = (
        {
            "dtype": getattr(model, "dtype", None),  # which a module that is no model of transformers lacks
            "attn_implementation": getattr(getattr(model, "config", None), "_attn_implementation", None),
        }
        for model in (reference, policy)
    )
    return ", ".join(
        f"{name} {theirs[name]} and the policy {ours[name]}" for name in theirs if theirs[name] != ours[name]
    )


def loaded_again(model: PreTrainedModel, init_kwargs: dict[str, Any] | None) -> PreTrainedModel:
    """The initial policy, read a second time from where it was loaded and compared with it element by element.

    Raises:
        ValueError: the model has no saved copy, or is another than its saved copy.
    """
    name = model.config._name_or_path
    if not name:
        raise ValueError("under ZeRO-3 a model without a saved copy cannot be its own reference: pass ref_model")
    options = load_options(model, init_kwargs)
    if commit := getattr(model.config, "_commit_hash", None):  # the revision may be a branch that has moved
        options["revision"] = commit
    reference = from_files(AutoModelForCausalLM, name, **options)
    theirs = dict(reference.named_parameters())
    other = [
        key for key, weight in model.named_parameters()
        if key not in theirs or not torch.equal(own_elements(weight), own_elements(theirs[key]))
    ]  # fmt: skip
    if torch.distributed.is_initialized():  # each process holds other elements, and all must stop
        found: list[list[str]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, other)
        other = [key for keys in found for key in keys]
    if other:
        raise ValueError(
            f"under ZeRO-3 the reference is loaded again, but the model is not what {name} holds ({other[0]} differs): "
            "save the model and load it from there, or pass ref_model"
        )
    return reference


def own_elements(weight: nn.Parameter) -> Tensor:
    """The elements of a weight that this process holds, flat; ZeRO-3 fills up the last piece with any memory."""
    piece = getattr(weight, "ds_tensor", None)
    if piece is None:
        return weight.data.flatten()
    begin = piece.numel() * torch.distributed.get_rank(weight.ds_process_group)
    return piece.flatten()[: max(0, weight.ds_numel - begin)]


def prepare_reference(reference: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """Prepare the reference as the policy is prepared: the same autocast and device, sharded if an engine shards.

    It is kept out of accelerate's list of models: while that list is empty, the Trainer prepares the policy for an
    evaluation before training, and policy and reference compute in the same precision.
    """
    prepared = list(accelerator._models)
    if accelerator.distributed_type == "DEEPSPEED":
        from trl.models.utils import prepare_deepspeed

        return prepare_deepspeed(reference, accelerator)
    if accelerator.is_fsdp2:  # TRL's function would gather the whole reference at once
        return fsdp2_prepare_model(accelerator, reference).eval()
    reference = accelerator.prepare_model(reference, evaluation_mode=True)
    accelerator._models[:] = prepared
    if accelerator.distributed_type == "FSDP":
        from trl.models.utils import prepare_fsdp

        return prepare_fsdp(reference, accelerator)
    return reference


def check_precomputed(args, *datasets) -> None:
    """Raise ValueError where TRL's `precompute_ref_log_probs` has no meaning: for streams, which have no stored
    rows."""
    rows = [each for data in datasets for each in (data.values() if isinstance(data, Mapping) else [data])]
    streamed = any(each is not None and not hasattr(each, "__len__") for each in rows)
    if args.precompute_ref_log_probs and streamed:
        raise ValueError(
            "precompute_ref_log_probs=True is not supported with IterableDataset: a stream's rows are not stored. "
            "Leave it out, or load the data without streaming"
        )


def synchronization(trainer) -> TrainerCallback:
    """TRL's callback of `sync_ref_model` (TR-DPO, arXiv 2404.09656): the reference becomes a mix with the policy.

    Raises:
        ValueError: the policy has adapters.
    """
    from trl.trainer.callbacks import SyncRefModelCallback

    if has_adapters(trainer.model):
        raise ValueError(
            "sync_ref_model mixes all parameters of policy and reference, and with adapters the reference is the base "
            "model: leave it out, or train all parameters"
        )

    class Synchronization(SyncRefModelCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if state.global_step:
                raise ValueError(
                    "a run with sync_ref_model cannot be resumed: its reference has moved, and checkpoints do not hold "
                    "it"
                )

    return Synchronization(ref_model=trainer.ref_model, accelerator=trainer.accelerator)
