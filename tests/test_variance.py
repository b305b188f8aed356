"""Redraws and the variance table: the trainer's own plans, gradients by replay, and what the table must show."""

import csv
import json
from functools import partial

import pytest
import torch
from conftest import tiny_model, tiny_moe
from test_sft import IDS, TOKENIZER
from test_vrpo_trainer import PAIRS, first_batch, moved, trainer

from llada.diffusion.masking import MaskDraws
from vrpo import variance
from vrpo.analysis.advice import advise
from vrpo.analysis.redraw import (
    batch_elbos,
    count_grid,
    mask_redraws,
    masked_sum_tables,
    redrawn_elbos,
    redrawn_gradients,
)
from vrpo.analysis.report import variance_figure
from vrpo.analysis.settings import Settings
from vrpo.analysis.table import measure
from vrpo.estimators.designs import draw_for_pairs
from vrpo.scores import log_ratios


@pytest.fixture
def run(tmp_path):
    return moved(trainer(tmp_path, estimator="loo_complementary", n_t=4))


def test_a_redraw_is_what_training_would_have_drawn(run):
    batch = first_batch(run)
    with torch.no_grad():
        scores = run.scores(run.denoiser(run.model), batch, epoch=2, without_padding=True)
    policy, reference = redrawn_elbos(
        run.model, run.ref_model, batch, mask_redraws(batch, run.design, run.args.seed), [2]
    )
    assert torch.equal(policy[0], scores.policy.joined().mean(0))
    assert torch.equal(reference[0], scores.reference.joined().mean(0))


def test_redrawn_gradients_are_those_of_one_graph(run):
    batch, weight = first_batch(run), run.model.model.transformer.ff_out.weight
    slope = torch.linspace(-1, 1, len(batch["response_mask"]), dtype=torch.float64)
    draw = mask_redraws(batch, run.design, 5)
    noise = redrawn_gradients(run.model, batch, draw, range(3), [weight], slope.expand(3, -1))
    naive = []
    for redraw in range(3):
        plan, _ = draw_for_pairs(run.design, batch["response_mask"], batch["example_id"].tolist(), 5, redraw)
        value = (slope * batch_elbos(run.denoiser(run.model), batch, plan).mean(0)).sum()
        naive.append(torch.autograd.grad(value, weight)[0])
    assert noise.variance == pytest.approx(torch.stack(naive).var(0).sum().item(), rel=1e-10)


def test_a_bank_holds_masked_sums_of_the_log_ratio(run):
    """At the full count there is one mask, so its value is the ratio of the fully masked responses."""
    batch = first_batch(run)
    found = masked_sum_tables(run.model, run.ref_model, batch, counts=4, masks=3, seed=0)
    plan = MaskDraws(batch["response_mask"][None], batch["response_mask"][None].double())
    with torch.no_grad():
        full = batch_elbos(run.denoiser(run.model), batch, plan) - batch_elbos(run.denoiser(run.ref_model), batch, plan)
    for row, bank in enumerate(found):
        assert bank.count_K[-1] == bank.length == batch["response_mask"][row].sum()
        assert torch.allclose(bank.value_KM[-1], full[0, row].expand(3), atol=1e-12)
    assert count_grid(3, 8) == [1, 2, 3]
    assert count_grid(512, 4) == [1, 8, 64, 512]


def test_the_table_of_a_policy_and_of_the_reference_itself(run):
    batches = [first_batch(run)]
    settings = Settings(repeats=6, budgets=[1, 4], gradient="up", source_pairs=4, split_pairs=0)
    table = measure(run.model, run.ref_model, batches, settings)
    rows = {(row["name"], row["n_t"], row["n_y"], row["shared_masks"]): row for row in table["rows"]}
    assert len(rows) == len(table["rows"]) == 7
    assert rows["vrpo", 4, 1, False]["score"]["value"] > rows["vrpo", 4, 1, True]["score"]["value"]
    assert rows["vrpo", 1, 1, True]["gradient"]["value"] > rows["vrpo", 8, 1, True]["gradient"]["value"]
    for form, parts in (("L/l", ["count", "pattern"]), ("1/t", ["level", "count", "pattern"])):
        assert list(table["sources"][form]) == ["variance", *parts]
        assert sum(table["sources"][form][part]["value"] for part in parts) == pytest.approx(1)
    scores_only = Settings(repeats=6, budgets=[1, 4], gradient="none", source_pairs=0)
    same = measure(run.ref_model, run.ref_model, batches, scores_only)
    for row in same["rows"]:
        assert (row["score"]["value"] == 0) == row["shared_masks"]


