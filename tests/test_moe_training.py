"""A mixture of experts through SFT and VRPO: router losses in the objective, exact, and able to rebalance a router."""

import pytest
import test_sft as sft
import test_vrpo_trainer as vrpo
import torch
from conftest import tiny_moe, trajectory
from peft import LoraConfig

MOE = sft.IDS | dict(num_experts=8, num_experts_per_tok=2)


def model(dtype=torch.float64, **changes):
    return tiny_moe(seed=1, dtype=dtype, **(MOE | changes))


def test_the_sft_loss_is_the_likelihood_s_plus_the_weighted_router_losses(tmp_path):
    """Both recomputed from one forward pass; in evaluation they are absent."""
    run = sft.trainer(tmp_path, model=model(), max_steps=1)
    batch = next(iter(run.get_train_dataloader()))
    run.model.train()
    denoiser = run.denoiser(run.model)
    nelbo_B, length_B = run.negative_elbo(denoiser, batch, 0, 1, "bernoulli", "iid")
    balance, z = denoiser.auxiliary_losses[0].mean(0)
    expected = (nelbo_B / length_B).mean() + 0.01 * balance + 0.001 * z
    assert run.compute_loss(run.model, batch).item() == pytest.approx(expected.item(), abs=1e-12)
    run.model.eval()
    assert run.compute_loss(run.model, batch).item() == pytest.approx((nelbo_B / length_B).mean().item(), abs=1e-12)


def test_the_replayed_gradient_is_that_of_the_full_graph(tmp_path):
    """VRPO with router losses of every draw: 1e-12 in float64, loss included; and they change the gradient."""
    full, replayed, without = (
        vrpo.moved(vrpo.trainer(tmp_path, model=model(router_aux_loss_coef=weight))) for weight in (0.5, 0.5, 0.0)
    )
    batch = vrpo.first_batch(full)
    full.model.train()
    loss = full.compute_loss(full.model, batch)
    loss.backward()
    for run in (replayed, without):
        run.current_gradient_accumulation_steps = 1
    assert replayed.training_step(replayed.model, batch).item() == pytest.approx(loss.item(), abs=1e-12)
    without.training_step(without.model, batch)
    gradients = [[p.grad for p in run.model.parameters()] for run in (full, replayed, without)]
    assert max((a - b).abs().max().item() for a, b in zip(*gradients[:2], strict=True)) <= 1e-12
    assert max((a - b).abs().max().item() for a, b in zip(*gradients[1:], strict=True)) > 1e-3


@pytest.mark.parametrize("kind", [sft, vrpo], ids=["sft", "vrpo"])
def test_accumulation_of_eight_single_rows_equals_one_batch_of_eight(tmp_path, kind):
    """Router losses are of sequences, so that they add up over micro-batches."""
    whole = trajectory(kind.trainer(tmp_path, model=model(), max_steps=6))
    parts = dict(per_device_train_batch_size=1, gradient_accumulation_steps=8)
    split = trajectory(kind.trainer(tmp_path, model=model(), max_steps=6, **parts))
    assert (whole - split).abs().max() <= 1e-10


@pytest.mark.parametrize("kind", [sft, vrpo], ids=["sft", "vrpo"])
def test_lora_trains_and_logs_the_router(tmp_path, kind):
    run = kind.trainer(tmp_path, model=model(torch.float32), peft_config=LoraConfig(r=4), max_steps=8)
    before = run.model.get_base_model().model.layers[0].mlp.gate.weight.clone()
    loss = run.evaluate(run.train_dataset)["eval_loss"]
    run.train()
    logged = [row for row in run.state.log_history if "aux_loss" in row]
    assert len(logged) == 8
    assert 2.0 <= logged[0]["aux_loss"] < 8.0
    assert torch.equal(run.model.get_base_model().model.layers[0].mlp.gate.weight, before)
    assert run.evaluate(run.train_dataset)["eval_loss"] < loss


def skewed(**coefficients):
    """Experts 0 and 1 take every token: the embeddings share a direction, and their router rows point along it."""
    found = model(torch.float32, num_hidden_layers=1, num_experts=4, **coefficients)
    with torch.no_grad():
        found.model.embed_tokens.weight += 0.3
        for layer in found.model.layers:
            layer.mlp.gate.weight[:2] += 0.1
    return found


def balance_after(tmp_path, steps, **coefficients):
    """Load balance over k, of the first step and of the last five; rows of about 130 tokens of pseudo-random text."""
    generator = torch.Generator().manual_seed(0)
    letters = ["".join(chr(97 + int(c)) for c in torch.randint(26, (128,), generator=generator)) for _ in range(16)]
    rows = [{"prompt": "a", "completion": text} for text in letters]
    found = skewed(max_position_embeddings=160, **coefficients)
    settings = dict(max_steps=steps, learning_rate=1e-2, max_length=160, disable_tqdm=True)
    run = sft.trainer(tmp_path, torch.float32, rows, found, **settings)
    run.train()
    logged = [row["aux_loss"] for row in run.state.log_history if "aux_loss" in row]
    return logged[0] / 2, sum(logged[-5:]) / 5 / 2


@pytest.mark.slow
def test_a_skewed_router_is_balanced_by_the_losses_and_not_without_them(tmp_path):
    """In units of k = 2, the value of a balanced router."""
    start, end = balance_after(tmp_path / "with", 150)
    assert start > 1.5
    assert end <= 1.1
    _, without = balance_after(tmp_path / "without", 150, router_aux_loss_coef=0.0, router_z_loss_coef=0.0)
    assert without > 1.1
