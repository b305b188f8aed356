"""Options that several commands share."""

from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any, get_type_hints

from llada.sampling.presets import preset
from llada.sampling.settings import SamplerSettings

# A command's options: each setting, None where it is not given. `--grow` alone means true, as for other switches.
SWITCH = {"nargs": "?", "const": True}


SamplerFlags = make_dataclass(
    "SamplerFlags",
    [
        (name, kind | None, field(default=None, metadata=SWITCH if kind is bool else {}))
        for name, kind in get_type_hints(SamplerSettings).items()
    ],
)


def override(base: SamplerSettings, flags: Any) -> SamplerSettings:
    """The settings of a command: `base` with what `SamplerFlags` give in its place.

    A rule replaces the other one, and cache "none" is no cache.
    """
    changes = {name: value for name, value in vars(flags).items() if value is not None}
    if "threshold" in changes or "factor" in changes:
        changes = {"threshold": None, "factor": None} | changes
    if changes.get("cache") == "none":
        changes |= {"cache": None, "refresh_every": None}
    return replace(base, **changes)


@dataclass
class CompletionArguments:
    """What to complete, with which model, and where to."""

    model: str = field(default="", metadata={"help": "A saved model, or a hub name."})
    prompts: str = field(default="", metadata={"help": "Local file or hub dataset with a 'prompt' column."})
    output: str = field(default="", metadata={"help": "JSONL to write."})
    preset: str | None = field(default=None, metadata={"help": "Published settings, such as llada-1.5/gsm8k."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first prompts."})
    batch_size: int = 16
    seed: int = 0
    overwrite: bool = field(default=False, metadata={"help": "Replace the output and what a killed run left."})


def settings_of(args: Any, flags: Any, **changes) -> SamplerSettings:
    """A command's settings: its preset's or those saved with its model, with `changes` and then what its flags give."""
    base = preset(args.preset) if args.preset else SamplerSettings.load(args.model)
    return override(replace(base, **changes), flags)
