"""One screen about a checkpoint: what it is, how large, and what it takes to run and to train.

    python -m llada.info PATH_OR_NAME [--rank 16]

Nothing is loaded: sizes come from the config (on the meta device) and dtypes from the files. Memory counts weights,
gradients and AdamW's two moments, not activations: those depend on batch and length.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

import llada  # noqa: F401  (registers the family)
from llada.data.tokenizer import load_tokenizer, special_ids
from llada.models.common.lora import wrap_with_adapters

GIB = 2**30
TRAINED = 16  # bytes of a trained fp32 parameter: weight, gradient, two moments


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters."""

    total: int
    active: int  # that one token goes through: k of E experts
    embedding: int  # input embedding and head
    adapters: int  # of LoRA at the given rank, on the default targets


def size_of(number: float) -> str:
    """Bytes as people read them."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.1f} MiB"


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModel.from_config(config)


def sizes(config: PreTrainedConfig, rank: int) -> Sizes:
    """Numbers of parameters of a model of this shape, and of LoRA of this rank on its default targets."""
    from peft import LoraConfig

    model = empty_model(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    share = config.num_experts_per_tok / config.num_experts if experts else 0.0
    ends = {
        id(module.weight): module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    embedding = sum(weight.numel() for weight in ends.values())
    with torch.device("meta"):
        wrapped = wrap_with_adapters(model, LoraConfig(r=rank))
    adapters = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    return Sizes(total, total - experts + round(experts * share), embedding, adapters)


def stored(path: str, config: PreTrainedConfig) -> str:
    """The dtypes of the weight files of a local directory, or what the config says."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    declared = str(config.dtype or "unknown").removeprefix("torch.")
    return ", ".join(sorted(found)) or f"{declared} (by its config; no weight files here)"


def token_ids(path: str, config: PreTrainedConfig) -> str:
    """Special ids, checked against the tokenizer where there is one."""
    try:
        tokenizer = load_tokenizer(path)
    except (OSError, ValueError):
        known = {name: getattr(config, f"{name}_token_id") for name in ("mask", "eos", "pad", "eot")}
        return ", ".join(f"{name} {value}" for name, value in known.items()) + " (config; no tokenizer could be loaded)"
    ids = special_ids(tokenizer, config.denoiser_spec)
    return ", ".join(f"{name} {value}" for name, value in vars(ids).items()) + f"; tokenizer of {len(tokenizer)} agrees"


def rows(path: str, rank: int) -> list[tuple[str, str]]:
    """What there is to say, as (label, value)."""
    config = AutoConfig.from_pretrained(path)
    size = sizes(config, rank)
    moe = hasattr(config, "num_experts")
    kind = f"{config.num_experts_per_tok} of {config.num_experts} experts" if moe else "dense"
    heads = f"{config.num_attention_heads} heads"
    if config.num_key_value_heads != config.num_attention_heads:
        heads += f" ({config.num_key_value_heads} of keys and values)"
    shape = f"{kind}, {config.num_hidden_layers} layers, width {config.hidden_size}, {heads}"
    load = 2 * size.total
    lora, full = load + TRAINED * size.adapters, (TRAINED + 2) * size.total
    return [
        ("architecture", f"{type(empty_model(config)).__name__}: {shape}"),
        ("context, vocabulary", f"{config.max_sequence_length} tokens, {config.embedding_size} rows"),
        ("parameters", f"{size.total:,} ({size.active:,} active, {size.embedding:,} in embedding and head)"),
        ("ids", token_ids(path, config)),
        ("stored as", stored(path, config)),
        ("to load in bf16", size_of(load)),
        (f"LoRA, rank {rank}", f"{size_of(lora)} (bf16 base, {size.adapters:,} adapter parameters in fp32)"),
        ("fully", f"{size_of(full)} (fp32 with AdamW, and VRPO's bf16 reference), over all devices"),
    ]


def main() -> None:
    """The command: print the screen."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="a directory or a hub name")
    parser.add_argument("--rank", type=int, default=16, help="rank of LoRA")
    args = parser.parse_args()
    table = Table(title=args.path, show_header=False, title_justify="left")
    for label, value in rows(args.path, args.rank):
        table.add_row(label, value)
    Console().print(table)


if __name__ == "__main__":
    main()
