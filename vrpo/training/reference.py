"""The reference of a preference run: a second model, or the policy with its adapters off or as they were."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from llada.denoiser import as_denoiser
from llada.training.inputs import has_adapters

REFERENCE_ADAPTER = "ref"  # TRL's name


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
        ValueError: the reference has another vocabulary or is the policy itself; or new adapters do not start at zero,
            so that without them the model is not the initial policy.
    """
    if ref_model is None and peft_config is not None:
        start = getattr(peft_config, "init_lora_weights", True)
        if start not in (True, "gaussian"):
            raise ValueError(
                f"init_lora_weights={start!r} changes the model before training, so that with its adapters off it is "
                "not the initial policy: use True or 'gaussian', or pass ref_model"
            )
        return None
    if ref_model is None and has_adapters(model):
        return None  # `freeze_adapter` makes the reference
    if ref_model is None and is_deepspeed_zero3_enabled():
        ref_model = model.config._name_or_path  # a sharded model cannot be copied
        if not ref_model:
            raise ValueError("under ZeRO-3 a model without a saved copy cannot be its own reference: pass ref_model")
    if ref_model is None:
        reference = copy.deepcopy(model)
    elif isinstance(ref_model, str):
        options = {key: value for key, value in (init_kwargs or {}).items() if key != "torch_dtype"}
        options["dtype"] = model.dtype
        reference = AutoModelForCausalLM.from_pretrained(ref_model, **options)
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


def prepare_reference(reference: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """Place the reference as the policy is placed: sharded under DeepSpeed ZeRO-3 and FSDP, on the device otherwise."""
    if accelerator.distributed_type == "DEEPSPEED":
        from trl.models.utils import prepare_deepspeed

        return prepare_deepspeed(reference, accelerator)
    if accelerator.distributed_type == "FSDP":
        from trl.models.utils import prepare_fsdp

        return prepare_fsdp(reference, accelerator)
    return accelerator.prepare_model(reference, evaluation_mode=True)


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
