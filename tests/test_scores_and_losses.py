"""Estimators and losses of VRPO against enumeration and numbers worked by hand."""

import math

import pytest
import torch
from test_likelihood import MASK, Table, subsets
from test_masking import standard_errors

from llada.diffusion.likelihood import elbo_draws, exact_elbo
from vrpo.analysis.variance_sources import VarianceBySource
from vrpo.estimators.designs import DESIGNS, ComposedDesign, draw_for_pairs
from vrpo.losses.pairwise import LOSSES, LossInputs, PreferenceLoss
from vrpo.scores import PairScores, log_ratios, ratio_variance, score_variance

LENGTH, BETA = 5, 0.2
TOKENS = torch.arange(LENGTH)


def perturbed(model: Table, scale: float = 0.3) -> Table:
    """A policy that started from `model`: its log-probabilities moved a little, in every context."""
    other = Table(LENGTH)
    noise = torch.randn(other.log_p.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    other.log_p = (model.log_p.detach() - scale * noise.abs()).requires_grad_()
    return other


REFERENCE = Table(LENGTH)
POLICY = perturbed(REFERENCE)


def sampled_scores(design, pairs: int, policy=POLICY, reference=REFERENCE) -> list[PairScores]:
    """ELBO draws of `pairs` copies of one pair whose two responses are the same text: [S, pairs] for each side."""
    scored = torch.ones(2 * pairs, LENGTH, dtype=torch.bool)
    plans = draw_for_pairs(design, scored, list(range(pairs)), seed=0, epoch=0)
    tokens = TOKENS.expand(2 * pairs, -1)
    with torch.no_grad():
        return [
            PairScores.split(elbo_draws(model, tokens, plan))
            for model, plan in zip((policy, reference), plans, strict=True)
        ]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("n_t", "n_y"), [(1, 1), pytest.param(4, 1, marks=pytest.mark.slow), (2, 2)])
@pytest.mark.parametrize("masks", ["exact_count", "bernoulli"])
def test_the_score_is_unbiased(n_t, n_y, shared, masks):
    """20,000 pairs against the exact log-ratio by enumeration, both sides."""
    policy, reference = sampled_scores(ComposedDesign(n_t, n_y, shared, masks), 6_000)
    scored, eps = torch.ones(LENGTH, dtype=torch.bool), 1e-3 if masks == "bernoulli" else 0.0
    exact = [exact_elbo(model, TOKENS, scored, eps=eps).item() for model in (POLICY, REFERENCE)]
    ratio = log_ratios(policy, reference)
    for ratio_P in (ratio.chosen, ratio.rejected):
        assert standard_errors(ratio_P, exact[0] - exact[1]) < 4


def test_the_gradient_of_the_score_is_unbiased():
    """d ratio / d log p of token 2, summed over contexts: the token's mean weight against the exact gradient."""
    scored = torch.ones(LENGTH, dtype=torch.bool)
    (exact,) = torch.autograd.grad(exact_elbo(POLICY, TOKENS, scored), POLICY.log_p)
    plan, _ = draw_for_pairs(DESIGNS["vrpo"], scored.expand(6_000, -1), list(range(3_000)), seed=1, epoch=0)
    assert standard_errors(plan.weight_SBL[:, :, 2].mean(0), exact[:, 2].sum().item()) < 4


def test_coupled_and_equal_models_score_exactly_zero():
    policy, reference = sampled_scores(DESIGNS["vrpo"], 50, policy=REFERENCE)
    assert torch.equal(policy.joined(), reference.joined())
    policy, reference = sampled_scores(DESIGNS["naive_dpo"], 50, policy=REFERENCE)
    assert (policy - reference).chosen.abs().max() > 0.1


def variance_of_score(design, pairs: int = 4000) -> float:
    return (BETA * log_ratios(*sampled_scores(design, pairs)).margin).var().item()


