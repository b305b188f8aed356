"""Where the time of a run goes: phases, which add up to the time between two log lines.

Time is cut at the points where one phase ends and the next begins. A GPU works later than Python calls it: there, the
points are CUDA events in its stream, which are read when a log line is due, so that nothing waits for the GPU before.
Work of the CPU that the GPU does not wait for, such as data that is loaded early enough, then has no share.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

REFERENCE, POLICY, DATA, OTHER, EVALUATION = "reference", "policy", "data", "other", "evaluation"
PHASES = (REFERENCE, POLICY, DATA, OTHER)  # an evaluation is left out: its time is no part of a rate or a share
KEPT = 1000  # points in time that are kept; the older half is long past by then, so that reading it does not wait


class HostClock:
    """Points in time of this process."""

    def now(self) -> Any:
        return time.perf_counter()

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one point to another."""
        return end - start


class CudaClock(HostClock):
    """Points in time of a GPU: when it has done what was called before."""

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000


def clock_of(device: torch.device) -> HostClock:
    """The clock of a device: events of a CUDA device, and this process's own clock for all others."""
    return CudaClock() if device.type == "cuda" else HostClock()


class Stopwatch:
    """Seconds of each phase, from the beginning of the first one."""

    def __init__(self, clock: HostClock):
        self.clock, self.phase_now = clock, OTHER
        self.begins: list[tuple[Any, str]] = []  # when a phase begins, and its name
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase, inside of which another one has its time for itself; an evaluation keeps all of it."""
        outer = self.phase_now
        self.begin(outer if outer == EVALUATION else name)
        try:
            yield
        finally:
            self.begin(outer)

    def begin(self, name: str) -> None:
        self.phase_now = name
        self.begins.append((self.clock.now(), name))
        if len(self.begins) > KEPT:
            self.add_up(KEPT // 2)

    def add_up(self, number: int) -> None:
        """Turn the oldest points into seconds."""
        for (start, name), (end, _) in pairwise(self.begins[: number + 1]):
            self.seconds[name] += self.clock.between(start, end)
        del self.begins[:number]

    def lap(self) -> dict[str, float]:
        """The seconds of each phase since the last call."""
        self.begin(self.phase_now)
        self.add_up(len(self.begins) - 1)
        seconds, self.seconds = self.seconds, defaultdict(float)
        return seconds
