"""Slopes at the score of the other draws (`cross_fit`): what they estimate, by enumerating all masks."""

import itertools
import math

import pytest
import torch
from test_vrpo_trainer import first_batch, moved, trainer

from llada.denoiser import as_denoiser
from llada.diffusion.likelihood import elbo_draws, exact_elbo
from llada.diffusion.masking import MaskDraws
from vrpo.losses.pairwise import LossInputs
from vrpo.scores import PairScores
from vrpo.training.step import PairStep

PAIR = [{"prompt": "a", "chosen": "b", "rejected": "c"}]  # responses of two tokens, the second of which is EOS


def draws_of_two() -> list[tuple[list[bool], float, float]]:
    """All exact-count draws of two tokens: the mask, its weight 2 / l and its probability."""
    return [([True, False], 2.0, 0.25), ([False, True], 2.0, 0.25), ([True, True], 1.0, 0.5)]


def pairs_of_two() -> list[tuple[list[list[bool]], list[float], float]]:
    """All two independent draws of a response: masks, weights and their probability."""
    return [
        ([first[0], second[0]], [first[1], second[1]], first[2] * second[2])
        for first, second in itertools.product(draws_of_two(), repeat=2)
    ]


def every_draw(response_L: torch.Tensor) -> tuple[MaskDraws, torch.Tensor]:
    """Two draws of both responses in all 81 combinations, as a batch of 81 pairs, and their probabilities, [81]."""
    combinations = list(itertools.product(pairs_of_two(), repeat=2))  # (chosen, rejected)
    masked_SBL = torch.zeros(2, 162, len(response_L), dtype=torch.bool)
    weight_SBL = torch.zeros(2, 162, len(response_L), dtype=torch.float64)
    for index, combination in enumerate(combinations):
        for side, (masks, weights, _) in enumerate(combination):
            masked_SBL[:, side * 81 + index, response_L] = torch.tensor(masks)
            weight_SBL[:, side * 81 + index] = torch.tensor(weights)[:, None]
    probability_P = torch.tensor([math.prod(side[2] for side in combination) for combination in combinations])
    return MaskDraws(masked_SBL, weight_SBL * masked_SBL), probability_P.double()


def exact_gradient(run, inputs) -> torch.Tensor:
    """Of the loss at the exact ELBOs."""
    elbos = [
        [exact_elbo(model, inputs["input_ids"][row], inputs["response_mask"][row]) for row in range(2)]
        for model in (run.model, run.ref_model)
    ]
    policy, reference = (PairScores(*(elbo[None] for elbo in each)) for each in elbos)
    length = PairScores(torch.tensor([2]), torch.tensor([2]))
    loss = run.args.loss()(LossInputs(policy - reference, policy, length))
    run.model.zero_grad()
    loss.sum().backward()
    return gradient(run)


def gradient(run) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])


def mean_gradient(run, inputs) -> torch.Tensor:
    """The mean over all draws of the gradient of a training step."""
    draws, probability_P = every_draw(inputs["response_mask"][0])
    rows = [0] * 81 + [1] * 81
    inputs = {key: value[rows if len(value) == 2 else [0] * 81] for key, value in inputs.items()}
    step = PairStep(run, run.model, inputs, probability_P, draws)
    with torch.no_grad():
        reference = elbo_draws(as_denoiser(run.ref_model), inputs["input_ids"], draws, inputs["attention_mask"])
    run.model.zero_grad()
    step.add_gradient(PairScores.split(reference))
    return gradient(run)


def error(run) -> float:
    """Of the mean gradient over all draws, as a share of the exact gradient."""
    inputs = first_batch(run)
    exact = exact_gradient(run, inputs)
    return float((mean_gradient(run, inputs) - exact).norm() / exact.norm())


def one_pair(tmp_path, **changes):
    settings = dict(rows=PAIR, per_device_train_batch_size=1, n_t=2, beta=0.5) | changes
    return moved(trainer(tmp_path, **settings), 0.3)


@pytest.mark.parametrize("kept_draws", [1, 2])
def test_a_linear_slope_makes_the_gradient_unbiased(tmp_path, kept_draws):
    """IPO's slope is linear, so slope and gradient under independent masks have the product of their means."""
    settings = dict(loss_type=["ipo", "sft"], loss_weights=[1.0, 0.05], kept_draws=kept_draws)
    assert error(one_pair(tmp_path, cross_fit=True, **settings)) < 1e-12
    assert error(one_pair(tmp_path, **settings)) > 0.01


def test_sigmoid_keeps_a_part_of_its_bias(tmp_path):
    plain, crossed = (error(one_pair(tmp_path, cross_fit=value)) for value in (False, True))
    assert 0 < crossed < plain / 3


def test_a_draw_leaves_out_its_complement(tmp_path):
    """Of four masks in two complementary pairs, each pair has the slope at the mean of the other pair."""
    run = one_pair(tmp_path, n_t=4, cross_fit=True, estimator_options={"complementary": True}, loss_weights=[1.0, 0.0])
    inputs, scores_KSB = first_batch(run), torch.tensor([[[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [-2.0, 0.0]]]).double()
    step = PairStep(run, run.model, inputs, torch.ones(1, dtype=torch.float64), run.masks(run.design, inputs, 0)[0])
    found = step.slopes(PairScores(*torch.zeros(2, 4, 1).double()), [0], scores_KSB)[0]
    expected = [-0.5 / (1 + math.exp(0.5 * margin)) / 4 for margin in (-1.5, -1.5, 2, 2)]
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-15)
    assert found[:, 1].tolist() == pytest.approx([-slope for slope in expected], abs=1e-15)
