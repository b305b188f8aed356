"""What noise does to losses with options, and to those that sort a batch: docs/losses.md against exact expectations."""

import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from test_loss_options import BETA, INPUTS, one, sides
from test_masking import standard_errors

from vrpo.losses.divergences import DIVERGENCES, divergence_score
from vrpo.losses.noise_bias import loss_of_ratio, second_order_bias
from vrpo.losses.pairwise import SORTED, LossInputs, PreferenceLoss
from vrpo.scores import PairScores


def normal_mean(function, deviation: float) -> float:
    """E[function(noise)] for normal noise, by the trapezoidal rule."""
    z = torch.linspace(-10, 10, 40_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    return float((function(deviation * z) * density).sum() / density.sum())


def test_noise_of_a_divergence_s_score_is_what_the_docs_say():
    """e^(V/2) on e^-r and e^((a-1)^2 V / 2) on the power, exactly; js_divergence moves down, by at most V / 8."""
    ratio, variance, a = 0.7, 1.3, 0.5

    def moved(name):
        mean = normal_mean(lambda e: divergence_score(ratio + e, name, a), variance**0.5)
        return mean - divergence_score(torch.tensor(ratio, dtype=torch.float64), name, a).item()

    assert moved("forward_kl") == pytest.approx(-math.exp(-ratio) * (math.exp(variance / 2) - 1))
    power = a - 1
    expected = math.exp(power * ratio) * (math.exp(power**2 * variance / 2) - 1) / power
    assert moved("alpha_divergence") == pytest.approx(expected)
    assert -variance / 8 < moved("js_divergence") < 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_bias_of_a_divergence_is_the_documented_second_order(divergence):
    """beta^2 q(s) (h_w'^2 V_w + h_l'^2 V_l) / 2 + beta sigmoid(-s) (-h_w'' V_w + h_l'' V_l) / 2 for the sigmoid."""
    a = {"reverse_kl": 1.0, "forward_kl": 0.0}.get(divergence, 0.5)
    variance, derivatives = sides([0.7, 0.2, 0.4], [0.3, 0.9, 0.5]), []
    for ratio in (INPUTS.ratio.chosen, INPUTS.ratio.rejected):
        if divergence == "js_divergence":
            derivatives.append((torch.sigmoid(-ratio), -torch.sigmoid(ratio) * torch.sigmoid(-ratio)))
        else:
            derivatives.append((torch.exp((a - 1) * ratio), (a - 1) * torch.exp((a - 1) * ratio)))
    (first_w, second_w), (first_l, second_l) = derivatives
    score = BETA * INPUTS.ratio.map(lambda ratio: divergence_score(ratio, divergence)).margin
    q = torch.sigmoid(score) * torch.sigmoid(-score)
    documented = BETA**2 * q * (first_w**2 * variance.chosen + first_l**2 * variance.rejected) / 2
    documented += BETA * torch.sigmoid(-score) * (-second_w * variance.chosen + second_l * variance.rejected) / 2
    loss = one("sigmoid", f_divergence_type=divergence)
    assert torch.allclose(second_order_bias(loss, INPUTS.ratio, variance, INPUTS.length), documented)


DISCOPOP = {-0.5: 0.151, 0.0: 0.018, 0.5: 0.039}  # score and bias, Var s = 1, tau = 0.05


def test_the_bias_of_a_noisy_discopop_is_the_documented_one():
    """By quadrature, and what is left is the two losses on either side of 0: the step of width tau is washed out."""
    loss, length = PreferenceLoss(("discopop",), (1.0,), 1.0), sides([1.0], [1.0])

    def of(score):
        return loss_of_ratio(loss, PairScores(score, torch.zeros_like(score)), length)

    for s, bias in DISCOPOP.items():
        mean = normal_mean(lambda noise, s=s: of(s + noise), 1.0)
        assert mean - of(torch.tensor([s], dtype=torch.float64)).item() == pytest.approx(bias, abs=5e-4)
        sides_of_0 = normal_mean(
            lambda noise, s=s: torch.where(s + noise < 0, F.softplus(-s - noise), (-s - noise).exp()), 1.0
        )
        assert mean == pytest.approx(sides_of_0, abs=5e-3)


def gaps(name: str, chosen, rejected, deviation: float, redraws: int) -> torch.Tensor:
    """The mean loss of a batch over redraws, [R]: normal noise on the chosen ratios of a policy, reference exact."""
    generator = torch.Generator().manual_seed(0)
    noise = deviation * torch.randn(redraws, len(chosen), generator=generator, dtype=torch.float64)
    exact = sides(chosen, rejected).map(lambda side: side.expand(redraws, -1))
    ratio = PairScores(exact.chosen + noise, exact.rejected)
    return PreferenceLoss((name,), (1.0,), BETA)(LossInputs(ratio, ratio, exact)).mean(1)


def test_a_single_pair_sorted_has_the_sigmoid_s_bias():
    """P = 1: there is nothing to sort, for either loss."""
    for name in sorted(SORTED):
        assert torch.equal(gaps(name, [1.0], [0.5], 2.0, 100), gaps("sigmoid", [1.0], [0.5], 2.0, 100))


def test_noise_on_tied_ratios_lowers_the_sorted_loss_in_first_order():
    """Chosen ratios 0 and 0 with noise of deviation d, rejected -k and k: E[max] = d / sqrt(pi) by its closed form.

    The mean loss moves by beta d / (2 sqrt(pi)) (l'(-beta k) - l'(beta k)) = -beta d (2 sigmoid(beta k) - 1) /
    (2 sqrt(pi)), beside terms of order d^2.
    """
    k, d = 5.0, 0.05
    found = gaps("aot_unpaired", [0.0, 0.0], [-k, k], d, 200_000)
    exact = PreferenceLoss(("aot_unpaired",), (1.0,), BETA)(
        LossInputs(sides([0.0, 0.0], [-k, k]), sides([0.0, 0.0], [-k, k]), sides([1, 1], [1, 1]))
    ).mean()
    first = -BETA * d * (2 / (1 + math.exp(-BETA * k)) - 1) / (2 * math.pi**0.5)
    second = BETA**2 * d**2 / 2 / (1 + math.exp(-BETA * k)) / (1 + math.exp(BETA * k))
    assert standard_errors(found - exact, first + second) < 4
    assert first < -10 * second


def test_noise_of_a_large_batch_moves_its_quantiles_only():
    """10,000 ratios N(m, 4) with noise of variance V_w, V_l: rank z moves by z (sqrt(4 + V_w) - sqrt(4 + V_l)).

    With equal noise on both sides the loss is that without noise, where the sigmoid's would grow.
    """
    generator = torch.Generator().manual_seed(0)
    pairs, spread = 10_000, 4.0
    for v_w, v_l in ((0.0, 0.0), (5.0, 5.0), (5.0, 0.0)):
        ratio = PairScores(
            1 + (spread + v_w) ** 0.5 * torch.randn(pairs, generator=generator, dtype=torch.float64),
            (spread + v_l) ** 0.5 * torch.randn(pairs, generator=generator, dtype=torch.float64),
        )
        widening = (spread + v_w) ** 0.5 - (spread + v_l) ** 0.5
        expected = normal_mean(lambda e: F.softplus(-BETA * (1 + e)), widening)
        found = PreferenceLoss(("aot_unpaired",), (1.0,), BETA)(LossInputs(ratio, ratio, ratio)).mean().item()
        assert found == pytest.approx(expected, abs=4e-3)


def test_the_bias_of_a_weighted_loss_is_what_the_docs_say():
    """Second order against an 8-point Gauss-Hermite mean over correlated normal noise of B and r of both sides.

    U: variance of the policy's ELBO, V: of the log-ratio, C: their covariance.
    """
    length_w, length_l, ratio, elbo = 4.0, 5.0, (2.0, -1.0), (-6.0, -9.0)
    scale = 1e-2  # of all variances, so that fourth orders are below the tolerance
    covariance = [scale * numpy.array(c) for c in ([[2.0, 0.6], [0.6, 0.7]], [[1.5, -0.4], [-0.4, 0.5]])]
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(8)
    grid = numpy.stack(numpy.meshgrid(*[nodes] * 4, indexing="ij"), -1).reshape(-1, 4)
    probability = torch.tensor(numpy.prod(numpy.stack(numpy.meshgrid(*[weights] * 4, indexing="ij")), 0).flatten())
    roots = [numpy.linalg.cholesky(c).T for c in covariance]
    noise = torch.tensor(numpy.concatenate([grid[:, :2] @ roots[0], grid[:, 2:] @ roots[1]], 1))
    loss = PreferenceLoss(("sigmoid",), (1.0,), BETA, use_weighting=True)

    def value(noise_N4):
        policy = PairScores(elbo[0] + noise_N4[:, 0], elbo[1] + noise_N4[:, 2])
        ratios = PairScores(ratio[0] + noise_N4[:, 1], ratio[1] + noise_N4[:, 3])
        one_each = torch.ones(len(noise_N4), dtype=torch.float64)
        return loss(LossInputs(ratios, policy, PairScores(length_w * one_each, length_l * one_each)))

    found = (value(noise) * probability).sum() / probability.sum() - value(torch.zeros(1, 4, dtype=torch.float64))
    ((u_w, c_w), (_, v_w)), ((u_l, c_l), (_, v_l)) = (c.tolist() for c in covariance)
    f, up = 0.437488, 0.645656  # l(0.6) and sigmoid(0.6)
    slope, curvature = -BETA * (1 - up), BETA**2 * up * (1 - up)
    documented = curvature * (v_w + v_l) / 2 + f * (u_w / length_w**2 + u_l / length_l**2) / 2
    documented += slope * (c_w / length_w - c_l / length_l)
    assert found.item() == pytest.approx(math.exp(-6 / 4 - 9 / 5) * documented, rel=1e-2)
