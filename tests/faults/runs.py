"""Tiny runs of the recipes that are hit by faults, and the comparison of what they leave with an uninterrupted run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conftest import ROOT

from llada.files import MANIFEST, flaw_of
from llada.training.checkpoints import checkpoints_in, step_of
from llada.training.throughput import MEASURED

HERE = Path(__file__).parent
STEPS, EVERY = 12, 2  # optimizer steps of a run, and how many there are from one checkpoint to the next
# What is of the last start only: a mean over steps, times, and the numbers of a run while it runs.
OF_START = re.compile(
    "|".join(
        ["^starts$", "runtime$", "_per_second$", "^train_loss$", "^seconds$", *(f"^{prefix}" for prefix in MEASURED)]
    )
)
PER_START = (
    "trainer_state.json",
    "eval_results.json",
    "all_results.json",
    "rounds.jsonl",
    "run.json",
)  # files that hold such values

NOT_COMPARED = (".run.lock", "report.html")


@dataclass
class Ended:
    """How a process ended: its exit code (negative: a signal), what it printed, and its events as (kind, what)."""

    code: int
    output: str
    events: list[tuple[str, str]]

    @property
    def steps(self) -> list[int]:
        """The optimizer steps that were done before each step that was begun."""
        return [int(what) for kind, what in self.events if kind == "step"]

    def line(self, pattern: str) -> str:
        """The first line of the output in which a pattern is found; empty if there is none."""
        return next((line.strip() for line in self.output.splitlines() if re.search(pattern, line)), "")

    @property
    def cut_off_at(self) -> str:
        """The last event, as "write optimizer.pt"."""
        kind, what = self.events[-1] if self.events else ("start", "")
        return kind if kind == "step" else f"{kind} {re.sub(r'[.]?[0-9]+[.]tmp|^[.]', '', Path(what).name)}"


class Server:
    """A process that has imported everything and forks for each run (server.py)."""

    def __init__(self, library: Path):
        self.environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "LD_PRELOAD": str(library), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.command = [sys.executable, "-m", "faults.server"]
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, job: dict[str, Any], after: float | None, by: int) -> int:
        """The exit code of a job, to which a signal may be sent after some seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        clock = threading.Timer(3600 if after is None else after, os.kill, (child, by))
        clock.start()
        code = int(self.process.stdout.readline())
        clock.cancel()
        return code

    def stop(self) -> None:
        self.process.communicate(timeout=60)


class Run:
    """A command line in a working directory of its own, in which all paths are relative: runs differ in no option.

    Args:
        folder: holds what the command reads; `copy` gives a run a folder of its own.
    """

    def __init__(self, server: Server, recipe: str, argv: Sequence[str], folder: Path):
        self.server, self.recipe, self.argv, self.folder = server, recipe, list(argv), folder
        self.starts = 0

    def copy(self, name: str) -> "Run":
        """The same run in a copy of its directory as it is now."""
        shutil.copytree(self.folder, self.folder.parent / name)
        return Run(self.server, self.recipe, self.argv, self.folder.parent / name)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def job(self, fault: dict[str, Any], rank: int = 0) -> dict[str, Any]:
        """The job of the next start, as server.py takes it."""
        self.starts += 1
        output = self.folder.with_name(f"{self.folder.name}.{self.starts}.out")
        return {
            "recipe": self.recipe, "argv": self.argv, "folder": str(self.folder), "output": str(output),
            "listing": str(output.with_suffix(".events")), "fault": fault, "rank": rank,
        }  # fmt: skip

    def start(self, after: float | None = None, by: int = signal.SIGKILL, **fault) -> Ended:
        """Run the command to its end, which a fault or a signal after some seconds may bring about."""
        job = self.job(fault)
        code = self.server.run(job, after, by)
        return ended(code, Path(job["output"]).read_text(), Path(job["listing"]))

    @cached_property
    def first(self) -> Ended:
        """The uninterrupted run, in this directory."""
        result = self.start()
        assert result.code == 0, result.output
        return result

    def whole(self) -> int:
        """The step of the newest whole checkpoint; 0 if there is none."""
        return next((step_of(path) for path in checkpoints_in(self.run_dir) if flaw_of(path) is None), 0)

    def snapshot(self) -> dict[str, bytes]:
        """The contents of all files by name, without measured times, the lock, and the page, which shows times."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name not in NOT_COMPARED)
        return {path.relative_to(self.folder).as_posix(): timeless(path) for path in files}


def ended(code: int, output: str, listing: Path) -> Ended:
    """How a process ended that listed its events in a file."""
    lines = listing.read_text().splitlines() if listing.exists() else []
    return Ended(code, output, [(kind, what) for kind, _, what in (line.partition(" ") for line in lines)])


def timeless(path: Path) -> bytes:
    """The contents of a file, without the values that are of one start only and without the hashes of such files."""
    if path.name not in (*PER_START, MANIFEST):
        return path.read_bytes()

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {key: without(each) for key, each in value.items() if not OF_START.search(key) and key not in PER_START}

    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return json.dumps([without(json.loads(line)) for line in lines]).encode()


def differences(run: Run, other: Run) -> list[str]:
    """The names of the files in which two runs differ or that one of them has not."""
    first, second = run.snapshot(), other.snapshot()
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def completed(events: Sequence[tuple[str, str]]) -> int:
    """The newest step whose checkpoint was complete by the events: its second manifest had its name.

    That is known by what follows, which is to delete the name under which the manifest was written.
    """
    pattern = re.compile(r"run/checkpoint-(\d+)/\.manifest\.json\..*")
    found = [int(match[1]) for kind, what in events if kind == "delete" and (match := pattern.fullmatch(what))]
    return max((step for step in found if found.count(step) > 1), default=0)


MOMENTS = ("step", "write", "rename", "fsync", "step", "open", "clock", "delete", "write", "rename")


def moment(chance: random.Random, index: int, first: Ended, saves: int) -> dict[str, Any]:
    """A random moment for kill number `index`: the kinds take turns, and which event of its kind it is is drawn.

    Args:
        first: the uninterrupted run, whose number of events of each kind bounds the draw.
        saves: into how many such parts it is divided, of which a start lasts about two.
    """
    kind = MOMENTS[index % len(MOMENTS)]
    if kind == "clock":
        return {"after": chance.uniform(0.2, 1.5)}
    many = sum(event == kind for event, _ in first.events)
    return {"kind": kind, "number": chance.randint(1, max(1, 2 * many // saves)), "share": chance.randint(0, 99)}
