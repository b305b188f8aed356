"""The split of the gradient's noise while a run trains: against plain gradients, and without a trace in the run."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model, tiny_moe, trajectory, two_processes
from peft import LoraConfig
from test_masking import standard_errors
from test_noise_split import short_pairs, variance_of_one_draw
from test_sft import IDS
from test_step import LONG_AND_SHORT, step
from test_vrpo_trainer import first_batch, moved, trainer

import vrpo.training.noise_split
from llada.diffusion.forwards import row_lengths
from llada.diffusion.likelihood import exact_elbo
from llada.diffusion.random_streams import noise_redraw, second_draw
from llada.training.throughput import MEASURED
from vrpo.collator import pairs_of
from vrpo.gradient_noise import PairGradients
from vrpo.scores import PairScores
from vrpo.training.noise_split import NoiseSplit
from vrpo.training.step import PairStep

NAMES = ("estimator", "between", "signal")
SETTINGS = dict(rows=LONG_AND_SHORT, noise_split_steps=1)


def naive_gradients(run, batch, monkeypatch) -> torch.Tensor:
    """The gradient of each pair's loss at each of two redraws, [P, 2, D]."""
    parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    found = []
    for redraw in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(type(run), "epoch", noise_redraw(0, redraw))
            losses = [run.compute_loss(run.model, pair) for pair in pairs_of(batch)]
        gradients = [torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses]
        found.append(torch.stack([torch.cat([part.flatten() for part in each]) for each in gradients]))
    return torch.stack(found, 1)


def gathered(gradient_PRD: torch.Tensor) -> PairGradients:
    mean_PD = gradient_PRD.mean(1)
    return PairGradients(mean_PD @ mean_PD.T, gradient_PRD.var(1).sum(-1), gradient_PRD.shape[1])


@pytest.mark.parametrize(
    "changes",
    [
        dict(kept_draws=1),
        dict(unit_gradients=True),
        dict(estimator="naive_dpo", n_t=None, loss_type=["ipo", "sft"]),
        dict(estimator="loo_complementary", n_t=4, ld_alpha=0.5),
        dict(peft_config=LoraConfig(r=2)),
        dict(model=lambda: tiny_moe(seed=1, router_aux_loss_coef=0.5, **IDS)),
    ],
    ids=["graphs", "buffers", "reference's own masks", "two ELBOs", "lora", "router"],
)
def test_estimates_are_those_of_plain_gradients(tmp_path, monkeypatch, changes):
    """Of eight pairs away from the reference, over all parameters: 1e-9 in float64."""
    made = {name: value() if name == "model" else value for name, value in changes.items()}
    run = moved(trainer(tmp_path, **SETTINGS, **made))
    batch = first_batch(run)
    run.model.train()
    expected = gathered(naive_gradients(run, batch, monkeypatch))
    step(run, batch)
    line = run.noise_split.line()
    for name in NAMES:
        assert line[f"noise/{name}"] == pytest.approx(getattr(expected, name).item(), rel=1e-9), name
    noise = line["noise/estimator"] + max(line["noise/between"], 0)
    assert line["noise/estimator_share"] == line["noise/estimator"] / noise
    assert line.get("noise/scale") == (noise / line["noise/signal"] if line["noise/signal"] > 0 else None)
    assert run.noise_split.line() == {}  # until it is measured again


def test_large_gradients_are_projected(tmp_path, monkeypatch):
    """Norms and variances stay exact; an inner product has a standard error of sqrt(2 / 4096) of the norms' product."""
    run = moved(trainer(tmp_path, **SETTINGS))
    batch = first_batch(run)
    exact = gathered(naive_gradients(run, batch, monkeypatch))
    monkeypatch.setattr(vrpo.training.noise_split, "KEPT", 4096)
    step(run, batch)
    found = run.noise_split
    assert found.estimator == pytest.approx(exact.estimator.item(), rel=1e-9)
    both = exact.gram_PP.diagonal().mean() - exact.estimator / 2  # between + signal
    assert found.between + found.signal == pytest.approx(both.item(), rel=1e-9)
    assert 0 < abs(found.signal - exact.signal) < 4 * (2 / 4096) ** 0.5 * exact.gram_PP.diagonal().mean()


def test_rows_that_fill_up_a_batch_are_left_out(tmp_path, monkeypatch):
    """Three pairs of eight, and no estimate of two."""
    run = moved(trainer(tmp_path, **SETTINGS))
    batch = first_batch(run)
    gradient_PRD = naive_gradients(run, batch, monkeypatch)
    step(run, batch | {"row_weight": torch.tensor([0.0, 1, 0, 1, 0, 0, 0, 1])})
    line = run.noise_split.line()
    expected = gathered(gradient_PRD[[1, 3, 7]])
    for name in NAMES:
        assert line[f"noise/{name}"] == pytest.approx(getattr(expected, name).item(), rel=1e-9), name
    run.noise_split.restart()
    step(run, batch | {"row_weight": torch.tensor([0.0, 1, 0, 1, 0, 0, 0, 0])})
    assert run.noise_split.line() == {}


