"""Training that is killed with -9 at random moments goes on by the same command and ends in the same bytes."""

import random
import signal

import pytest

from faults.report import record
from faults.runs import EVERY, STEPS, completed, differences, moment

KILLS = {"sft": 30, "align": 30, "adapters": 10}


@pytest.mark.parametrize("name", KILLS)
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(prepared, name):
    """One run after another, each killed until it comes to its end, until there were enough kills."""
    new, whole = prepared(name)
    chance, kills, runs = random.Random(f"kills of {name}"), 0, 0
    while kills < KILLS[name]:
        run, saved, runs = new.copy(f"{name}_killed_{runs}"), 0, runs + 1
        while True:
            ended = run.start(**moment(chance, kills, whole.first, STEPS // EVERY))
            if ended.steps:
                assert ended.steps[0] == saved, "it did not begin at the newest whole checkpoint"
            if ended.code != -signal.SIGKILL:
                break  # also where the moment did not come any more
            kills += 1
            before, saved = saved, run.whole()
            assert saved >= max(before, completed(ended.events)), "a whole checkpoint was lost"
            done = ended.steps[-1] if ended.steps else before
            # The checkpoint before the last one is whole, as a save waits for it.
            assert done - saved < 2 * EVERY + 1
            record(f"kill -9 of {name}", "", max(0, done - saved), ended.cut_off_at)
        assert ended.code == 0, ended.output
        assert differences(run, whole) == []
