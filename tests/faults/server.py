"""Run recipes with a fault in them, each in a process of its own.

As `python -m faults.server` it reads jobs from stdin, one JSON object a line, and forks for each. It has imported all
that recipes need, which takes a process longer than the tiny runs themselves. With the name of a file it runs the job
that the file holds, as each process under torchrun does.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from llada.cli import failure
from llada.cli.completions import Completions
from llada.recipes import generate, sft
from llada.training.even_rows import MeanOverRows
from vrpo.recipes import align, iterate, make_pairs

torch.set_num_threads(1)
RECIPES = {module.__name__.rpartition(".")[2]: module.main for module in (sft, align, generate, make_pairs, iterate)}


def then_signalled(function: Callable, listing: int, number: int, signals: list[int]) -> Callable:
    """List each call of a method as a step, and send this process signals at the end of call `number` (from 1)."""
    calls = []

    def called(self, *args, **kwargs):
        step = self.state.global_step if hasattr(self, "train_dataset") else args[0][0]
        os.write(listing, f"step {step}\n".encode())
        result = function(self, *args, **kwargs)
        calls.append(step)
        if len(calls) == number:
            for each in signals:
                os.kill(os.getpid(), each)
        return result

    return called


def inject(folder: str, listing: int, fault: dict[str, Any]) -> None:
    """List the steps and the changes of files below a directory, and set the moment at which the fault happens."""
    kind, number = fault.get("kind", ""), fault.get("number", 0)
    signals = fault.get("signals", [signal.SIGKILL]) if kind == "step" else []
    MeanOverRows.training_step = then_signalled(MeanOverRows.training_step, listing, number, signals)
    Completions.sample = then_signalled(Completions.sample, listing, number, signals)
    ctypes.CDLL(None).watch(
        folder.encode(), listing, kind.encode(), number, fault.get("error", 0), fault.get("lasting", 0),
        fault.get("share", 0),
    )  # fmt: skip


def run(job: dict[str, Any]) -> NoReturn:
    """Run a recipe as a script does, to the exit code of its process."""
    os.chdir(job["folder"])
    rank = int(os.environ.get("RANK", 0))
    listing = job["listing"] if rank == 0 else f"{job['listing']}.{rank}"
    fault = job["fault"] if job["rank"] == rank else {}
    inject(job["folder"], os.open(listing, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fault)
    code: Any = 0
    try:
        failure.run(lambda: RECIPES[job["recipe"]](job["argv"]))
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    failure.leave(code)


def serve() -> None:
    """Answer each job with the id of its process and then with its exit code, negative for a signal."""
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            run(job)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve()
    else:
        run(json.loads(Path(sys.argv[1]).read_text()))
