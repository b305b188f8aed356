"""Warnings of runs that cannot work: each where it must come, once, and not elsewhere."""

from types import SimpleNamespace

import pytest
from transformers import TrainerState, TrainingArguments

from llada.training.warnings import LowAdapterRate
from vrpo.training.warnings import LOGS, MeaninglessAccuracy, UnmovedMargin

STATE = dict(max_steps=100, logging_steps=1, is_world_process_zero=True)


def arguments(tmp_path, **options) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, warmup_steps=2, **options)


@pytest.mark.parametrize(
    ("rate", "adapters", "warns"), [(5e-7, True, True), (5e-7, False, False), (1e-6, True, False), (2e-5, True, False)]
)
def test_a_rate_for_all_parameters_is_too_low_for_adapters(tmp_path, caplog, rate, adapters, warns):
    model = SimpleNamespace(**({"peft_config": {}} if adapters else {}))
    LowAdapterRate().on_train_begin(arguments(tmp_path, learning_rate=rate), TrainerState(**STATE), None, model=model)
    assert ("learning_rate=5e-07 is for training all parameters" in caplog.text) == warns


def run_through(callback, args, lines, first_step: int = 3) -> None:
    callback.on_train_begin(args, TrainerState(**STATE), None)
    for step, logs in enumerate(lines, first_step):
        callback.on_log(args, TrainerState(global_step=step, **STATE), None, logs=logs)


MARGINS = {
    "noise": ([0.1, -0.1] * LOGS, 1),
    "no change": ([1e-5] * 2 * LOGS, 1),
    "growth": ([0.01 * step for step in range(2 * LOGS)], 0),
    "against the preferences": ([-0.1, -0.12] * LOGS, 0),  # moved, if not as wanted
    "too few lines": ([1e-5] * (LOGS - 1), 0),
}


@pytest.mark.parametrize("case", MARGINS)
def test_a_margin_that_has_not_moved_is_reported_once(tmp_path, caplog, case):
    margins, warnings = MARGINS[case]
    run_through(UnmovedMargin(), arguments(tmp_path), [{"rewards/margins": margin} for margin in margins])
    assert caplog.text.count("rewards/margins has not moved") == warnings


def test_warm_up_and_lines_without_margins_do_not_count(tmp_path, caplog):
    still = {"rewards/margins": 0.0}
    run_through(UnmovedMargin(), arguments(tmp_path), [still] * (LOGS + 1) + [{"eval_loss": 1.0}] * 5, first_step=1)
    assert not caplog.text  # two lines of warm-up leave LOGS - 1


ACCURACIES = {
    "sign of nothing": ({"rewards/accuracies": 1.0, "rewards/margins": 3e-6}, 1),
    "noise": ({"rewards/accuracies": 1.0, "rewards/margins": 0.19, "score/variance": 0.04}, 1),  # 2 x 0.1
    "above noise": ({"rewards/accuracies": 1.0, "rewards/margins": 0.21, "score/variance": 0.04}, 0),
    "no claim": ({"rewards/accuracies": 0.6, "rewards/margins": 3e-6}, 0),
    "evaluation, noise": (
        {"eval_rewards/accuracies": 0.95, "eval_rewards/margins": 0.27, "eval_rewards/margins_ci95": 0.31}, 1
    ),
    "evaluation, above noise": (
        {"eval_rewards/accuracies": 0.95, "eval_rewards/margins": 0.35, "eval_rewards/margins_ci95": 0.31}, 0
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCURACIES)
def test_an_accuracy_whose_margin_is_within_noise_means_nothing(tmp_path, caplog, case):
    logs, warnings = ACCURACIES[case]
    run_through(MeaninglessAccuracy(), arguments(tmp_path), [logs, logs])
    assert caplog.text.count("means nothing yet") == warnings
