"""How runs end and go on: torn checkpoints, finished runs, signals, disks that fail, a second run in one directory."""

import errno
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_model
from safetensors.torch import load_file
from test_sft import IDS, trainer
from transformers import TrainerCallback

from llada import output
from llada.errors import OutputError, RecipeError
from llada.files import flaw_of, mark_unfinished, write_manifest
from llada.output import lock, write_error, writing
from llada.training import saving
from llada.training.checkpoints import checkpoints_in, delete_old, resume_point

EVERY = dict(save_strategy="steps", save_steps=1, dtype=torch.float32)
CONSTANT = dict(lr_scheduler_type="constant", warmup_steps=0)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def equal(first, second) -> bool:
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def steps(folder) -> list[str]:
    """Names of the whole checkpoints of a run."""
    return sorted(path.name for path in checkpoints_in(folder) if flaw_of(path) is None)


def tear(path: Path, kind: str) -> None:
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif kind == "bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "gone":
        path.unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of four steps with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("whole")
    trainer(folder, max_steps=4, **EVERY).train()
    return folder


@pytest.mark.parametrize(
    ("name", "kind"), [("model.safetensors", "cut"), ("optimizer.pt", "bit"), ("rng_state.pth", "gone")]
)
def test_a_torn_newest_checkpoint_is_passed_over_and_the_end_is_the_same(tmp_path, whole, caplog, name, kind):
    """A torn optimizer file ended in a traceback of torch.load, torn weights in one of safetensors."""
    shutil.copytree(whole, tmp_path / "run")
    tear(tmp_path / "run" / "checkpoint-4" / name, kind)
    mark_unfinished(tmp_path / "run" / "checkpoint-3")
    trainer(tmp_path / "run", max_steps=4, **EVERY).train(resume_from_checkpoint=True)
    assert f"checkpoint-4 is not whole: {name}" in caplog.text
    assert "checkpoint-3 is not whole: it was not finished" in caplog.text
    assert steps(tmp_path / "run") == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert equal(tmp_path / "run" / "checkpoint-4", whole / "checkpoint-4")
    listed = json.loads((whole / "checkpoint-4" / "manifest.json").read_text())["files"]
    assert set(listed) == {path.name for path in (whole / "checkpoint-4").iterdir()} - {"manifest.json"}


def test_a_torn_path_is_replaced_by_the_newest_whole_one_before_it(tmp_path, whole, caplog):
    shutil.copytree(whole, tmp_path / "run")
    run = tmp_path / "run"
    tear(run / "checkpoint-3" / "optimizer.pt", "bit")
    assert resume_point(str(run / "checkpoint-3"), "elsewhere") == run / "checkpoint-2"
    assert resume_point(str(run / "checkpoint-4"), "elsewhere") == run / "checkpoint-4"
    assert resume_point(True, str(run)) == run / "checkpoint-4"
    with pytest.raises(RecipeError, match="checkpoint-9 is no directory"):
        resume_point(str(run / "checkpoint-9"), str(run))
    for path in checkpoints_in(run):
        tear(path / "model.safetensors", "gone")
    with pytest.raises(RecipeError, match=r"no whole checkpoint to resume from: \S+checkpoint-4 \(model.safetensors"):
        resume_point(True, str(run))
    with pytest.raises(RecipeError, match="no whole checkpoint to resume from: there is none at all"):
        resume_point(True, str(tmp_path / "empty"))


