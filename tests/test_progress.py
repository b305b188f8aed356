"""What a run shows while it trains: lines in a file, a bar in a terminal; and the groups of its trackers' metrics."""

import io
import json
import logging
import re
import sys

import pytest
import test_sft
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_record import run_of
from transformers.integrations import integration_utils

from llada.record.tables import COLUMNS, log_table, rows_of
from llada.training import trackers
from llada.training.progress import Progress, evaluation_of, numbers_of

LINE = {
    "loss": 0.69312, "rewards/margins": 0.0123, "rewards/accuracies": 0.5625, "throughput/pairs_per_second": 5.25,
    "score/variance": 1.0, "learning_rate": 1e-4,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class State:
    is_world_process_zero, max_steps, global_step = True, 37, 0


def shown(monkeypatch, lines, out=None, err=None) -> Progress:
    """A run of 37 steps that logs some lines, one a step; 2 s a step."""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("llada.training.progress.time.perf_counter", lambda: float(next(clock)))
    for name, stream in (("stdout", out), ("stderr", err)):
        if stream is not None:
            monkeypatch.setattr(sys, name, stream)
    progress, state = Progress(), State()
    progress.on_train_begin(None, state, None)
    for step, logs in enumerate(lines, 1):
        progress.on_step_begin(None, state, None)
        state.global_step = step
        progress.on_step_end(None, state, None)
        progress.on_log(None, state, None, logs=logs)
    return progress


def test_a_log_file_has_one_line_for_each_log_line(monkeypatch, capsys):
    evaluated = {"eval_loss": 0.6543, "eval_rewards/margins": 0.2, "eval_score/variance": 1.0, "eval_runtime": 2.0}
    lines = [LINE, evaluated, {"eval_timestep/0.05": 1.0}, {"eval_tiny/acc": 0.25}, {"train_runtime": 75.0}]
    shown(monkeypatch, lines).on_train_end(None, State(), None)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "step 1/37  loss 0.693  margin 0.0123  accuracy 0.562  pairs/s 5.25  01:12 left",
        "step 2/37  evaluation: loss 0.654  margin 0.2",
        "step 4/37  evaluation: tiny/acc 0.25",
        "step 5/37  5 steps in 01:15",
    ]
    assert captured.err == ""


def test_a_terminal_has_a_bar_with_warnings_above_it(monkeypatch):
    """Both streams in one terminal: the numbers stand in the bar, and a warning on a line of its own."""
    terminal = Terminal()
    progress = shown(monkeypatch, [LINE], terminal, terminal)
    logging.getLogger("llada.test").warning("the loss has risen")
    progress.training_bar.refresh()
    progress.on_train_end(None, State(), None)
    text = terminal.getvalue()
    assert re.search(r"\r[^\r\n]*1/37[^\r\n]*loss=0\.693, margin=0\.0123, accuracy=0\.562, pairs/s=5\.25", text)
    assert re.search(r"(^|\r)the loss has risen\n", text)
    assert "step 1/37" not in text
    assert not any(type(handler).__name__ == "_TqdmLoggingHandler" for handler in logging.root.handlers)


def test_a_redirected_output_has_lines_beside_the_bar(monkeypatch):
    file, terminal = io.StringIO(), Terminal()
    shown(monkeypatch, [LINE], file, terminal).on_train_end(None, State(), None)
    assert file.getvalue().startswith("step 1/37  loss 0.693")
    assert "1/37" in terminal.getvalue()


