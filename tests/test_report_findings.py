"""Findings: what the page of a run says in words, from logs that were made for each of them."""

import math

import numpy as np
import pytest
import report_runs
from test_report import run_of

from vrpo.report.findings import CALM, findings_of, reliability_of_lines


def lines(values: dict, count: int = 40, **more) -> list[dict]:
    """Log lines after warm-up whose metrics are functions of the part of the run that is done."""
    return [
        {"step": 20 + step, "loss": 0.5} | more | {name: value(step / count) for name, value in values.items()}
        for step in range(1, count + 1)
    ]


def wave(done: float) -> float:
    return 0.2 * math.sin(60 * done)


CALM_RUN = {"rewards/chosen": lambda done: 0.2, "logps/chosen": lambda done: -40.0}
GROWING = CALM_RUN | {"rewards/margins": lambda done: 0.5 + done + wave(done), "rewards/accuracies": lambda done: 0.7}
EVALUATIONS = [
    {"step": 20 + step, "eval_loss": loss, "eval_rewards/margins": margin, "eval_rewards/margins_ci95": 0.2,
     "eval_rewards/accuracies": 0.6}
    for step, loss, margin in ((0, 0.7, 0.0), (20, 0.5, 0.5), (40, 0.6, 0.1))
]  # fmt: skip
CASES = {
    "calm": (lines(GROWING), {}, {CALM: "The margin is"}),
    "nothing learned": (lines(GROWING | {"rewards/margins": wave}), {}, {"Nothing is learned yet": "noise of 0"}),
    "collapsed": (
        lines(GROWING | {"rewards/margins": lambda done: (2.0 if done < 0.5 else 0.1) + wave(done) / 10}), {},
        {"The margin has collapsed": "after 2"},
    ),
    "fallen and recovered": (
        lines(GROWING | {"rewards/chosen": lambda done: -3.5 if done < 0.5 else 0.5}), {},
        {"The chosen answers fall": "Later log lines no longer show it",
         "The policy is far from its reference": "Later log lines no longer show it"},
    ),
    "chosen fall": (
        lines(GROWING | {"rewards/chosen": lambda done: -4.1}), {},
        {"The chosen answers fall": "20.5 nats", "The policy is far from its reference": "bound that was -19.5"},
    ),
    "chosen sink": (
        lines(GROWING | {"rewards/chosen": lambda done: -0.4, "rewards/rejected": lambda done: -1.0}), {},
        {"Chosen answers have become less likely": "rejected answers fall faster"},
    ),
    "saturated": (lines(GROWING, **{"score/saturated": 0.6}), {}, {"The rewards are saturated": "60% of the pairs"}),
    "low rate": (lines(GROWING), {"learning_rate": 5e-7}, {"The learning rate is too low for adapters": "5e-07"}),
    "held out": (
        lines(GROWING) + EVALUATIONS, {},
        {"The held-out margin is within its noise of 0": "0.1 ±", "Evaluation is worse than before": "after 0.5 at"},
    ),
    "noisy": (lines(GROWING, **{"score/variance": 1.5}), {}, {"The scores are too noisy for beta": "move"}),
    "best kept": (
        lines(GROWING) + EVALUATIONS, {"load_best_model_at_end": True},
        {"Evaluation is worse than before": "0.6 at step 60", "The held-out margin is within its noise of 0": ""},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_findings_say_what_the_log_shows(tmp_path, case):
    log, options, expected = CASES[case]
    run = run_of(tmp_path, log, 60, run=report_runs.record(tmp_path, "VRPOTrainer", **options))
    found = {each.title: each for each in findings_of(run)}
    assert set(found) - {"What has gone well", CALM} == set(expected) - {CALM}
    assert (CALM in found) == all(each.level != "warning" for each in found.values())
    assert all(words in found[title].what for title, words in expected.items())
    assert all(each.advice for each in found.values() if each.level == "warning")


def test_sft_and_runs_without_a_record(tmp_path):
    log = [{"step": step, "loss": 9.0 if step > 20 else 5.0} for step in range(1, 41)]
    titles = {each.title: each for each in findings_of(run_of(tmp_path, log))}
    assert titles.keys() == {"The loss has risen", "What was run is not known"}
    assert titles["The loss has risen"].where == "from step 30 on, and still at step 40"
    stopped = run_of(tmp_path, log[:20], 40, run=report_runs.record(tmp_path, "MaskedDiffusionTrainer"))
    stopped.state["global_step"] = 30
    stopped.rows.extend({"step": step, "loss": 5.0} for step in range(21, 31))
    assert [each.title for each in findings_of(stopped)] == ["The run is not finished", CALM]


def test_a_run_of_few_lines_is_not_called_healthy(tmp_path):
    """Warm-up has 20 steps; 9 lines after it are one less than the rules judge."""
    record = report_runs.record(tmp_path, "VRPOTrainer")
    few, enough = (run_of(tmp_path / str(count), lines(GROWING, count), 60, run=record) for count in (9, 10))
    assert [each.title for each in findings_of(few)] == ["Too few log lines to judge", "What has gone well"]
    assert "9 lines after its warm-up" in findings_of(few)[0].what
    assert [each.title for each in findings_of(enough)] == [CALM]


def test_the_reliability_estimated_from_log_lines():
    """Scores of mean 1 and variance 1 (S = 2) and noise of variance 2 have reliability 1/2; 16 pairs in a line."""
    rng = np.random.default_rng(0)
    exact = 1 + rng.normal(size=(5000, 16))
    margins = (exact + 2**0.5 * rng.normal(size=(5000, 16))).mean(1) + np.linspace(0, 1e-3, 5000)
    drawn = 16 * 3 / 16 + 1  # S + V
    # d(1 - V / D) = V / D^2 dD, and D's noise is that of 16 times a variance with relative error sqrt(3 / N)
    error = 2 / drawn**2 * 3 * math.sqrt(3 / 5000)
    assert abs(reliability_of_lines(margins, 2.0, 16) - 0.5) < 4 * error