def test_checkpoints_from_before_manifests_are_used_and_said_to_be_unchecked(tmp_path, caplog):
    """Steps are compared as numbers: 10 is after 9."""
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (11, None), (12, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-best").mkdir()
    assert resume_point(True, str(tmp_path)) == tmp_path / "checkpoint-10"
    for step in (11, 12):
        assert f"checkpoint-{step} is not whole: no readable trainer_state.json" in caplog.text
    assert "checkpoint-10 has no manifest: only its trainer_state.json was checked" in caplog.text


def test_a_finished_run_trains_no_step_and_more_steps_continue_it(tmp_path, capsys):
    """The four steps of a pass, ended in its middle and at its end; each resumption trained one step more."""
    trainer(tmp_path / "whole", max_steps=6, **EVERY, **CONSTANT).train()
    for ends in ((3, 6), (4, 6)):
        run = tmp_path / str(ends[0])
        trainer(run, max_steps=ends[0], **EVERY, **CONSTANT).train()
        again = trainer(run, max_steps=ends[0], model=tiny_model(seed=9, dtype=torch.float32, **IDS), **EVERY)
        assert again.train(resume_from_checkpoint=True).global_step == ends[0]
        assert f"checkpoint-{ends[0]}: all {ends[0]} steps are done, and none is trained" in capsys.readouterr().out
        assert steps(run) == [f"checkpoint-{step}" for step in range(1, ends[0] + 1)]
        again.save_model()  # the weights are those of the run's end, as after training
        assert equal(run, run / f"checkpoint-{ends[0]}")
        trainer(run, max_steps=6, **EVERY, **CONSTANT).train(resume_from_checkpoint=True)
        assert equal(run / "checkpoint-6", tmp_path / "whole" / "checkpoint-6")


def test_more_epochs_continue_a_finished_run(tmp_path):
    epochs = dict(max_steps=-1, **EVERY, **CONSTANT)
    trainer(tmp_path / "whole", num_train_epochs=2, **epochs).train()
    trainer(tmp_path / "run", num_train_epochs=1, **epochs).train()
    done = trainer(tmp_path / "run", num_train_epochs=1, **epochs)
    assert done.train(resume_from_checkpoint=True).global_step == done.planned_steps() == 4
    trainer(tmp_path / "run", num_train_epochs=2, **epochs).train(resume_from_checkpoint=True)
    assert equal(tmp_path / "run" / "checkpoint-8", tmp_path / "whole" / "checkpoint-8")


def test_tokens_are_counted_on(tmp_path):
    """They restarted at 0."""
    whole = trainer(tmp_path / "whole", max_steps=4, **EVERY)
    whole.train()
    resumed = trainer(tmp_path / "whole", max_steps=4, **EVERY)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    counts = [[row["num_tokens"] for row in run.state.log_history if "num_tokens" in row] for run in (whole, resumed)]
    assert counts[0] == counts[1]
    assert counts[0][0] < counts[0][-1]


class SendAt(TrainerCallback):
    """Sends this process a signal in the midst of step `step` (counted from 1)."""

    def __init__(self, step: int, *numbers: int):
        self.step, self.numbers = step, numbers

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_at_the_end_of_the_step_and_the_run_goes_on_from_there(tmp_path, whole, capsys, number):
    """Also where no checkpoint was asked for. Before, SIGTERM and SIGUSR1 ended the process with nothing saved."""
    run = trainer(tmp_path, max_steps=4, dtype=torch.float32)
    run.add_callback(SendAt(2, number))
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as stopped:
        run.train()
    assert number == signal.SIGINT or stopped.value.code == 75
    assert signal.getsignal(number) is before
    assert steps(tmp_path) == ["checkpoint-2"]
    assert f"stopped by {signal.Signals(number).name} after step 2 of 4: saved in" in capsys.readouterr().err
    trainer(tmp_path, max_steps=4, **EVERY).train(resume_from_checkpoint=True)
    assert equal(tmp_path / "checkpoint-4", whole / "checkpoint-4")


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    run = trainer(tmp_path, max_steps=4, **EVERY)
    run.add_callback(SendAt(3, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert steps(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_handlers_of_a_script_stay(tmp_path):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        run = trainer(tmp_path, max_steps=2, dtype=torch.float32)
        run.add_callback(SendAt(1, signal.SIGUSR1))
        assert run.train().global_step == 2
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


BEST = dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_total_limit=1, learning_rate=10.0)


def test_a_stopped_run_keeps_its_last_checkpoint_beside_the_best(tmp_path, caplog):
    """With this rate the first step is the best. The Trainer deletes the last checkpoint when training ends."""
    rows = [{"prompt": "0: ", "completion": "some words"}] * 8
    run = trainer(tmp_path, max_steps=4, eval_dataset=rows, **EVERY, **BEST)
    run.add_callback(SendAt(3, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run.train()
    assert steps(tmp_path) == ["checkpoint-1", "checkpoint-3"]
    assert not [row for row in run.state.log_history if row["step"] == 3 and "eval_loss" in row]  # there was no time
    tear(tmp_path / "checkpoint-1" / "model.safetensors", "cut")
    resumed = trainer(tmp_path, max_steps=4, eval_dataset=rows, **EVERY, **BEST)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-1, the best checkpoint, is not whole: model.safetensors has" in caplog.text
    resumed.save_model()
    assert equal(tmp_path, tmp_path / "checkpoint-4")


def make(folder: Path, *whole: int, begun: int | None = None) -> Path:
    for step in whole:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        write_manifest(folder / f"checkpoint-{step}")
    if begun is not None:
        mark_unfinished(folder / f"checkpoint-{begun}")
    return folder


def test_old_checkpoints_are_deleted_and_unfinished_ones_do_not_count(tmp_path):
    """One that was begun at a later step took the place of a whole one."""
    run = make(tmp_path / "a", 1, 2, 3, 9, 10, begun=12)
    delete_old(run, 2, [run / "checkpoint-10"])
    assert {path.name for path in run.iterdir()} == {"checkpoint-9", "checkpoint-10"}
    run = make(tmp_path / "b", 1, 2, 3)
    delete_old(run, 1, [run / "checkpoint-3", run / "checkpoint-1"])  # the newest and the best
    assert {path.name for path in run.iterdir()} == {"checkpoint-1", "checkpoint-3"}
    delete_old(run, None, [run / "checkpoint-3"])
    assert len(steps(run)) == 2


def test_a_run_that_was_killed_before_it_deleted_old_checkpoints_does_so_when_it_goes_on(tmp_path, whole):
    """One more than `save_total_limit` stayed for ever."""
    shutil.copytree(whole, tmp_path / "run")
    trainer(tmp_path / "run", max_steps=4, save_total_limit=2, **EVERY).train(resume_from_checkpoint=True)
    assert steps(tmp_path / "run") == ["checkpoint-3", "checkpoint-4"]


def test_what_killed_runs_left_half_written_is_deleted_and_nothing_else(tmp_path):
    """A kill while the last old checkpoint was deleted left it under a hidden name for ever."""
    for name in (".checkpoint-2.77.tmp", ".checkpoint-4.77.old.tmp", ".model.tmp", ".mine.tmp", "x.77.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    for name in (".manifest.json.77.tmp", ".mine.json.tmp"):
        (tmp_path / name).touch()
    trainer(tmp_path, max_steps=1, dtype=torch.float32).train()
    assert {path.name for path in tmp_path.iterdir()} == {".mine.tmp", "x.77.tmp", ".mine.json.tmp", ".run.lock"}


def test_an_older_checkpoint_is_deleted_only_when_the_next_one_is_whole(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=2, save_total_limit=1, **EVERY)

    def full(folder, names=None):
        if Path(folder).name == "checkpoint-2":
            assert steps(tmp_path) == ["checkpoint-1"]
            raise OSError(errno.ENOSPC, "No space left on device")
        write_manifest(folder, names)

    monkeypatch.setattr(saving, "write_manifest", full)
    with pytest.raises(OutputError, match=r"checkpoint-2 cannot be written: No space left on device\. Checkpoints"):
        run.train()
    assert steps(tmp_path) == ["checkpoint-1"]
    assert flaw_of(tmp_path / "checkpoint-2") == "it was not finished"


class FileLimit(TrainerCallback):
    """From the second step on, files of this process may have `size` bytes at most: writing more fails as a full disk.

    The system's error is another, EFBIG; libraries meet it in the same calls.
    """

    def __init__(self, size: int):
        self.size = size

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [4096, 150_000])
def test_a_disk_that_fails_is_named_in_a_line_and_the_partial_checkpoint_is_gone(tmp_path, size):
    """Sizes at which the weights (safetensors) and the optimizer (torch.save) do not fit."""
    run = trainer(tmp_path, max_steps=3, **EVERY)
    run.add_callback(FileLimit(size))
    saved = sum(parameter.nbytes for parameter in run.model.parameters())
    assert 4096 < saved < 150_000 < 2 * saved
    try:
        with pytest.raises(OutputError, match=r"checkpoint-2 cannot be written: File too large\. Checkpoints that"):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert steps(tmp_path) == ["checkpoint-1"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", ".run.lock"}


CAUSES = [
    (OSError(errno.ENOSPC, "x"), "No space left on device"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device"),  # safetensors
    (Exception("Input/output error (os error 5)"), "Input/output error"),  # tokenizers raises a bare Exception
    (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 5312 vs 5204"), "torch.save failed: .*"),
    (RuntimeError("basic_ios::clear: iostream error"), "torch.save failed: .*"),
    (RuntimeError("x] . open file failed with strerror: No space left on device"), "No space left on device"),
    (RuntimeError("a bug"), None),
    (ValueError("unexpected pos"), None),
    (OSError("x is not a local folder"), None),
]


@pytest.mark.parametrize(("error", "expected"), CAUSES)
def test_the_cause_of_a_failed_write_is_found(tmp_path, error, expected):
    found = write_error(error, tmp_path / "not" / "there")
    assert found == expected if expected is None else re.fullmatch(expected, found)
    followed = RuntimeError("unexpected pos 5312 vs 5204")
    followed.__context__ = OSError(errno.EROFS, "x")
    assert write_error(followed, tmp_path) == "Read-only file system"
    assert list(tmp_path.iterdir()) == []  # nothing is left of the file that was tried


def test_an_error_of_another_kind_passes_unchanged(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path, "x"):
        raise KeyError("a")


HOLD = """
import sys, time
from llada.output import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_in_a_directory_is_refused_until_the_first_has_ended_however(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        run = trainer(tmp_path, max_steps=1, dtype=torch.float32)
        with pytest.raises(OutputError, match=rf"is in use by another run \(process {other.pid} on "):
            run.train()
        other.kill()
        other.wait()
    run.train()
    with lock(tmp_path), lock(tmp_path):
        assert output.held
    assert not output.held


def test_a_directory_that_cannot_be_made_is_named_before_anything_starts(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/run cannot be written: Not a directory\. Nothing was started"):
        trainer(tmp_path / "file" / "run", max_steps=1, dtype=torch.float32).train()


def test_a_saved_model_lists_its_files_and_replaces_those_of_the_one_before(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=1, dtype=torch.float32)
    (tmp_path / "README.md").write_text("mine")
    run.save_model()
    listed = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} < set(listed)
    assert "README.md" not in listed
    assert (tmp_path / "README.md").read_text() == "mine"
    before = weights(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    write_manifest(tmp_path, [*listed, "model-00002-of-00002.safetensors"])
    with torch.no_grad():
        next(run.model.parameters()).add_(1.0)

    def full(new, folder):
        raise OSError(errno.ENOSPC, "x")

    with monkeypatch.context() as broken:
        broken.setattr(saving, "take_over", full)
        with pytest.raises(OutputError, match=r"cannot be written: No space left on device"):
            run.save_model()
    assert flaw_of(tmp_path) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path).items())
    run.save_model()
    assert flaw_of(tmp_path) is None
    assert not equal(tmp_path, tmp_path) or not torch.equal(
        *(x["model.transformer.wte.weight"] for x in (before, weights(tmp_path)))
    )
    assert not (tmp_path / "model-00002-of-00002.safetensors").exists()


def test_a_manifest_cannot_name_files_outside(tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").touch()
    (tmp_path / "run" / "manifest.json").write_text('{"files": {"../precious": {"size": 0, "xxh3_128": ""}}}')
    assert flaw_of(tmp_path / "run") == "manifest.json is damaged"
    with caplog.at_level(logging.ERROR):
        trainer(tmp_path / "run", max_steps=1, dtype=torch.float32).save_model()
    assert (tmp_path / "precious").exists()


WORKER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from test_ends import SendAt
from test_sft import trainer
run = trainer({out!r}, torch.float32, max_steps=4, per_device_train_batch_size=4, ddp_backend="gloo",
              save_strategy="steps", save_steps=1, save_total_limit=1)
if run.args.process_index == 1:
    run.add_callback(SendAt(2, signal.SIGUSR1))
run.train(**{how!r})
"""


def test_two_processes_stop_together_when_one_gets_a_signal(tmp_path, capfd):
    """They exit with 75 after the same step; all files of both are in the manifest; the run goes on to its end."""

    def launch(**how):
        (tmp_path / "worker.py").write_text(
            WORKER.format(tests=str(ROOT / "tests"), out=str(tmp_path / "run"), how=how)
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
        command += ["--rdzv_endpoint", "localhost:0", str(tmp_path / "worker.py")]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

    first = launch()
    assert "stopped by SIGUSR1 after step 2 of 4" in first.stderr, first.stderr[-3000:]
    assert "exitcode  : 75" in first.stderr
    assert steps(tmp_path / "run") == ["checkpoint-2"]
    listed = json.loads((tmp_path / "run" / "checkpoint-2" / "manifest.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "scheduler.pt", "trainer_state.json"} < set(listed)
    second = launch(resume_from_checkpoint=True)
    assert second.returncode == 0, second.stderr[-3000:]
    assert steps(tmp_path / "run") == ["checkpoint-4"]
