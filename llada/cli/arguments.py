"""Options that several commands share. Importing this module does not import torch, so that `--help` is fast."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NoReturn

from llada.checks import NOT_EMPTY, PositiveInt, Range
from llada.cli.adapters import settings_folder
from llada.errors import RecipeError
from llada.sampling.presets import preset
from llada.sampling.settings import SamplerSettings

LARGEST_SEED = 2**63 - 1
PATIENCE = 2.0  # seconds without a line after which `saying` speaks
IMPORTING = "importing torch and transformers"


class OneLineErrors:
    """For a parser, which then raises RecipeError instead of printing its usage: over a hundred lines for a recipe.

    A word that belongs to no option is an error too, where transformers' parser names its own class.
    """

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message} (--help lists the options)")

    def parse_known_args(self, args=None, namespace=None):
        namespace, left = super().parse_known_args(args, namespace)
        unknown = [word.partition("=")[0] for word in left if word.startswith("--")]
        if unknown:
            self.error(unknown_names(unknown, list(self._option_string_actions)))
        if left:
            self.error(f"{left[0]!r} belongs to no option: the name of an option begins with --")
        return namespace, left


MEANT = {"--use_lora": "--use_peft", "--lora": "--use_peft"}  # what names of other libraries are called in TRL


def unknown_names(unknown: Sequence[str], known: Sequence[str], kind: str = "option") -> str:
    """The message on names that are no options, or no fields, with the one that each is nearest to."""
    found = []
    for name in unknown:
        near = [MEANT[name]] if MEANT.get(name) in known else get_close_matches(name, known, 1, cutoff=0.7)
        found.append(f"{name} is no {kind}" + (f" (did you mean {near[0]}?)" if near else ""))
    return ", ".join(found)


def program() -> str:
    """The running command as its help names it: `llada sft`, `python -m vrpo.report`, otherwise the script's name."""
    called = Path(sys.argv[0])
    in_package = called.name == "__main__.py"
    package = called.parent.name if in_package else called.name
    if package in ("llada", "vrpo"):
        return f"{package} {sys.argv[1]}"
    return f"python -m {called.parent.parent.name}.{package}" if in_package else called.name


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
class ChatArguments:
    """The options of `llada chat` that are no sampler settings."""

    model: str = field(metadata={"help": "Model or adapter directory, or hub name."})
    preset: str | None = field(default=None, metadata={"help": "Published sampler settings, such as llada-1.5/gsm8k."})
    plain: bool | None = option(
        "Continue the text itself, without the chat template; default: as the model was trained.", switch=True
    )


@dataclass
class CompletionArguments:
    """Options of commands that answer prompts: model, prompts, output and run."""

    model: Annotated[str, NOT_EMPTY] = field(default="", metadata={"help": "Model or adapter directory, or hub name."})
    prompts: Annotated[str, NOT_EMPTY] = field(
        default="", metadata={"help": "Local file or hub dataset with a 'prompt' column."}
    )
    output: Annotated[str, NOT_EMPTY] = field(default="", metadata={"help": "JSONL file to write."})
    preset: str | None = field(default=None, metadata={"help": "Published sampler settings, such as llada-1.5/gsm8k."})
    limit: PositiveInt | None = field(
        default=None, metadata={"help": "Use only this many prompts from the start of the file."}
    )
    batch_size: PositiveInt = field(default=16, metadata={"help": "Number of prompts sampled together."})
    seed: Annotated[int, Range(at_least=0, at_most=LARGEST_SEED)] = field(
        default=0, metadata={"help": "Random seed of the samples."}
    )
    allow_special_tokens: bool = field(
        default=False, metadata={"help": "Prompts of plain text may spell special tokens, as rendered chats do."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the output, and parts of a run with another model or settings."}
    )


def override(base: SamplerSettings, options: SamplerOptions) -> SamplerSettings:
    """`base` with the given options in place of its own values.

    `threshold` and `factor` replace each other, and cache "none" switches the cache off. With `gen_length` alone, a
    longer block shrinks to it, and `steps` keeps the number of tokens that a step commits.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    if "threshold" in given or "factor" in given:
        given = {"threshold": None, "factor": None} | given
    if given.get("cache") == "none":
        given |= {"cache": None, "refresh_every": None}
    if "gen_length" in given:
        given = with_length(base, given.pop("gen_length")) | given
    return replace(base, **given)


def with_length(base: SamplerSettings, length: int) -> dict[str, Any]:
    """`gen_length` with the `block_length` and `steps` that follow from it where they are not given."""
    block = min(base.block_length, max(length, 1))
    if length % block:  # `check_blocks` says what is allowed
        return {"gen_length": length}
    blocks = length // block
    steps = max(1, -(-base.steps * length // (base.gen_length * blocks))) * blocks
    return {"gen_length": length, "block_length": block, "steps": steps}


def note(text: str) -> None:
    """Print a line to standard error, once for all processes of a launcher."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


@contextlib.contextmanager
def saying(what: str) -> Iterator[None]:
    """Say what is being done, by `note`, once it has taken two seconds, so that a long silence is explained."""
    timer = threading.Timer(PATIENCE, note, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def sampler_settings(args: Any, options: SamplerOptions, **changes) -> SamplerSettings:
    """A command's settings: the preset's or those saved with the model, overridden by `changes`, then by `options`.

    Prints a line if `block_length` or `steps` follow from `--gen_length`.

    Raises:
        ValueError: a setting is out of range, or lengths and steps do not divide; the base of adapters is missing.
    """
    folder = None if args.preset else settings_folder(args.model)
    base = preset(args.preset) if args.preset else SamplerSettings() if folder is None else SamplerSettings.load(folder)
    base = replace(base, **changes)
    settings = override(base, options)
    settings.check_blocks()
    adapted = [
        f"{name}={getattr(settings, name)}"
        for name in ("block_length", "steps")
        if getattr(options, name) is None and getattr(settings, name) != getattr(base, name)
    ]
    if adapted:
        note(f"{' and '.join(adapted)} follow from gen_length={settings.gen_length}; options set other values")
    return settings


def fit_context(settings: SamplerSettings, args: Any, options: SamplerOptions, context: int) -> SamplerSettings:
    """The settings, with at most half of a small context as `gen_length` where nobody has chosen a length.

    Raises:
        ValueError: the length was given, saved with the model or is a preset's, and leaves no room for a prompt.
    """
    if settings.gen_length < context // 2:
        return settings
    if args.preset or settings_folder(args.model) is not None or any(
        value is not None for value in (options.gen_length, options.block_length, options.steps)
    ):  # fmt: skip
        if settings.gen_length < context:
            return settings
        raise ValueError(
            f"gen_length={settings.gen_length} leaves no room for a prompt in the model's context of {context} tokens: "
            f"use at most {context // 2}"
        )
    length = max(1, context // 2)
    note(f"gen_length={length}, half of the model's context of {context} tokens: the default is too long for it")
    return replace(settings, **with_length(settings, length))
