"""LoRA and other PEFT adapters on the models of this package."""

import copy

from torch import nn
from transformers import PreTrainedModel


def wrap_with_adapters(model: PreTrainedModel, peft_config) -> nn.Module:
    """`peft.get_peft_model` with the model's own default targets (`lora_targets`); `peft_config` is not changed.

    Raises:
        ValueError: `target_modules` includes the language-model head, whose code would not apply adapters.
    """
    from peft import get_peft_model

    peft_config = copy.deepcopy(peft_config)
    if peft_config.target_modules is None:
        peft_config.target_modules = model.lora_targets
    # A task type such as CAUSAL_LM would pass generation and label arguments, which these models do not take.
    peft_config.task_type = None
    wrapped = get_peft_model(model, peft_config)
    if hasattr(model.get_output_embeddings(), "lora_A"):
        raise ValueError(
            f"target_modules={peft_config.target_modules!r} puts adapters on the language-model head, which is not "
            f"supported: leave it out, or use the default {model.lora_targets!r}"
        )
    return wrapped
