"""Redraw the masks of a batch of pairs many times: scores, gradients and tables of masked sums.

Redraw r takes the masks of epoch r, which a training run with that seed would draw in that epoch. Models are in
evaluation mode; nothing here trains.

Shapes: R redraws, P pairs, B = 2P responses (chosen, then rejected), L tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from llada.denoiser import Denoiser, as_denoiser
from llada.diffusion.forwards import Forward, row_lengths, similar_lengths
from llada.diffusion.likelihood import elbo_draws, row_elbos
from llada.diffusion.masking import MaskDraws, exact_count_masks
from llada.diffusion.random_streams import CHOSEN, MASKED_SUMS, REJECTED, generator_for
from vrpo.analysis.statistics import GradientNoise
from vrpo.analysis.variance_sources import MaskedSumTable
from vrpo.estimators.designs import Design, draw_for_pairs
from vrpo.losses.noise_bias import loss_of_ratio
from vrpo.losses.pairwise import PreferenceLoss
from vrpo.scores import PairScores
from vrpo.training.gradients import sloped

Batch = dict[str, Tensor]
Model: TypeAlias = nn.Module | Denoiser
Draw = Callable[[int], tuple[MaskDraws, MaskDraws]]  # redraw -> masks of policy and of reference


def mask_redraws(batch: Batch, design: Design, seed: int) -> Draw:
    """The masks of policy and reference as a function of the redraw of a batch."""
    return lambda redraw: draw_for_pairs(design, batch["response_mask"], batch["example_id"].tolist(), seed, redraw)


def forwards_of(batch: Batch, draws: MaskDraws, tokens: int | None = None) -> list[Forward]:
    """Forward passes of the rows of a batch, of at most `tokens` tokens (None: one draw of the padded batch)."""
    lengths = row_lengths(batch["attention_mask"])
    return similar_lengths(range(len(draws.masked_SBL)), lengths, tokens or batch["input_ids"].numel())


def batch_elbos(model: Model, batch: Batch, draws: MaskDraws) -> Tensor:
    """ELBO draws [S, B] of a batch from `vrpo.collator.PairCollator`, nats."""
    ids, attention, forwards = batch["input_ids"], batch["attention_mask"], forwards_of(batch, draws)
    return elbo_draws(as_denoiser(model), ids, draws, attention, forwards=forwards)


@torch.no_grad()
def redrawn_elbos(
    policy: Model, reference: Model, batch: Batch, draw: Draw, redraws: Iterable[int]
) -> tuple[Tensor, Tensor]:
    """ELBOs of policy and reference for each redraw, [R, B] each, float64: means over the design's draws."""
    values = [
        [
            batch_elbos(model, batch, draws).double().mean(0).cpu()
            for model, draws in zip((policy, reference), draw(redraw), strict=True)
        ]
        for redraw in redraws
    ]
    return torch.stack([pair[0] for pair in values]), torch.stack([pair[1] for pair in values])


@contextmanager
def requires_grad_only(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let only these parameters require gradients, so that no other keeps its activations."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(any(parameter is chosen for chosen in parameters))
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def redrawn_gradients(
    policy: nn.Module, batch: Batch, draw: Draw, redraws: Iterable[int],
    parameters: list[nn.Parameter], slope_RB: Tensor, tokens: int | None = None,
) -> GradientNoise:  # fmt: skip
    """Noise of the gradient of a function of the policy's ELBOs with respect to some parameters.

    Args:
        slope_RB: d function / d ELBO of each response at each redraw, such as the loss's at that redraw's scores, or
            (1/P, -1/P) for the mean margin. One graph is alive at a time.
        tokens: of a forward pass at most (None: one draw of the padded batch).
    """
    noise, denoiser = GradientNoise(), as_denoiser(policy)
    with requires_grad_only(policy, parameters):
        for redraw, slope_B in zip(redraws, slope_RB, strict=True):
            draws, _ = draw(redraw)
            slope_1B = slope_B[None] / len(draws.masked_SBL)
            total = [torch.zeros_like(parameter) for parameter in parameters]
            for rows in forwards_of(batch, draws, tokens):
                elbos_1R = row_elbos(denoiser, batch["input_ids"], draws, rows, batch["attention_mask"])
                found = torch.autograd.grad(sloped(slope_1B, rows, elbos_1R), parameters)
                for sum_so_far, gradient in zip(total, found, strict=True):
                    sum_so_far += gradient
            noise.add(total)
    return noise


def slopes(loss: PreferenceLoss, redrawn: PairScores, length: PairScores) -> Tensor:
    """d (mean loss of the batch) / d (policy ELBO of each response) at each redraw's log-ratios [R, P], [R, 2P]."""
    ratio = redrawn.map(lambda ratio_RP: ratio_RP.clone().requires_grad_())
    mean_R = loss_of_ratio(loss, ratio, length).mean(1)
    return torch.cat(torch.autograd.grad(mean_R.sum(), (ratio.chosen, ratio.rejected)), 1)


def count_grid(length: int, most: int) -> list[int]:
    """At most `most` masked counts from 1 to length: all of them, or evenly spread in log l."""
    if length <= most:
        return list(range(1, length + 1))
    return sorted({round(length ** (step / (most - 1))) for step in range(most)})


@torch.no_grad()
def masked_sum_tables(
    policy: Model, reference: Model, batch: Batch, counts: int, masks: int, seed: int
) -> list[MaskedSumTable]:
    """A table for each response: S(M) of policy minus reference, nats, for `masks` masks at up to `counts` counts."""
    lengths = batch["response_mask"].sum(-1).tolist()
    grids = [count_grid(length, counts) for length in lengths]
    generators = [
        generator_for(seed, MASKED_SUMS, example, side)
        for side in (CHOSEN, REJECTED) for example in batch["example_id"].tolist()
    ]  # fmt: skip
    values: list[list[Tensor]] = [[] for _ in lengths]
    response_mask_BL = batch["response_mask"].cpu()
    for step in range(max(map(len, grids))):
        masked_SBL = torch.zeros(masks, *response_mask_BL.shape, dtype=torch.bool)
        for row, grid in enumerate(grids):
            count = torch.full((masks,), grid[min(step, len(grid) - 1)])
            masked_SBL[:, row, response_mask_BL[row]] = exact_count_masks(count, lengths[row], generators[row])
        draws = MaskDraws(masked_SBL, masked_SBL.double())
        policy_SB, reference_SB = (batch_elbos(model, batch, draws) for model in (policy, reference))
        value_SB = policy_SB.double() - reference_SB.double()
        for row, grid in enumerate(grids):
            if step < len(grid):
                values[row].append(value_SB[:, row].cpu())
    return [
        MaskedSumTable(torch.tensor(grid), torch.stack(value), length)
        for grid, value, length in zip(grids, values, lengths, strict=True)
    ]
