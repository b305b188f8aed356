"""The work of `llada merge`: adapters and base model become one saved model."""

import glob
import os
import shutil
from pathlib import Path

from llada.cli.adapters import CONFIG, adapter_fields, base_of, carry_settings, check_path
from llada.cli.checkpoint import load_config, load_merged, saved_tokenizer
from llada.cli.next_steps import command
from llada.errors import RecipeError
from llada.files import UNFINISHED, beside, replace_directory, write_manifest
from llada.output import probe, writing

DTYPES = ("auto", "float32", "bfloat16")


def check_target(adapter: str, out: str, overwrite: bool) -> Path:
    """The directory to write.

    Raises:
        RecipeError: `adapter` does not exist or holds no adapters; or `out` is the adapters' or the base's directory,
            holds files and `overwrite` is not set, holds files that are no model, or cannot be written.
    """
    check_path(adapter)
    if adapter_fields(adapter) is None:
        raise RecipeError(f"{adapter} holds no adapters (no {CONFIG}): there is nothing to merge")
    base, target = base_of(adapter), Path(out).resolve()
    for source in (adapter, base):
        if target == Path(source).resolve() or target in Path(source).resolve().parents:
            raise RecipeError(f"{out} holds {source}, which is merged from: choose another directory")
    if target.is_file():
        raise RecipeError(f"{out} is a file: name a directory")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise RecipeError(f"{out} is not empty: set --overwrite to replace the model in it, or choose another name")
        if not (target / "config.json").exists():
            raise RecipeError(f"{out} holds files but no model (no config.json): it is not replaced")
    if reason := probe(target.parent):
        raise RecipeError(f"{out} cannot be written: {reason}")
    return target


def merge(adapter: str, out: str, dtype: str = "auto", overwrite: bool = False) -> str:
    """Write the merged model to `out`; returns a report for the user.

    The model is written to a directory beside `out` which then takes its name, so that an interrupted merge leaves
    `out` as it was.

    Args:
        dtype: of the merged weights; "auto" is the base's as saved.

    Raises:
        RecipeError: see `check_target`, or the base of the adapters cannot be found, or `dtype` is unknown.
        OutputError: the model cannot be written.
    """
    if dtype not in DTYPES:
        raise RecipeError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    target = check_target(adapter, out, overwrite)
    _, config = load_config(adapter)
    model, lost = load_merged(adapter, config, dtype)
    whole = beside(target)
    try:
        with writing(target, "What was there before is as it was"):
            target.parent.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(whole)
            saved_tokenizer(adapter, config).save_pretrained(whole)
            carry_settings(adapter, whole)
            write_manifest(whole)
            replace_directory(whole, target)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    remove_leftovers(target)
    kind = str(model.dtype).removeprefix("torch.")
    report = f"{out}: {adapter} merged into {base_of(adapter)}, weights in {kind}"
    if lost:
        report += (
            f"\nRounding to {kind} lost {lost:.1%} of the adapters' update (relative norm); "
            "--dtype float32 keeps all of it"
        )
    steps = (command("llada", "chat", "--model", out), command("llada", "info", out))
    return "\n".join([report, "Next:", *(f"  {line}" for line in steps)])


def remove_leftovers(target: Path) -> None:
    """Delete what killed merges to the same directory have left beside it."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*{UNFINISHED}"):
        process = path.name.removeprefix(f".{target.name}.").split(".")[0]
        if process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def is_running(process: int) -> bool:
    """Whether there is a process of this number here."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
