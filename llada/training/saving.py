"""A trainer whose checkpoints and models are whole or say that they are not, and that resumes from a whole one."""

import contextlib
import logging
import shutil
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from transformers import Trainer, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llada.files import delete_directory, files_below, mark_unfinished, read_manifest, write_manifest
from llada.output import lock, writing
from llada.training.checkpoints import (
    MODEL,
    checkpoints_in,
    delete_leftovers,
    delete_old,
    flaw_of_checkpoint,
    resume_point,
    state_of,
)
from llada.training.distributed import leave_group, on_first_process
from llada.training.metric_sums import MetricSums
from llada.training.signals import REQUEUE, StopOnSignal

logger = logging.getLogger(__name__)

CARD = "README.md"  # of a model, which its users edit: in no manifest
TOKENS = "NumTokens"  # key in `TrainerState.stateful_callbacks`
INTACT = "Checkpoints that were whole before are intact: make room there, and resume"


def take_over(new: Path, folder: Path) -> None:
    """Move a saved model's files from `new` into `folder`, in place of the model that its manifest lists."""
    names = files_below(new)
    if not names:
        return  # engines that save sharded weights only leave a model to their own tools
    with contextlib.suppress(OSError, ValueError):
        for name in set(read_manifest(folder)) - set(names):
            (folder / name).unlink(missing_ok=True)
    mark_unfinished(folder)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).replace(folder / name)
    write_manifest(folder, [name for name in names if Path(name).name != CARD])


