"""Which checkpoints of a run are whole, which one to continue from, and which ones are old."""

import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llada.errors import RecipeError
from llada.files import UNFINISHED, delete_directory, flaw_of, has_manifest, is_unfinished

logger = logging.getLogger(__name__)

MODEL = f".model{UNFINISHED}"  # where a model is written before its files take their places
LEFT = rf"\..+\.\d+(\.old)?{re.escape(UNFINISHED)}"  # names that `llada.files.beside` gives


def step_of(path: Path) -> int:
    """The number of optimizer steps in a checkpoint's name; -1 for any other name."""
    number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdecimal() and number != path.name else -1


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, whole or not, from the newest; steps are compared as numbers."""
    found = (path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and step_of(path) >= 0)
    return sorted(found, key=step_of, reverse=True)


def state_of(folder: str | Path) -> dict[str, Any]:
    """The `trainer_state.json` of a directory; empty if it is missing or cannot be read."""
    try:
        state = json.loads(Path(folder, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and isinstance(state.get("global_step"), int) else {}


def begun_only(checkpoint: Path) -> bool:
    """Whether a process ended while it wrote this checkpoint, as opposed to one that was damaged later."""
    return is_unfinished(checkpoint) if has_manifest(checkpoint) else not state_of(checkpoint)


def flaw_of_checkpoint(folder: Path) -> str | None:
    """Why a checkpoint is not whole; None if it is.

    One without a manifest was written before there were manifests. The Trainer writes `trainer_state.json` last, so it
    is taken as whole if that can be read, and a warning says that no more is known.
    """
    if has_manifest(folder):
        return flaw_of(folder)
    if not state_of(folder):
        return f"no readable {TRAINER_STATE_NAME}"
    logger.warning("%s has no manifest: only its %s was checked", folder, TRAINER_STATE_NAME)
    return None


def newest_whole(checkpoints: Sequence[Path]) -> Path:
    """The first whole one of `checkpoints`, with a warning for each that is passed over.

    Raises:
        RecipeError: none is whole.
    """
    flaws = []
    for checkpoint in checkpoints:
        flaw = flaw_of_checkpoint(checkpoint)
        if flaw is None:
            return checkpoint
        flaws.append(f"{checkpoint} ({flaw})")
        logger.warning("%s is not whole: %s. Passed over", checkpoint, flaw)
    raise RecipeError(f"there is no whole checkpoint to resume from: {', '.join(flaws) or 'there is none at all'}")


def resume_point(wanted: str | bool, output_dir: str) -> Path:
    """The checkpoint that `Trainer.train(resume_from_checkpoint=wanted)` continues from.

    `True` is the newest whole one in `output_dir`. A path that is not whole is replaced by the newest whole one before
    it in the same directory.

    Raises:
        RecipeError: the path does not exist, or none is whole.
    """
    if isinstance(wanted, bool):
        return newest_whole(checkpoints_in(output_dir))
    path = Path(wanted)
    if not path.is_dir():
        raise RecipeError(f"resume_from_checkpoint={wanted} is no directory")
    return newest_whole([path, *(other for other in checkpoints_in(path.parent) if step_of(other) < step_of(path))])


def delete_leftovers(folder: str | Path) -> None:
    """Delete what killed runs left half written or half deleted in an output directory, which this process holds."""
    for left in Path(folder).glob(f".*{UNFINISHED}"):
        if left.name == MODEL or re.fullmatch(LEFT, left.name):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def delete_old(folder: Path, limit: int | None, kept: Sequence[Path]) -> None:
    """Delete the oldest checkpoints until `limit` are left, and first those that were begun only; not those in `kept`.

    Called when the newest checkpoint is whole, so that at every moment there is a whole one.
    """
    if not limit or limit < 0:
        return
    for left in folder.glob(f".{PREFIX_CHECKPOINT_DIR}-*{UNFINISHED}"):
        shutil.rmtree(left, ignore_errors=True)  # of a deletion that was interrupted
    names = {path.name for path in kept}
    spare = [path for path in checkpoints_in(folder) if path.name not in names]
    torn = [path for path in spare if begun_only(path)]
    whole = [path for path in spare if path not in torn]
    for path in torn + whole[max(limit - len(names), 0) :]:
        delete_directory(path)
