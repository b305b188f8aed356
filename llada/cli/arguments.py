"""Options that several commands share. Importing this module does not import torch, so that `--help` is fast."""

from dataclasses import dataclass, field, replace
from typing import Any

from llada.sampling.presets import preset
from llada.sampling.settings import SamplerSettings


def option(help: str, switch: bool = False) -> Any:
    """An option that is None unless it is given; a switch without a value, as in `--grow`, means true."""
    return field(default=None, metadata={"help": help} | ({"nargs": "?", "const": True} if switch else {}))


@dataclass
class SamplerOptions:
    """The fields of `llada.SamplerSettings`; an option overrides the preset's or the model's saved value."""

    steps: int | None = option("Total number of denoising steps, shared evenly by the blocks.")
    gen_length: int | None = option("Tokens to generate; a multiple of block_length.")
    block_length: int | None = option("Tokens per block; blocks are filled from left to right.")
    temperature: float | None = option("Sampling temperature; 0 is greedy.")
    cfg_scale: float | None = option("Scale of classifier-free guidance; 0 disables it.")
    remasking: str | None = option("How a step ranks tokens to keep: low_confidence, top_probability or random.")
    threshold: float | None = option("Commit every token with at least this confidence (approximate).")
    factor: float | None = option("Commit tokens by rank while confidence is at least 1 - factor / (rank + 1).")
    cache: str | None = option("Block cache: prefix, dual or none (approximate).")
    refresh_every: int | None = option("Recompute the whole cache every so many steps.")
    grow: bool | None = option("Hide later blocks from the model until they are reached (iLLaDA).", switch=True)
    logits_eos_inf: bool | None = option("Never predict EOS.", switch=True)
    confidence_eos_eot_inf: bool | None = option("Commit EOS and end-of-turn tokens last.", switch=True)
    stop_at_eos: bool | None = option("End a row at its first EOS.", switch=True)
    allow_mask: bool | None = option("Let the model emit MASK, as the official code does.", switch=True)


@dataclass
class CompletionArguments:
    """Options of commands that answer prompts: model, prompts, output and run."""

    model: str = field(default="", metadata={"help": "Model directory or hub name."})
    prompts: str = field(default="", metadata={"help": "Local file or hub dataset with a 'prompt' column."})
    output: str = field(default="", metadata={"help": "JSONL file to write."})
    preset: str | None = field(default=None, metadata={"help": "Published sampler settings, such as llada-1.5/gsm8k."})
    limit: int | None = field(default=None, metadata={"help": "Use only this many prompts from the start of the file."})
    batch_size: int = field(default=16, metadata={"help": "Number of prompts sampled together."})
    seed: int = field(default=0, metadata={"help": "Random seed of the samples."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output and unfinished part files."})


def override(base: SamplerSettings, options: SamplerOptions) -> SamplerSettings:
    """`base` with the given options in place of its own values.

    `threshold` and `factor` replace each other, and cache "none" switches the cache off.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    if "threshold" in given or "factor" in given:
        given = {"threshold": None, "factor": None} | given
    if given.get("cache") == "none":
        given |= {"cache": None, "refresh_every": None}
    return replace(base, **given)


def sampler_settings(args: Any, options: SamplerOptions, **changes) -> SamplerSettings:
    """A command's settings: the preset's or those saved with the model, overridden by `changes`, then by `options`."""
    base = preset(args.preset) if args.preset else SamplerSettings.load(args.model)
    return override(replace(base, **changes), options)
