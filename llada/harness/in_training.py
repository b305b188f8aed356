"""Benchmarks of lm-evaluation-harness while a model trains: the recipes' `--eval_tasks`."""

from collections.abc import Mapping
from typing import Any

from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import Trainer, TrainerCallback

from llada.diffusion.random_streams import random_state_kept
from llada.errors import RecipeError
from llada.harness import suites
from llada.harness.local_tasks import FILES
from llada.harness.model import IN_MEMORY, HarnessModel
from llada.harness.published import Benchmark
from llada.harness.settings import read_options
from llada.sampling.settings import SamplerSettings


class TaskEvaluation(TrainerCallback):
    """Evaluates tasks at every evaluation of a run, and at its last step if it has no held-out data.

    The figures are logged and become part of the evaluation's metrics, `eval_TASK/METRIC` (with the harness's filter,
    as in `eval_gsm8k/exact_match,strict-match`). Training goes on as if there had been no evaluation.

    Args:
        names: tasks of the harness, or of `llada/harness/tasks`.
        options: of the model (`llada.harness.settings`), and paths of local data (`llada.harness.local_tasks`).
        limit: documents of each task; None: all.

    Raises:
        RecipeError: the model's weights are sharded, or a task is unknown or its data cannot be reached.
        ValueError: an option is unknown or out of range.
    """

    def __init__(self, trainer: Trainer, names: list[str], options: Mapping[str, Any], limit: int | None):
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise RecipeError("eval_tasks: the weights are sharded, and each process answers with a whole model")
        files = {name: str(value) for name, value in options.items() if name in FILES}
        self.options = {name: value for name, value in options.items() if name not in FILES}
        read_options({"pretrained": IN_MEMORY} | self.options)
        self.tasks = {name: Benchmark("", name, name, sampler=SamplerSettings()) for name in dict.fromkeys(names)}
        self.manager, self.loaded = suites.load(self.tasks, files, run_code=False)
        self.trainer, self.limit = trainer, limit

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        found = self.evaluate()
        self.trainer.log(dict(found))
        if metrics is not None:
            metrics |= found

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and self.trainer.eval_dataset is None:
            found = self.evaluate()
            self.trainer.log(dict(found))
            self.trainer.save_metrics("eval", found)

    def evaluate(self) -> dict[str, float]:
        """The figures of all tasks, on every process."""
        trainer, found = self.trainer, dict[str, float]()
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = model.get_base_model() if isinstance(model, PeftModel) else model  # with adapters in its layers
        training = model.training
        # The harness seeds the random numbers of Python, numpy and torch.
        with random_state_kept(), trainer.compute_loss_context_manager():
            lm = HarnessModel(model.eval(), trainer.processing_class, **self.options)
            for name, task in self.tasks.items():
                results = suites.run(
                    lm, task, self.manager, self.loaded[name], limit=self.limit, seed=trainer.args.seed,
                    run_code=False, cache=None,
                )  # fmt: skip
                if results is not None:  # the first process
                    found |= {shown(name, each.name): each.value for each in suites.figures(task, results)}
        model.train(training)
        everywhere = [found]
        broadcast_object_list(everywhere)
        return everywhere[0]


def shown(task: str, figure: str) -> str:
    """The name of a figure in the logs: without the harness's filter where it does nothing."""
    return f"eval_{task}/{figure.removesuffix(',none')}"