def test_the_paper_s_orderings_of_variance():
    """One mask at each timestep is best at equal n (Prop. 1), coupling helps (Prop. 2), variance falls as 1/n."""
    allocation = [variance_of_score(ComposedDesign(n_t, 4 // n_t, True, "exact_count")) for n_t in (4, 2, 1)]
    assert allocation[0] < allocation[1] < allocation[2]
    assert allocation[0] < 0.1 * variance_of_score(ComposedDesign(4, 1, False, "exact_count"))  # measured: 1/23
    eight = variance_of_score(ComposedDesign(8, 1, True, "exact_count"))
    assert eight == pytest.approx(allocation[0] / 2, rel=4 * (2 / 4000) ** 0.5 * 2)


@pytest.mark.parametrize(("n_t", "n_y"), [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_the_variance_of_an_elbo_is_the_paper_s_decomposition(n_t, n_y):
    """Lemma 5 with V_t and V_y by enumeration: values (L/l) S(M) for every count l and subset M."""
    values = {
        count: torch.stack(
            [
                LENGTH / count * REFERENCE.log_probs(TOKENS.masked_fill(mask, MASK)[None], TOKENS[None]).sum()
                for mask in subsets(LENGTH, count)
            ]
        ).detach()
        for count in range(1, LENGTH + 1)
    }
    means = torch.stack([value.mean() for value in values.values()])
    level = means.var(unbiased=False).item()
    mask = torch.stack([value.var(unbiased=False) for value in values.values()]).mean().item()
    draws = 6_000
    sampled = sampled_scores(ComposedDesign(n_t, n_y, True, "exact_count"), draws // 2)[1].joined().mean(0)
    kurtosis = ((sampled - sampled.mean()) ** 4).mean() / sampled.var() ** 2
    error = sampled.var() * ((kurtosis - 1) / draws) ** 0.5
    assert abs(sampled.var() - VarianceBySource(level, 0.0, mask).of(n_t, n_y)) < 4 * error


@pytest.mark.parametrize("shared", [True, False])
def test_the_reported_variance_of_the_score_is_unbiased(shared):
    """The mean over pairs of the within-pair estimate against the variance between pairs (both sides random)."""
    design = ComposedDesign(4, 1, shared, "exact_count")
    policy, reference = sampled_scores(design, 4000)
    reported = score_variance(ratio_variance(policy, reference), BETA)
    assert standard_errors(reported, variance_of_score(design)) < 6  # both numbers are estimates
    one = policy.map(lambda draws_SP: draws_SP[:1])
    with pytest.raises(ValueError, match="at least two draws"):
        ratio_variance(one, one)


def inputs(chosen, rejected, lengths=(1.0, 1.0), reference=(0.0, 0.0)) -> LossInputs:
    """Of one pair: policy ELBOs, lengths, and ELBOs of the reference."""
    policy = PairScores(torch.as_tensor(chosen), torch.as_tensor(rejected))
    other, length = (PairScores(*(torch.tensor([side]) for side in sides)) for sides in (reference, lengths))
    return LossInputs(policy - other, policy, length)


def test_the_loss_of_a_mean_score_is_not_the_mean_loss():
    """Two draws with log-ratio difference +10 and -10 nats, beta 0.2: the mean score is 0, so the loss is log 2.

    Averaged after the log-sigmoid it would be (log(1 + e^-2) + log(1 + e^2)) / 2 = 1.1269.
    """
    policy_SB = torch.tensor([[10.0, 0.0], [-10.0, 0.0]], dtype=torch.float64)
    loss = PreferenceLoss(("sigmoid",), (1.0,), BETA)
    assert loss(inputs(*policy_SB.mean(0)[:, None])).item() == pytest.approx(math.log(2), abs=1e-12)
    each = [loss(inputs(*draw_B[:, None])) for draw_B in policy_SB]
    assert torch.stack(each).mean().item() == pytest.approx(1.126928, abs=1e-6)


WORKED = {
    "sigmoid": 0.437488, "robust": 0.362488, "ipo": 3.24, "hinge": 0.4, "exo_pair": 0.233839, "nca_pair": 1.268592,
    "bco_pair": 1.111154, "sppo_hard": 2.5, "apo_zero": 0.851478, "apo_down": 0.953031, "sigmoid_norm": 0.625595,
    "sft": -0.5, "discopop": 0.518872, "aot": 0.497488, "aot_unpaired": 0.497488,
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_numbers_worked_in_their_docstrings(name):
    """r_w = 2 over 4 tokens, r_l = -1 over 5, ELBOs of the reference 0, beta 0.2, 10% of labels flipped, tau 0.6."""
    pair = inputs([2.0], [-1.0], lengths=(4.0, 5.0))
    loss = PreferenceLoss((name,), (1.0,), 0.2, 0.1, discopop_tau=0.6)
    assert loss(pair).item() == pytest.approx(WORKED[name], abs=1e-6)


def test_the_sft_term_is_the_chosen_elbo_by_length():
    pair = inputs([-6.0], [-9.0], lengths=(4.0, 5.0), reference=(-8.0, -8.0))
    assert PreferenceLoss(("sft",), (1.0,), 0.2)(pair).item() == 1.5
    total = PreferenceLoss(("sigmoid", "sft"), (1.0, 0.05), 0.2)(pair)
    assert total.item() == pytest.approx(0.437488 + 0.05 * 1.5, abs=1e-6)


def test_robust_is_unbiased_under_flipped_labels():
    """(1 - e) loss(s) + e loss(-s) = -log sigmoid(s): the flips cancel."""
    e = 0.1
    robust, sigmoid = (PreferenceLoss((name,), (1.0,), 0.2, e) for name in ("robust", "sigmoid"))
    clean, flipped = robust(inputs([3.0], [0.0])), robust(inputs([0.0], [3.0]))
    exact = sigmoid(inputs([3.0], [0.0]))
    assert ((1 - e) * clean + e * flipped).item() == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "discopop"])
def test_extreme_scores_keep_a_finite_loss_and_slope(name):
    """-log sigmoid(-2000) = 2000; log(sigmoid(x)) would be infinite, and discopop's e^2000 times 0 no number."""
    ratio = torch.tensor([-1e4], requires_grad=True)
    loss = PreferenceLoss((name,), (1.0,), 0.2)(inputs(ratio, torch.zeros(1)))
    loss.backward()
    assert loss.item() == pytest.approx(2000)
    assert ratio.grad.item() == pytest.approx(-0.2)


def test_names_and_budgets_are_checked():
    with pytest.raises(ValueError, match="loss_type='dpo' is unknown: it must be one of"):
        PreferenceLoss(("dpo",), (1.0,), 0.2)
    with pytest.raises(ValueError, match="must have one weight for each"):
        PreferenceLoss(("sigmoid", "sft"), (1.0,), 0.2)
    with pytest.raises(ValueError, match="beta=nan must be positive"):
        PreferenceLoss(("sigmoid",), (1.0,), math.nan)
    with pytest.raises(ValueError, match="n_t=0 must be at least 1"):
        ComposedDesign(0, 1, True, "exact_count")
    with pytest.raises(ValueError, match="masks='gauss' is unknown"):
        ComposedDesign(1, 1, True, "gauss")
