"""The split of a gradient's noise into pairs and masks: exact expectations, known parts, all masks."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from datasets import Dataset
from test_likelihood import all_masks
from test_masking import standard_errors
from test_sft import IDS, TOKENIZER
from test_vrpo_trainer import PAIRS, first_batch, moved, trainer

from llada.data.tokenizer import special_ids
from llada.diffusion.likelihood import elbo_draws
from llada.diffusion.masking import MaskDraws
from vrpo import variance
from vrpo.analysis.noise_split import noise_split, pair_gradients
from vrpo.analysis.redraw import mask_redraws, redrawn_elbos, redrawn_gradients, slopes
from vrpo.analysis.settings import Settings
from vrpo.analysis.statistics import inverse, jackknife, ratio_of_means
from vrpo.analysis.table import chosen_parameters, measure
from vrpo.collator import PairCollator, pairs_of
from vrpo.data import prepare_pairs
from vrpo.estimators.designs import design
from vrpo.gradient_noise import PairGradients, estimator_share, projection, signal_to_noise
from vrpo.scores import PairScores


def gathered(gradient_PRD: torch.Tensor) -> PairGradients:
    mean_PD = gradient_PRD.mean(1)
    return PairGradients(mean_PD @ mean_PD.T, gradient_PRD.var(1).sum(-1), gradient_PRD.shape[1])


def test_all_samples_of_a_small_population_average_to_its_parts():
    """Three kinds of pairs with two equally likely masks each; every sample of 3 pairs with 2 redraws, to 1e-12.

    In one dimension, kinds {0, 2}, {1, 5} and {-3, -3}: means 1, 3 and -3, variances over masks 1, 4 and 0. So the
    estimator's part is 5/3, G = 1/3, and the variance between pairs (1 + 9 + 9) / 3 - 1/9 = 56/9.
    """
    kinds = torch.tensor([[0.0, 2.0], [1.0, 5.0], [-3.0, -3.0]], dtype=torch.float64)
    pairs = [kinds[kind, list(masks)] for kind in range(3) for masks in itertools.product(range(2), repeat=2)]
    found = [gathered(torch.stack(sample)[..., None]) for sample in itertools.product(pairs, repeat=3)]
    assert len(found) == 12**3
    for name, exact in (("estimator", 5 / 3), ("between", 56 / 9), ("signal", 1 / 9)):
        mean = torch.stack([getattr(each, name) for each in found]).mean()
        assert mean.item() == pytest.approx(exact, abs=1e-12), name


def test_estimates_of_a_problem_with_known_parts():
    """Gradients G + pair + masks in 6 dimensions; masks vary more for some pairs. 400 samples of 8 pairs, 3 redraws."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread_D = torch.tensor([3.0, 1.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    mean_D = torch.tensor([0.5, 0, 0, 0, 0, 1.0], dtype=torch.float64)
    scale_P = 0.5 + torch.arange(8, dtype=torch.float64) / 4
    samples = []
    for _ in range(400):
        order = torch.randperm(8, generator=generator)
        masks_PRD = 2 * scale_P[order, None, None] * normal(8, 3, 6)
        samples.append(gathered(mean_D + (spread_D * normal(8, 6))[:, None] + masks_PRD))
    exact = {
        "estimator": 6 * 4 * scale_P.square().mean(),
        "between": spread_D.square().sum(),
        "signal": mean_D.square().sum(),
    }
    for name, value in exact.items():
        assert standard_errors(torch.stack([getattr(each, name) for each in samples]), value) < 4, name


def test_between_is_the_variance_of_the_means_minus_a_share_of_the_estimator_s():
    gradient_PRD = torch.randn(5, 4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, variance_of_means = gathered(gradient_PRD), gradient_PRD.mean(1).var(0).sum()
    assert found.between.item() == pytest.approx((variance_of_means - found.estimator / 4).item())
    kept = torch.tensor([0, 3, 4])
    assert found.of(kept).signal.item() == pytest.approx(gathered(gradient_PRD[kept]).signal.item())
    assert estimator_share(torch.tensor(3.0), torch.tensor(1.0)) == 0.75
    assert signal_to_noise(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(0.5)) == 0.125


def test_the_interval_of_the_parts_covers_them():
    """95% intervals of the variance between 16 pairs, 400 samples: 90 to 99% of them contain it."""
    generator = torch.Generator().manual_seed(2)
    hits = 0
    for _ in range(400):
        pair_P1D = torch.randn(16, 1, 20, generator=generator, dtype=torch.float64)
        found = gathered(pair_P1D + torch.randn(16, 3, 20, generator=generator, dtype=torch.float64))
        interval = jackknife(lambda kept, found=found: found.of(kept).between, torch.arange(16))
        hits += interval.low < 20 < interval.high
    assert 0.9 < hits / 400 < 0.99


def test_the_inverse_of_an_interval_has_no_bound_where_zero_is_inside():
    assert inverse({"value": 0.5, "low": -0.1, "high": 2.0}) == {"value": 2.0, "low": 0.5, "high": None}
    assert inverse({"value": -0.1, "low": -1.0, "high": 0.25}) == {"value": None, "low": 4.0, "high": None}


def test_a_projection_keeps_inner_products():
    """Of vectors of 300 numbers on 64: 400 permutations of both give their numbers other signs and places."""
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 3, 100, generator=generator, dtype=torch.float64)
    assert torch.equal(projection([a, b], 600), torch.cat([a.flatten(), b.flatten()]).float())
    assert torch.equal(projection([a], 64), projection([a], 64))
    products = []
    for number in range(400):
        order = torch.randperm(300, generator=torch.Generator().manual_seed(number))
        ours, theirs = (projection([v.flatten()[order]], 64).double() for v in (a, b))
        products.append(torch.stack([ours @ theirs, ours @ ours]))
    product_N2 = torch.stack(products)
    exact = torch.stack([(a * b).sum(), a.square().sum()])
    assert standard_errors(product_N2, exact).max() < 4
    bound = (2 / 64) ** 0.5 * torch.stack([a.norm() * b.norm(), a.norm() ** 2])
    assert (product_N2.std(0) < 1.15 * bound).all()


