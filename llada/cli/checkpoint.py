"""The tokenizer, config and weights of a saved model or of a PEFT adapter directory.

Adapters on a float32 base are merged into its weights, which then give the same answers at the speed of a plain model.
In half precision the sum would be rounded: a bfloat16 weight of 0.02 does not change by less than 6e-5. There the
adapters stay beside the weights, as in training; `load_merged`, and `llada.merge` on disk, merge all the same.
"""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llada.cli.adapters import adapter_fields, base_of, check_path, missing_base
from llada.data.tokenizer import load_tokenizer, special_ids
from llada.errors import RecipeError
from llada.models.common.lora import add_adapters, merge_adapters


def model_config(name: str) -> PreTrainedConfig:
    """The config of a model, or of the base of an adapter directory.

    Raises:
        RecipeError: the base of an adapter directory cannot be found, or the model is of another family.
    """
    base = base_of(name)
    try:
        config = AutoConfig.from_pretrained(base)
    except OSError as error:
        raise (error if base == name else RecipeError(missing_base(name, base))) from error
    if not hasattr(config, "denoiser_spec"):
        raise RecipeError(f"{base} is a {config.model_type} model, not one of the families of llada.models")
    return config


def tokenizer_source(name: str) -> str:
    """Where the tokenizer is: in the directory itself, or, for adapters saved without one, with their base.

    Raises:
        RecipeError: `name` is a path that does not exist, or the base of adapters cannot be found.
    """
    if "/" in name:  # "bytes" and other tokenizers have names without a slash
        check_path(name)
    return base_of(name) if adapter_fields(name) and not Path(name, "tokenizer_config.json").exists() else name


def load_config(name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """The tokenizer and config of a model or adapter directory; special ids that the config lacks are the tokenizer's.

    Raises:
        ValueError: neither has a mask or EOS token, or they disagree; or the base of adapters cannot be found.
    """
    config = model_config(name)
    tokenizer = load_tokenizer(tokenizer_source(name))
    config.set_special_ids(**vars(special_ids(tokenizer, config.denoiser_spec)))
    return tokenizer, config


def load_model(name: str, config: PreTrainedConfig, dtype: str = "auto") -> PreTrainedModel:
    """A model for sampling, in evaluation mode; adapters are merged if the base is in float32 (see the module).

    Args:
        config: the config of `load_config`.
        dtype: of the weights; "auto" is the saved one.
    """
    model = AutoModelForCausalLM.from_pretrained(base_of(name), config=config, dtype=dtype)
    if adapter_fields(name) is not None:
        wrapped = add_adapters(model, name)
        model = merge_adapters(wrapped)[0] if model.dtype == torch.float32 else wrapped.get_base_model()
    return model.eval()


def load_merged(
    name: str, config: PreTrainedConfig, dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, float]:
    """A model without adapters, in evaluation mode, and the share of the adapters' update that rounding lost.

    The share is the norm of what was lost over the norm of the update, over all merged weights; 0 for a plain model.
    """
    model, lost = AutoModelForCausalLM.from_pretrained(base_of(name), config=config, dtype=dtype), 0.0
    if adapter_fields(name) is not None:
        model, lost = merge_adapters(add_adapters(model, name))
    return model.eval(), lost


def saved_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer as it is saved, with the chat template of its files, for a copy of the model."""
    return AutoTokenizer.from_pretrained(tokenizer_source(name))
