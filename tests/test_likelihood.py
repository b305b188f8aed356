"""Estimators against the exact ELBO: every mask of short sequences is enumerated, in float64."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from conftest import FIXTURES, reference_model
from safetensors.torch import load_file
from test_masking import standard_errors

from llada.denoiser import DenoiserSpec, as_denoiser
from llada.diffusion.likelihood import elbo_draws, exact_elbo, log_likelihood, systematic_counts
from llada.diffusion.masking import MaskDraws, draw_masks
from llada.diffusion.random_streams import generator_for
from llada.sampling.guidance import GuidedDenoiser

MASK = 9


class Table:
    """A model whose log p(token i | masked set) is an arbitrary parameter for each set and position, [2^L, L]."""

    def __init__(self, length: int, context_free: bool = False):
        generator = torch.Generator().manual_seed(length)
        rows = 1 if context_free else 2**length
        self.log_p = -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64)
        self.log_p = self.log_p.expand(2**length, length).clone().requires_grad_()

    @property
    def spec(self):
        return DenoiserSpec(MASK, context=self.log_p.shape[1], vocabulary=MASK + 1)

    def logits(self, request):
        raise NotImplementedError("a table of log-probabilities has no logits")

    def log_probs(self, noisy_BL, target_BL, attention_mask=None):
        code_B = ((noisy_BL == MASK) * 2 ** torch.arange(noisy_BL.shape[1])).sum(-1)
        return self.log_p[code_B] * (noisy_BL == MASK)


def subsets(length: int, count: int):
    for chosen in itertools.combinations(range(length), count):
        yield torch.tensor([position in chosen for position in range(length)])


def all_masks(length: int, weight) -> tuple[MaskDraws, torch.Tensor]:
    """Every non-empty mask as one plan of draws, with `weight(count)` and each mask's probability given its count."""
    masks = [mask for count in range(1, length + 1) for mask in subsets(length, count)]
    counts = [int(mask.sum()) for mask in masks]
    masked_SBL = torch.stack(masks)[:, None]
    weights = torch.tensor([weight(count) for count in counts], dtype=torch.float64)[:, None, None]
    probability = torch.tensor([1 / math.comb(length, count) for count in counts], dtype=torch.float64)
    return MaskDraws(masked_SBL, masked_SBL * weights), probability


def value_and_gradient(value, parameter):
    return value.item(), torch.autograd.grad(value, parameter)[0]


@pytest.mark.parametrize("length", range(1, 7))
def test_the_mean_of_the_count_form_over_all_masks_is_the_exact_elbo(length):
    """E over l uniform on 1..L and subsets of size l of (L/l) S(M), value and gradient, to 1e-12."""
    model, tokens = Table(length), torch.arange(length)
    plan, probability = all_masks(length, lambda count: length / count)
    mean = (elbo_draws(model, tokens[None], plan)[:, 0] * probability / length).sum()
    exact = exact_elbo(model, tokens, torch.ones(length, dtype=torch.bool))
    (value, gradient), (exact_value, exact_gradient) = (value_and_gradient(v, model.log_p) for v in (mean, exact))
    assert value == pytest.approx(exact_value, abs=1e-12)
    assert (gradient - exact_gradient).abs().max() < 1e-12


