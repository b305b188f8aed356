"""Diagnostics against closed forms: jackknife, sources of variance by enumeration, bias of every loss."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_likelihood import MASK, Table, all_masks, subsets
from test_masking import standard_errors

from llada.diffusion.likelihood import elbo_draws, exact_elbo
from llada.diffusion.masking import exact_count_masks
from llada.intervals import Interval, proportion
from vrpo.analysis.redraw import count_grid
from vrpo.analysis.statistics import (
    GradientNoise,
    covariances,
    inverse_variance_mean,
    jackknife,
    one_minus_correlation,
    paired_difference,
    positive_jackknife,
    ratio_of_means,
    reliability,
)
from vrpo.analysis.variance_sources import MaskedSumTable, split_bernoulli, split_exact_count
from vrpo.losses.noise_bias import loss_bias, loss_of_ratio, second_order_bias
from vrpo.losses.pairwise import LOSSES, SORTED, PreferenceLoss
from vrpo.scores import PairScores

LENGTH, EPS = 5, 1e-3
MODEL, TOKENS = Table(LENGTH), torch.arange(LENGTH)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    found = jackknife(torch.mean, values)
    assert found.value == 4.0
    assert found.high - found.value == pytest.approx(3.1824463 * values.std().item() / 2, rel=1e-6)  # t, 3 degrees
    same = jackknife(ratio_of_means, values, 2 * values)
    assert (same.value, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_of_a_variance_is_positive_and_covers_more_than_the_linear_one():
    """12 pairs whose variances are log-normal with sigma 1, each from 8 draws: the docstring's 88%, 600 samples."""
    generator = torch.Generator().manual_seed(0)
    scale_NP = torch.randn(600, 12, generator=generator, dtype=torch.float64).exp()
    variance_NP = scale_NP * torch.randn(8, 600, 12, generator=generator, dtype=torch.float64).var(0)
    exact = math.exp(1 / 2)
    on_log, linear = ([method(torch.mean, row) for row in variance_NP] for method in (positive_jackknife, jackknife))
    hit, linear_hit = (torch.tensor([each.low < exact < each.high for each in found]) for found in (on_log, linear))
    assert all(0 < each.low < each.value < each.high for each in on_log)
    assert standard_errors(hit, 0.88) < 3
    assert standard_errors(hit.double() - linear_hit.double(), 0.0) > 3
    assert hit.sum() > linear_hit.sum()


def test_the_interval_of_a_variance_that_is_zero():
    zeros = torch.zeros(4, dtype=torch.float64)
    assert positive_jackknife(torch.mean, zeros) == Interval(0.0, 0.0, 0.0)
    one = positive_jackknife(torch.mean, torch.tensor([0.0, 0, 0, 4], dtype=torch.float64))
    assert (one.value, one.low) == (1.0, 0.0)  # without the last item the mean is 0
    assert one.high == pytest.approx(1 + 3.1824463)


def test_noise_acts_like_a_larger_beta_by_the_reliability():
    """Scores t (x + e), x = +-0.2 and e = +-0.28, labels by sigmoid(x): the mean logistic loss is least at t = 1/3."""
    x, e = (torch.tensor([-size, size], dtype=torch.float64) for size in (0.2, 0.08**0.5))
    noisy = (x[:, None] + e)[..., None] * torch.linspace(0.2, 0.5, 3001, dtype=torch.float64)
    chosen = torch.sigmoid(x)[:, None, None]
    loss = -chosen * F.logsigmoid(noisy) - (1 - chosen) * F.logsigmoid(-noisy)
    best = 0.2 + 1e-4 * int(loss.mean((0, 1)).argmin())
    assert reliability(x.square(), torch.full((2,), 0.08)) == pytest.approx(1 / 3)
    assert best == pytest.approx(1 / 3, rel=0.02)


def test_variance_of_a_single_draw_of_independent_token_ratios():
    """Of mean 0 and variance 1 and unchanged by masks: V = L (H_L - 1) and S = L, so V / S = H_L - 1."""
    plan, probability = all_masks(LENGTH, lambda count: 1.0)
    count_S = plan.masked_SBL.sum((1, 2)).double()
    squared = (probability / LENGTH * (LENGTH / count_S).square() * count_S).sum()  # over draws, and token ratios
    harmonic = sum(1 / count for count in range(1, LENGTH + 1))
    assert (float(squared) - LENGTH) / LENGTH == pytest.approx(harmonic - 1)


