import pytest
import torch

from llada.denoiser import NOT_SCORED
from llada.diffusion.masking import BERNOULLI_FLOOR, bernoulli_draws, corrupt, draw_masks, exact_count_draws, timesteps
from llada.diffusion.random_streams import generator_for


def standard_errors(samples: torch.Tensor, exact: torch.Tensor | float) -> torch.Tensor:
    """|mean - exact| in standard errors of the mean over dimension 0; 0 for what does not vary and is exact."""
    error = (samples.double().mean(0) - exact).abs()
    return torch.where(error < 1e-12, 0.0, error / (samples.double().std(0) / len(samples) ** 0.5))


def test_exact_count_masks_are_uniform_subsets_with_uniform_counts():
    """L = 4: P(|M| = l) = 1/4, and each of the C(4, l) subsets is equally likely."""
    mask_SL, weight_S = exact_count_draws(timesteps(40_000, generator_for(0)), 4, generator_for(1))
    count_S = mask_SL.sum(-1)
    assert torch.equal(weight_S, 4 / count_S.double())
    code_S = (mask_SL * torch.tensor([1, 2, 4, 8])).sum(-1)
    subset_size = torch.tensor([bin(code).count("1") for code in range(16)])
    exact = torch.where(subset_size > 0, 1 / (4 * torch.tensor([1.0, 4, 6, 4, 1])[subset_size]), 0.0)
    hits = torch.nn.functional.one_hot(code_S, 16)[:, 1:]
    assert standard_errors(hits, exact[1:]).max() < 4
    assert not (code_S == 0).any()


def test_bernoulli_masks_hide_each_token_at_the_floored_rate():
    """P(masked) = E[t] = (1 + eps) / 2, and E[1/t 1(masked)] = 1 for every token; two tokens are coupled by t only."""
    mask_SL, weight_S = bernoulli_draws(timesteps(40_000, generator_for(2)), 3, generator_for(3))
    assert standard_errors(mask_SL, (1 + BERNOULLI_FLOOR) / 2).max() < 4
    assert standard_errors(mask_SL * weight_S[:, None], 1.0).max() < 4
    both = mask_SL[:, 0] & mask_SL[:, 1]  # E[t^2] = (1 + eps + eps^2) / 3
    assert standard_errors(both, (1 + BERNOULLI_FLOOR + BERNOULLI_FLOOR**2) / 3) < 4


def test_stratified_levels_put_one_in_each_stratum():
    u_S = timesteps(8, generator_for(0), levels="stratified")
    assert torch.equal((u_S * 8).floor(), torch.arange(8.0, dtype=torch.float64))


def test_keys_give_reproducible_and_unrelated_streams():
    first = torch.rand(20_000, generator=generator_for(0, 1, 2))
    assert torch.equal(first, torch.rand(20_000, generator=generator_for(0, 1, 2)))
    for key in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 12), (0, -1, 2)):
        other = torch.rand(20_000, generator=generator_for(*key))
        correlation = torch.corrcoef(torch.stack([first, other]))[0, 1]
        assert correlation.abs() < 4 / 20_000**0.5


@pytest.mark.parametrize("masks", ["exact_count", "bernoulli"])
def test_draws_of_a_row_depend_on_its_length_and_key_only(masks):
    alone = draw_masks(torch.tensor([[False, True, True, True]]), [generator_for(7, 5)], 6, masks)
    wide = torch.tensor([[True] * 6, [False, False, True, True, True, False]])
    among = draw_masks(wide, [generator_for(7, 4), generator_for(7, 5)], 6, masks)
    assert torch.equal(alone.masked_SBL[:, 0, 1:], among.masked_SBL[:, 1, 2:5])
    assert torch.equal(alone.weight_SBL[:, 0, 1:], among.weight_SBL[:, 1, 2:5])


def test_prompt_and_padding_are_never_masked_nor_weighted():
    scored = torch.tensor([[False, False, True, True, True, False, False]])
    plan = draw_masks(scored, [generator_for(0)], 500, "exact_count")
    assert not (plan.masked_SBL & ~scored).any()
    assert not plan.weight_SBL[:, ~scored].any()
    assert plan.masked_SBL.any(0)[scored].all()
    assert torch.equal(plan.weight_SBL != 0, plan.masked_SBL)


def test_a_response_of_one_token_is_always_masked_with_weight_one():
    plan = draw_masks(torch.tensor([[False, True]]), [generator_for(0)], 5, "exact_count")
    assert plan.weight_SBL[:, 0].tolist() == [[0.0, 1.0]] * 5


def test_hide_splits_tokens_into_noise_and_targets():
    noisy, target = corrupt(torch.tensor([[5, 6, 7]]), torch.tensor([[False, True, False]]), 39)
    assert noisy.tolist() == [[5, 39, 7]]
    assert target.tolist() == [[NOT_SCORED, 6, NOT_SCORED]]


def test_errors_name_the_row_and_the_allowed_values():
    with pytest.raises(ValueError, match="row 1 of the batch has no scored token"):
        draw_masks(torch.tensor([[True], [False]]), [generator_for(0)] * 2, 1)
    with pytest.raises(ValueError, match="masks='gauss' is unknown: it must be one of"):
        draw_masks(torch.tensor([[True]]), [generator_for(0)], 1, "gauss")