@pytest.fixture
def run(tmp_path):
    return moved(trainer(tmp_path))


def test_gradients_of_pairs_are_those_of_their_batch(run, monkeypatch):
    """The mean over pairs is the gradient of the mean loss under the same masks, and its variance that of redraws."""
    settings, batch = Settings(repeats=3, split_repeats=3), first_batch(run)
    parameters, each = chosen_parameters(run.model, "up"), design("loo_complementary", n_t=4)
    draw = mask_redraws(batch, each, settings.seed)
    ours, theirs = redrawn_elbos(run.model, run.ref_model, batch, draw, range(3))
    ratio = PairScores.split(ours - theirs)
    found = pair_gradients(run.model, [batch], each, [ratio], parameters, settings)
    length = PairScores.split(batch["response_mask"].sum(-1))
    slope_RB = slopes(settings.loss(), ratio, length)
    whole = redrawn_gradients(run.model, batch, draw, range(3), parameters, slope_RB)
    assert len(found.variance_P) == 8
    assert found.gram_PP.mean().item() == pytest.approx(whole.squared_mean, rel=1e-5)  # |mean over pairs|^2
    pair, one = pairs_of(batch)[5], [5, 13]
    naive = redrawn_gradients(
        run.model, pair, mask_redraws(pair, each, settings.seed), range(3), parameters, 8 * slope_RB[:, one]
    )
    assert found.variance_P[5].item() == pytest.approx(naive.variance, rel=1e-9)
    assert found.gram_PP[5, 5].item() == pytest.approx(naive.squared_mean, rel=1e-9)
    fewer = pair_gradients(run.model, [batch, batch], each, [ratio] * 2, parameters, replace(settings, split_pairs=11))
    assert len(fewer.variance_P) == 11
    assert torch.equal(fewer.variance_P[8:], fewer.variance_P[:3])
    assert pair_gradients(run.model, [batch], each, [ratio], parameters, replace(settings, split_pairs=0)) is None
    monkeypatch.setattr("vrpo.analysis.noise_split.KEPT", 512)  # of 1,536 numbers: norms stay exact
    projected = pair_gradients(run.model, [batch], each, [ratio], parameters, settings)
    assert torch.equal(projected.variance_P, found.variance_P)
    assert torch.equal(projected.gram_PP.diagonal(), found.gram_PP.diagonal())
    length_P = found.gram_PP.diagonal().sqrt()
    error_PP = (projected.gram_PP - found.gram_PP).abs() / (length_P[:, None] * length_P)
    assert 0 < error_PP.max() < 4 * (2 / 512) ** 0.5


def short_pairs() -> dict[str, torch.Tensor]:
    """Three pairs with responses of at most four tokens, EOS included."""
    rows = [{"prompt": f"{i}?", "chosen": chosen, "rejected": "no"} for i, chosen in enumerate(("ab", "yes", "c"))]
    pairs = prepare_pairs(Dataset.from_list(rows), TOKENIZER, special_ids(TOKENIZER), 64)
    return PairCollator(IDS["pad_token_id"], IDS["eos_token_id"], 1)(list(pairs))


def variance_of_one_draw(model, pair, side: int, parameters) -> float:
    """Total variance of the gradient of one draw (L/l) S(M) of a response's ELBO, from all its masks."""
    scored_L, first, second = pair["response_mask"][side], 0.0, 0.0
    length = int(scored_L.sum())
    masks, probability_S = all_masks(length, lambda count: length / count)
    for chosen_1N, weight_1N, probability in zip(masks.masked_SBL, masks.weight_SBL, probability_S, strict=True):
        masked_11L, weight_11L = torch.zeros(2, 1, 1, len(scored_L), dtype=torch.float64)
        masked_11L[..., scored_L], weight_11L[..., scored_L] = chosen_1N.double(), weight_1N
        row = {key: pair[key][[side]] for key in ("input_ids", "attention_mask")}
        value = elbo_draws(model, row["input_ids"], MaskDraws(masked_11L.bool(), weight_11L), row["attention_mask"])
        gradient_D = torch.cat([part.flatten() for part in torch.autograd.grad(value.sum(), parameters)])
        first, second = (
            first + probability / length * gradient_D,
            second + probability / length * gradient_D.square().sum(),
        )
    return float(second - first.square().sum())