def test_intervals_of_shares_have_a_width_where_all_are_right():
    """By hand: 10 of 10 gives 1 / (1 + z^2 / 10); n pairs without a difference, z sqrt(2) / (n + 2)."""
    z = 1.959964
    assert proportion([True] * 10) == Interval(1.0, pytest.approx(1 / (1 + z**2 / 10), rel=1e-6), pytest.approx(1))
    assert proportion([True] * 8 + [False] * 2).low == pytest.approx(0.4901625, rel=1e-6)
    half = z * 2**0.5 / 102
    assert paired_difference([True] * 100, [True] * 100) == Interval(0.0, pytest.approx(-half), pytest.approx(half))
    found = paired_difference([True] * 7 + [False] * 3, [True] * 3 + [False] * 7)  # four gained, none lost
    spread = z * ((5 / 12 + 1 / 12 - (4 / 12) ** 2) / 12) ** 0.5
    assert found == Interval(pytest.approx(0.4), pytest.approx(4 / 12 - spread), pytest.approx(4 / 12 + spread))


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.7), (0.98, 0.99)])
def test_the_interval_of_a_paired_difference_covers(before, after):
    """Answers to 200 prompts that share a difficulty, 2,000 samples: at least 94% within three standard errors."""
    hardness = torch.rand(2000, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = 0.05 * torch.randn(2, 2000, 200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    base, treated = hardness + noise[0] < before, hardness + noise[1] < after
    exact = float(treated.double().mean() - base.double().mean())
    found = [paired_difference(t.tolist(), b.tolist()) for t, b in zip(treated, base, strict=True)]
    hit = torch.tensor([each.low < exact < each.high for each in found]).double()
    assert hit.mean() > 0.94 - 3 * (0.94 * 0.06 / 2000) ** 0.5


def sampled_banks(number: int, masks: int) -> list[MaskedSumTable]:
    generator = torch.Generator().manual_seed(0)
    sums = []
    for count in range(1, LENGTH + 1):
        noisy = [TOKENS.masked_fill(mask, MASK)[None] for mask in subsets(LENGTH, count)]
        choices = torch.stack([MODEL.log_probs(noisy_1L, TOKENS[None]).sum().detach() for noisy_1L in noisy])
        sums.append(choices[torch.randint(len(choices), (number, masks), generator=generator)])
    return [MaskedSumTable(torch.arange(1, LENGTH + 1), values, LENGTH) for values in torch.stack(sums, 1)]


def test_banks_give_the_variance_of_both_forms():
    """The mean over 1,000 banks of 6 masks a count against enumeration: (L/l) S and (1/t) S, variance of one draw."""
    plan, probability = all_masks(LENGTH, lambda count: 1.0)
    sum_S = elbo_draws(MODEL, TOKENS[None], plan)[:, 0].detach()
    count_S = plan.masked_SBL.sum((1, 2)).double()
    exact_count = (probability / LENGTH * (LENGTH / count_S * sum_S).square()).sum()
    exact_count -= exact_elbo(MODEL, TOKENS, torch.ones(LENGTH, dtype=torch.bool)).detach().square()
    edge = torch.linspace(math.log(EPS), 0, 400_001, dtype=torch.float64).exp()
    t = (edge[1:] + edge[:-1]) / 2
    square = torch.stack([(t ** (c - 2) * (1 - t) ** (LENGTH - c) * edge.diff()).sum() / (1 - EPS) for c in count_S])
    bernoulli = (square * sum_S.square()).sum()
    bernoulli -= exact_elbo(MODEL, TOKENS, torch.ones(LENGTH, dtype=torch.bool), eps=EPS).detach().square()
    banks = sampled_banks(1000, 6)
    for split, exact in ((split_exact_count, exact_count), (split_bernoulli, bernoulli)):
        total = torch.tensor([split(bank).of(1) for bank in banks], dtype=torch.float64)
        assert standard_errors(total, exact.item()) < 4
        one = split(banks[0])
        assert one.of(4) == pytest.approx(one.of(1) / 4)
        assert one.of(1, 4) == pytest.approx(one.level + (one.count + one.pattern) / 4)


def test_counts_between_the_banked_ones_are_interpolated():
    bank = MaskedSumTable(
        torch.tensor([1, 3, 5]), torch.tensor([[1.0, 1.0], [3.0, 3.0], [9.0, 9.0]], dtype=torch.float64), 5
    )
    assert bank.moments()[0].tolist() == [1, 2, 3, 6, 9]


RATIOS = torch.tensor([2.0, -1.5, 0.3]), torch.tensor([-1.0, 0.5, 2.0])
LENGTHS = torch.tensor([4.0, 3, 6, 5, 2, 7])
NOISE = torch.tensor([0.7, 0.2, 0.4, 0.3, 0.9, 0.5])
BETA, EPSILON = 0.2, 0.1


def q(x):
    return torch.sigmoid(x) * torch.sigmoid(-x)


def documented_bias(a, b, v_w, v_l, length_w, length_l) -> dict[str, torch.Tensor]:
    """The last column of docs/losses.md."""
    s, v, half = a - b, v_w + v_l, BETA**2 / 2
    target, per_token = math.log((1 - EPSILON) / EPSILON), v_w / length_w**2 + v_l / length_l**2
    up, tau, loss = torch.sigmoid, 0.05, -torch.nn.functional.logsigmoid(s)
    mixed, step = up(s / tau), q(s / tau) / tau
    curvature = (1 - mixed) * q(s) + (mixed - 2 * step) * torch.exp(-s) + 2 * step * up(-s)
    curvature += step * (1 - 2 * mixed) / tau * (torch.exp(-s) - loss)
    return {
        "sigmoid": half * q(s) * v,
        "robust": half * q(s) * v,
        "hinge": 0 * s,
        "ipo": per_token,
        "exo_pair": half * q(s) * (1 + (1 - 2 * up(s)) * (s - target)) * v,
        "nca_pair": half * (1.5 * q(a) * v_w + 0.5 * q(b) * v_l),
        "bco_pair": half * (q(a) * v_w + q(b) * v_l),
        "sppo_hard": v,
        "apo_zero": half * (q(a) * (2 * up(a) - 1) * v_w + q(b) * (1 - 2 * up(b)) * v_l),
        "apo_down": half * (q(a) * (1 - 2 * up(a)) * v_w + q(s) * (2 * up(s) - 1) * v),
        "sigmoid_norm": half * q(a / length_w - b / length_l) * per_token,
        "sft": 0 * s,
        "discopop": half * curvature * v,
    }


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in SORTED])
def test_the_bias_of_noise_is_what_the_docs_say(name):
    """The documented formula, the second derivative, and small two-point noise on either side agree."""
    chosen, rejected = (side.double() for side in RATIOS)
    preference_loss, length = PreferenceLoss((name,), (1.0,), BETA, EPSILON), PairScores.split(LENGTHS.double())
    documented = documented_bias(BETA * chosen, BETA * rejected, *NOISE.chunk(2), *LENGTHS.chunk(2))[name]
    computed = second_order_bias(preference_loss, PairScores(chosen, rejected), PairScores.split(NOISE), length)
    assert torch.allclose(computed, documented.double(), rtol=1e-5, atol=1e-7)

    def loss(to_chosen, to_rejected):
        return loss_of_ratio(preference_loss, PairScores(chosen + to_chosen, rejected + to_rejected), length)

    step_w, step_l = ((1e-4 * side).sqrt().double() for side in NOISE.chunk(2))
    zero = torch.zeros(3, dtype=torch.float64)
    moved = (loss(step_w, zero) + loss(-step_w, zero) + loss(zero, step_l) + loss(zero, -step_l)) / 2
    assert torch.allclose((moved - 2 * loss(zero, zero)) / 1e-4, documented.double(), rtol=1e-3, atol=1e-5)


