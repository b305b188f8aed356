"""How the quickstart trains: with a bar and nothing else on the screen, and with the page of a run on request."""

import logging
import os
import sys
import warnings
from pathlib import Path

from datasets.utils.logging import disable_progress_bar
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar as disable_transformers_bar

from llada import RunRecord
from vrpo.report import write_page


class Quiet(TrainerCallback):
    """Keeps the log lines for the report instead of printing them under the progress bar."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(logs | {"step": state.global_step})


def train(trainer, page: bool = False) -> list[dict[str, float]]:
    """Train with a progress bar only, and return the logged rows. With `page`, write the page of the run."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    quiet, bar = Quiet(), Bar()
    trainer.add_callback(quiet)
    trainer.add_callback(bar)
    if page:
        trainer.add_callback(RunRecord(trainer))
    trainer.train()
    if page:
        trainer.save_state()  # the log, of which the page is made
        write_page(trainer.args.output_dir)
    return quiet.rows


class Bar(TrainerCallback):
    """A progress bar and nothing else."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc=f"{Path(args.output_dir).name:8}")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def quieten() -> None:
    """Leave out what the libraries say about this run that nobody can act on."""
    for library in ("transformers", "llada", "vrpo"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")  # of torch, on a machine without a GPU
    disable_progress_bar()
    disable_transformers_bar()


def command(name: str) -> str:
    """A console command as it can be typed here: `make` does not activate the environment that it sets up."""
    beside = Path(sys.executable).with_name(name)
    on_path = any(Path(folder) == beside.parent for folder in os.get_exec_path())
    if on_path or not beside.exists():
        return name
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