def test_other_processes_show_nothing(monkeypatch, capsys):
    monkeypatch.setattr(State, "is_world_process_zero", False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = shown(monkeypatch, [LINE])
    progress.on_train_end(None, State(), None)
    assert capsys.readouterr().out == sys.stderr.getvalue() == ""


def test_names_of_the_numbers_that_are_shown():
    assert numbers_of({"loss": 1.0, "throughput/rows_per_second": 12.3456}) == {"loss": "1", "rows/s": "12.3"}
    assert evaluation_of({"eval_a_loss": 1.0, "eval_a_bits_per_byte": 2.0, "eval_a_runtime": 3.0, "epoch": 1}) == {
        "a_loss": "1", "a_bits_per_byte": "2",
    }  # fmt: skip


# Trackers

NAMES = {
    "loss": "train/loss",
    "rewards/margins": "train/rewards/margins",
    "score/variance": "estimator/score/variance",
    "noise/between": "estimator/noise/between",
    "loss/bias": "estimator/loss/bias",
    "masked_fraction": "estimator/masked_fraction",
    "eval_loss": "eval/loss",
    "eval_score/saturated": "estimator/eval/score/saturated",
    "eval_timestep/0.05": "timestep/0.05",
    "eval_timestep_chosen/0.95": "timestep_chosen/0.95",
}


def test_metrics_of_the_estimator_have_a_group_of_their_own():
    before = integration_utils.rewrite_logs
    with trackers.estimator_grouped():
        assert integration_utils.rewrite_logs(dict.fromkeys(NAMES, 1.0)) == dict.fromkeys(NAMES.values(), 1.0)
    assert integration_utils.rewrite_logs is before
    with pytest.raises(ZeroDivisionError), trackers.estimator_grouped():
        1 / 0  # noqa: B018
    assert integration_utils.rewrite_logs is before


def test_tensorboard_has_the_groups_and_the_samples(tmp_path):
    run_of(tmp_path, "pairs", max_steps=1, eval_strategy="no", report_to="tensorboard", logging_first_step=True).train()
    (file,) = tmp_path.rglob("events.out.*")
    found = EventAccumulator(str(file), size_guidance={"tensors": 0}).Reload()
    scalars = set(found.Tags()["scalars"])
    assert {"train/loss", "estimator/score/variance", "estimator/masked_fraction"} <= scalars
    assert {"timestep_chosen/0.95", "timestep_rejected/0.95"} <= scalars
    assert not [name for name in scalars if name.startswith("train/") and ("score" in name or "bias" in name)]
    samples = [name for name in found.Tags()["tensors"] if name.startswith("samples/")]
    assert samples == [f"samples/{k}/text_summary" for k in range(4)]
    (text,) = found.Tensors(samples[0])
    shown = text.tensor_proto.string_val[0].decode()
    assert text.step == 1
    assert re.search(r"^prompt\n\n    0\? \n\nbefore\n\n    .*\n\ngiven\n\n    yes$", shown, re.S)


@pytest.mark.slow  # it starts a process of its own
def test_wandb_has_the_groups_and_a_table(tmp_path, monkeypatch):
    """Offline, in its own process's files: what would be sent to the server."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = []
    run = run_of(tmp_path, "pairs", max_steps=1, eval_strategy="no", report_to="wandb")
    log = wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda run, data, *rest, **kw: (logged.append(data), log(run, data, *rest, **kw))
    )
    try:
        run.train()
        summary = dict(wandb.run.summary)
    finally:
        wandb.finish()
    names = {name for data in logged for name in data}
    assert {"train/loss", "estimator/score/variance", "timestep_chosen/0.95"} <= names
    (table,) = [data["samples"] for data in logged if "samples" in data]
    assert table.columns == list(COLUMNS)
    assert table.data == rows_of(json.loads((tmp_path / "samples.json").read_text())["samples"])
    assert summary["samples"]["_type"] == "table-file"
    (file,) = tmp_path.rglob("*/media/table/samples*.json")
    assert json.loads(file.read_text())["columns"] == list(COLUMNS)


def test_trackio_gets_a_table(tmp_path):
    """By its documentation only, with a stand-in: the package is not installed here and was never run."""
    calls = []

    class Trackio:
        Table = staticmethod(lambda dataframe: dataframe)
        log = staticmethod(calls.append)

    callback = object.__new__(integration_utils.TrackioCallback)
    callback._trackio, callback._initialized = Trackio, True
    answers = [{"prompt": "p", "answer": "a", "given": None}], [{"prompt": "p", "answer": "b", "given": None}]
    log_table([callback], [{"step": step, "answers": each} for step, each in zip((0, 7), answers, strict=True)], 7)
    (logged,) = calls
    assert logged["train/global_step"] == 7
    assert logged["samples"].to_dict("records") == [{"prompt": "p", "before": "a", "after": "b", "given": ""}]


@pytest.mark.slow
def test_a_run_in_a_pipe_prints_lines(tmp_path, capsys):
    run = run_of(tmp_path, disable_tqdm=False, eval_dataset=Dataset.from_list(test_sft.PAIRS[:4]))
    run.train()
    captured = capsys.readouterr()
    steps = [line for line in captured.out.splitlines() if line.startswith("step")]
    assert len([line for line in steps if "loss" in line]) == 4  # two steps and two evaluations
    assert "it/s]" not in captured.err.split("tokenizing")[-1]
