"""LoRA and other PEFT adapters on the models of this package."""

import contextlib
import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llada.models.common.checkpoints import adapter_errors, check_adapter_files, check_adapter_tensors

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def without_deprecations():
    """Hide the warning on a name that PEFT reads and transformers has renamed: no user can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def wrap_with_adapters(model: PreTrainedModel, peft_config) -> nn.Module:
    """`peft.get_peft_model` with the model's own default targets (`lora_targets`); `peft_config` is not changed.

    The adapters' config names the base by an absolute path if it is a local directory, so that it is found from
    everywhere, or with its commit on the hub, and has the task type CAUSAL_LM, which
    `peft.AutoPeftModelForCausalLM` requires.

    Raises:
        ValueError: `target_modules` includes the language-model head, whose code would not apply adapters.
    """
    from peft import get_peft_model

    peft_config = copy.deepcopy(peft_config)
    without_targets = hasattr(peft_config, "target_modules") and peft_config.target_modules is None
    if without_targets and not getattr(peft_config, "target_parameters", None):
        peft_config.target_modules = model.lora_targets
    peft_config.task_type = "CAUSAL_LM"
    with without_deprecations():
        wrapped: Any = get_peft_model(model, peft_config)
    refuse_head_adapters(wrapped)
    saved = wrapped.active_peft_config
    if saved.base_model_name_or_path is None:
        logger.warning("the base model of these adapters has no saved copy: save it, they are of no use without it")
    elif Path(saved.base_model_name_or_path).is_dir():
        saved.base_model_name_or_path = str(Path(saved.base_model_name_or_path).resolve())
    elif saved.revision is None:
        saved.revision = getattr(model.config, "_commit_hash", None)  # of the hub, where "main" may move
    return wrapped


def refuse_head_adapters(wrapped) -> None:
    """Raise ValueError if a model's adapters include the language-model head, whose code would not apply them.

    The head, or the embedding that is tied to it, reads its weight itself. PEFT's `modules_to_save` gives it the weight
    that is trained; adapters beside the weight would train without any effect.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    head = wrapped.get_output_embeddings()
    if isinstance(head, BaseTunerLayer | AuxiliaryTrainingWrapper) and not isinstance(head, ModulesToSaveWrapper):
        base, config = wrapped.get_base_model(), wrapped.active_peft_config
        names = ("target_modules", "target_parameters", "trainable_token_indices")
        given = ", ".join(f"{name}={value!r}" for name in names if (value := getattr(config, name, None)))
        tied = " (the input embedding is the head of this model, too)" if head is wrapped.get_input_embeddings() else ""
        raise ValueError(
            f"{given} puts adapters on the language-model head{tied}, which is not supported: leave it out, or use the "
            f"default {base.lora_targets!r}"
        )


def add_adapters(model: PreTrainedModel, folder: str, trainable: bool = False) -> Any:
    """The `peft.PeftModel` of a base model and the adapters saved in a directory, frozen unless `trainable`.

    Raises:
        ValueError: the adapters are no safetensors, a file is broken, or their tensors are not those of the config and
            model. The message names them.
    """
    from peft import PeftModel

    check_adapter_files(folder)
    with without_deprecations(), adapter_errors(folder):
        wrapped = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    check_adapter_tensors(wrapped, folder)
    return wrapped


@torch.no_grad()
def merge_adapters(wrapped: Any) -> tuple[PreTrainedModel, float]:
    """The base model with its adapters merged into the weights, and the share of their update that rounding lost.

    The share is |merged - (base + update)| / |update|, norms over all elements of the linear layers with LoRA. It
    is 0 in float32; adapters of other kinds and on stacked experts are merged without being measured.
    """
    lost = changed = 0.0
    for module in wrapped.modules():
        name = wrapped.active_adapter
        if not (hasattr(module, "get_delta_weight") and name in getattr(module, "lora_A", {})):
            continue
        weight = getattr(module.get_base_layer(), "weight", None)  # stacked experts have none of this name
        if weight is None or weight.dtype not in (torch.bfloat16, torch.float16):
            continue
        update, before = module.get_delta_weight(name).float(), weight.float()
        changed += float(update.square().sum())
        lost += float(((before + update).to(weight.dtype).float() - before - update).square().sum())
    return wrapped.merge_and_unload(), (lost / changed) ** 0.5 if changed else 0.0