def test_gradients_and_metric_sums_are_given_back(tmp_path):
    """Those that earlier micro-batches have added, also where a measurement fails."""
    run = moved(trainer(tmp_path, **SETTINGS, model=tiny_moe(seed=1, router_aux_loss_coef=0.5, **IDS)))
    batch = first_batch(run)
    run.model.train()
    step(run, batch)
    kept = [(parameter, parameter.grad, parameter.grad.clone()) for parameter in run.model.parameters()]
    sums = {name: values.clone() for name, values in run.metric_sums.sums.items()}
    whole = PairStep(run, run.model, batch, torch.ones(8), run.masks(run.design, batch, 0)[0])
    for fails in (False, True):
        run.noise_split.restart()
        if fails:
            run.pair_losses = lambda pairs, inputs: pairs.fail
            with pytest.raises(AttributeError):
                run.noise_split.measure(whole)
        else:
            run.noise_split.measure(whole)
        assert all(parameter.grad is grad and torch.equal(grad, copied) for parameter, grad, copied in kept)
        assert {*sums} == {*run.metric_sums.sums}
        assert all(torch.equal(values, run.metric_sums.sums[name]) for name, values in sums.items())


def test_the_loss_scale_of_half_precision_is_taken_out(tmp_path):
    """A scaler that multiplies losses by 1024, which rounds nothing: the same estimates to the last bit."""
    found = []
    for scaler in (None, SimpleNamespace(scale=lambda loss: 1024 * loss, get_scale=lambda: 1024.0)):
        run = moved(trainer(tmp_path, **SETTINGS, kept_draws=3))
        run.accelerator.scaler = scaler
        step(run, first_batch(run))
        found.append(run.noise_split.line())
    assert found[0] == found[1]


def unmeasured(run) -> list[dict[str, float]]:
    """The log lines, without what differs between two runs of one command and without the split."""
    names = (*MEASURED, "noise/", "train_")
    return [{key: v for key, v in line.items() if not key.startswith(names)} for line in run.state.log_history]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("dense", {}), ("dense", dict(unit_gradients=True)), ("router", {})],
    ids=["chosen by memory", "buffers", "router"],
)
def test_the_run_stays_as_it_is(tmp_path, kind, changes):
    """Four steps of two micro-batches, measured at 0 and 2: losses, norms, metrics and weights, bit for bit."""
    settings = dict(rows=LONG_AND_SHORT * 2, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4)
    settings |= changes
    found = []
    for every in (0, 2):
        model = tiny_moe(seed=1, router_aux_loss_coef=0.5, **IDS) if kind == "router" else None
        run = trainer(tmp_path, noise_split_steps=every, model=model, **settings)
        found.append((trajectory(run), unmeasured(run), run.model.state_dict()))
    (rows, lines, weights), (rows_too, lines_too, weights_too) = found
    assert torch.equal(rows, rows_too)
    assert lines == lines_too
    assert all(torch.equal(weights[name], weights_too[name]) for name in weights)
    measured = [line["step"] for line in run.state.log_history if "noise/estimator" in line]
    assert measured == [1, 3]
    assert run.noise_split.measurements == 2


def test_a_resumed_run_goes_on_with_its_means(tmp_path):
    """Log lines after step 2 are those of the whole run; without the option before, measurements begin with it."""
    settings = dict(SETTINGS, max_steps=4, per_device_train_batch_size=3, save_strategy="steps", save_steps=2)
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = trainer(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))

    def lines(run) -> list[dict]:
        return [{key: v for key, v in line.items() if "noise/" in key} for line in run.state.log_history]

    assert lines(whole) == lines(resumed)
    assert len({line.get("noise/estimator") for line in lines(whole)}) == 5  # four, and None of the last line
    assert whole.noise_split.state() == resumed.noise_split.state()
    whole.train()  # anew
    assert whole.noise_split.measurements == 4
    trainer(tmp_path / "without", **(settings | dict(noise_split_steps=0, max_steps=2))).train()
    began = trainer(tmp_path / "without", **(settings | dict(save_steps=1)))
    began.train(resume_from_checkpoint=str(tmp_path / "without" / "checkpoint-2"))
    assert began.noise_split.measurements == 2


