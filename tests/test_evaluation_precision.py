"""Evaluation before, in, between and after training: one precision for policy and reference, and nothing that stays."""

import pytest
import test_sft
import test_vrpo_trainer
import torch
from conftest import tiny_model, trajectory, two_processes
from datasets import Dataset
from peft import LoraConfig
from test_sft import IDS

MODULES = {"sft": test_sft, "vrpo": test_vrpo_trainer}
HELD_OUT = {kind: Dataset.from_list(module.PAIRS[:5]) for kind, module in MODULES.items()}
PRECISIONS = [{}, {"bf16": True}, {"bf16_full_eval": True}]
PRECISIONS += [
    pytest.param(each, marks=pytest.mark.slow)
    for each in ({"fp16_full_eval": True}, {"bf16": True, "bf16_full_eval": True})
]
REFERENCES = {
    "copy": lambda: {},
    "model": lambda: {"ref_model": tiny_model(seed=1, dtype=torch.float32, **IDS)},
    "adapters off": lambda: {"peft_config": LoraConfig(r=2)},
}


def trainer(tmp_path, dtype=torch.float32, kind: str = "vrpo", evaluated: bool = False, **changes):
    """A trainer of one of the two kinds with held-out rows, which it may have evaluated."""
    run = MODULES[kind].trainer(tmp_path, dtype, eval_dataset=HELD_OUT[kind], **changes)
    if evaluated:
        run.evaluate()
    return run


def margins(metrics: dict[str, float]) -> list[float]:
    names = ("rewards/margins", "rewards/chosen", "rewards/rejected")
    return [value for name, value in metrics.items() if name.endswith(names)]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_model_against_its_own_copy_has_margin_zero_whenever_it_is_evaluated(tmp_path, precision, reference):
    """Steps of rate 0 leave the policy at the reference. In bf16 and fp32 two scores would differ by about a nat."""
    options = {"learning_rate": 0.0, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, **precision}
    run = trainer(tmp_path, **options, **REFERENCES[reference]())
    before, predicted = run.evaluate(), run.predict(HELD_OUT["vrpo"]).metrics
    run.train()
    inside = [row for row in run.state.log_history if "eval_rewards/margins" in row]
    between = run.evaluate()
    run.train()
    after = run.predict(HELD_OUT["vrpo"]).metrics
    found = [value for each in (before, predicted, *inside, between, after) for value in margins(each)]
    assert len(found) == 3 * 6
    assert set(found) == {0.0}


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", MODULES)
def test_training_goes_on_as_if_there_had_been_no_evaluation(tmp_path, precision, kind):
    """Equal to the last bit, and the weights are those of fp32 although evaluations cast them."""
    plain, run = (trainer(tmp_path, kind=kind, max_steps=3, **precision) for _ in range(2))
    run.evaluate()
    run.predict(HELD_OUT[kind])
    assert torch.equal(trajectory(plain), trajectory(run))
    run.evaluate()
    weights = run.model.state_dict()
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert all(torch.equal(weights[name], value) for name, value in plain.model.state_dict().items())


def test_with_an_eos_tail_of_the_batch_predict_scores_what_evaluate_does_whatever_the_batch(tmp_path):
    """One EOS for each row: with the training collator, a row's EOS would follow the longest row of its batch."""
    found = []
    for size in (1, 5):
        run = trainer(tmp_path, torch.float64, "sft", eos_tail="batch", per_device_eval_batch_size=size)
        found += [run.predict(HELD_OUT["sft"]).metrics["test_bits_per_token"], run.evaluate()["eval_bits_per_token"]]
    assert found == pytest.approx([found[0]] * 4, abs=1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_before_training_and_after_a_step_of_rate_zero_the_loss_is_the_same(tmp_path, kind):
    run = trainer(tmp_path, kind=kind, max_steps=1, learning_rate=0.0, bf16=True)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] == before


@pytest.mark.slow
def test_two_processes_that_evaluate_first_still_share_their_gradients(tmp_path):
    """accelerate's mark of a prepared model would keep it out of the data-parallel wrapper, for all trainers alike."""
    options = {"max_steps": 3, "kind": "sft"}
    whole = trajectory(trainer(tmp_path, torch.float64, **options))
    options |= {"per_device_train_batch_size": 4, "evaluated": True}
    split = two_processes(tmp_path, "test_evaluation_precision", torch.float64, **options)
    assert (whole - split).abs().max() <= 1e-10


def test_casts_of_sharded_weights_are_refused(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    run.args.bf16_full_eval = True
    run.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="bf16_full_eval and fp16_full_eval cast whole weights, which DeepSpeed and"):
        run.check_full_evaluation()
