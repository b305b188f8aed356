"""Training with FSDP2, whose parameters are sharded: the steps of one process, and models and checkpoints to load."""

import math

import fully_shard
import pytest
import torch
from conftest import trajectory, two_processes
from peft import LoraConfig
from safetensors.torch import load_file
from test_step import LONG_AND_SHORT

from llada import LLaDAModelLM
from vrpo.training.precomputed import hash_of_reference

SPLIT = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2)
BOUND = 1e-9  # float64; the optimizer's steps amplify another order of summation


def one_process(folder, stage="vrpo", lora=False, **changes) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    make = {"vrpo": fully_shard.test_vrpo_trainer, "sft": fully_shard.test_sft}[stage].trainer
    run = make(folder, **(changes | ({"peft_config": LoraConfig(r=2, lora_alpha=4)} if lora else {})))
    rows = trajectory(run)
    run.save_model(str(folder / "model"))
    return rows, load_file(folder / "model" / f"{'adapter_' if lora else ''}model.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(dict(stage="vrpo", kept_draws=2), marks=pytest.mark.slow),
        pytest.param(dict(stage="vrpo"), marks=pytest.mark.slow),
        pytest.param(dict(stage="vrpo", lora=True), marks=pytest.mark.slow),
        pytest.param(dict(stage="vrpo", precompute_ref_log_probs=True), marks=pytest.mark.slow),
        pytest.param(dict(stage="vrpo", gradient_checkpointing=True), marks=pytest.mark.slow),
        pytest.param(dict(stage="sft"), marks=pytest.mark.slow),
        pytest.param(dict(stage="sft", lora=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sharded_training_takes_the_steps_of_one_process(tmp_path, settings):
    """Two processes with two micro-batches of two rows against one with eight; the saved weights, too."""
    settings = settings | ({"rows": LONG_AND_SHORT} if settings["stage"] == "vrpo" else {})
    rows, weights = one_process(tmp_path / "one", **settings)
    sharded = two_processes(tmp_path, "fully_shard", torch.float64, **SPLIT, **settings)
    assert len(rows) == 20
    assert (rows - sharded).abs().max() <= BOUND
    name = "adapter_model.safetensors" if settings.get("lora") else "model.safetensors"
    found = load_file(tmp_path / "model" / name)
    assert found.keys() == weights.keys()
    assert max((found[key] - weights[key]).abs().max() for key in weights) <= BOUND


@pytest.mark.slow
def test_sharded_scores_are_not_rounded_to_bfloat16(tmp_path):
    """The reference and the policy are one model at the start: margins are exactly 0. The worker checks dtypes."""
    settings = dict(rows=LONG_AND_SHORT, max_steps=2, bf16=True, loss_type=["sigmoid"], loss_weights=[1.0])
    rows = two_processes(tmp_path, "fully_shard", torch.float32, **SPLIT, **settings)
    assert rows[0, 0] == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.slow
def test_a_sharded_run_resumes(tmp_path):
    settings = dict(rows=LONG_AND_SHORT, **SPLIT)
    whole = two_processes(tmp_path, "fully_shard", torch.float64, **settings)
    (tmp_path / "cut").mkdir()
    saving = dict(save_strategy="steps", save_steps=10)
    two_processes(tmp_path / "cut", "fully_shard", torch.float64, **settings, **saving)
    for file in (tmp_path / "cut").glob("checkpoint-20/*.json"):
        file.unlink()  # a checkpoint without its manifest is not whole
    (tmp_path / "cut" / "rows.safetensors").unlink()
    rest = two_processes(tmp_path / "cut", "fully_shard", torch.float64, **settings, **saving, resume=True)
    assert (whole[10:] - rest).abs().max() <= BOUND
    first, second = (LLaDAModelLM.from_pretrained(folder / "model") for folder in (tmp_path, tmp_path / "cut"))
    assert hash_of_reference(first) == hash_of_reference(second)
