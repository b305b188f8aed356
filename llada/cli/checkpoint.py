"""The tokenizer, config and weights of a saved model or of a PEFT adapter directory.

Adapters on a float32 base are merged into its weights, which then give the same answers at the speed of a plain model.
In half precision the sum would be rounded: a bfloat16 weight of 0.02 does not change by less than 6e-5. There the
adapters stay beside the weights, as in training; `load_merged`, and `llada.merge` on disk, merge all the same.

A name of the hub is looked up once, when the config is loaded: tokenizer and weights come from the commit that was
found, whatever is pushed meanwhile. Of an adapter directory's base, it is the `revision` in the adapters' config.
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
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash

from llada.cli.adapters import adapter_fields, base_of, base_revision, check_path, missing_base
from llada.data.tokenizer import complete_ids, load_tokenizer
from llada.denoiser import check_masked
from llada.errors import RecipeError
from llada.files import MANIFEST, flaw_of, has_manifest
from llada.models.common.lora import add_adapters, merge_adapters
from llada.pretrained import check_config, from_files, unreachable


def model_config(name: str) -> PreTrainedConfig:
    """The config of a model, or of the base of an adapter directory.

    Raises:
        RecipeError: the base of an adapter directory cannot be found, or the model is of another family.
    """
    base = base_of(name)
    try:
        return pinned_config(base, base_revision(name))
    except OSError as error:
        raise (error if base == name else RecipeError(missing_base(name, base))) from error


def tokenizer_source(name: str) -> str:
    """Where the tokenizer is: in the directory itself, or, for adapters saved without one, with their base.

    Raises:
        RecipeError: `name` is a path that does not exist, or the base of adapters cannot be found.
    """
    if "/" in name:  # "bytes" and other tokenizers have names without a slash
        check_path(name)
    return base_of(name) if adapter_fields(name) and not Path(name, "tokenizer_config.json").exists() else name


def pinned_config(name: str, revision: str | None) -> PreTrainedConfig:
    """The config of a directory or hub name, with the commit that it is from (`commit_of`).

    Raises:
        OSError: there is no such model or revision.
        RecipeError: it is of another family.
        ValueError: its config is broken, or needs code that it brings along.
    """
    check_config(name)
    try:
        commit = extract_commit_hash(cached_file(name, CONFIG_NAME, revision=revision), None)
        config = from_files(AutoConfig, name, revision=commit or revision)
    except OSError as error:
        raise unreachable(name, error) from error
    if not hasattr(config, "denoiser_spec"):
        raise RecipeError(
            f"{name} is a {config.model_type} model, not one of the families of llada.models: docs/checkpoints.md "
            "lists the models that load"
        )
    config._commit_hash = commit  # transformers does not write this attribute to files
    return config


def commit_of(config: PreTrainedConfig) -> str | None:
    """The commit of the hub from which `pinned_config` has loaded a config; None for a directory."""
    return getattr(config, "_commit_hash", None)


def tokenizer_of(name: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or adapter directory; one that is the base's has the revision of `config`.

    Raises:
        RecipeError, ValueError: see `tokenizer_source` and `load_tokenizer`.
    """
    source = tokenizer_source(name)
    return load_tokenizer(source, commit_of(config) if source == base_of(name) else None)


def load_config(name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """The tokenizer and config of a model or adapter directory; special ids that the config lacks are the tokenizer's.

    Raises:
        ValueError: neither has a mask or EOS token, or they disagree; or the base of adapters cannot be found.
    """
    config = model_config(name)
    tokenizer = tokenizer_of(name, config)
    complete_ids(tokenizer, config)
    return tokenizer, config


def load_model(name: str, config: PreTrainedConfig, dtype: str = "auto") -> PreTrainedModel:
    """A model for the sampler, in evaluation mode; adapters are merged if the base is in float32 (see the module).

    Args:
        config: the config of `load_config`.
        dtype: of the weights; "auto" is the saved one.

    Raises:
        RecipeError, ValueError: the model is autoregressive, or a weight file is damaged or does not fit the config.
    """
    check_masked(config.denoiser_spec)
    model = load_base(name, config, dtype)
    if adapter_fields(name) is not None:
        wrapped = add_adapters(model, name)
        model = merge_adapters(wrapped)[0] if model.dtype == torch.float32 else wrapped.get_base_model()
    return model.eval()


def load_merged(
    name: str, config: PreTrainedConfig, dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, float]:
    """A model without adapters, in evaluation mode, and the share of the adapters' update that rounding lost.

    The share is the norm of what was lost over the norm of the update, over all merged weights; 0 for a plain model.

    Raises:
        RecipeError, ValueError: see `load_model`.
    """
    model, lost = load_base(name, config, dtype), 0.0
    if adapter_fields(name) is not None:
        model, lost = merge_adapters(add_adapters(model, name))
    return model.eval(), lost


def load_base(name: str, config: PreTrainedConfig, dtype: str | torch.dtype) -> PreTrainedModel:
    """A model, or the base of an adapter directory, after a check of the weights of both."""
    base = base_of(name)
    for folder in dict.fromkeys((base, name)):
        check_weights(folder)
    return from_files(AutoModelForCausalLM, base, config=config, dtype=dtype, revision=commit_of(config) or "main")


def check_weights(folder: str) -> None:
    """Raise RecipeError if weight files of a directory are not those of its manifest, where it has one.

    Other files may be edited, such as the base's path in the config of adapters.
    """
    flaw = flaw_of(folder, ".safetensors") if has_manifest(folder) else None
    if flaw:
        raise RecipeError(
            f"{folder} is no whole model: {flaw}. Write it again, or take another one; if you have replaced its "
            f"weights yourself, delete {Path(folder, MANIFEST)}"
        )


def saved_tokenizer(name: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer as it is saved, with the chat template of its files, for a copy of the model."""
    source = tokenizer_source(name)
    return from_files(
        AutoTokenizer, source, revision=(commit_of(config) if source == base_of(name) else None) or "main"
    )
