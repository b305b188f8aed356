"""Options of the losses: divergences, WPO's and LD-DPO's weights, losses that sort; values, slopes, refusals."""

import itertools
import math

import pytest
import torch
from test_likelihood import Table, all_masks
from test_masking import standard_errors

from llada.diffusion.likelihood import elbo_draws, exact_elbo
from llada.diffusion.masking import MaskDraws
from vrpo.estimators.designs import design, draw_for_pairs
from vrpo.losses.divergences import DIVERGENCES, divergence_score
from vrpo.losses.noise_bias import second_order_bias
from vrpo.losses.pairwise import LOSSES, OF_DIFFERENCE, SORTED, LossInputs, PreferenceLoss
from vrpo.scores import PairScores, length_weights

BETA, EPSILON = 0.2, 0.1


def one(name: str, **options) -> PreferenceLoss:
    return PreferenceLoss((name,), (1.0,), BETA, EPSILON, **options)


def sides(chosen, rejected) -> PairScores:
    return PairScores(*(torch.as_tensor(side, dtype=torch.float64) for side in (chosen, rejected)))


POLICY, REFERENCE = sides([-6.0, -11.0, -4.5], [-9.0, -7.0, -5.0]), sides([-8.0, -9.5, -4.8], [-8.0, -7.5, -7.0])
INPUTS = LossInputs(POLICY - REFERENCE, POLICY, sides([4, 3, 6], [5, 2, 7]))


def of_rows(inputs: LossInputs, rows) -> LossInputs:
    return LossInputs(*(side.map(lambda x: x[rows]) for side in (inputs.ratio, inputs.policy, inputs.length)))


# Values


def test_divergences_are_the_numbers_worked_in_the_docstring():
    ratio = torch.tensor(2.0, dtype=torch.float64)
    found = [divergence_score(ratio, name).item() for name in DIVERGENCES]
    assert found == pytest.approx([2, 0.864665, 0.566219, 1.264241], abs=1e-6)


def test_divergences_are_derivatives_of_their_generators():
    """f'(u) by autograd for the f of f-DPO's table 1 (up to TRL's constants), and the limits of alpha_divergence."""
    ratio = torch.linspace(-3, 3, 13, dtype=torch.float64)
    u, a = ratio.exp().requires_grad_(), 0.3
    generators = {
        "reverse_kl": u * u.log() - u,
        "forward_kl": -u.log() + u,
        "js_divergence": u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        "alpha_divergence": (u**a / a - u) / (a - 1),
    }
    for name, generator in generators.items():
        (slope,) = torch.autograd.grad(generator.sum(), u)
        assert torch.allclose(divergence_score(ratio, name, a), slope)
    forward, reverse = divergence_score(ratio, "forward_kl"), ratio
    assert torch.equal(divergence_score(ratio, "alpha_divergence", 0.0), forward)
    assert torch.equal(divergence_score(ratio, "alpha_divergence", 1.0), reverse)
    assert torch.allclose(divergence_score(ratio, "alpha_divergence", 1 - 1e-5), reverse, atol=1e-4)


def trl_score(ratio, divergence):
    return {
        "reverse_kl": lambda: ratio,
        "forward_kl": lambda: 1 - torch.exp(-ratio),
        "js_divergence": lambda: torch.log(2 * torch.exp(ratio) / (1 + torch.exp(ratio))),
        "alpha_divergence": lambda: (torch.exp(ratio) ** (0.7 - 1) - 1) / (0.7 - 1),
    }[divergence]()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", sorted(OF_DIFFERENCE))
def test_losses_of_a_divergence_are_trl_s(name, divergence):
    """TRL's definitions (1.16), written in terms of probabilities."""
    w, l = (trl_score(ratio, divergence) for ratio in (INPUTS.ratio.chosen, INPUTS.ratio.rejected))  # noqa: E741
    s, up, e = BETA * (w - l), torch.sigmoid(BETA * (w - l)), EPSILON
    per_token = w / INPUTS.length.chosen - l / INPUTS.length.rejected
    mixed = torch.sigmoid(s / 0.05)
    expected = {
        "sigmoid": -up.log(),
        "robust": (-(1 - e) * up.log() + e * (1 - up).log()) / (1 - 2 * e),
        "ipo": (per_token - 1 / (2 * BETA)) ** 2,
        "hinge": (1 - s).clamp(min=0),
        "exo_pair": up * (up / (1 - e)).log() + (1 - up) * ((1 - up) / e).log(),
        "sigmoid_norm": -torch.sigmoid(BETA * per_token).log(),
        "discopop": -up.log() * (1 - mixed) + torch.exp(-s) * mixed,
        "sft": -POLICY.chosen / INPUTS.length.chosen,
    }[name]
    loss = one(name, f_divergence_type=divergence, f_alpha_divergence_coef=0.7)
    assert torch.allclose(loss(INPUTS), expected)


