"""The contents of `python -m llada.info`: sizes from a checkpoint's config, dtypes from its files."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from llada.data.tokenizer import load_tokenizer, special_ids
from llada.models.common.lora import wrap_with_adapters

GIB = 2**30
TRAINED = 16  # bytes per trained fp32 parameter: weight, gradient and AdamW's two moments


@dataclass(frozen=True)
class Sizes:
    """Parameter counts."""

    total: int
    active: int  # used for one token: k of E experts
    embedding: int  # input embedding and head
    adapters: int  # LoRA of the given rank on the default targets


def size_of(number: float) -> str:
    """A number of bytes as text in MiB or GiB."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.1f} MiB"


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModel.from_config(config)


def sizes(config: PreTrainedConfig, rank: int) -> Sizes:
    """Parameter counts of a model with this config, and of LoRA of this rank on its default targets."""
    from peft import LoraConfig

    model = empty_model(config)
    total, active = sum(parameter.numel() for parameter in model.parameters()), model.active_parameters()
    ends = {
        id(module.weight): module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    embedding = sum(weight.numel() for weight in ends.values())
    with torch.device("meta"):
        wrapped = wrap_with_adapters(model, LoraConfig(r=rank))
    adapters = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    return Sizes(total, active, embedding, adapters)


def stored(path: str, config: PreTrainedConfig) -> str:
    """The dtypes in the weight files of a local directory, or else the config's dtype."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    declared = str(config.dtype or "unknown").removeprefix("torch.")
    return ", ".join(sorted(found)) or f"{declared} (by its config; no weight files here)"


def token_ids(path: str, config: PreTrainedConfig) -> str:
    """The special ids as text, checked against the tokenizer if there is one."""
    try:
        tokenizer = load_tokenizer(path)
    except (OSError, ValueError):
        known = {name: getattr(config.denoiser_spec, f"{name}_id") for name in ("mask", "eos", "pad", "eot")}
        return ", ".join(f"{name} {value}" for name, value in known.items()) + " (config; no tokenizer could be loaded)"
    ids = special_ids(tokenizer, config.denoiser_spec)
    return ", ".join(f"{name} {value}" for name, value in vars(ids).items()) + f"; tokenizer of {len(tokenizer)} agrees"


def rows(path: str, rank: int) -> list[tuple[str, str]]:
    """The rows of the summary, as (label, value)."""
    config = AutoConfig.from_pretrained(path)
    size = sizes(config, rank)
    spec = config.denoiser_spec
    load = 2 * size.total
    lora, full = load + TRAINED * size.adapters, (TRAINED + 2) * size.total
    return [
        ("architecture", f"{type(empty_model(config)).__name__}: {config.describe()}"),
        ("context, vocabulary", f"{spec.context} tokens, {spec.vocabulary} rows"),
        ("parameters", f"{size.total:,} ({size.active:,} active, {size.embedding:,} in embedding and head)"),
        ("ids", token_ids(path, config)),
        ("stored as", stored(path, config)),
        ("to load in bf16", size_of(load)),
        (f"LoRA, rank {rank}", f"{size_of(lora)} (bf16 base, {size.adapters:,} adapter parameters in fp32)"),
        ("fully", f"{size_of(full)} (fp32 with AdamW, and VRPO's bf16 reference), over all devices"),
    ]
