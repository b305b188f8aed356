"""How a run shows that it goes on: a bar in a terminal, and plain lines in a log file.

Both show the few numbers of a log line that say whether the run does well; `trainer_state.json` and the trackers of
`report_to` have all of them.
"""

import contextlib
import logging
import sys
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import ProgressCallback

TIMESTEP = "eval_timestep"  # how the names of the loss by masking probability begin (llada.record.timesteps)
SHOWN = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "throughput/pairs_per_second": "pairs/s",
    "throughput/rows_per_second": "rows/s",
}
HELD_OUT = ("loss", "bits_per_byte", "rewards/margins", "rewards/accuracies")  # shown of an evaluation


def numbers_of(logs: dict[str, float]) -> dict[str, str]:
    """The numbers of a log line that are shown, by the names under which they are."""
    return {shown: f"{logs[name]:.3g}" for name, shown in SHOWN.items() if name in logs}


def evaluation_of(logs: dict[str, float]) -> dict[str, str]:
    """The numbers of an evaluation that are shown: of held-out rows the first few, of benchmarks all."""
    found = {
        name.removeprefix("eval_"): value
        for name, value in logs.items()
        if name.startswith("eval_") and not name.startswith(TIMESTEP) and isinstance(value, int | float)
    }
    rows = {name: value for name, value in found.items() if name.endswith(HELD_OUT)}
    return {SHOWN.get(name, name): f"{value:.3g}" for name, value in (rows or found).items()}


class Progress(ProgressCallback):
    """The Trainer's progress bar with a few numbers behind it, and lines where the output is no terminal.

    A bar that is redirected would fill a log file with its updates. Messages of loggers stand above the bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self.redirected = contextlib.ExitStack()
        self.began, self.first = 0.0, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = self.first = state.global_step
        self.began = time.perf_counter()
        self.redirected.close()  # of a run that ended with an error
        self.training_bar = None
        if state.is_world_process_zero and sys.stderr.isatty():
            self.training_bar = tqdm(total=state.max_steps, initial=self.first, dynamic_ncols=True)
            self.redirected.enter_context(logging_redirect_tqdm([logging.root, logging.getLogger("transformers")]))

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if sys.stderr.isatty():
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        numbers, held_out = numbers_of(logs) if "loss" in logs else {}, evaluation_of(logs)
        where = f"step {state.global_step}/{state.max_steps}"
        if numbers:
            if self.training_bar is not None:
                self.training_bar.set_postfix(numbers)
            self.say(f"{where}  {spoken(numbers)}  {self.time_left(state)}", beside_bar=False)
        if held_out:
            self.say(f"{where}  evaluation: {spoken(held_out)}")
        if "train_runtime" in logs:
            steps, seconds = state.global_step - self.first, logs["train_runtime"]
            self.say(f"{where}  {steps} steps in {tqdm.format_interval(seconds)}")

    def say(self, line: str, beside_bar: bool = True) -> None:
        """Print a line; above the bar, if there is one in the same terminal and the bar does not say it itself."""
        if self.training_bar is None:
            print(line, flush=True)
        elif beside_bar or not sys.stdout.isatty():
            self.training_bar.write(line)

    def time_left(self, state) -> str:
        """How long the steps that are left will take, if they take as long as those since this start."""
        done = state.global_step - self.first
        if not done:
            return ""
        seconds = (time.perf_counter() - self.began) / done * (state.max_steps - state.global_step)
        return f"{tqdm.format_interval(seconds)} left"

    def on_train_end(self, args, state, control, **kwargs):
        self.redirected.close()
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)


def spoken(numbers: dict[str, str]) -> str:
    """Numbers and their names in one line."""
    return "  ".join(f"{name} {value}" for name, value in numbers.items())
