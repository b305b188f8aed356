"""A disk that is full (ENOSPC) or broken (EIO) at a random moment costs a line and no checkpoint."""

import errno
import os
import random
import re

import pytest

from faults.report import record
from faults.runs import completed, differences

FAULTS = [
    ("open", errno.ENOSPC), ("write", errno.ENOSPC), ("fsync", errno.ENOSPC),
    ("open", errno.EIO), ("write", errno.EIO), ("fsync", errno.EIO), ("rename", errno.EIO), ("delete", errno.EIO),
]  # fmt: skip
TRIES = 3


@pytest.mark.parametrize("trial", range(TRIES))
@pytest.mark.parametrize(("kind", "error"), FAULTS)
def test_a_disk_that_fails_is_named_in_a_line_and_the_run_goes_on_exactly(prepared, kind, error, trial):
    """A full disk stays full until the run has ended; a broken one fails once. The moment is anywhere in the run."""
    new, whole = prepared("sft")
    many = sum(event == kind for event, _ in whole.first.events)
    number = random.Random(f"{kind} {error} {trial}").randint(1, many)
    run = new.copy(f"sft_{kind}_{error}_{trial}")
    ended = run.start(kind=kind, number=number, error=error, lasting=error == errno.ENOSPC, share=50)
    line = ended.line("Error: |cannot be")
    saved = run.whole()
    hit = [index for index, event in enumerate(ended.events) if event[0] == kind][number - 1]
    where = kind + " " + re.sub(r"[.]?[0-9]+[.]tmp|^[.]", "", ended.events[hit][1].rpartition("/")[2])
    record(f"{errno.errorcode[error]} in {kind}", line, max(ended.steps, default=0) - saved, where)
    assert "Traceback" not in ended.output, ended.output[-3000:]
    soft = where.endswith(("report.html", "README.md"))  # page and card are made after all is saved
    if kind != "delete" and not soft:  # what cannot be deleted stays, and may be no reason to stop
        assert ended.code == 1, ended.output
        # A writer of torch does not say why it failed, and a disk that failed once does not fail when it is tried.
        assert os.strerror(error) in line or (error == errno.EIO and "torch.save failed: " in line)
    assert saved >= completed(ended.events[:hit])
    again = run.start()
    assert again.code == 0, again.output
    assert not again.steps or again.steps[0] == saved
    assert differences(run, whole) == []
