"""The tokenizer and config of a saved model, checked against each other before any weights are loaded."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from llada.data.tokenizer import load_tokenizer, special_ids
from llada.errors import RecipeError


def refuse_adapters(name: str) -> None:
    """Raise RecipeError if a directory holds PEFT adapters, which are no model by themselves."""
    if Path(name, "adapter_config.json").exists():
        raise RecipeError(
            f"{name} holds adapters, not a model: merge them first (peft's merge_and_unload) and save that"
        )


def load_config(name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """A model's tokenizer and its config; special ids that the config lacks are set from the tokenizer.

    Raises:
        ValueError: neither has a mask or EOS token, or they disagree; or the directory holds adapters.
    """
    refuse_adapters(name)
    tokenizer, config = load_tokenizer(name), AutoConfig.from_pretrained(name)
    config.set_special_ids(**vars(special_ids(tokenizer, config.denoiser_spec)))
    return tokenizer, config