@pytest.mark.parametrize("eps", [1e-3, 0.2])
@pytest.mark.parametrize("length", [1, 3, 6])
def test_the_floored_bernoulli_form_equals_its_integral(length, eps):
    """(1/t) S(M) integrated over t in [eps, 1] by Gauss-Legendre, exact here: the integrand is a polynomial in t."""
    model, tokens = Table(length), torch.arange(length)
    nodes, node_weights = np.polynomial.legendre.leggauss(length + 1)
    integral = torch.zeros((), dtype=torch.float64)
    for node, node_weight in zip(nodes, node_weights, strict=True):
        t = eps + (1 - eps) * (node + 1) / 2
        plan, _ = all_masks(length, lambda count, t=t: 1 / t)
        count_S = plan.masked_SBL.sum((1, 2)).double()
        probability = t**count_S * (1 - t) ** (length - count_S)
        integral = integral + node_weight / 2 * (elbo_draws(model, tokens[None], plan)[:, 0] * probability).sum()
    exact = exact_elbo(model, tokens, torch.ones(length, dtype=torch.bool), eps=eps)
    (value, gradient), (exact_value, exact_gradient) = (value_and_gradient(v, model.log_p) for v in (integral, exact))
    assert value == pytest.approx(exact_value, abs=1e-12)
    assert (gradient - exact_gradient).abs().max() < 1e-12
    unbiased = exact_elbo(model, tokens, torch.ones(length, dtype=torch.bool)).item()
    print(f"bias of the 1/t form, L={length}, eps={eps}: {exact_value - unbiased:+.6f} nats of {unbiased:.4f}")
    if length == 1:  # by hand: P(masked)/t = 1 at every t, so one token has no bias at all
        assert exact_value == pytest.approx(unbiased, abs=1e-12)


@pytest.mark.parametrize(("masks", "eps"), [("exact_count", 0.0), ("bernoulli", 1e-3)])
@pytest.mark.parametrize("levels", ["iid", "stratified", "mirrored"])
def test_drawn_plans_are_unbiased_for_value_and_gradient(masks, eps, levels):
    """20,000 plans of two draws of a response of 5 after a prompt of 2, |mean - exact| < 4 standard errors."""
    model, tokens = Table(7), torch.arange(7)
    scored = tokens >= 2
    exact = exact_elbo(model, tokens, scored, eps=eps)
    value, gradient = value_and_gradient(exact, model.log_p)
    plan = draw_masks(scored.expand(20_000, -1), [generator_for(1, key) for key in range(20_000)], 2, masks, levels)
    samples = elbo_draws(model, tokens.expand(20_000, -1), plan).mean(0)
    assert standard_errors(samples.detach(), value) < 4
    # The gradient with respect to log p of token 3, summed over contexts, is the weight of that token.
    assert standard_errors(plan.weight_SBL[:, :, 3].mean(0), gradient[:, 3].sum().item()) < 4


def test_a_context_free_model_has_its_exact_log_likelihood():
    """Without context every order of the chain rule gives the same value: ELBO = sum_i log p_i."""
    model, tokens, scored = Table(6, context_free=True), torch.arange(6), torch.ones(6, dtype=torch.bool)
    exact = model.log_p[0].sum().item()
    assert exact_elbo(model, tokens, scored).item() == pytest.approx(exact, abs=1e-12)
    estimate, standard_error = log_likelihood(model, tokens, scored, generator_for(0), n=512, group=16)
    assert abs(estimate - exact) < 4 * standard_error
    flat = Table(6, context_free=True)
    flat.log_p = torch.full_like(flat.log_p, -0.5)  # all draws equal: (6/l) * l * (-1/2) = -3
    assert log_likelihood(flat, tokens, scored, generator_for(0), n=8, group=4) == (-3.0, 0.0)


def test_monte_carlo_log_likelihood_agrees_with_enumeration():
    model, tokens, scored = Table(6), torch.arange(6), torch.ones(6, dtype=torch.bool)
    exact = exact_elbo(model, tokens, scored).item()
    estimate, standard_error = log_likelihood(model, tokens, scored, generator_for(3), n=2048, group=8)
    assert abs(estimate - exact) < 4 * standard_error < 1


@pytest.mark.parametrize(("rows", "length"), [(4, 14), (16, 8), (8, 6), (16, 2)])
def test_systematic_counts_spread_evenly_and_each_is_uniform(rows, length):
    """Every column of 4,000 groups against the uniform law; a group of `length` rows has each count once."""
    assert sorted(systematic_counts(length, length, generator_for(0)).tolist()) == list(range(1, length + 1))
    generator = generator_for(1)
    counts = torch.stack([systematic_counts(rows, length, generator) for _ in range(4000)])
    hits = torch.nn.functional.one_hot(counts - 1, length)
    assert standard_errors(hits, 1 / length).max() < 4.5  # of up to 128 cells


