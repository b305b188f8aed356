"""What the page of a run states: means that are compared, lines that are judged, intervals, and how a run ended."""

import math
import sys
from types import SimpleNamespace

import pytest
import report_runs
from test_report import run_of
from test_report_findings import GROWING, lines
from transformers import TrainerState, TrainingArguments

from llada.training import warnings
from vrpo.report.estimator import measured
from vrpo.report.findings import fallen, findings_of, judged_lines
from vrpo.report.headline import ending_of, final
from vrpo.report.judging import pairs_per_line
from vrpo.report.reading import Run


def found_in(run: Run) -> dict:
    return {each.title: each for each in findings_of(run)}


def preference(tmp_path, log, **options) -> Run:
    return run_of(tmp_path, log, 60, run=report_runs.record(tmp_path, "VRPOTrainer", **options))


def test_a_loss_has_fallen_if_the_stated_means_have(tmp_path):
    def said(losses) -> str:
        log = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
        return fallen(run_of(tmp_path, log).series("loss").finite, "loss")

    assert said([2.0] + [2.5] * 18 + [1.9]) == ""  # the last line is the lowest, the mean of the last ten is not
    assert said([2.0, 2.2] * 5 + [1.0, 1.2] * 5) == (
        "The loss fell from 2.1 to 1.1 (means of the first and of the last 10 log lines)."
    )
    assert said([2.0]) == ""


def test_a_line_is_judged_but_for_its_bad_values_and_losses_that_are_not_finite_are_said(tmp_path):
    log = [{"step": step, "loss": 9.0 if step > 20 else 5.0, "note": "text"} for step in range(1, 41)]
    run = run_of(tmp_path, log)
    assert "The loss has risen" in found_in(run)
    for row in run.rows[30:35]:
        row["loss"] = math.nan
    run = Run(run.folder, run.state)
    assert found_in(run)["The loss is not finite"].what == (
        "The loss of 5 of 40 log lines is no finite number, first at step 31."
    )
    assert judged_lines(run) == 35


def test_a_verdict_that_had_gone_begins_anew(tmp_path):
    losses = [5.0] + [9.0] * 12 + [5.0] * 10 + [9.0] * 12
    log = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    assert found_in(run_of(tmp_path, log))["The loss has risen"].where == "from step 33 on, and still at step 40"


@pytest.mark.parametrize(
    ("value", "half", "title"),
    [
        (0.0005, 0.0001, "The held-out margin is negligible"),
        (0.0101, 0.01, "What has gone well"),
        (0.0099, 0.01, "The held-out margin is within its noise of 0"),
        (-0.2, 0.1, "The held-out margin is below 0"),
    ],
)
def test_a_held_out_margin_is_judged_by_the_interval_that_is_shown(tmp_path, value, half, title):
    end = {"step": 60, "eval_rewards/margins": value, "eval_rewards/margins_ci95": half, "eval_rewards/accuracies": 0.6}
    found = found_in(preference(tmp_path, [{"step": 60, "rewards/margins": 1.0, "rewards/accuracies": 0.6}, end]))
    held_out = {each for each in found if each.startswith(("The held-out", "What has gone"))}
    assert held_out == {title}


@pytest.mark.parametrize(
    ("options", "title", "factor"),
    [
        ({}, "The scores are too noisy for beta", True),
        ({"estimator": "naive_dpo"}, "Most of the scores is noise", False),
        ({"loss_type": ["ipo"]}, "Most of the scores is noise", False),
    ],
)
def test_noise_is_a_larger_beta_for_shared_masks_and_the_sigmoid_loss_only(tmp_path, options, title, factor):
    run = preference(tmp_path, lines(GROWING, **{"score/variance": 1.5}), **options)
    noisy = found_in(run)[title]
    assert ("acts like a beta" in noisy.what) == factor


def test_the_best_checkpoint_was_kept_only_if_it_is_the_best_by_loss(tmp_path):
    log = [{"step": step, "eval_loss": loss} for step, loss in ((20, 0.5), (60, 0.9))]
    advice = {
        metric: found_in(
            preference(tmp_path, log, load_best_model_at_end=True, metric_for_best_model=metric)
        )["Evaluation is worse than before"].advice
        for metric in ("loss", "rewards/accuracies")
    }  # fmt: skip
    assert "has kept the best" in advice["loss"]
    assert "has kept the best" not in advice["rewards/accuracies"]
    run = preference(tmp_path, [*log, {"step": 60, "eval_loss": 0.5}], load_best_model_at_end=True)
    run.state["best_global_step"] = 20
    assert final(run, "loss")[2] == "held out, step 20"


def test_an_interval_of_training_lines_is_student_s_and_needs_five(tmp_path):
    """1 to 5 have mean 3 and variance 2.5; Student's quantile of four degrees of freedom is 2.7764."""
    log = [{"step": step, "loss": float(step)} for step in range(1, 6)]
    mean, half, of = final(run_of(tmp_path, log), "loss")
    assert (mean, of) == (3.0, "training, last 5 log lines")
    assert half == pytest.approx(2.776445 * math.sqrt(2.5 / 5))
    assert math.isnan(final(run_of(tmp_path, log[:4]), "loss")[1])


def test_pairs_of_a_line_are_not_known_without_a_number_of_steps_between_lines(tmp_path):
    assert pairs_per_line(preference(tmp_path, [], logging_strategy="steps")) == 64
    assert pairs_per_line(preference(tmp_path, [], logging_strategy="epoch")) is None
    for strategy, pairs in (("steps", 80), ("epoch", None)):
        args = TrainingArguments(str(tmp_path), use_cpu=True, logging_strategy=strategy)
        state = TrainerState(max_steps=10, logging_steps=10)
        assert warnings.settings_of(args, state, SimpleNamespace()).pairs == pairs


def test_epochs_are_those_that_passed_and_a_stream_has_none(tmp_path):
    run = preference(tmp_path, report_runs.preference_log(report_runs.np.random.default_rng(0), 60))
    assert any("and 3 epochs" in each for each in measured(run).sentences)
    run.state["num_train_epochs"] = sys.maxsize
    assert not any("epoch" in each for each in measured(run).sentences)


def test_early_stopping_is_an_end(tmp_path):
    run = run_of(tmp_path, [{"step": 20, "loss": 1.0}], 40)
    run.state["global_step"] = 20
    assert "The run is not finished" in found_in(run)
    attributes = {"early_stopping_patience_counter": 3}
    run.state["stateful_callbacks"] = {
        "EarlyStoppingCallback": {"args": {"early_stopping_patience": 3}, "attributes": attributes}
    }
    assert "The run is not finished" not in found_in(run)
    assert ending_of(run).startswith("stopped early at step 20 of 40")
    attributes["early_stopping_patience_counter"] = 2
    assert not run.finished
