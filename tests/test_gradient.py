"""A gradient that is not finite stops a run before the optimizer moves, and the message names the rows of the step."""

import copy
from types import SimpleNamespace

import pytest
import test_sft
import test_vrpo_trainer
import torch
from conftest import two_processes

MODULES = {"sft": test_sft, "vrpo": test_vrpo_trainer}


def trainer(tmp_path, dtype=torch.float32, kind: str = "vrpo", bad: float = torch.inf, at: int = 0, **changes):
    """A trainer whose gradient is multiplied by `bad` from the step `at` on, while its losses stay finite."""
    run = MODULES[kind].trainer(tmp_path, dtype, **changes)
    weight = next(run.model.parameters())
    weight.register_hook(lambda gradient: gradient * (bad if run.state.global_step >= at else 1))
    return run


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("kind", MODULES)
def test_it_stops_before_the_step_and_names_the_rows_of_all_micro_batches(tmp_path, kind, bad, max_grad_norm):
    run = trainer(
        tmp_path, kind=kind, bad=bad, at=1, max_grad_norm=max_grad_norm, per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    weights, seen = {}, []
    batches = run.get_batch_samples

    def recorded(*args):
        found, rows = batches(*args)
        seen.append(sorted(row for batch in found for row in batch["row"].tolist()))
        weights.update(copy.deepcopy(run.model.state_dict()))
        return found, rows

    run.get_batch_samples = recorded
    with pytest.raises(FloatingPointError) as error:
        run.train()
    message = str(error.value)
    assert message.startswith("the gradient is not finite (its norm is ")
    assert f"after 1 optimizer steps, although all losses are. The step has the rows {str(seen[-1])[1:-1]}. " in message
    assert "stopped before this step changed a parameter" in message
    assert len(seen) == 2
    assert len(set(seen[-1])) == 4
    assert all(torch.equal(weights[name], value) for name, value in run.model.state_dict().items())


def test_overflow_at_a_large_loss_scale_is_no_fault_and_at_scale_one_it_is(tmp_path):
    """fp16's scaler skips such steps and halves its scale, which would go on for ever if the gradient itself is nan."""
    run = trainer(tmp_path)
    norm = torch.tensor(torch.inf)
    run.accelerator.scaler = SimpleNamespace(get_scale=lambda: 65536.0)
    assert run._get_grad_norm(run.model, norm) is norm
    run.accelerator.scaler = SimpleNamespace(get_scale=lambda: 1.0)
    with pytest.raises(FloatingPointError, match="the gradient is not finite"):
        run._get_grad_norm(run.model, norm)


def test_with_deepspeed_which_steps_in_the_backward_pass_it_says_so(tmp_path):
    run = trainer(tmp_path)
    run.is_deepspeed_enabled = True
    with pytest.raises(FloatingPointError, match="DeepSpeed has taken this step already: go on from an earlier"):
        run._get_grad_norm(run.model, torch.tensor(torch.nan))


@pytest.mark.slow
def test_both_processes_stop_and_name_the_rows_of_both(tmp_path):
    with pytest.raises(
        AssertionError, match=r"the gradient is not finite .* The step has the rows \d+, \d+, \d+, \d+\. "
    ):
        two_processes(tmp_path, "test_gradient", torch.float32, kind="sft", per_device_train_batch_size=2, max_steps=2)