def smoothed(score):
    return -(1 - EPSILON) * torch.sigmoid(score).log() - EPSILON * torch.sigmoid(-score).log()


def test_losses_that_sort_are_trl_s():
    """aot sorts the margins of policy and reference, aot_unpaired the ratios of chosen and rejected."""
    policy, reference = (sorted((side.chosen - side.rejected).tolist()) for side in (POLICY, REFERENCE))
    ranks = BETA * torch.tensor([p - r for p, r in zip(policy, reference, strict=True)], dtype=torch.float64)
    assert torch.allclose(one("aot")(INPUTS), smoothed(ranks))
    chosen, rejected = sorted(INPUTS.ratio.chosen.tolist()), sorted(INPUTS.ratio.rejected.tolist())
    ranks = BETA * torch.tensor([w - r for w, r in zip(chosen, rejected, strict=True)], dtype=torch.float64)
    assert torch.allclose(one("aot_unpaired")(INPUTS), smoothed(ranks))


def test_losses_that_sort_are_the_numbers_worked_in_their_docstrings():
    margins = LossInputs(sides([3.0, -2.0], [0.0, 0.0]), sides([3.0, -1.0], [0.0, 0.0]), sides([1, 1], [1, 1]))
    loss = PreferenceLoss(("aot",), (1.0,), BETA)(margins)
    assert loss.tolist() == pytest.approx([0.798139, 0.513015], abs=1e-6)
    ratio = sides([2.0, -1.0], [-3.0, 0.0])
    loss = PreferenceLoss(("aot_unpaired",), (1.0,), BETA)(LossInputs(ratio, ratio, ratio))
    assert loss.tolist() == pytest.approx([0.513015, 0.513015], abs=1e-6)


def test_losses_that_sort_do_not_see_the_order_of_the_batch():
    """All orders of the pairs, and for aot_unpaired of each side; the slopes go with the rows."""
    for name in sorted(SORTED):
        for order in itertools.permutations(range(3)):
            moved = of_rows(INPUTS, list(order))
            assert torch.equal(one(name)(moved), one(name)(INPUTS))
    ratio = INPUTS.ratio
    crossed = LossInputs(PairScores(ratio.chosen.flip(0), ratio.rejected), INPUTS.policy, INPUTS.length)
    assert torch.equal(one("aot_unpaired")(crossed), one("aot_unpaired")(INPUTS))
    redraws = of_rows(INPUTS, torch.arange(3).expand(4, 3))
    assert torch.equal(one("aot")(redraws), one("aot")(INPUTS).expand(4, 3))


def test_a_pair_is_weighed_by_the_policy_s_probability_of_its_tokens():
    """exp(-6/4 - 9/5) for the first pair, times the whole loss, sft included; the weight has no slope."""
    pair = of_rows(INPUTS, [0])
    policy = pair.policy.map(torch.Tensor.requires_grad_)
    pair = LossInputs(policy - REFERENCE.map(lambda x: x[:1]), policy, pair.length)
    plain = PreferenceLoss(("sigmoid", "sft"), (1.0, 0.05), BETA)
    weighted = PreferenceLoss(("sigmoid", "sft"), (1.0, 0.05), BETA, use_weighting=True)
    weight = 0.036883
    assert weighted(pair).item() == pytest.approx(weight * plain(pair).item(), rel=1e-5)
    slopes = [torch.autograd.grad(loss(pair).sum(), (policy.chosen, policy.rejected)) for loss in (weighted, plain)]
    for found, expected in zip(*slopes, strict=True):
        assert found.item() == pytest.approx(weight * expected.item(), rel=1e-5)


def test_sft_and_wpo_read_the_elbo_of_all_tokens():
    """With LD-DPO the log-ratios weigh tokens; the SFT term and the weight of a pair do not."""
    shortened = LossInputs(INPUTS.ratio, POLICY.map(lambda x: x / 2), INPUTS.length, unweighted=POLICY)
    assert torch.equal(one("sft")(shortened), one("sft")(INPUTS))
    assert torch.equal(one("sigmoid", use_weighting=True)(shortened), one("sigmoid", use_weighting=True)(INPUTS))


@pytest.mark.parametrize(
    "loss", [one(name) for name in LOSSES] + [one("sigmoid", f_divergence_type=name) for name in DIVERGENCES[1:]]
)
def test_slopes_are_those_of_finite_differences(loss):
    leaves = [side.clone().requires_grad_() for side in (POLICY.chosen, POLICY.rejected)]

    def value(chosen, rejected):
        policy = PairScores(chosen, rejected)
        return loss(LossInputs(policy - REFERENCE, policy, INPUTS.length))

    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize("name", ["forward_kl", "alpha_divergence"])
