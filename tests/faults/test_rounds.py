"""Rounds of `iterate.py` that are killed with -9 at random moments go on by the same command to the same bytes."""

import random
import signal

from faults.report import record
from faults.runs import differences, moment

KILLS = 30
STARTS = 8  # about as many starts does one run of two rounds take


def test_rounds_that_are_killed_again_and_again_end_in_the_same_bytes(prepared):
    new, whole = prepared("iterate")
    chance, kills, runs = random.Random("kills of iterate"), 0, 0
    while kills < KILLS:
        run, runs = new.copy(f"iterate_killed_{runs}"), runs + 1
        while (ended := run.start(**moment(chance, kills, whole.first, STARTS))).code == -signal.SIGKILL:
            kills += 1
            record("kill -9 of iterate", "", 0, ended.cut_off_at)
        assert ended.code == 0, ended.output
        assert differences(run, whole) == []