def test_the_command_writes_its_table(tmp_path, capsys):
    for seed in (0, 1):
        tiny_model(seed=seed, dtype=torch.float32, **IDS).save_pretrained(tmp_path / str(seed))
        TOKENIZER.save_pretrained(tmp_path / str(seed))
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    names = ["--model", str(tmp_path / "0"), "--ref_model", str(tmp_path / "1"), "--data", str(data)]
    names += ["--batch_size", "4", "--repeats", "2", "--budgets", "1", "4", "--split_pairs", "0"]
    names += ["--output", str(tmp_path / "out")]
    variance.main([*names, "--pairs", "8"])
    rows = json.loads((tmp_path / "out" / "variance.json").read_text())["rows"]
    with open(tmp_path / "out" / "variance.csv") as file:
        assert [float(row["score_value"]) for row in csv.DictReader(file)] == [row["score"]["value"] for row in rows]
    assert (tmp_path / "out" / "variance.png").stat().st_size > 10_000
    assert "Var gradient" in capsys.readouterr().out
    for option, value, message in (
        ("--pairs", "6", "pairs=6 must be a positive multiple of batch_size=4"),
        ("--loss_type", "sft", "loss_type='sft' is no function of a score"),
        ("--loss_type", "aot", "loss_type='aot' sorts a batch"),
        ("--loss_type", "exo_pair", "label_smoothing=0 makes exo_pair infinite"),
        ("--budgets", "0", "must be at least 1"),
        ("--beta", "0", "beta=0.0 must be positive"),
        ("--dtype", "bf16", "dtype='bf16' is unknown: it must be one of"),
        ("--pairs", "8", "out holds results: set overwrite to replace them"),
        ("--overwrite", "true", "pairs.jsonl, max_length=.*: 16 pairs fit, but pairs=32: ask for fewer"),
    ):
        with pytest.raises(ValueError, match=message):
            variance.main([*names, *(["--pairs", "32"] if option == "--overwrite" else []), option, value])
    with pytest.raises(ValueError, match="missing: --model, --ref_model"):
        variance.main(["--data", str(data)])


