"""The callback that writes down what a run is and does: `run.json`, `samples.json` and the loss by timestep."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from llada.checks import NonNegativeInt, check
from llada.diffusion.random_streams import random_state_kept
from llada.files import replace_file
from llada.output import writing
from llada.record import run_file
from llada.record.rows import Asked, asked
from llada.record.samples import sample
from llada.record.tables import log_table
from llada.record.timesteps import TimestepLoss
from llada.training.base import DiffusionTrainerBase
from llada.training.distributed import is_sharded
from llada.training.progress import TIMESTEP
from llada.training.saving import INTACT
from llada.training.stopwatch import EVALUATION

logger = logging.getLogger(__name__)

RUN, SAMPLES = "run.json", "samples.json"


class RunRecord(TrainerCallback):
    """Write down what a run is and does; training takes the same steps with it and without it.

    `run.json` in output_dir has options, versions, model and data, and a start for each time that the run began or went
    on. `samples.json` has greedy answers to a few prompts before training and after it. With held-out rows, the loss by
    masking probability is logged at step 0, at every evaluation and at the last step. docs/running.md describes the
    files.

        trainer = VRPOTrainer(...)
        trainer.add_callback(RunRecord(trainer))

    Args:
        trainer: any trainer of this package.
        configurations: dataclasses of options beside `trainer.args`, which `run.json` lists too; an option
            `dataset_name`, `eval_dataset_name` or `model_name_or_path` names data and model.
        sample_prompts: the first prompts of the held-out rows, or of the training rows if there are none, that are
            answered; 0 for no samples.

    Raises:
        ValueError: `sample_prompts` is negative or no integer.
        OutputError: in training, a file cannot be written, as for checkpoints.
    """

    def __init__(self, trainer: DiffusionTrainerBase, configurations: Sequence[Any] = (), sample_prompts: int = 4):
        check("sample_prompts", sample_prompts, NonNegativeInt)
        self.trainer, self.configurations, self.sample_prompts = trainer, configurations, sample_prompts
        self.folder = Path(trainer.args.output_dir)
        self.prompts: list[Asked] = []
        self.samples = self.samples_until(0)
        self.timesteps: TimestepLoss | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.write_run(state.global_step > 0)
        sampled = self.sample_prompts and not self.cannot_sample() and state.is_world_process_zero
        self.prompts = asked(self.trainer, self.sample_prompts) if sampled else []
        self.samples = self.samples_until(state.global_step)
        masked = self.trainer.spec.attention != "causal" and self.trainer.eval_dataset is not None
        self.timesteps = TimestepLoss(self.trainer) if masked else None
        if not state.global_step:
            self.log_timesteps(control)
            self.add_samples(0)

    def on_evaluate(self, args, state, control, **kwargs):
        if self.trainer.is_in_train:
            self.log_timesteps(control)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps:
            return
        self.log_timesteps(control)
        # Here and not after training, when the trackers are closed.
        if self.add_samples(state.global_step) and state.is_world_process_zero:
            log_table(self.trainer.callback_handler.callbacks, self.samples["samples"], state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        if self.trainer.stop.stopped_by:
            return  # the run goes on later
        step = state.global_step
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            step = state.best_global_step  # this model has taken the place of the last one
        self.samples["samples"] = [each for each in self.samples["samples"] if each["step"] <= step]
        self.add_samples(step)  # if they are not there: of a run that ended early, or was killed after its last step

    def cannot_sample(self) -> bool:
        """Whether no process can sample alone, as an engine keeps the weights in pieces, or no prompts are at hand.

        Says so. Of a stream, the first rows would fill the buffer in which it is shuffled, for a few prompts.
        """
        trainer = self.trainer
        if trainer.eval_dataset is None and not hasattr(trainer.train_dataset, "__len__"):
            if trainer.is_world_process_zero():
                logger.warning("no samples are recorded: the rows are streamed, and none are held out for prompts")
            return True
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        pieces = trainer.is_fsdp_enabled or (
            trainer.is_deepspeed_enabled and plugin is not None and plugin.zero_stage == 3
        )
        if pieces and trainer.is_world_process_zero():
            logger.warning(
                "no samples are recorded: the weights are in pieces, and each process would need all of them"
            )
        return pieces

    def module(self) -> nn.Module:
        """The model that computes: with an engine's wrapper where it shards parameters, else without any."""
        trainer = self.trainer
        return trainer.model_wrapped if is_sharded(trainer.accelerator) else self.bare()

    def bare(self) -> nn.Module:
        """The model without the wrappers of engines and of PEFT, whose adapters are in its layers."""
        module = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return module.get_base_model() if isinstance(module, PeftModel) else module

    def write_run(self, goes_on: bool) -> None:
        """Write `run.json`, with another start if the run goes on."""
        file = self.folder / RUN
        starts = [*(run_file.starts_in(file) if goes_on else []), run_file.start_of(self.trainer)]
        content = run_file.content_of(self.trainer, self.configurations)
        self.write(RUN, {"format": run_file.FORMAT, "starts": starts} | content)

    def write(self, name: str, content: dict[str, Any]) -> None:
        with writing(self.folder, INTACT):
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def samples_until(self, step: int) -> dict[str, Any]:
        """The samples that a run which goes on has made before; an empty list for one that begins."""
        content: dict[str, Any] = {"format": 1, "settings": {}, "samples": []}
        if not step or not self.prompts or not self.trainer.is_world_process_zero():
            return content
        try:
            found = json.loads((self.folder / SAMPLES).read_text(encoding="utf-8"))
            made = [each for each in found["samples"] if each["step"] <= step]
            number = len(made[0]["answers"]) if made else len(self.prompts)
            if number != len(self.prompts):
                logger.warning("the run goes on with the %d prompts that it has begun with", number)
                self.prompts = asked(self.trainer, number)
            if all(len(each["answers"]) == len(self.prompts) for each in made):
                content |= {"settings": found["settings"], "samples": made}
            else:
                logger.warning("%s has answers to other prompts, and is begun anew", self.folder / SAMPLES)
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("%s is missing or damaged: the samples of before are lost", self.folder / SAMPLES)
        return content

    def add_samples(self, step: int) -> bool:
        """Sample on the first process, and write the file; False if it is not needed or has failed."""
        trainer, made = self.trainer, self.samples["samples"]
        if not self.prompts or not trainer.is_world_process_zero() or (made and made[-1]["step"] == step):
            return False
        module = self.bare()
        training = module.training
        phase, precision = trainer.throughput.phase(EVALUATION), trainer.compute_loss_context_manager()
        try:
            with random_state_kept(), phase, precision, torch.no_grad():
                found = sample(trainer, module.eval(), self.prompts)
        except Exception as error:  # such as no memory left: the last step is not saved yet, and samples are no reason
            logger.warning("no samples are recorded at step %d (%s: %s)", step, type(error).__name__, error)
            return False
        finally:
            module.train(training)
        self.samples["settings"] = found["settings"]
        made.append({"step": step, "answers": found["answers"]})
        self.write(SAMPLES, self.samples)
        return True

    def log_timesteps(self, control) -> None:
        """Log the loss by masking probability, unless it was at this step. All processes must call this."""
        trainer, step = self.trainer, self.trainer.state.global_step
        lines = [line for line in trainer.state.log_history if line["step"] == step]
        if self.timesteps is None or any(name.startswith(TIMESTEP) for line in lines for name in line):
            return
        module = self.module()
        training = module.training
        phase, precision = trainer.throughput.phase(EVALUATION), trainer.compute_loss_context_manager()
        with random_state_kept(), phase, precision, torch.no_grad():
            found = self.timesteps(module.eval())
        module.train(training)
        should_log = control.should_log  # a line that is due, which `log` would take for written
        trainer.log(found)
        control.should_log = should_log
