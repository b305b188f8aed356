"""Two processes under torchrun, of which one is killed: the run ends, says which one, and goes on exactly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from faults.report import record
from faults.runs import Ended, Run, differences, ended

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
LAUNCH += ["--rdzv_endpoint", "localhost:0", "-m", "faults.server"]
LONGEST = 240  # seconds


def launch(run: Run, rank: int = 0, **fault) -> Ended:
    """Run a command on two processes, one of which meets a fault; the events are those of the first one."""
    job = run.job(fault, rank)
    path = run.folder.with_name(f"{run.folder.name}.{run.starts}.json")
    path.write_text(json.dumps(job))
    with open(job["output"], "w") as output:
        code = subprocess.run(
            [*LAUNCH, str(path)], env=run.server.environment, stdout=output, stderr=output, timeout=LONGEST
        ).returncode
    return ended(code, Path(job["output"]).read_text(), Path(job["listing"]))


@pytest.fixture(scope="module")
def whole(prepared):
    """The uninterrupted run on two processes, and one that has not begun."""
    new = prepared("sft")[0].copy("sft_two")
    new.argv += ["--ddp_backend", "gloo", "--max_steps", "6"]
    run = new.copy("sft_two_whole")
    result = launch(run)
    assert result.code == 0, result.output
    return new, run


@pytest.mark.parametrize(("rank", "number"), [(0, 7), (1, 6)])
def test_a_run_of_two_processes_ends_when_one_is_killed_and_goes_on_exactly(whole, rank, number):
    run = whole[0].copy(f"sft_two_{rank}")
    result = launch(run, rank, kind="step", number=number)
    assert result.code == 1, result.output
    line = result.line(r"Signal 9 \(SIGKILL\) received by PID")
    assert line, result.output
    assert result.line(rf"rank      : {rank} ")
    saved = run.whole()
    again = launch(run)
    assert again.code == 0, again.output
    assert again.steps[0] == saved
    assert differences(run, whole[1]) == []
    record(f"kill -9 of process {rank} of two", line, result.steps[-1] - saved)