def official_counts(rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """The counts of the published evaluation code: spread from an *integer* start and rounded, [rows].

    Rounding halves to even makes single counts not uniform where j * length / rows ends in .5, which biases the
    estimate: `systematic_counts` is what the package draws.
    """
    start = torch.randint(1, length + 1, (), generator=generator)
    spread = torch.linspace(float(start), float(start + (rows - 1) * (length / rows)), rows).round().long()
    return (spread - 1) % length + 1


def test_the_published_counts_favour_even_numbers():
    """Length 8, 16 rows: half the spreads end in .5 and round to even, so even counts come three times as often."""
    generator = generator_for(2)
    counts = torch.cat([official_counts(16, 8, generator) for _ in range(500)])
    even = (counts % 2 == 0).double().mean().item()
    assert even == pytest.approx(0.75, abs=0.01)


def test_log_likelihood_of_the_reference_with_the_same_random_calls():
    """Fixture: 8 draws in groups of 4 after torch.manual_seed(17), plain and guided by 1."""
    golden = json.loads((FIXTURES / "generate.json").read_text())["loglik"]
    model, tokens = reference_model(golden["model"]), torch.tensor(golden["prompt"] + golden["answer"])
    scored = torch.arange(len(tokens)) >= len(golden["prompt"])
    model.config.mask_token_id = 159
    guided = GuidedDenoiser(as_denoiser(model), (~scored).expand(4, -1), 1.0)
    for denoiser, key in ((as_denoiser(model), ""), (guided, "_cfg1")):
        seeded = torch.Generator().manual_seed(17)
        value, _ = log_likelihood(denoiser, tokens, scored, seeded, n=8, group=4, counts=official_counts)
        assert value == pytest.approx(golden[f"get_log_likelihood_seed17_mc8_bs4{key}"], rel=2e-6)


def test_sft_loss_and_every_gradient_of_the_reference():
    """Alg. 2: sum of CE / p_mask / answer length over the batch's rows, 14 answer tokens after a prompt of 9; 1e-6."""
    golden, model = load_file(FIXTURES / "dense_gqa.loss_grad.safetensors"), reference_model("dense_gqa")
    masked = (golden["noisy"] == 159) & (golden["seq"] != 159)
    plan = MaskDraws(masked[None], (masked / golden["p_mask"].double())[None])
    model.config.mask_token_id = 159
    loss = -elbo_draws(as_denoiser(model), golden["seq"], plan).mean(0).div(14).mean()
    loss.backward()
    assert abs(loss.item() - golden["loss"].item()) <= 1e-6
    for name, parameter in model.named_parameters():
        assert (parameter.grad - golden[f"grad.{name}"]).abs().max() <= 1e-6, name


def test_errors():
    model, tokens = Table(3), torch.arange(3)
    with pytest.raises(ValueError, match="n=0 scored tokens must be between 1 and 20"):
        exact_elbo(model, tokens, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="n=10 draws must be a multiple of group=4"):
        log_likelihood(model, tokens, torch.ones(3, dtype=torch.bool), generator_for(0), n=10, group=4)
    with pytest.raises(ValueError, match="empty answer"):
        log_likelihood(model, tokens, torch.zeros(3, dtype=torch.bool), generator_for(0), n=4, group=4)


def test_noise_of_one_draw_shows_the_two_forms_apart():
    """The mask count is noise of the 1/t form only (LLaDA, App. A.2: 128 draws do for L/l, 1000 do not for 1/t)."""
    model, tokens = Table(6), torch.arange(6)
    generators = [generator_for(5, key) for key in range(4000)]
    variance = {}
    for masks in ("bernoulli", "exact_count"):
        plan = draw_masks(torch.ones(4000, 6, dtype=torch.bool), generators, 1, masks)
        variance[masks] = elbo_draws(model, tokens.expand(4000, -1), plan)[0].var().item()
    assert variance["bernoulli"] > 2 * variance["exact_count"]