def test_the_command_of_the_readme_takes_a_file_of_twelve_pairs(tmp_path, capsys):
    """Without --pairs and --batch_size, which are for 128 pairs in batches of 16."""
    for seed in (0, 1):
        tiny_model(seed=seed, dtype=torch.float32, **IDS).save_pretrained(tmp_path / str(seed))
        TOKENIZER.save_pretrained(tmp_path / str(seed))
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS[:12]))
    names = ["--model", str(tmp_path / "0"), "--ref_model", str(tmp_path / "1"), "--data", str(data)]
    variance.main([*names, "--repeats", "2", "--budgets", "2", "--gradient", "none", "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert f"12 of 12 pairs of {data}, in 1 batches of 12" in printed
    assert "Recommended: " in printed
    found = json.loads((tmp_path / "out" / "variance.json").read_text())
    assert (found["settings"]["pairs"], found["settings"]["batch_size"]) == (12, 12)
    ends = [row[key]["low"] for row in found["rows"] for key in ("score", "loss", "saturated", "flipped")]
    ends += [cell["low"] for cell in found["doubling_ratios"][0].values() if isinstance(cell, dict)]
    assert min(ends) >= 0


def test_sizes_of_a_measurement():
    assert Settings().sizes(1000) == (128, 16)
    assert Settings().sizes(100) == (96, 16)
    assert Settings().sizes(12) == (12, 12)
    assert Settings(pairs=8).sizes(100) == (8, 8)
    assert Settings(batch_size=200).sizes(500) == (200, 200)
    with pytest.raises(ValueError, match="12 pairs fit, but pairs=32"):
        Settings(pairs=32).sizes(12)


def a_row(name, n, score, gradient=None, flipped=0.05):
    cells = {"score": score, "loss": score, "gradient": gradient, "bias": 0.1, "saturated": 0.0, "flipped": flipped}
    cells["reliability"] = 1 / (1 + score)
    cells = {key: value and {"value": value, "low": value / 1.2, "high": 1.2 * value} for key, value in cells.items()}
    return {"name": name, "n": n, "n_t": n, "n_y": 1, "shared_masks": True, "biased": False, **cells}


def test_the_advice_follows_from_the_rows():
    """vrpo has variance 6.4 / n, the other design an eighth, and at n = 2 a gradient noisier than the default's."""
    paper = [a_row("vrpo", n, 6.4 / n, 8.0 / n, 0.4 / n) for n in (1, 2, 4, 8)]
    other = [a_row("loo_complementary", n, 0.8 / n, 7.0 / n) for n in (2, 4, 8)]
    text = advise({"rows": [*paper, *other], "split": None})
    assert text[0].startswith("At n = 8, the trainer's default, masks alone")
    assert "by 0.89 (standard deviation)" in text[0]  # sqrt(0.8)
    assert "5% of the drawn scores have the wrong sign" in text[0]
    assert text[1] == "`loo_complementary` with n = 4 has the score variance of `vrpo` with n = about 32."
    assert "`--estimator loo_complementary --n_t 8`, with 100% of the default's forward passes" in text[2]
    assert "acts like a beta that is larger by a factor of 7.4 (n = 1) and 1.8 (n = 8)" in text[3]
    assert len(text) == 4
    exact = [row | {"reliability": None if row["n"] > 1 else row["reliability"] | {"value": 0.9}} for row in paper]
    assert not any("acts like a beta" in line for line in advise({"rows": [*exact, *other], "split": None}))
    quick = [a_row(row["name"], row["n"], row["score"]["value"], None, 0.3) for row in [*paper, *other]]
    text = advise({"rows": quick, "split": None})
    assert "`--estimator loo_complementary --n_t 2`, with 25% of the default's forward passes" in text[2]
    assert "30% of its scores have the wrong sign; with `loo_complementary` and n = 8, 30%" in text[3]
    assert "Recommended: the default" in advise({"rows": paper, "split": None})[1]
    # The figure of the default is that of its row, also where the other rows of its design would say another (0.8).
    assert "the default's 0.9." in advise({"rows": [*quick[:3], a_row("vrpo", 8, 0.9), *quick[4:]], "split": None})[2]
    wide = [*paper[:3], paper[3] | {"score": {"value": 0.8, "low": 0.2, "high": 3.2}}]
    assert "between 0.2 and 3.2 only" in advise({"rows": wide, "split": None})[-1]


def test_no_advice_for_a_policy_that_is_the_reference():
    rows = [a_row("vrpo", 8, 1.0) | {"score": {"value": 0.0, "low": 0.0, "high": 0.0}}]
    assert "no noise in scores to reduce" in advise({"rows": rows, "split": None})[0]


@pytest.mark.parametrize("counts", [[1, 2, 4, 8, 16], [8], [1, 2, 3, 4, 5, 6, 7, 8, 16, 64]])
@pytest.mark.parametrize("scale", [0.4, 1e-4, 3e4])
def test_tick_labels_do_not_collide(counts, scale):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    rows = [a_row(name, n, scale / n, scale / n**3) for name in ("vrpo", "loo_complementary") for n in counts]
    figure = variance_figure({"rows": rows})
    figure.canvas.draw()
    for axis in (each for axes in figure.axes for each in (axes.xaxis, axes.yaxis)):
        labels = [tick.label1 for tick in axis.get_major_ticks() + axis.get_minor_ticks() if tick.label1.get_text()]
        boxes = [label.get_window_extent() for label in labels]
        assert labels
        assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    pyplot.close(figure)


@pytest.mark.parametrize("build", [tiny_model, tiny_moe, partial(tiny_model, weight_tying=True)])
def test_every_gradient_of_every_model(build):
    """Frozen parameters too, as adapters leave them; what was trained before is trained after."""
    policy, reference = build(dtype=torch.float32), build(seed=1, dtype=torch.float32)
    policy.requires_grad_(False)
    ids = torch.randint(3, 38, (4, 6), generator=torch.Generator().manual_seed(0))
    scored = torch.tensor([[False, False, True, True, True, True]]).expand(4, -1)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "response_mask": scored,
        "example_id": torch.arange(2),
    }
    for gradient in ("up", "head", "full"):
        settings = Settings(
            pairs=2, batch_size=2, repeats=2, budgets=[2], gradient=gradient, source_pairs=0, split_pairs=0
        )
        assert measure(policy, reference, [batch], settings)["rows"][0]["gradient"]["value"] > 0
    assert not any(parameter.requires_grad for parameter in policy.parameters())


def test_training_logs_the_variance_of_dependent_draws_by_redrawing(tmp_path):
    """Half the squared difference of two draws of the design, at its interval; its mean is the variance."""
    run = moved(trainer(tmp_path, estimator="loo_complementary", n_t=4, variance_steps=2))
    batch = first_batch(run)
    with torch.no_grad():
        scores = run.scores(run.denoiser(run.model), batch, 0)
    run.state.global_step = 1
    assert run.second_scores(run.model, batch) is None
    run.state.global_step = 2
    metrics = run.metrics_of(scores, batch, run.second_scores(run.model, batch))
    with torch.no_grad():
        other = run.scores(run.denoiser(run.model), batch, -2)
    first, second = (log_ratios(each.policy, each.reference) for each in (scores, other))
    half = (first - second).map(lambda difference_P: difference_P.square() / 2)
    expected = run.args.beta**2 * (half.chosen + half.rejected)
    assert torch.allclose(metrics["score/variance"], expected, rtol=1e-10)
    score = run.args.beta * (first.margin + second.margin) / 2  # beta^2 q(s) V / 2, s halfway between the two
    assert torch.allclose(metrics["loss/bias"], torch.sigmoid(score) * torch.sigmoid(-score) * expected / 2, rtol=1e-8)