def bias_over_redraws(name: str, ratio_RB, *designs) -> torch.Tensor:
    """`loss_bias` of log-ratios whose best estimate is pooled over the designs, for responses of one token."""
    exact, variance = (PairScores.split(values) for values in inverse_variance_mean(list(designs)))
    length = PairScores.split(torch.ones(ratio_RB.shape[1]))
    return loss_bias(PreferenceLoss((name,), (1.0,), BETA), PairScores.split(ratio_RB), exact, variance, length)


def test_the_bias_over_redraws_is_unbiased_for_a_quadratic():
    """sppo_hard with noise of variance 0.7 and 0.3 on its two sides: bias 1.0, from 8 redraws of 4,000 pairs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 8000, generator=generator, dtype=torch.float64)
    scale = torch.cat([torch.full((4000,), 0.7), torch.full((4000,), 0.3)]).double().sqrt()
    ratio_RB = torch.cat([torch.full((4000,), 2.0), torch.full((4000,), -1.0)]) + scale * noise
    found = bias_over_redraws("sppo_hard", ratio_RB, ratio_RB)
    assert standard_errors(found, 1.0) < 4


@pytest.mark.parametrize(("name", "variance"), [("hinge", 1.0), ("hinge", 30.0), ("sigmoid", 44.0)])
def test_the_bias_of_a_noisy_design_is_judged_by_a_less_noisy_one(name, variance):
    """Normal noise of the score on 4,000 pairs, 8 redraws, beside a design with a thousandth of it.

    hinge at its kink, s = 1: E[max(0, noise)] = d / sqrt(2 pi). sigmoid at s = 1, by quadrature.
    """
    generator = torch.Generator().manual_seed(1)
    ratio = torch.cat([torch.full((4000,), 1 / BETA), torch.zeros(4000)]).double()
    noise = torch.randn(2, 8, 8000, generator=generator, dtype=torch.float64) * (variance / 2) ** 0.5 / BETA
    noisy, quiet = ratio + noise[0], ratio + 1e-3**0.5 * noise[1]
    found = bias_over_redraws(name, noisy, noisy, quiet)
    if name == "hinge":
        expected = (variance / (2 * math.pi)) ** 0.5
    else:
        z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
        density = torch.exp(-z.square() / 2)
        loss = torch.nn.functional.softplus(-1 - variance**0.5 * z)
        expected = float((loss * density).sum() / density.sum()) - math.log1p(math.exp(-1))
    assert found.mean().item() == pytest.approx(expected, rel=0.03)
    assert standard_errors(found, expected) < 5


def test_pooling_weighs_designs_by_their_noise():
    """Two designs of variance 3 and 1: weights 1/4 and 3/4, variance of the mean (9 / 16 + 3 / 16) / R."""
    steps = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)  # sample variance 1
    mean_B, left_B = inverse_variance_mean([steps * 3**0.5 + 2, steps + 6])
    assert mean_B.item() == pytest.approx(5)
    assert left_B.item() == pytest.approx((3 / 16 + 9 / 16) / 3)


def test_correlation_is_pooled_over_items():
    """A line with three times itself, a line with its reverse: covariances 3 v and -v, variances v, v and 9 v, v."""
    line = torch.arange(5.0)[:, None]
    pair = torch.cat([line, line], 1), torch.cat([3 * line, -line], 1)
    assert one_minus_correlation(torch.stack(covariances(*pair), -1)).item() == pytest.approx(
        1 - (3 - 1) / (2 * 10) ** 0.5
    )
    assert covariances(*pair)[1].tolist() == pytest.approx([2.5, 2.5])


@pytest.mark.parametrize("counts", [4, 16])
def test_a_bank_of_few_counts_is_not_biased(counts):
    """A log-ratio that adds up over 64 tokens, so that (L/l) S has one mean at all counts: 2,000 banks of 4 masks."""
    generator, length = torch.Generator().manual_seed(0), 64
    token = torch.randn(length, generator=generator, dtype=torch.float64)
    token += 1 - token.mean()
    grid = count_grid(length, counts)
    count = torch.tensor(grid)
    keep = exact_count_masks(count.repeat_interleave(8000), length, generator)
    value = (keep.double() @ token).view(len(grid), 2000, 4)
    for split in (split_exact_count, partial(split_bernoulli, nodes=200)):
        found = [split(MaskedSumTable(count, value[:, i], length)) for i in range(2000)]
        level = torch.tensor([each.level for each in found], dtype=torch.float64)
        assert standard_errors(level, 0.0) < 4


def test_gradient_noise_is_the_total_variance():
    draws = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = GradientNoise()
    for draw in draws:
        noise.add([draw[:2], draw[2:]])
    assert noise.variance == pytest.approx(draws.var(0).sum().item())
    assert noise.squared_mean == pytest.approx(draws.mean(0).square().sum().item())
