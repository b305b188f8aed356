"""LoRA and other PEFT adapters on this family."""

import copy

from torch import nn
from transformers import PreTrainedModel


def wrap_with_adapters(model: PreTrainedModel, peft_config) -> nn.Module:
    """`peft.get_peft_model` with defaults that fit this family; the given configuration is not changed.

    Raises:
        ValueError: adapters on the language-model head, which runs inside `forward` and would not apply them.
    """
    from peft import get_peft_model

    peft_config = copy.deepcopy(peft_config)
    if peft_config.target_modules is None:
        peft_config.target_modules = model.lora_targets
    # A task type such as CAUSAL_LM would route calls through generation and label arguments that we do not have.
    peft_config.task_type = None
    wrapped = get_peft_model(model, peft_config)
    if hasattr(model.get_output_embeddings(), "lora_A"):
        raise ValueError(
            f"target_modules={peft_config.target_modules!r} puts adapters on the language-model head, which is not "
            f"supported: leave it out, or use the default {model.lora_targets!r}"
        )
    return wrapped
