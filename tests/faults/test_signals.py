"""SIGTERM and SIGUSR1 in a step, and at any moment."""

import random
import signal

import pytest

from faults.report import record
from faults.runs import differences

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}


@pytest.mark.parametrize("number", [2, 7, 13, 20])
@pytest.mark.parametrize("by", NAMES)
def test_a_signal_in_a_step_saves_at_its_end(prepared, by, number):
    new, whole = prepared("sft")
    run = new.copy(f"sft_{NAMES[by]}_{number}")
    ended = run.start(kind="step", number=number, signals=[by])
    assert ended.code == 75, ended.output
    line = ended.line(f"^stopped by {NAMES[by]} after step ")
    done = ended.steps[-1] + 1
    assert f"after step {done} of 12: saved in run/checkpoint-{done}" in line
    assert run.whole() == done
    again = run.start()
    assert again.code == 0, again.output
    assert again.steps[0] == done
    assert [name for name in differences(run, whole) if f"checkpoint-{done}/" not in name] == []
    record(f"{NAMES[by]} in a step", line, 0)


@pytest.mark.parametrize("trial", range(5))
def test_sigterm_at_any_moment_loses_nothing_that_was_saved(prepared, trial):
    """Before training and after it, the signal ends the process as it ends any other."""
    new, whole = prepared("sft")
    run = new.copy(f"sft_terminated_{trial}")
    ended = run.start(after=random.Random(f"terminated {trial}").uniform(0.1, 1.5), by=signal.SIGTERM)
    assert ended.code in (75, -signal.SIGTERM, 0), ended.output
    saved = run.whole()
    again = run.start()
    assert again.code == 0, again.output
    assert not again.steps or again.steps[0] == saved
    stopped = f"checkpoint-{saved}/" if saved % 2 else " "
    assert [name for name in differences(run, whole) if stopped not in name] == []
    lost = ended.steps[-1] + (ended.code == 75) - saved if ended.steps else 0
    record("SIGTERM at any moment", ended.line("^stopped by") or f"(exit code {ended.code})", lost)
