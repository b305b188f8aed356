"""The run around every recipe's trainer: checks, resuming, training, saving and evaluation."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import ModelConfig

from llada.cli.adapters import base_of, carry_settings
from llada.cli.loading import load_datasets, load_model, peft_config_of
from llada.cli.next_steps import next_steps
from llada.cli.recipe import RecipeArguments, parse
from llada.data.loading import load_rows
from llada.data.turns import record_turns
from llada.errors import RecipeError
from llada.training.base import DiffusionTrainerBase
from llada.training.distributed import check_engine, check_processes, leave_group

logger = logging.getLogger(__name__)


def resume_point(output_dir: str, resume: bool, overwrite: bool) -> str | None:
    """The checkpoint to continue from, or None for a new run. Nothing is deleted here.

    The Trainer writes `trainer_state.json` last, so a checkpoint without a readable one is incomplete; it is skipped
    with a warning.

    Raises:
        RecipeError: the directory holds a run and neither `resume` nor `overwrite` is set; both are set; or there is
            no complete checkpoint to resume from.
    """
    if resume and overwrite:
        raise RecipeError("resume and overwrite are both set: choose one")
    folder = Path(output_dir)
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    checkpoints = sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
    holds_run = bool(checkpoints) or any(folder.glob("*.safetensors"))
    if not resume:
        if holds_run and not overwrite:
            raise RecipeError(
                f"output_dir={output_dir} already holds a run: set resume to continue it, overwrite to replace it, or "
                "another output_dir"
            )
        return None
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            logger.warning("%s is incomplete (no readable trainer_state.json): passed over", checkpoint)
            continue
        return str(checkpoint)
    raise RecipeError(f"resume is set, but output_dir={output_dir} holds no complete checkpoint")


def check_one_batch(trainer: Trainer) -> None:
    """Stop if the rows are fewer than one batch of all processes: the Trainer would train nothing and save the model.

    Raises:
        RecipeError: there are too few rows and `dataloader_drop_last` is set.
    """
    rows, args = trainer.train_dataset, trainer.args
    batch = args.per_device_train_batch_size * args.world_size
    if hasattr(rows, "__len__") and args.dataloader_drop_last and len(rows) < batch:
        raise RecipeError(
            f"{len(rows)} training rows are less than one batch ({args.per_device_train_batch_size} rows x "
            f"{args.world_size} processes) and dataloader_drop_last is set: nothing would be trained"
        )


class LastEvaluation(TrainerCallback):
    """Evaluate at the last step, and keep what the latest evaluation found.

    It belongs to training, where the loggers of `report_to` are open: after it, TensorBoard would begin a second file,
    and a run that evaluates every few steps would evaluate its last step twice.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.metrics: dict[str, float] = {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        # Each of several evaluation sets is an evaluation of its own.
        self.metrics = (self.metrics if self.step == state.global_step else {}) | metrics
        self.step = state.global_step

    def of_saved_model(self, trainer: Trainer) -> bool:
        """Whether the metrics are those of the model that training left, which may be an earlier, better one."""
        return self.step == trainer.state.global_step and not trainer.args.load_best_model_at_end


@contextlib.contextmanager
def loggers_named(report_to: list[str]) -> Iterator[None]:
    """Name the option of a logger that cannot start, such as wandb without a key or a package that is not installed.

    transformers raises a RuntimeError or ImportError of the latter; the classes of the former are the logger's own.

    Raises:
        RecipeError: in place of such an error.
    """
    try:
        yield
    except Exception as error:
        own = type(error).__module__.split(".")[0] in report_to
        absent = isinstance(error, RuntimeError | ImportError) and "to be installed" in str(error)
        if own or (absent and "Callback requires" in str(error)):
            what = str(error).removesuffix(".")
            raise RecipeError(f"report_to={report_to}: {what}. `--report_to none` trains without a logger") from error
        raise


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
    """Delete checkpoints, weights and adapters of an overwritten run: mixed with new files, they would not load."""
    for pattern in ("checkpoint-*", "*.safetensors*", "adapter_*"):
        for path in output_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main(
    trainer_class: type[DiffusionTrainerBase],
    config_class: type[TrainingArguments],
    columns: Sequence[tuple[str, ...]],
    argv: Sequence[str] | None = None,
) -> None:
    """Run a training recipe from its command line to its saved model. All checks come before the first write.

    The options are those of `RecipeArguments`, TRL's `ModelConfig` and `config_class`; `columns`: see `load_columns`.
    """
    recipe, model_args, args = parse((RecipeArguments, ModelConfig, config_class), argv)
    check_processes(args, recipe.expected_processes)
    checkpoint = resume_point(args.output_dir, recipe.resume, recipe.overwrite)
    if recipe.overwrite and model_args.model_name_or_path is not None:
        refuse_to_delete(model_args.model_name_or_path, args.output_dir)
    model, tokenizer = load_model(recipe, model_args, args.seed)
    trainer_class.set_tokenizer(tokenizer, model.config, args)
    train, held_out = load_datasets(recipe, args, tokenizer, model.config, trainer_class, columns)
    row = first_row(recipe)
    record_turns(tokenizer, row)
    with loggers_named(args.report_to):
        trainer = trainer_class(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=peft_config_of(model_args, model),
        )
    check_engine(trainer)
    check_one_batch(trainer)
    base = model_args.model_name_or_path
    run(trainer, recipe.overwrite, checkpoint, base)
    if trainer.is_world_process_zero():
        count = len(train) if hasattr(train, "__len__") else None
        dropped = args.drop_invalid or args.drop_overlong
        design = getattr(trainer, "design", None)  # preference trainers have one
        budget = None if design is None else design.n
        print(next_steps(args.output_dir, base, recipe.dataset_name, list(row), count, dropped, budget))


def first_row(recipe: RecipeArguments) -> dict[str, Any]:
    """The first row of the training data, as text."""
    rows = load_rows(
        recipe.dataset_name, recipe.dataset_config, recipe.dataset_train_split, recipe.dataset_streaming
    )  # fmt: skip
    return next(iter(rows))


def run(trainer: Trainer, overwrite: bool, checkpoint: str | None, base: str | None) -> None:
    """Train, evaluate on any held-out data, save to output_dir, and destroy the process group.

    Model or adapters are saved with the tokenizer and the sampler settings of the model that training started from.
    """
    last = LastEvaluation()
    if trainer.eval_dataset is not None:
        trainer.add_callback(last)
    if overwrite:
        trainer.add_callback(RemoveOldRun())
    with loggers_named(trainer.args.report_to):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if base is not None and trainer.is_world_process_zero():
        carry_settings(base, trainer.args.output_dir)
    if trainer.eval_dataset is not None:
        metrics = last.metrics if last.of_saved_model(trainer) else trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    leave_group(trainer)
