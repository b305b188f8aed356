"""The run around every recipe's trainer: checks, resuming, training, saving and evaluation."""

import contextlib
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import ModelConfig

from llada.cli.adapters import base_of, carry_settings
from llada.cli.arguments import saying
from llada.cli.loading import load_datasets, load_model, peft_config_of
from llada.cli.next_steps import next_steps
from llada.cli.old_run import RemoveOldRun, continues, finished, refuse_to_delete
from llada.cli.recipe import RecipeArguments, parse
from llada.data.loading import load_rows
from llada.data.turns import record_turns
from llada.errors import RecipeError
from llada.output import lock, writing
from llada.record.callback import RunRecord
from llada.training.base import DiffusionTrainerBase
from llada.training.distributed import check_engine, check_processes, leave_group, on_first_process
from llada.training.progress import TIMESTEP
from llada.training.saving import INTACT

logger = logging.getLogger(__name__)


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


def check_evaluated(args: TrainingArguments, held_out: Any) -> None:
    """Raise RecipeError if the options ask for evaluation and there are no rows to evaluate on."""
    asked = [name for name in ("eval_strategy", "load_best_model_at_end") if getattr(args, name) not in ("no", False)]
    if held_out is None and asked:
        raise RecipeError(f"{asked[0]} needs held-out rows: set eval_fraction, such as 0.05, or eval_dataset_name")


class LastEvaluation(TrainerCallback):
    """Evaluate at the last step, and keep what the latest evaluation found.

    It belongs to training, where the loggers of `report_to` are open: after it, TensorBoard would begin a second file,
    and a run that evaluates every few steps would evaluate its last step twice.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.metrics: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        # A run that was stopped after its last step, while it saved, has been evaluated then.
        rows = [row for row in state.log_history if row.get("step") == state.global_step >= state.max_steps]
        for row in rows:
            found = {name: value for name, value in row.items() if name.startswith("eval_")}
            found = {name: value for name, value in found.items() if not name.startswith(TIMESTEP)}
            if found:
                self.step = state.global_step
                self.metrics |= found | {"epoch": row["epoch"]}

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

    transformers raises a RuntimeError or ImportError of the latter, and a ValueError of a name that it does not know;
    the classes of the former are the logger's own.

    Raises:
        RecipeError: in place of such an error.
    """
    try:
        yield
    except Exception as error:
        own = type(error).__module__.split(".")[0] in report_to
        absent = isinstance(error, RuntimeError | ImportError) and "to be installed" in str(error)
        unknown = isinstance(error, ValueError) and "is not supported, only" in str(error)
        if own or unknown or (absent and "Callback requires" in str(error)):
            what = str(error).removesuffix(".")
            raise RecipeError(f"report_to={report_to}: {what}. `--report_to none` trains without a logger") from error
        raise


def main(
    trainer_class: type[DiffusionTrainerBase],
    config_class: type[TrainingArguments],
    columns: Sequence[tuple[str, ...]],
    argv: Sequence[str] | None = None,
    write_page: Callable[[str], object] | None = None,
) -> None:
    """Run a training recipe from its command line to its saved model. All checks come before the first write.

    The options are those of `RecipeArguments`, TRL's `ModelConfig` and `config_class`.

    Args:
        columns: see `load_columns`.
        write_page: writes the page of a run, given its directory, and returns its path. The first process calls it
            when all is saved.
    """
    recipe, model_args, args = parse((RecipeArguments, ModelConfig, config_class), argv)
    check_processes(args, recipe.expected_processes)
    with lock(args.output_dir) if args.process_index == 0 else contextlib.nullcontext():
        trainer, commands = launch(trainer_class, columns, recipe, model_args, args, write_page)
        leave_group(trainer)
        if commands is not None and trainer.is_world_process_zero():
            print(commands)


def launch(
    trainer_class: type[DiffusionTrainerBase],
    columns: Sequence[tuple[str, ...]],
    recipe,
    model_args,
    args,
    write_page: Callable[[str], object] | None = None,
) -> tuple[DiffusionTrainerBase, str | None]:
    """`main` after its options are read and the output directory is held; the process group stays.

    Returns the trainer, and what to run next; None in place of it if the run was finished already.
    """
    resumed = on_first_process(lambda: continues(args.output_dir, recipe.resume, recipe.overwrite))
    if recipe.overwrite and model_args.model_name_or_path is not None:
        refuse_to_delete(model_args.model_name_or_path, args.output_dir)
    model, tokenizer = load_model(recipe, model_args, args.seed)
    trainer_class.set_tokenizer(tokenizer, model.config, args)
    train, held_out = load_datasets(recipe, args, tokenizer, model.config, trainer_class, columns)
    check_evaluated(args, held_out)
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
    if recipe.eval_tasks:
        trainer.add_callback(task_evaluation(trainer, recipe))
    base = model_args.model_name_or_path
    record = RunRecord(trainer, (recipe, model_args), recipe.sample_prompts)
    if not run(trainer, record, recipe.overwrite, resumed, base, recipe.dataset_name):
        return trainer, None
    page = page_of(args.output_dir, write_page) if write_page and trainer.is_world_process_zero() else None
    count = len(train) if hasattr(train, "__len__") else None
    dropped = args.drop_invalid or args.drop_overlong
    design = getattr(trainer, "design", None)  # preference trainers have one
    budget = None if design is None else design.n
    causal = trainer.spec.attention == "causal"
    return trainer, next_steps(
        args.output_dir, base, recipe.dataset_name, list(row), count, dropped, budget, causal, page
    )  # fmt: skip


