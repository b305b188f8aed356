"""The contents of `llada info`: sizes from a checkpoint's config, dtypes from its files.

PEFT is not imported, which would take as long as all the rest: adapters are counted from the layers that they go on.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from llada.cli.adapters import adapter_fields, base_of
from llada.cli.checkpoint import model_config, tokenizer_of
from llada.data.tokenizer import special_ids
from llada.data.turns import speaks_in_turns
from llada.errors import RecipeError

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


def sizes(model: PreTrainedModel, rank: int) -> Sizes:
    """Parameter counts of a model, and of LoRA of this rank on its default targets."""
    total, active = sum(parameter.numel() for parameter in model.parameters()), model.active_parameters()
    ends = {
        id(module.weight): module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    embedding = sum(weight.numel() for weight in ends.values())
    targets = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(model.lora_targets, name)
    ]
    adapters = sum(rank * (module.in_features + module.out_features) for module in targets)
    return Sizes(total, active, embedding, adapters)


def headers(path: str) -> tuple[set[str], int]:
    """The dtypes and the number of parameters in the weight files of a directory, from their headers.

    Raises:
        RecipeError: a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    dtypes, count = set[str](), 0
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    dtypes.add(tensors.get_slice(name).get_dtype())
                    count += math.prod(tensors.get_slice(name).get_shape())
        except SafetensorError as error:
            raise RecipeError(f"{file} cannot be read ({error}): it is truncated or no weight file") from error
    return dtypes, count


def stored(path: str, config: PreTrainedConfig) -> str:
    """The dtypes in the weight files of a local directory, or else the config's dtype."""
    found, _ = headers(path)
    declared = str(config.dtype or "unknown").removeprefix("torch.")
    return ", ".join(sorted(found)) or f"{declared} (by its config; no weight files here)"


def token_ids(path: str, config: PreTrainedConfig) -> str:
    """The special ids as text, checked against the tokenizer if there is one."""
    try:
        tokenizer = tokenizer_of(path, config)
    except (OSError, ValueError) as error:
        known = {name: getattr(config.denoiser_spec, f"{name}_id") for name in ("mask", "eos", "pad", "eot")}
        return ", ".join(f"{name} {value}" for name, value in known.items()) + f" (config; no tokenizer: {error})"
    ids = special_ids(tokenizer, config.denoiser_spec)
    unused = "no chat template" if tokenizer.chat_template is None else "chat template not used: trained on plain text"
    chat = "" if speaks_in_turns(tokenizer) else f"; {unused}"
    named = ", ".join(f"{name} {value}" for name, value in vars(ids).items())
    return f"{named}; tokenizer of {len(tokenizer)} agrees{chat}"


def adapter_rows(path: str) -> list[tuple[str, str]]:
    """What the files of an adapter directory say; empty for a model."""
    fields = adapter_fields(path)
    if fields is None:
        return []
    dtypes, count = headers(path)
    targets = fields.get("target_modules") or fields.get("target_parameters") or "?"
    rank = f"rank {fields['r']}, alpha {fields.get('lora_alpha')}" if "r" in fields else "no rank"
    return [
        ("adapters", f"{fields.get('peft_type')}, {rank}; {count:,} parameters in {', '.join(sorted(dtypes)) or '?'}"),
        ("on", targets if isinstance(targets, str) else ", ".join(sorted(targets))),
        ("base model", base_of(path)),
    ]


def rows(path: str, rank: int) -> list[tuple[str, str]]:
    """The rows of the summary, as (label, value); of an adapter directory, its adapters and then its base model.

    Raises:
        RecipeError: the base of an adapter directory cannot be found, a weight file cannot be read, or `rank` is below
            1.
    """
    if rank < 1:
        raise RecipeError(f"rank={rank} must be at least 1")
    config = model_config(path)
    model = empty_model(config)
    size = sizes(model, rank)
    spec = config.denoiser_spec
    load = 2 * size.total
    lora, full = load + TRAINED * size.adapters, (TRAINED + 2) * size.total
    return [
        *adapter_rows(path),
        ("architecture", f"{type(model).__name__}: {config.describe()}"),
        ("context, vocabulary", f"{spec.context} tokens, {spec.vocabulary} rows"),
        ("parameters", f"{size.total:,} ({size.active:,} active, {size.embedding:,} in embedding and head)"),
        ("ids", token_ids(path, config)),
        ("stored as", stored(base_of(path), config)),
        ("to load in bf16", size_of(load)),
        (f"LoRA, rank {rank}", f"{size_of(lora)} (bf16 base, {size.adapters:,} adapter parameters in fp32)"),
        ("fully", f"{size_of(full)} (fp32 with AdamW, and VRPO's bf16 reference), over all devices"),
    ]
