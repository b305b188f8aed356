"""Warnings of runs that cannot work: each where it must come, once, and not elsewhere."""

from types import SimpleNamespace

import pytest
import test_sft
import test_vrpo_trainer
from transformers import TrainerState, TrainingArguments

from llada.training.rules import LOGS, LowAdapterRate, RisingLoss, Rule
from llada.training.warnings import RuleWarnings
from vrpo.training.rules import CollapsingMargin, FallingChosen, FarFromReference, MeaninglessAccuracy, UnmovedMargin

STATE = dict(max_steps=100, logging_steps=1, is_world_process_zero=True)


def arguments(tmp_path, **options) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, warmup_steps=2, **options)


@pytest.mark.parametrize(
    ("rate", "adapters", "warns"), [(5e-7, True, True), (5e-7, False, False), (1e-6, True, False), (2e-5, True, False)]
)
def test_a_rate_for_all_parameters_is_too_low_for_adapters(tmp_path, caplog, rate, adapters, warns):
    model = SimpleNamespace(**({"peft_config": {}} if adapters else {}))
    args = arguments(tmp_path, learning_rate=rate)
    RuleWarnings([LowAdapterRate]).on_train_begin(args, TrainerState(**STATE), None, model=model)
    assert ("learning_rate=5e-07 is for training all parameters" in caplog.text) == warns


def run_through(rule: type[Rule], args, lines, first_step: int = 3) -> None:
    callback = RuleWarnings([rule])
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
    run_through(UnmovedMargin, arguments(tmp_path), [{"rewards/margins": margin} for margin in margins])
    assert caplog.text.count("rewards/margins has not moved") == warnings


def test_warm_up_and_lines_without_margins_do_not_count(tmp_path, caplog):
    still = {"rewards/margins": 0.0}
    run_through(UnmovedMargin, arguments(tmp_path), [still] * (LOGS + 1) + [{"eval_loss": 1.0}] * 5, first_step=1)
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
    run_through(MeaninglessAccuracy, arguments(tmp_path), [logs, logs])
    assert caplog.text.count("means nothing yet") == warnings


def preference_lines(margins=None, chosen=0.0, bound=-40.0) -> list[dict[str, float]]:
    """Log lines; `bound` is the reference's on the chosen answers, in nats, and beta is 0.2."""
    margins = [1.0] * LOGS if margins is None else margins
    shared = {"rewards/chosen": chosen, "logps/chosen": bound + chosen / 0.2}
    return [{"rewards/margins": margin} | shared for margin in margins]


NOISE = [0.01, -0.01]
DIVERGING = {
    "margin at a tenth of its best": (
        CollapsingMargin, preference_lines([1.0 + e for e in NOISE * 5] + [0.1 + e for e in NOISE * 5]), 1
    ),
    "margin below 0": (
        CollapsingMargin, preference_lines([1.0 + e for e in NOISE * 5] + [-1.0 + e for e in NOISE * 5]), 1
    ),
    "margin at a third of its best": (
        CollapsingMargin, preference_lines([1.0 + e for e in NOISE * 5] + [0.33 + e for e in NOISE * 5]), 0
    ),
    "margin that was noise only": (CollapsingMargin, preference_lines([0.5, -0.4] * LOGS + [-0.2, 0.1] * LOGS), 0),
    "margin that scatters widely": (CollapsingMargin, preference_lines([6.0, -4.0, 3.0] * 5 + [-4.0, 4.2] * LOGS), 0),
    "margin that grows": (CollapsingMargin, preference_lines([0.1 * step for step in range(30)]), 0),
    "chosen at -3.1": (FallingChosen, preference_lines(chosen=-3.1), 1),
    "chosen at -2.9": (FallingChosen, preference_lines(chosen=-2.9), 0),
    "chosen at 4": (FallingChosen, preference_lines(chosen=4.0), 0),
    "too few lines": (FallingChosen, preference_lines([1.0] * (LOGS - 1), chosen=-9.0), 0),
    "20.5 of 40 nats lost": (FarFromReference, preference_lines(chosen=-4.1), 1),
    "19.5 of 40 nats lost": (FarFromReference, preference_lines(chosen=-3.9), 0),
    "20.5 of 400 nats lost": (FarFromReference, preference_lines(chosen=-4.1, bound=-400.0), 0),
    "nats gained": (FarFromReference, preference_lines(chosen=4.1), 0),
    "every line of ten at 1.6 times the first": (RisingLoss, [{"loss": loss} for loss in [5.0] + [8.0] * 10], 1),
    "one line of ten at 1.4 times": (RisingLoss, [{"loss": loss} for loss in [5.0] + ([8.0] * 9 + [7.0]) * 5], 0),
    "a loss that falls": (RisingLoss, [{"loss": 8.0 - 0.1 * step} for step in range(40)], 0),
    "a loss that scatters": (RisingLoss, [{"loss": loss} for loss in [5.0, 44.0, 20.0, 4.0] * 10], 0),
    "nine lines": (RisingLoss, [{"loss": loss} for loss in [5.0] + [50.0] * 9], 0),
}  # fmt: skip
WORDS = {
    CollapsingMargin: "rewards/margins has collapsed",
    FallingChosen: "rewards/chosen is far below 0",
    FarFromReference: "the policy is far from its reference",
    RisingLoss: "the loss has risen",
}


