"""Options that several commands share. Nothing heavy is imported, so that `--help` answers at once."""

from dataclasses import dataclass, field, replace
from typing import Any

from llada.sampling.presets import preset
from llada.sampling.settings import SamplerSettings


def option(help: str, switch: bool = False) -> Any:
    """A setting that is None where it is not given; a switch alone, as in `--grow`, means true."""
    return field(default=None, metadata={"help": help} | ({"nargs": "?", "const": True} if switch else {}))


@dataclass
class SamplerOptions:
    """Each of `llada.SamplerSettings`, given in place of a preset's or of those that are saved with the model."""

    steps: int | None = option("Denoising steps in all, shared evenly by the blocks.")
    gen_length: int | None = option("Tokens to generate; a multiple of block_length.")
    block_length: int | None = option("Tokens of a block; blocks are filled from left to right.")
    temperature: float | None = option("0 is greedy.")
    cfg_scale: float | None = option("Classifier-free guidance; 0 is none.")
    remasking: str | None = option("What a step keeps: low_confidence, top_probability or random.")
    threshold: float | None = option("Commit every token with at least this confidence (approximate).")
    factor: float | None = option("Commit tokens by rank while confidence is at least 1 - factor / (rank + 1).")
    cache: str | None = option("Block cache: prefix, dual or none (approximate).")
    refresh_every: int | None = option("Steps after which the cache is filled again.")
    grow: bool | None = option("Show the model no block before its turn (iLLaDA).", switch=True)
    logits_eos_inf: bool | None = option("EOS is never predicted.", switch=True)
    confidence_eos_eot_inf: bool | None = option("EOS and end-of-turn are committed last.", switch=True)
    stop_at_eos: bool | None = option("A row ends at its first EOS.", switch=True)
    allow_mask: bool | None = option("Let the model emit MASK, as the official code does.", switch=True)


@dataclass
class CompletionArguments:
    """What to complete, with which model, and where to."""

    model: str = field(default="", metadata={"help": "A saved model, or a hub name."})
    prompts: str = field(default="", metadata={"help": "Local file or hub dataset with a 'prompt' column."})
    output: str = field(default="", metadata={"help": "JSONL to write."})
    preset: str | None = field(default=None, metadata={"help": "Published settings, such as llada-1.5/gsm8k."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first prompts."})
    batch_size: int = field(default=16, metadata={"help": "Prompts sampled together."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output and what a killed run left."})


def override(base: SamplerSettings, options: SamplerOptions) -> SamplerSettings:
    """`base` with the options that were given in its place.

    A rule (threshold, factor) replaces the other one, and cache "none" is no cache.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    if "threshold" in given or "factor" in given:
        given = {"threshold": None, "factor": None} | given
    if given.get("cache") == "none":
        given |= {"cache": None, "refresh_every": None}
    return replace(base, **given)


def sampler_settings(args: Any, options: SamplerOptions, **changes) -> SamplerSettings:
    """A command's settings: its preset's or those saved with its model, then `changes`, then its options."""
    base = preset(args.preset) if args.preset else SamplerSettings.load(args.model)
    return override(replace(base, **changes), options)
