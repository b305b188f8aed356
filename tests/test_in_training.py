"""Benchmarks while a model trains: figures in the logs and metrics, and a training that does not notice."""

import json
import random

import numpy as np
import pytest
import test_sft
import torch
from conftest import trajectory
from test_evaluation_precision import HELD_OUT, trainer

from llada.cli.recipe import RecipeArguments, parse
from llada.errors import RecipeError

pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
from llada.harness.in_training import TaskEvaluation, random_state_kept

ARGS = {"draws": 4, "group": 2, "batch_size": 16, "gen_length": 2, "steps": 2, "block_length": 2, "truncate": True}
FIGURES = {"eval_tiny_choice/acc"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, for seconds


def run_of(tmp_path, evaluated: bool, held_out: bool = True, **changes):
    run = test_sft.trainer(
        tmp_path, torch.float64, max_steps=4, eval_dataset=HELD_OUT["sft"] if held_out else None,
        **({"eval_strategy": "steps", "eval_steps": 2} if held_out else {}), **changes,
    )  # fmt: skip
    if evaluated:
        run.add_callback(TaskEvaluation(run, ["tiny_choice"], ARGS, 3))
    return run


@pytest.mark.filterwarnings("ignore")
def test_tasks_are_evaluated_with_the_rows_and_training_does_not_notice(tmp_path):
    """Every two of four steps, and the weights after them are those of a run without tasks, to the last bit."""
    plain, run = run_of(tmp_path, False), run_of(tmp_path, True)
    assert torch.equal(trajectory(plain), trajectory(run))
    rows = [row for row in run.state.log_history if set(row) >= FIGURES]
    assert [row["step"] for row in rows] == [2, 4]
    assert set(run.evaluate()) >= {*FIGURES, "eval_loss"}


@pytest.mark.filterwarnings("ignore")
def test_without_held_out_rows_they_are_evaluated_at_the_end(tmp_path):
    run = run_of(tmp_path, True, held_out=False)
    run.train()
    assert [row["step"] for row in run.state.log_history if set(row) >= FIGURES] == [4]
    assert set(json.loads((tmp_path / "eval_results.json").read_text())) >= FIGURES


def test_the_random_states_are_kept():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    with random_state_kept():
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(2)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


@pytest.mark.parametrize(
    ("names", "args", "message"),
    [
        pytest.param(  # the harness lists its 14,000 tasks, for ten seconds
            ["tiny_chance"], {}, "this version of the harness has no task 'tiny_chance'", marks=pytest.mark.slow
        ),
        (["gsm8k_local"], {}, "gsm8k_file is missing"),
        (["gsm8k_local"], {"gsm8k_file": "nowhere.jsonl"}, "nowhere.jsonl"),
        (["tiny_choice"], {"drawn": 1}, r"unknown options \['drawn'\]"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_evaluated_is_refused_before_training(tmp_path, names, args, message):
    with pytest.raises((RecipeError, ValueError), match=message):
        TaskEvaluation(trainer(tmp_path, kind="sft"), names, args, None)


def test_options_without_tasks_are_refused():
    with pytest.raises(RecipeError, match="eval_tasks_args and eval_tasks_limit need eval_tasks"):
        parse((RecipeArguments,), ["--eval_tasks_limit", "3"])
    (found,) = parse((RecipeArguments,), ["--eval_tasks", "a", "b", "--eval_tasks_args", '{"draws": 4}'])
    assert (found.eval_tasks, found.eval_tasks_args) == (["a", "b"], {"draws": 4})
