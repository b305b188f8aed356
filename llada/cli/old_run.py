"""The run that an output directory holds already: whether a new one continues it, and what replacing it deletes."""

import contextlib
import logging
from pathlib import Path

from transformers import TrainerCallback

from llada.cli.adapters import base_of
from llada.errors import RecipeError
from llada.files import MANIFEST, delete_directory, flaw_of, has_manifest, read_manifest
from llada.training.checkpoints import begun_only, checkpoints_in, state_of

logger = logging.getLogger(__name__)

REFERENCE = "ref"  # PEFT's folder of the adapters that TRL calls the reference
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json", "adapter_model*.safetensors", "adapter_config.json")
REFERENCE_SCORES = "*ref_log_probs.*"  # files of stored scores, also unfinished ones (vrpo.training.reference_table)
RECORDS = (
    "manifest.json", "trainer_state.json", "training_args.bin", "eval_results.json", "all_results.json", "run.json",
    "samples.json", "report.html",
)  # fmt: skip


def continues(output_dir: str, resume: bool, overwrite: bool) -> bool:
    """Whether the run in a directory is to be continued or was finished, rather than started. Nothing is deleted here.

    A run that was killed before it had saved anything is started again, with a warning, so that one command line with
    `resume` serves a scheduler however often it starts it.

    Raises:
        RecipeError: the directory holds a run and neither `resume` nor `overwrite` is set; both are set; or `resume`
            is set and the directory holds a model, of which nothing tells how far it was trained.
    """
    if resume and overwrite:
        raise RecipeError("resume and overwrite are both set: choose one")
    checkpoints = checkpoints_in(output_dir)
    holds_model = any(Path(output_dir).glob("*.safetensors"))
    if not resume:
        if (checkpoints or holds_model) and not overwrite:
            raise RecipeError(
                f"output_dir={output_dir} already holds a run: set resume to continue it, overwrite to replace it, or "
                "another output_dir"
            )
        return False
    if state_of(output_dir) or not all(map(begun_only, checkpoints)):
        return True
    if holds_model:
        raise RecipeError(
            f"resume is set, but output_dir={output_dir} holds a model and no whole checkpoint: set overwrite to train "
            "it again, or choose another output_dir"
        )
    begun = f" (begun only: {', '.join(path.name for path in reversed(checkpoints))})" if checkpoints else ""
    logger.warning("resume is set, and %s holds no whole checkpoint%s: the run starts anew", output_dir, begun)
    return False


def finished(folder: str, planned: int) -> int | None:
    """The number of steps of the finished run in a directory, if no more are planned; None for any other run.

    `trainer_state.json` is the last file that a run writes there. A model that is not whole is warned of, and made
    again from the last checkpoint.
    """
    steps = state_of(folder).get("global_step", 0)
    if steps < planned:
        return None
    flaw = flaw_of(folder) if has_manifest(folder) else None
    if flaw is None:
        return steps
    logger.warning("the model in %s is not whole: %s. It is saved again from its last checkpoint", folder, flaw)
    return None


class RemoveOldRun(TrainerCallback):
    """Delete the run that `overwrite` replaces, once the loggers, whose callbacks come first, have started.

    The other processes write no checkpoint before the first one has taken part in a step, and so has deleted.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            remove_run(Path(args.output_dir))


def refuse_to_delete(model: str, output_dir: str) -> None:
    """Raise RecipeError if `overwrite` would delete the model that the run starts from, or the base of its adapters."""
    folder = Path(output_dir).resolve()
    for path in (Path(model).resolve(), Path(base_of(model)).resolve()):
        if path == folder or folder in path.parents:
            raise RecipeError(
                f"overwrite would delete the model that the run starts from, {path}: choose another output_dir than "
                f"{output_dir}"
            )


def remove_run(output_dir: Path) -> None:
    """Delete what a run has written, and nothing else: mixed with new files, it would not load or would tell lies.

    That is checkpoints, the files of the model that its manifest lists, and, where there is none, weights and adapters,
    stored scores of the reference, and the record of the run with its page. Logs of trackers stay.
    """
    for checkpoint in checkpoints_in(output_dir):
        delete_directory(checkpoint)
    try:
        listed = [output_dir / name for name in read_manifest(output_dir)]
    except (OSError, ValueError):
        listed = []
    found = (path for folder in (output_dir, output_dir / REFERENCE) for name in WEIGHTS for path in folder.glob(name))
    for path in {*listed, *found, *(output_dir / name for name in RECORDS)}:
        path.unlink(missing_ok=True)
    scores = list(output_dir.glob(f"*/{REFERENCE_SCORES}"))
    for path in {*scores, *(path.parent / MANIFEST for path in scores)}:
        path.unlink(missing_ok=True)
    for folder in {output_dir / REFERENCE, *(path.parent for path in scores)}:
        with contextlib.suppress(OSError):  # it holds files of someone else, or is not there
            folder.rmdir()