@pytest.mark.parametrize("case", DIVERGING)
def test_a_run_that_diverges_is_said_once_in_words_with_what_to_try(tmp_path, caplog, case):
    watch, lines, warnings = DIVERGING[case]
    args = arguments(tmp_path, learning_rate=3e-5)
    args.beta = 0.2
    run_through(watch, args, [*lines, lines[-1]] if warnings else lines)
    assert caplog.text.count(WORDS[watch]) == warnings
    assert caplog.text.count("ower learning_rate (now 3e-05)") == warnings


def test_the_nats_that_are_lost_are_named(tmp_path, caplog):
    """A reward of -4.1 at beta 0.2 is a log-ratio of -20.5 nats, over the reference's -40."""
    args = arguments(tmp_path)
    args.beta = 0.2
    for watch in FallingChosen, FarFromReference:
        run_through(watch, args, preference_lines(chosen=-4.1))
    assert "become less likely, by 20.5 nats each" in caplog.text
    assert "have lost 20.5 nats each (-rewards/chosen / beta) of a bound that was -40 with the reference" in caplog.text


def test_a_resumed_loss_is_compared_with_the_first_of_the_run(tmp_path, caplog):
    watch, args = RuleWarnings([RisingLoss]), arguments(tmp_path)
    state = TrainerState(global_step=50, log_history=[{"loss": 2.0}, {"eval_loss": 9.0}, {"loss": 1.0}], **STATE)
    watch.on_train_begin(args, state, None)
    for _ in range(10):
        watch.on_log(args, state, None, logs={"loss": 3.1})
    assert "after 2 in the first" in caplog.text


@pytest.mark.parametrize(("rate", "says"), [(1e-2, ()), (1.0, (WORDS[FallingChosen], WORDS[FarFromReference]))])
def test_a_preference_run_at_a_hundred_times_its_rate(tmp_path, caplog, rate, says):
    test_vrpo_trainer.trainer(tmp_path, max_steps=30, learning_rate=rate, per_device_train_batch_size=4).train()
    assert tuple(words for words in WORDS.values() if words in caplog.text) == says
    assert all(caplog.text.count(words) == 1 for words in says)


@pytest.mark.parametrize(("rate", "says"), [(2e-2, 0), (2.0, 1)])
def test_an_sft_run_at_a_hundred_times_its_rate(tmp_path, caplog, rate, says):
    options = dict(masks="exact_count", lr_scheduler_type="constant", max_steps=14, learning_rate=rate)
    test_sft.trainer(tmp_path, **options).train()
    assert caplog.text.count(WORDS[RisingLoss]) == says