def test_the_logged_values_are_means_over_the_measurements(tmp_path):
    """Of three with different seeds, each alone and all in a row; one that is not finite does not count."""
    run = moved(trainer(tmp_path, **SETTINGS, per_device_train_batch_size=3))
    batch, single = first_batch(run), []
    for seed in range(3):
        run.args.seed = seed
        run.noise_split.restart()
        step(run, batch)
        single.append(run.noise_split.line())
    run.noise_split.restart()
    for seed in range(3):
        run.args.seed = run.state.global_step = seed
        step(run, batch)
    together = run.noise_split.line()
    for name in (f"noise/{name}" for name in NAMES):
        assert together[name] == pytest.approx(sum(each[name] for each in single) / 3, rel=1e-12)
    assert len({each["noise/estimator"] for each in single}) == 3
    run.state.global_step = 3
    next(run.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    step(run, batch)
    assert run.noise_split.line() == {}


def test_a_share_and_a_scale_never_divide_by_zero():
    """By hand: no noise at all, a negative variance between pairs, a signal that is not positive."""
    split = NoiseSplit()
    for values, share, scale in (((0.0, 0.0, 1.0), 0, 0), ((3.0, 1.0, 2.0), 0.75, 2), ((3.0, -1.0, -2.0), 1, None)):
        split.measurements, (split.estimator, split.between, split.signal) = split.measurements + 1, values
        line = split.line()
        assert (line["noise/estimator_share"], line.get("noise/scale")) == (share, scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(per_device_train_batch_size=2),
            "noise_split_steps=1 is not possible with per_device_train_batch_size=2, which gives 2 of the 3 pairs",
        ),
        (dict(precompute_ref_log_probs=True), "noise_split_steps=1 is not possible with precompute_ref_log_probs"),
        (dict(loss_type=["aot"]), "noise_split_steps=1 is not possible with loss_type aot"),
    ],
)
def test_runs_without_pairs_to_split_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **SETTINGS, **changes)
    trainer(tmp_path, **(SETTINGS | changes | {"noise_split_steps": 0}))


def test_sharded_engines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vrpo.training.noise_split, "is_sharded", lambda accelerator: True)
    with pytest.raises(ValueError, match="noise_split_steps=1 is not possible with an engine that shards gradients"):
        trainer(tmp_path, **SETTINGS)


def test_redraws_have_streams_of_their_own():
    epochs = range(1000)
    streams = [noise_redraw(epoch, redraw) for epoch in epochs for redraw in range(2)]
    assert len(set(streams)) == 2000
    assert max(streams) < second_draw(1_000_000)


def test_the_estimates_are_unbiased(tmp_path):
    """Three pairs at the reference, where the loss's slope is -beta / 2 under all masks: 40 redraws of two draws each.

    The variance over masks and the expected gradients are known from all masks.
    """
    model = tiny_model(seed=1, n_layers=1, **IDS)
    run = trainer(tmp_path, model=model, loss_type=["sigmoid"], beta=0.3, n_t=2, noise_split_steps=1)
    parameters, batch = list(run.model.parameters()), short_pairs() | {"row_weight": torch.ones(3)}
    variance, mean = [], []
    for pair in pairs_of(batch):
        variance.append(sum(variance_of_one_draw(run.model, pair, side, parameters) for side in (0, 1)) / 2)
        lengths = row_lengths(pair["attention_mask"])
        rows = [(pair["input_ids"][b, :end], pair["response_mask"][b, :end]) for b, end in enumerate(lengths)]
        margin = PairScores(*(exact_elbo(run.model, *row) for row in rows)).margin
        mean.append(torch.cat([part.flatten() for part in torch.autograd.grad(margin, parameters)]))
    gram_PP = 0.15**2 * torch.stack(mean) @ torch.stack(mean).T
    norms, signal = gram_PP.diagonal().mean(), (gram_PP.sum() - gram_PP.trace()) / 6
    exact = torch.stack([0.15**2 * torch.tensor(variance).double().mean(), norms - signal, signal])
    whole, found = PairStep(run, run.model, batch, torch.ones(3), run.masks(run.design, batch, 0)[0]), []
    for seed in range(40):
        run.args.seed = seed
        run.noise_split.restart()
        run.noise_split.measure(whole)
        found.append([getattr(run.noise_split, name) for name in NAMES])
    assert standard_errors(torch.tensor(found, dtype=torch.float64), exact).max() < 4


@pytest.mark.slow
def test_two_processes_split_over_all_their_pairs(tmp_path):
    """Four pairs on each are the eight of one process: 1e-9."""
    settings = dict(SETTINGS, max_steps=2, save_strategy="steps", save_steps=2)
    run = trainer(tmp_path / "one", **settings)
    run.train()
    (tmp_path / "two").mkdir()
    two_processes(tmp_path / "two", "test_vrpo_trainer", torch.float64, per_device_train_batch_size=4, **settings)
    saved = json.loads((tmp_path / "two" / "checkpoint-2" / "trainer_state.json").read_text())
    found = saved["stateful_callbacks"]["NoiseSplit"]["attributes"]
    assert found["measurements"] == 2
    for name in NAMES:
        assert found[name] == pytest.approx(getattr(run.noise_split, name), rel=1e-9), name
