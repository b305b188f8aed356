"""The sizes of the quickstart's full and short runs, and the threads that it computes with."""

import os
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Size:
    """How much a run of the quickstart does.

    figures: the figures that operands are written with; None for all. draws: n of the score. short: the short run.
    """

    short: bool
    figures: str | None
    demonstrations: int
    sft_steps: int
    sft_batch: int
    pair_prompts: int
    vrpo_steps: int
    vrpo_batch: int
    vrpo_rate: float
    held_out: int
    samples: int = 4
    draws: int = 4
    control_batch: int = 64

    @property
    def forwards(self) -> int:
        """Sequences that the control gets: chosen and rejected, `draws` of each, three times.

        VRPO forwards them twice, through policy and reference; until 2026-11 each draw was forwarded once more.
        """
        return self.vrpo_steps * self.vrpo_batch * 2 * self.draws * 3


FULL = Size(
    short=False, figures=None, demonstrations=40_000, sft_steps=3000, sft_batch=96, pair_prompts=1000, vrpo_steps=60,
    vrpo_batch=32, vrpo_rate=5e-5, held_out=1000,
)  # fmt: skip
# Sums of ten figures take thousands of steps to learn, sums of four a few hundred.
SHORT = Size(
    short=True, figures="2468", demonstrations=20_000, sft_steps=520, sft_batch=64, pair_prompts=200, vrpo_steps=24,
    vrpo_batch=16, vrpo_rate=1e-4, held_out=200,
)  # fmt: skip

MOST_THREADS = 4  # the model is small, and more threads would mostly wait for each other


def set_threads() -> int:
    """Let torch use the cores that no other process is using, at least one; return how many.

    A thread that waits for a busy core holds up all others, many times in a step. OMP_NUM_THREADS stands if it is set.
    The load of the last minute would count what has just ended, such as the first half of `make quickstart`.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        busy = round(sum(psutil.cpu_percent(0.5, percpu=True)) / 100)  # of all cores, over half a second
        torch.set_num_threads(max(1, min(cores - busy, torch.get_num_threads(), MOST_THREADS)))
    return torch.get_num_threads()
