"""The files that a run leaves behind, as its page needs them.

`run.json` says what was run, `trainer_state.json` what was logged, `samples.json` what the model answered before and
after, `variance/variance.json` what `python -m vrpo.variance` measured. Only the second is needed: a run that was
started from Python, or by an older version, has no others.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llada.files import is_unfinished

STATE, RECORD, SAMPLES, VARIANCE = "trainer_state.json", "run.json", "samples.json", "variance/variance.json"
INTERVAL = "_ci95"


@dataclass(frozen=True)
class Series:
    """Values of one metric; a value that is not finite is nan, which a plot shows as a gap.

    steps: optimizer steps [N]. half_widths: of the 95% intervals [N], nan where there is none.
    """

    steps: np.ndarray
    values: np.ndarray
    half_widths: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> "Series":
        """Without the gaps."""
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept], self.half_widths[kept])

    def map(self, function: Callable[[np.ndarray], np.ndarray], scale: float = 1.0) -> "Series":
        """Other values at the same steps. scale: of the intervals."""
        return Series(self.steps, function(self.values), scale * self.half_widths)


@dataclass(frozen=True)
class Run:
    """One run: the contents of its files ({} or None for those that it does not have)."""

    folder: Path
    state: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] | None = None
    variance: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def options(self) -> dict[str, Any]:
        return self.record.get("options") or {}

    @property
    def step(self) -> int:
        return int(self.state.get("global_step") or 0)

    @property
    def max_steps(self) -> int:
        return int(self.state.get("max_steps") or 0)

    @property
    def finished(self) -> bool:
        return 0 < self.max_steps <= self.step or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether EarlyStoppingCallback of transformers has ended it: its patience was used up."""
        found = (self.state.get("stateful_callbacks") or {}).get("EarlyStoppingCallback") or {}
        saved = found[-1] if isinstance(found, list) else found
        waited = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        return waited >= saved.get("args", {}).get("early_stopping_patience", float("inf"))

    @property
    def beta(self) -> float | None:
        """Of the preference loss, 1 / nats; None if it is not known."""
        estimator = self.record.get("estimator") or {}
        found = estimator.get("beta", self.options.get("beta"))
        return found if isinstance(found, int | float) and found > 0 else None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All log lines that have an optimizer step, in order."""
        return [row for row in self.state.get("log_history") or [] if isinstance(row.get("step"), int)]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all that was logged, without intervals."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if not name.endswith(INTERVAL)]

    @cached_property
    def is_preference(self) -> bool:
        return any(name.endswith("rewards/margins") for name in self.metrics)

    @cached_property
    def read(self) -> dict[str, Series]:
        """The metrics that `series` has been asked for."""
        return {}

    def series(self, name: str) -> Series:
        """The values of a metric; empty if it was never logged."""
        if name not in self.read:
            rows = [row for row in self.rows if name in row]
            values = [number(row[name]) for row in rows]
            widths = [number(row.get(name + INTERVAL)) for row in rows]
            steps = np.array([row["step"] for row in rows], dtype=np.int32)
            self.read[name] = Series(steps, np.array(values), np.array(widths))
        return self.read[name]


def number(value: Any) -> float:
    """A finite float, or nan."""
    return float(value) if type(value) in (int, float) and math.isfinite(value) else math.nan


def read_json(path: Path) -> dict[str, Any] | None:
    """The contents of a file; None if it is not there.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(text)
    except ValueError as error:  # a UnicodeDecodeError is one
        raise ValueError(f"{path} is damaged or was cut off ({error}): delete it, or restore it") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} must hold a JSON object, but holds a {type(found).__name__}: delete it, or restore it"
        )
    return found


def read_state(folder: Path) -> dict[str, Any] | None:
    """What the trainer has logged: of the finished run, or of the newest checkpoint if that has come further."""
    states = [read_json(folder / STATE)]
    checkpoints = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(checkpoints, key=lambda path: -int(path.name.split("-")[1])):
        if (path / STATE).exists() and not is_unfinished(path):
            states.append(read_json(path / STATE))
            break
    found = [state for state in states if state is not None]
    return max(found, key=lambda state: state.get("global_step") or 0, default=None)  # the first of equal ones


def read_run(folder: str | Path) -> Run:
    """Read a run.

    Raises:
        FileNotFoundError: the directory does not exist or holds no run; the message says what was looked for.
        ValueError: a file is damaged (`read_json`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no directory: name the output_dir of a run")
    state, record = read_state(folder), read_json(folder / RECORD)
    if state is None and record is None:
        raise FileNotFoundError(
            f"{folder} holds no run: there is no {STATE}, no whole checkpoint-N/{STATE} and no {RECORD} in it. Name "
            "the output_dir of a run"
        )
    return Run(folder, state or {}, record or {}, read_json(folder / SAMPLES), read_json(folder / VARIANCE))