def test_a_rejected_response_far_below_the_reference_has_slope_zero(name):
    """At r_l = -1000 the loss of float32 is saturated: e^1000 times a slope of 0 would be no number."""
    rejected = torch.tensor([-1000.0], requires_grad=True)
    ratio = PairScores(torch.zeros(1), rejected)
    loss = one("sigmoid", f_divergence_type=name)(LossInputs(ratio, ratio, ratio))
    loss.backward()
    assert (loss.item(), rejected.grad.item()) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"f_divergence_type": "kl"}, "f_divergence_type='kl' is unknown: it must be one of .'reverse_kl'"),
        ({"f_alpha_divergence_coef": math.nan}, "f_alpha_divergence_coef=nan must be finite"),
        ({"discopop_tau": 0.0}, "discopop_tau=0.0 must be positive and finite"),
        ({"discopop_tau": math.nan}, "discopop_tau=nan must be positive"),
        ({"beta": math.inf}, "beta=inf must be positive and finite"),
        ({"label_smoothing": math.nan}, "label_smoothing=nan must be"),
        (
            {"names": ("sigmoid", "nca_pair"), "f_divergence_type": "forward_kl"},
            "does not go with loss_type='nca_pair'",
        ),
        ({"names": ("aot", "sft"), "use_weighting": True}, "use_weighting=True does not go with loss_type='aot'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PreferenceLoss(**{"names": ("sigmoid", "sft"), "weights": (1.0, 1.0), "beta": 0.2} | options)


def test_what_noise_does_to_a_batch_or_a_weight_is_not_given_for_single_pairs():
    for loss in (one("aot"), one("aot_unpaired"), one("sigmoid", use_weighting=True)):
        assert not loss.has_second_order_bias
        with pytest.raises(ValueError, match="no function of the log-ratios of single pairs"):
            second_order_bias(loss, INPUTS.ratio, INPUTS.ratio, INPUTS.length)
    assert [name for name in LOSSES if not one(name).has_second_order_bias] == [
        "hinge", "discopop", "aot", "aot_unpaired",
    ]  # fmt: skip


# Weights of tokens (LD-DPO)


def test_tokens_beyond_the_shared_length_weigh_alpha():
    """Positions count along each response, wherever it stands in its row."""
    mask = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]]).bool()
    assert length_weights(mask, 0.3).tolist() == [
        [0, 1, 1, 0, 0, 0],
        [1, 1, 1, 0.3, 0.3, 0],
        [0, 0, 1, 1, 0.3, 0.3],
        [0, 1, 0, 1, 1, 0],
    ]
    assert torch.equal(length_weights(mask, 1.0), mask.double())
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"ld_alpha={alpha} must be between 0 and 1"):
            length_weights(mask, alpha)


def weighted_draws(model, draws: MaskDraws, mask_BL, tokens_BL) -> torch.Tensor:
    weight_BL = length_weights(mask_BL, 0.3)
    return elbo_draws(model, tokens_BL, MaskDraws(draws.masked_SBL, draws.weight_SBL * weight_BL)).detach()


def test_the_weighted_score_is_unbiased():
    """A chosen response of 5 tokens beside a rejected one of 2: tokens 3 to 5 at 0.3, by enumeration and by draws.

    The exact value sums weight times share over tokens; a token's share is the slope of the exact ELBO along its column
    of a table of log-probabilities, times the column, since the ELBO is linear in the table.
    """
    length, model = 5, Table(5)
    tokens, mask = torch.arange(length), torch.ones(2, length, dtype=torch.bool)
    mask[1, 2:] = False
    (slope,) = torch.autograd.grad(exact_elbo(model, tokens, mask[0]), model.log_p)
    share = (slope * model.log_p).sum(0).detach()
    exact = (share * torch.tensor([1, 1, 0.3, 0.3, 0.3], dtype=torch.float64)).sum().item()
    plan, probability = all_masks(length, lambda count: length / count)
    plan = MaskDraws(plan.masked_SBL.expand(-1, 2, -1), plan.weight_SBL.expand(-1, 2, -1))
    enumerated = (weighted_draws(model, plan, mask, tokens.expand(2, -1))[:, 0] * probability / length).sum()
    assert enumerated.item() == pytest.approx(exact, abs=1e-12)
    pairs = 2000
    many = mask.repeat_interleave(pairs, 0)
    for name in ("vrpo", "loo_complementary"):
        draws, _ = draw_for_pairs(design(name, n_t=4), many, list(range(pairs)), seed=0, epoch=0)
        found = weighted_draws(model, draws, many, tokens.expand(2 * pairs, -1)).mean(0)[:pairs]
        assert standard_errors(found, exact) < 4