def page_of(output_dir: str, write_page: Callable[[str], object]) -> str | None:
    """Write the page of a finished run; its path, or None, with a warning, if that fails: the model is saved."""
    try:
        with saying("writing the run's page"):
            return str(write_page(output_dir))
    except Exception as error:
        logger.warning(
            "the page of the run was not written (%s: %s). The model is saved, and so is all that the page is made of: "
            "vrpo report %s",
            type(error).__name__, error, shlex.quote(output_dir),
        )  # fmt: skip
        return None


def task_evaluation(trainer: DiffusionTrainerBase, recipe: RecipeArguments) -> TrainerCallback:
    """The callback that evaluates `eval_tasks`.

    Raises:
        RecipeError: lm-evaluation-harness is not installed, or a task cannot be run (`TaskEvaluation`).
    """
    if find_spec("lm_eval") is None:
        raise RecipeError('eval_tasks needs lm-evaluation-harness: pip install "llada-vrpo[eval]"')
    assert recipe.eval_tasks is not None
    assert isinstance(recipe.eval_tasks_args, dict)  # as `RecipeArguments` has read it
    from llada.harness.in_training import TaskEvaluation

    return TaskEvaluation(trainer, recipe.eval_tasks, recipe.eval_tasks_args, recipe.eval_tasks_limit)


def first_row(recipe: RecipeArguments) -> dict[str, Any]:
    """The first row of the training data, as text."""
    rows = load_rows(
        recipe.dataset_name, recipe.dataset_config, recipe.dataset_train_split, recipe.dataset_streaming
    )  # fmt: skip
    return next(iter(rows))


def run(
    trainer: DiffusionTrainerBase, record: RunRecord, overwrite: bool, resumed: bool, base: str | None, data: str | None
) -> bool:
    """Train, evaluate on any held-out data, and save to output_dir.

    Model or adapters are saved with the tokenizer and the sampler settings of the model that training started from.
    Returns False if the run was finished already, which leaves it as it is.
    """
    planned = trainer.planned_steps() if resumed else 0
    steps = on_first_process(lambda: finished(trainer.args.output_dir, planned)) if resumed else None
    if steps is not None:
        trainer.push_saved()  # which may have failed then
        if trainer.is_world_process_zero():
            print(
                f"the run in {trainer.args.output_dir} is finished: all of its {steps} steps are done, and nothing was "
                "changed. More max_steps or num_train_epochs continue it"
            )
        return False
    last = LastEvaluation()
    if trainer.eval_dataset is not None:
        trainer.add_callback(last)
    if overwrite:
        trainer.add_callback(RemoveOldRun())
    trainer.add_callback(record)  # after the files of the old run are deleted
    with loggers_named(trainer.args.report_to):
        trainer.train(resume_from_checkpoint=resumed)
    with writing(trainer.args.output_dir, INTACT):
        save(trainer, base, data, last)
    return True


def save(trainer: DiffusionTrainerBase, base: str | None, data: str | None, last: LastEvaluation) -> None:
    """Write the model, its sampler settings and evaluation, the state, by which a finished run is known, and the card.

    The model is pushed to the hub, if it is to be, when all of this is there.

    Args:
        data: name of the training data, for the card.
    """
    trainer.save_model(_internal_call=True)
    if base is not None and trainer.is_world_process_zero():
        carry_settings(base, trainer.args.output_dir)
    if trainer.eval_dataset is not None:
        metrics = last.metrics if last.of_saved_model(trainer) else trainer.evaluate()
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    write_card(trainer, base, data)
    trainer.push_saved()


def write_card(trainer: DiffusionTrainerBase, base: str | None, data: str | None) -> None:
    """Write the model's card. One that cannot be written is a warning: the run is finished without it.

    Args:
        base, data: as for `save`.
    """
    try:
        trainer.create_model_card(dataset_name=data, finetuned_from="" if base is None else base_of(base))
    except Exception as error:
        logger.warning(
            "the model's card was not written (%s: %s). The model is saved in %s, and "
            "`trainer.create_model_card()` writes it in Python",
            type(error).__name__, error, trainer.args.output_dir,
        )  # fmt: skip