def test_the_estimator_s_part_is_the_variance_over_all_masks_over_n(run):
    """At policy = reference the loss's slope is -beta / 2, and `vrpo` averages n independent draws.

    Var = (beta / 2)^2 (sum over both sides of the variance of one draw's gradient) / n, by enumeration, for each pair.
    """
    batch, settings = short_pairs(), Settings(repeats=4, beta=0.3)
    parameters = chosen_parameters(run.model, "up")
    exact_P = 0.15**2 * torch.tensor(
        [sum(variance_of_one_draw(run.model, pair, side, parameters) for side in (0, 1)) for pair in pairs_of(batch)]
    )
    same = PairScores(*torch.zeros(2, 4, 3, dtype=torch.float64))
    found = {}
    for n in (1, 2):
        sets = [
            pair_gradients(run.model, [batch], design("vrpo", n_t=n), [same], parameters, replace(settings, seed=seed))
            for seed in range(16)
        ]
        found[n] = torch.stack([each.variance_P for each in sets])
        assert standard_errors(found[n], exact_P / n).max() < 4
    halved = jackknife(ratio_of_means, found[2].flatten(), found[1].flatten())
    assert halved.low < 0.5 < halved.high


def test_the_table_has_the_split_of_each_design_on_its_curve(run):
    settings = Settings(repeats=2, budgets=[2, 4], source_pairs=0, epochs=2)
    table = measure(run.model, run.ref_model, [short_pairs()], settings)
    rows = [row for row in table["rows"] if "estimator_share" in row]
    assert [(row["name"], row["n"]) for row in rows] == [
        ("vrpo", 4), ("vrpo", 1), ("vrpo", 8), ("vrpo", 2), ("loo_complementary", 2), ("loo_complementary", 4)
    ]  # fmt: skip
    quiet = min(rows, key=lambda row: row["estimator_variance"]["value"])
    split, between = table["split"], quiet["between_variance"]["value"]
    assert (split["pairs"], split["redraws"], split["epochs"]) == (3, 2, 2)
    for key in ("between_variance", "squared_signal"):
        assert split[key] == quiet[key]
    for row in rows:
        estimator = row["estimator_variance"]["value"]
        assert row["estimator_share"]["value"] == pytest.approx(estimator / (estimator + between))
        assert 0 <= row["estimator_share"]["low"] <= row["estimator_share"]["high"] <= 1
        scale = row["noise_scale"]["value"]
        assert scale is None or scale == pytest.approx((estimator + between) / split["squared_signal"]["value"])
    json.dumps(table, allow_nan=False)
    for without in (dict(split_pairs=0), dict(gradient="none")):
        plain = measure(run.model, run.ref_model, [short_pairs()], replace(settings, budgets=[2], **without))
        assert plain["split"] is None
        assert not any("estimator_share" in row for row in plain["rows"])


def test_no_split_of_a_gradient_that_is_zero():
    zero = PairGradients(torch.zeros(4, 4), torch.zeros(4), 2)
    assert noise_split([zero, None], [design("vrpo"), design("vrpo")], Settings()) == (None, [{}, {}])


def test_the_command_splits_the_noise_at_the_reference(tmp_path, capsys):
    """The policy is its reference, as when training begins: scores have no noise, and the gradient has."""
    tiny_model(dtype=torch.float32, **IDS).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    data, model = tmp_path / "pairs.jsonl", str(tmp_path / "model")
    data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS[:8]))
    names = ["--model", model, "--ref_model", model, "--data", str(data), "--output", str(tmp_path / "out")]
    names += ["--batch_size", "4", "--repeats", "2", "--budgets", "4", "--source_pairs", "0"]
    variance.main([*names, "--split_pairs", "6", "--epochs", "2", "--noise_share", "0.5", "--pair_cost", "3"])
    printed = capsys.readouterr().out
    assert "With pairs to spare that cost 3 draws each: " in printed
    assert "With a fixed set of pairs and 2 epochs: " in printed
    assert len(printed.splitlines()) < 40
    found = json.loads((tmp_path / "out" / "variance.json").read_text())
    assert (found["split"]["pairs"], found["split"]["redraws"]) == (6, 2)
    header = (tmp_path / "out" / "variance.csv").read_text().splitlines()[0]
    assert "estimator_share_low" in header
    for option, value, message in (
        ("--split_pairs", "2", "split_pairs=2 must be 0 or at least 3"),
        ("--split_repeats", "3", "split_repeats=3 must be at most repeats=2"),
        ("--noise_share", "1", "noise_share=1.0 must be above 0 and below 1"),
        ("--pair_cost", "-1", "pair_cost=-1.0 must be at least 0"),
        ("--epochs", "0", "epochs=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            variance.main([*names, "--overwrite", "true", option, value])
