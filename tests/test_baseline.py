"""The leave-one-out baseline and the designs that use it, against their definition and by enumeration."""

import itertools
import math

import pytest
import torch
from test_likelihood import Table
from test_masking import standard_errors

from llada.diffusion.baseline import leave_one_out
from llada.diffusion.likelihood import elbo_draws, exact_elbo
from llada.diffusion.masking import MaskDraws, draw_masks, timesteps
from llada.diffusion.random_streams import generator_for
from vrpo.estimators.designs import DESIGNS, ComposedDesign, design, draw_for_pairs
from vrpo.estimators.published import PUBLISHED


def plan_of(mask_SBL, weight_SB) -> MaskDraws:
    return MaskDraws(mask_SBL, mask_SBL * weight_SB[..., None])


@pytest.mark.parametrize(("draws", "group"), [(2, 1), (3, 1), (4, 2), (5, 2), (8, 2)])
@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_the_weights_are_the_definition(draws, group, slope):
    """B_hat with the weights = plain B_hat minus the centred masks times c_i^k, written out draw by draw."""
    length, prior = 6, 0.7
    scored = torch.ones(1, length, dtype=torch.bool)
    plan = draw_masks(scored, [generator_for(3)], draws, levels="mirrored", complementary=group == 2, count_tilt=0.25)
    mask, weight = plan.masked_SBL[:, 0].double(), plan.weight_SBL[:, 0].amax(-1)
    hidden = mask.sum(-1) / length
    larger = 1 + slope * hidden
    values = torch.randn(draws, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * mask
    expected = (weight * values.sum(-1)).sum()
    for k in range(draws):
        others = [j for j in range(draws) if j // group != k // group]
        scaled = values[others] / larger[others, None]
        mean = scaled.sum() / mask[others].sum()
        baseline = larger[k] * (scaled.sum(0) + prior * mean) / (mask[others].sum(0) + prior)
        expected -= weight[k] * ((mask[k] - mask[k].sum() / length) * baseline).sum()
    got = (leave_one_out(plan, scored, group, prior, slope).weight_SBL[:, 0] * values).sum()
    assert got.item() == pytest.approx(expected.item(), abs=1e-12)


def exact_coefficients(length: int) -> torch.Tensor:
    """What log p(token | mask) must weigh on average, [2^length masks, tokens]: 1 / (l C(L, l)) where it is masked."""
    table = torch.zeros(2**length, length, dtype=torch.float64)
    for code in range(1, 2**length):
        for token in range(length):
            if code >> token & 1:
                table[code, token] = 1 / (code.bit_count() * math.comb(length, code.bit_count()))
    return table


def mean_weights(plan: MaskDraws, chance_B: torch.Tensor) -> torch.Tensor:
    """Expected weight of each token in each context under a plan whose responses B enumerate all outcomes."""
    draws, _, length = plan.masked_SBL.shape
    code_SB = (plan.masked_SBL * 2 ** torch.arange(length)).sum(-1)
    table = torch.zeros(2**length, length, dtype=torch.float64)
    return table.index_add_(0, code_SB.flatten(), (chance_B[None, :, None] * plan.weight_SBL).flatten(0, 1) / draws)


@pytest.mark.parametrize(("draws", "length"), [(1, 5), (2, 1), (2, 5), (3, 4), (4, 3)])
@pytest.mark.parametrize("tilt", [0.0, 0.25])
def test_independent_draws_are_unbiased_exactly(draws, length, tilt):
    """All combinations of `draws` masks: every token weighs in every context what the ELBO and its gradient say."""
    count_L = torch.arange(1, length + 1, dtype=torch.float64)
    density_L = ((count_L - 0.5) / length) ** -tilt
    density_L /= density_L.sum()
    codes = torch.tensor(list(itertools.product(range(1, 2**length), repeat=draws))).T
    mask_SBL = (codes[..., None] >> torch.arange(length)) & 1 == 1
    count_SB = mask_SBL.sum(-1)
    chance_SB = density_L[count_SB - 1] / torch.tensor([math.comb(length, c) for c in range(length + 1)])[count_SB]
    plan = plan_of(mask_SBL, 1 / (count_SB * density_L[count_SB - 1]))
    plan = leave_one_out(plan, torch.ones(mask_SBL.shape[1:], dtype=torch.bool), 1, 0.5, 0.3)
    assert (mean_weights(plan, chance_SB.prod(0)) - exact_coefficients(length)).abs().max() < 1e-12


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("tilt", [0.0, 0.25])
@pytest.mark.parametrize("pairs", [1, 2])
def test_loo_complementary_with_complementary_pairs_is_unbiased_exactly(pairs, tilt, length):
    """Two or four draws: every interval of levels with constant counts, and every order of the tokens of every pair."""
    count_L = torch.arange(1, length + 1, dtype=torch.float64)
    density_L = ((count_L - 0.5) / length) ** -tilt
    density_L /= density_L.sum()
    steps = density_L.cumsum(0)
    orders = torch.tensor(list(itertools.permutations(range(length))))

    def draws_in(low: float, high: float):
        """(chance, both counts, both masks) for a level u in a stratum and its reflection 1 - u."""
        edges = sorted({low, high, *(e for e in [*steps.tolist(), *(1 - steps).tolist()] if low < e < high)})
        for a, b in itertools.pairwise(edges):
            middle = torch.tensor([(a + b) / 2, 1 - (a + b) / 2], dtype=torch.float64)
            index = torch.searchsorted(steps, middle, right=True).clamp(max=length - 1)  # steps end at 1 up to rounding
            first, second = (index + 1).tolist()
            for order in orders:
                chance = (b - a) / (high - low) / len(orders)
                yield chance, [first, second], [order < first, length - 1 - order < second]

    strata = [(pair / (2 * pairs), (pair + 1) / (2 * pairs)) for pair in range(pairs)]
    outcomes = list(itertools.product(*(draws_in(*stratum) for stratum in strata)))
    mask_SBL = torch.stack([torch.stack([mask for pair in outcome for mask in pair[2]]) for outcome in outcomes], 1)
    count_SB = torch.tensor([[count for pair in outcome for count in pair[1]] for outcome in outcomes]).T
    chance_B = torch.tensor([math.prod(pair[0] for pair in outcome) for outcome in outcomes], dtype=torch.float64)
    plan = plan_of(mask_SBL, 1 / (count_SB * density_L[count_SB - 1]))
    ours = DESIGNS["loo_complementary"]
    plan = leave_one_out(
        plan, torch.ones(mask_SBL.shape[1:], dtype=torch.bool), 2, ours.baseline_prior, ours.baseline_slope
    )
    assert chance_B.sum().item() == pytest.approx(1)
    assert (mean_weights(plan, chance_B) - exact_coefficients(length)).abs().max() < 1e-12


def names_and_budgets():
    """Of the designs whose mean is known; MIRROR and ESPO are made of pairs."""
    budgets = {name: (1, 2, 3, 4, 8) for name in DESIGNS} | {"naive_dpo": (1,), "balanced": (2, 4)}
    budgets |= {"mirror": (2, 4), "espo": (2, 4)}
    return [
        (name, n)
        for name, each in DESIGNS.items()
        for n in budgets[name]
        if name == "vrpo_bernoulli" or not each.biased
    ]


def check_design(name: str, n: int, length: int, responses: int) -> None:
    """Mean ELBO and its whole gradient over `responses` plans of a table model against enumeration.

    The gradient with respect to log p of each token in each context is its mean weight there: every one of the
    2^length x length is compared, in standard errors (below 5: there are up to 192 of them for each design).
    """
    response_mask_BL = torch.ones(responses, length, dtype=torch.bool)
    plan, _ = draw_for_pairs(design(name, n_t=n), response_mask_BL, list(range(responses // 2)), 5, 0)
    check_plan(plan, eps=1e-3 if name == "vrpo_bernoulli" else 0.0)


def check_plan(plan: MaskDraws, eps: float = 0.0) -> None:
    _, responses, length = plan.masked_SBL.shape
    model, tokens = Table(length), torch.arange(length)
    exact = exact_elbo(model, tokens, torch.ones(length, dtype=torch.bool), eps=eps)
    (slope,) = torch.autograd.grad(exact, model.log_p)
    with torch.no_grad():
        values = elbo_draws(model, tokens.expand(responses, -1), plan).mean(0)
    assert standard_errors(values, exact.item()) < 4
    code_SB = (plan.masked_SBL * 2 ** torch.arange(length)).sum(-1)
    for context in range(1, 2**length):
        weight_BL = (plan.weight_SBL * (code_SB == context)[..., None]).mean(0)
        hit = code_SB.eq(context).any(0).sum()
        for token in range(length):
            if context >> token & 1 and hit > 100:  # enough for a normal error
                assert standard_errors(weight_BL[:, token], slope[context, token].item()) < 5


@pytest.mark.parametrize(("name", "n"), names_and_budgets())
def test_every_design_is_unbiased(name, n):
    check_design(name, n, 6, 4_000)


def test_only_the_quadrature_and_the_floored_form_are_marked_biased():
    """Gauss-Legendre with two nodes hides 1 and 4 of 6 tokens with weights 6 and 3/2: its mean is not the ELBO's."""
    assert {name for name, each in DESIGNS.items() if each.biased} == {"gauss_legendre", "vrpo_bernoulli"}
    with pytest.raises(AssertionError):
        check_design("gauss_legendre", 2, 6, 4_000)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n"), [(name, n) for name, n in names_and_budgets() if name not in PUBLISHED])
def test_every_design_is_unbiased_on_400_000_draws(name, n):
    check_design(name, n, 6, 400_000)


@pytest.mark.parametrize(("name", "n"), names_and_budgets())
def test_the_shortest_responses(name, n):
    """Two tokens are unbiased; one token has one mask, so exact-count draws all weigh 1 and nothing is random."""
    check_design(name, n, 2, 2_000)
    scored = torch.ones(4, 1, dtype=torch.bool)
    plan, _ = draw_for_pairs(design(name, n_t=n), scored, [0, 1], 0, 0)
    if name not in ("vrpo_bernoulli", "espo"):  # ESPO draws the empty mask too
        assert torch.allclose(plan.weight_SBL, torch.ones_like(plan.weight_SBL), rtol=0, atol=1e-12)
        assert plan.masked_SBL.all()


@pytest.mark.parametrize("name", [name for name in DESIGNS if DESIGNS[name].shared_masks])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_equal_models_score_zero_in_every_design_with_shared_masks(name, n):
    scored, model = torch.ones(200, 6, dtype=torch.bool), Table(6)
    plans = draw_for_pairs(design(name, n_t=n), scored, list(range(100)), 0, 0)
    tokens = torch.arange(6).expand(200, -1)
    with torch.no_grad():
        policy, reference = (elbo_draws(model, tokens, plan).mean(0) for plan in plans)
    assert (policy - reference).abs().max() <= 1e-5


def test_mirrored_levels_are_mirrored_pairs_with_a_free_last_one():
    u_S = timesteps(5, generator_for(0), "mirrored")
    assert torch.equal(u_S[1:4:2], 1 - u_S[0:4:2])
    assert 0 <= u_S[0] < 0.25 <= u_S[2] < 0.5


def test_complementary_masks_cover_a_response_together():
    scored = torch.ones(1, 9, dtype=torch.bool)
    plan = draw_masks(scored, [generator_for(1)], 6, levels="mirrored", complementary=True)
    for first, second in plan.masked_SBL[:, 0].view(3, 2, 9):
        if first.sum() + second.sum() <= 9:
            assert not (first & second).any()
        else:
            assert (first | second).all()


def test_a_complementary_pair_alone_has_no_baseline():
    scored, changes = torch.ones(2, 7, dtype=torch.bool), dict(n_t=2)
    designs = (design("loo_complementary", **changes, **extra) for extra in ({}, {"baseline_prior": 0}))
    with_baseline, without = (draw_for_pairs(each, scored, [3], 0, 0)[0] for each in designs)
    assert torch.equal(with_baseline.weight_SBL, without.weight_SBL)


def test_what_baselines_and_tilts_need_is_named():
    with pytest.raises(ValueError, match="baseline_prior=0.5 need masks='exact_count', not 'bernoulli'"):
        ComposedDesign(4, masks="bernoulli", baseline_prior=0.5)
    wrong = [("count_tilt", math.nan), ("count_tilt", 2.0), ("baseline_prior", math.nan), ("baseline_prior", math.inf)]
    for name, value in wrong:
        with pytest.raises(ValueError, match=f"{name}={value} must be between 0 and"):
            ComposedDesign(4, **{name: value})
    with pytest.raises(ValueError, match="baseline_slope=400 must be between 0 and 100"):
        ComposedDesign(4, baseline_prior=0.5, baseline_slope=400)
    with pytest.raises(ValueError, match="baseline_slope=0.3 needs a baseline"):
        design("loo_complementary", baseline_prior=0, baseline_slope=0.3)
    without = ComposedDesign(8, levels="mirrored", complementary=True, count_tilt=0.1)
    assert design("loo_complementary", baseline_prior=0) == without
    with pytest.raises(ValueError, match="estimator='mirror' has no option 'masks': it has \\['n_t'\\]"):
        design("mirror", masks="bernoulli")
    with pytest.raises(ValueError, match="n_t=0 must be at least 1"):
        design("mirror", n_t=0)
    with pytest.raises(ValueError, match="levels='even' is unknown: it must be one of"):
        ComposedDesign(4, levels="even")
    with pytest.raises(ValueError, match="estimator='best' is unknown"):
        design("best")
