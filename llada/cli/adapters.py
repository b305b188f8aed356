"""Where a model is: which names are paths, and the base of PEFT adapters. Importing this does not import torch."""

from pathlib import Path
from typing import Any

from llada.errors import RecipeError
from llada.pretrained import read_object
from llada.sampling.settings import FILE, SamplerSettings

CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"


def is_path(name: str) -> bool:
    """Whether the name of a model or tokenizer is meant as a path here rather than as `owner/name` of the hub.

    It is if it begins with "/", "." or "~", has more than one slash, lies in a directory that exists here, or in
    `runs`, where the recipes write. A name without a slash lies in the working directory: no model of this package's
    families has such a name on the hub.
    """
    return name.startswith(("/", ".", "~", "runs/")) or name.count("/") > 1 or Path(name).parent.is_dir()


def check_path(name: str) -> None:
    """Stop before the hub is asked, with several retries, for a path that does not exist.

    Raises:
        RecipeError: `name` is empty, or a path (`is_path`) at which nothing is.
    """
    if not name:
        raise RecipeError("the name of the model is empty: give a directory or a hub name (owner/name)")
    if is_path(name) and not Path(name).exists():
        note = " ('~' is not expanded here: write the whole path)" if name.startswith("~") else ""
        raise RecipeError(
            f"{name} does not exist{note}: give the directory of a saved model or of adapters, such as the output_dir "
            "of a finished run, or a hub name (owner/name)"
        )


def adapter_fields(name: str) -> dict[str, Any] | None:
    """The fields of the `adapter_config.json` in a directory, or None if it holds no adapters.

    Raises:
        ValueError: the file is no JSON object.
    """
    file = Path(name, CONFIG)
    return read_object(file) if file.exists() else None


def base_revision(name: str) -> str | None:
    """The revision on the hub of an adapter directory's base; None if its config names none, and of a model."""
    return (adapter_fields(name) or {}).get("revision")


def base_of(name: str) -> str:
    """The base model (directory or hub name) of an adapter directory; a model is its own base.

    Raises:
        RecipeError: `name` is a path that does not exist; or the config names no base, or a directory that holds no
            model any more.
    """
    check_path(name)
    fields = adapter_fields(name)
    if fields is None:
        return name
    base = fields.get(BASE)
    if not base:
        raise RecipeError(
            f'{name} holds adapters, and its {CONFIG} names no base model: write the base\'s path into "{BASE}" there'
        )
    if Path(base).is_absolute() and not Path(base, "config.json").exists():
        raise RecipeError(missing_base(name, base))
    return base


def missing_base(name: str, base: str) -> str:
    """The message about a base model that cannot be found."""
    return (
        f"{name} holds adapters of the base model {base}, which holds no model here: if it was moved, write its new "
        f'path into "{BASE}" of {Path(name, CONFIG)}'
    )


def settings_folder(name: str) -> Path | None:
    """The directory with the sampler settings of a model: its own, or the base's of an adapter directory; None without.

    Raises:
        RecipeError: the base of an adapter directory is missing.
    """
    return next((Path(folder) for folder in (name, base_of(name)) if Path(folder, FILE).exists()), None)


def carry_settings(source: str, target: str | Path) -> None:
    """Copy the sampler settings saved with a model (or its base) into another model's directory, if there are any."""
    folder = settings_folder(source)
    if folder is not None:
        SamplerSettings.load(folder).save(target)