class WholeCheckpoints(Trainer):
    """A `Trainer` whose checkpoints have a manifest, that stops on signals, and that resumes exactly.

    A checkpoint's manifest says that it is unfinished until all processes have written their files. It is then
    completed by a thread while training goes on, which reads the files, has them on the disk, and deletes older
    checkpoints only afterwards; training waits for it before the next save and at its end.
    """

    metric_sums: MetricSums
    control: TrainerControl
    completing: Future | None = None

    def __init__(self, *, args, **kwargs):
        with writing(args.output_dir, "Nothing was started"):
            super().__init__(args=args, **kwargs)
        self.stop = StopOnSignal()
        self.add_callback(self.stop)

    def planned_steps(self) -> int:
        """The number of optimizer steps that the run has at its end."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """`Trainer.train`. A checkpoint that is not whole is replaced by the newest whole one before it.

        A finished run is not trained on: its weights are loaded, as they are after training.

        Raises:
            RecipeError: there is no whole checkpoint to resume from.
            OutputError: `output_dir` cannot be written, or another process trains in it.
            SystemExit: with code `REQUEUE`, after SIGTERM or SIGUSR1, when a checkpoint is saved.
            KeyboardInterrupt: after Ctrl-C, when a checkpoint is saved; at once after a second one.
        """
        checkpoint, nothing_left = None, False
        if resume_from_checkpoint:
            wanted = resume_from_checkpoint
            checkpoint = on_first_process(lambda: resume_point(wanted, self.args.output_dir))
            nothing_left = self.continue_from(checkpoint)
        mine = self.is_world_process_zero()
        with lock(self.args.output_dir) if mine else contextlib.nullcontext(), self.stop.listening():
            try:
                if mine:
                    delete_leftovers(self.args.output_dir)
                if mine and checkpoint is not None and nothing_left:
                    self.delete_old_beside(checkpoint)
                return super().train(None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval)
            finally:
                self.complete()

    def continue_from(self, checkpoint: Path) -> bool:
        """Take over the count of tokens, and say whether nothing is left to train."""
        state, planned = state_of(checkpoint), self.planned_steps()
        nothing_left = state.get("global_step", 0) >= planned
        if not self.is_world_process_zero():
            return nothing_left
        counted = state.get("stateful_callbacks", {}).get(TOKENS, {}).get("attributes", {})
        self.metric_sums.tokens = counted.get("tokens", 0)  # the sum over processes, so the first one has it
        if nothing_left:
            print(f"{checkpoint}: all {planned} steps are done, and none is trained")
        return nothing_left

    def delete_old_beside(self, checkpoint: Path) -> None:
        """Delete old checkpoints as after the last save: the run may have been killed between the two."""
        if checkpoint.parent.resolve() == Path(self.args.output_dir).resolve():
            best = state_of(checkpoint).get("best_model_checkpoint")
            kept = [checkpoint] if best is None else [checkpoint, Path(best)]
            delete_old(checkpoint.parent, self.args.save_total_limit, kept)

    def _run_epoch(self, *args, **kwargs):
        # The Trainer looks whether it is at its last step after a step only.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        self.complete()
        run_dir = Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        tokens = self.metric_sums.total_tokens(self.accelerator)
        self.state.stateful_callbacks[TOKENS] = {"args": {}, "attributes": {"tokens": tokens}}
        limit = self.args.save_total_limit
        with writing(folder, INTACT):
            if self.args.should_save:
                delete_directory(folder)  # what a killed run has left there
                mark_unfinished(folder)
            self.accelerator.wait_for_everyone()
            self.args.save_total_limit = None  # older ones are deleted when this one is whole
            try:
                super()._save_checkpoint(model, trial)
            except BaseException:
                if self.args.should_save:
                    with contextlib.suppress(OSError):
                        delete_directory(folder)
                raise
            finally:
                self.args.save_total_limit = limit
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                best = self.state.best_model_checkpoint
                kept = [folder] if best is None else [folder, Path(best)]
                self.complete_later(folder, limit, kept)

    def complete_later(self, folder: Path, limit: int | None, kept: list[Path]) -> None:
        """Write the manifest of a checkpoint in a thread, and then delete old checkpoints."""
        names = files_below(folder)  # now: what a callback adds later may change

        def work() -> None:
            with writing(folder, INTACT):
                write_manifest(folder, names)
                delete_old(folder.parent, limit, kept)

        pool = ThreadPoolExecutor(1)
        self.completing = pool.submit(work)
        pool.shutdown(wait=False)

    def complete(self) -> None:
        """Wait until the last checkpoint has its manifest; raises what went wrong."""
        completing, self.completing = self.completing, None
        if completing is not None:
            completing.result()

    def _finalize_training(self, trial, num_train_samples, start_time):
        self.complete()
        if self.stop.stopped_by:
            self.leave()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self.check_best(Path(self.state.best_model_checkpoint))
        best = self.state.best_model_checkpoint
        if self.args.should_save and best is not None and self.args.save_total_limit == 1:
            # The Trainer would do this too, but could be interrupted with half a checkpoint deleted.
            for path in checkpoints_in(self._get_output_dir(trial=trial)):
                if path.name != Path(best).name:
                    delete_directory(path)
        return super()._finalize_training(trial, num_train_samples, start_time)

    def check_best(self, best: Path) -> None:
        """Keep the last weights, with a warning, where the best checkpoint was damaged since it was written."""
        flaw = on_first_process(lambda: flaw_of_checkpoint(best))
        if flaw is not None:
            logger.warning("%s, the best checkpoint, is not whole: %s. The last weights are kept", best, flaw)
            self.state.best_model_checkpoint = None

    def leave(self) -> None:
        """End a run that was stopped by a signal: loggers are closed, and the reason is stated."""
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        name = signal.Signals(self.stop.stopped_by).name
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            print(
                f"stopped by {name} after step {self.state.global_step} of {self.state.max_steps}: saved in {folder}. "
                "Resuming continues from there (--resume true; in Python resume_from_checkpoint=True)",
                file=sys.stderr,
            )
        leave_group(self)
        if self.stop.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(REQUEUE)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`; a model of its own, as opposed to a checkpoint's, gets a manifest that lists its files.

        They are written below a directory beside them and moved when all are there, so that a full disk leaves the
        model that was there before.
        """
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        if _internal_call and folder.name == f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}":
            super().save_model(output_dir, _internal_call)
            return
        new = folder / MODEL
        with writing(folder, INTACT):
            if self.args.should_save:
                shutil.rmtree(new, ignore_errors=True)
                if (folder / CARD).exists():
                    new.mkdir(parents=True)
                    shutil.copy(folder / CARD, new)  # PEFT adds to it
            self.accelerator.wait_for_everyone()
            try:
                if self.is_fsdp_enabled:  # the Trainer saves nothing if the plugin's checkpoints are sharded
                    weights = self.accelerator.get_state_dict(self.model)
                    if self.args.should_save:
                        self._save(str(new), state_dict=weights)
                else:
                    super().save_model(str(new), _internal_call=True)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    take_over(new, folder)
            finally:
                if self.args.should_save:
                    shutil.rmtree(new, ignore_errors=True)
            self.accelerator.wait_for_everyone()
