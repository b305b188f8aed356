"""The forward process: which tokens of a response are masked, and the weight of each masked token in the ELBO.

    q(x_t | x_0): each token becomes MASK with probability t, independently     (LLaDA, arXiv 2502.09992, eq. 7-8)
    exactly l of the L tokens become MASK, uniformly without replacement        (ib., eq. 6 and 14)

With S(M) = sum of log p(clean token | masked) over the masked set M, both are unbiased draws of the ELBO

    B = E_{t ~ U[0,1]} E_{M | t} [ S(M) / t ]  =  E_{l ~ U{1..L}} E_{|M| = l} [ (L / l) S(M) ]

so a draw is a mask and a weight (1/t or L/l) that does not depend on the model. Draws of one sequence may depend on
each other (stratified levels, complementary masks): their mean is unbiased because each draw, or the mixture of all,
has the right distribution. Only scored tokens (a response, or a whole document) are masked, never prompts or padding.

All masks are drawn on the CPU from explicit generators and returned as a `MaskDraws`, which the policy and the
reference can share and which gives the same masks on any device, in any process and when gradients are recomputed.

Shapes: S draws, B sequences, L tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from llada.checks import NonNegativeFloat, OneOf, PositiveInt, check
from llada.denoiser import NOT_SCORED

MASKS = ("bernoulli", "exact_count")
LEVELS = ("iid", "stratified", "mirrored")
MaskKind = Annotated[str, OneOf(MASKS)]
LevelKind = Annotated[str, OneOf(LEVELS)]
BERNOULLI_FLOOR = 1e-3  # eps of t = (1 - eps) u + eps, as in LLaDA's published training code


@dataclass(frozen=True)
class MaskDraws:
    """S masks of each sequence, and the weight of every token under each of them.

    masked_SBL: bool, True where the token is replaced by MASK.
    weight_SBL: float64, the factor of that token's log-probability; 0 where the token is not masked.

    Both stay on the CPU, where they were drawn; `likelihood.elbo_draws` moves one draw at a time.
    """

    masked_SBL: Tensor
    weight_SBL: Tensor


def timesteps(n: int, generator: Generator, levels: str = "iid") -> Tensor:
    """n levels u in [0, 1), [n] float64; a level picked from them at random is uniform.

    levels: "iid"; "stratified" (one level in each of n equal strata, in increasing order); or "mirrored" (adjacent
        pairs (u, 1 - u) with u stratified over the lower half; the last of an odd number is independent).

    Raises:
        ValueError: `levels` is unknown.
    """
    u_S = torch.rand(n, generator=generator, dtype=torch.float64)
    if levels == "iid":
        return u_S
    if levels == "stratified":
        return (torch.arange(n) + u_S) / n
    if levels == "mirrored":
        pairs = n // 2
        lower_S = (torch.arange(pairs) + u_S[:pairs]) / max(2 * pairs, 1)
        return torch.cat([torch.stack([lower_S, 1 - lower_S], -1).flatten(), u_S[2 * pairs :]])
    raise ValueError(f"levels={levels!r} is unknown: it must be one of {LEVELS}")


def reversed_second(values_SL: Tensor, n: int, top: float) -> Tensor:
    """Interleave each row with its mirror image (top - value) and return n rows: the orders of complementary masks."""
    return torch.stack([values_SL, top - values_SL], 1).flatten(0, 1)[:n]


def bernoulli_draws(
    u_S: Tensor, length: int, generator: Generator, complementary: bool = False, eps: float = BERNOULLI_FLOOR
):
    """Masks in which each token is masked with probability t = (1 - eps) u + eps, and their weight 1/t.

    The floor keeps the variance finite at the cost of a bias, which `likelihood.exact_elbo` computes.

    Returns:
        mask [S, length] bool and weight [S] float64. A mask may be empty.
    """
    n = len(u_S)
    t_S = (1 - eps) * u_S + eps
    orders = -(-n // 2) if complementary else n
    order_SL = torch.rand(orders, length, generator=generator, dtype=torch.float64)
    if complementary:
        order_SL = reversed_second(order_SL, n, 1.0)
    return order_SL < t_S[:, None], 1 / t_S


def exact_count_masks(count_S: Tensor, length: int, generator: Generator, complementary: bool = False) -> Tensor:
    """Uniformly random masks of exactly count_S[s] out of `length` tokens, [S, length] bool.

    complementary: masks come in pairs that take the first and the last tokens of one random order. A pair is disjoint
        if its counts add up to at most `length`, and covers the whole response if they add up to at least that.
    """
    n = len(count_S)
    orders = -(-n // 2) if complementary else n
    rank_SL = torch.stack([torch.randperm(length, generator=generator) for _ in range(orders)])
    if complementary:
        rank_SL = reversed_second(rank_SL, n, length - 1)
    return rank_SL < count_S[:, None]


def exact_count_draws(
    u_S: Tensor, length: int, generator: Generator, complementary: bool = False, count_tilt: float = 0.0
):
    """Masks of exactly l tokens, l ~ q by inversion of u, and their weight 1 / (l q(l)), which is L/l for uniform q.

    count_tilt: q(l) is proportional to ((l - 1/2) / L)^(-count_tilt) on 1..L. Small counts, whose weights are large,
        are then drawn more often and weigh less (importance sampling; `vrpo.estimators.designs` says when it helps).

    Returns:
        mask [S, length] bool and weight [S] float64.
    """
    count_L = torch.arange(1, length + 1, dtype=torch.float64)
    density_L = ((count_L - 0.5) / length) ** -count_tilt
    density_L /= density_L.sum()
    index_S = torch.searchsorted(density_L.cumsum(0), u_S, right=True).clamp(max=length - 1)
    weight_S = 1 / (count_L * density_L)[index_S]
    return exact_count_masks(index_S + 1, length, generator, complementary), weight_S


def draw_masks(
    response_mask_BL: Tensor,
    generators: Sequence[Generator],
    n_t: int,
    masks: str = "exact_count",
    levels: str = "iid",
    n_y: int = 1,
    complementary: bool = False,
    count_tilt: float = 0.0,
) -> MaskDraws:
    """Draw n_t levels and n_y masks at each for every sequence, S = n_t n_y draws.

    Args:
        response_mask_BL, generators: see `draw_rows`.
        n_t: levels for each sequence; levels: their joint distribution (`timesteps`).
        masks: "exact_count" (weight L/l) or "bernoulli" (weight 1/t, floored).
        n_y: masks at each level; exact-count masks of one level have the same count.
        complementary: draws 1 and 2, 3 and 4, ... have complementary masks (`exact_count_masks`).
        count_tilt: importance tilt of exact counts (`exact_count_draws`).

    Raises:
        ValueError: a row has no scored token, a number is out of range, `masks` or `levels` is unknown, or Bernoulli
            masks with a `count_tilt`.
    """
    check("n_t", n_t, PositiveInt)
    check("n_y", n_y, PositiveInt)
    check("masks", masks, MaskKind)
    check("levels", levels, LevelKind)
    check("count_tilt", count_tilt, NonNegativeFloat)
    if count_tilt and masks != "exact_count":
        raise ValueError(f"count_tilt={count_tilt} needs masks='exact_count', not {masks!r}")

    def draw_row(length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        u_S = timesteps(n_t, generator, levels).repeat_interleave(n_y)
        if masks == "bernoulli":
            return bernoulli_draws(u_S, length, generator, complementary)
        return exact_count_draws(u_S, length, generator, complementary, count_tilt)

    return draw_rows(response_mask_BL, generators, n_t * n_y, draw_row)


def draw_rows(
    response_mask_BL: Tensor,
    generators: Sequence[Generator],
    n: int,
    draw_row: Callable[[int, Generator], tuple[Tensor, Tensor]],
) -> MaskDraws:
    """Draw n masks for every sequence from its own generator.

    The draws of a row depend only on its number of scored tokens and its generator, not on the tokens' positions,
    padding or other rows.

    Args:
        response_mask_BL: bool, the tokens that may be masked (a response, or a document); at least one in each row.
        generators: one CPU generator for each row (`random_streams`).
        draw_row: (number of scored tokens, generator) -> masks [n, length] bool and weights [n] float64.

    Raises:
        ValueError: a row has no scored token.
    """
    response_mask_BL = response_mask_BL.cpu()
    lengths = response_mask_BL.sum(-1).tolist()
    if 0 in lengths:
        raise ValueError(f"row {lengths.index(0)} of the batch has no scored token: there is nothing to mask")
    masked_SBL = torch.zeros(n, *response_mask_BL.shape, dtype=torch.bool)
    weight_SBL = torch.zeros(n, *response_mask_BL.shape, dtype=torch.float64)
    for row, (length, generator) in enumerate(zip(lengths, generators, strict=True)):
        mask_SL, weight_S = draw_row(length, generator)
        masked_SBL[:, row, response_mask_BL[row]] = mask_SL
        weight_SBL[:, row, response_mask_BL[row]] = mask_SL * weight_S[:, None]
    return MaskDraws(masked_SBL, weight_SBL)


def corrupt(tokens_BL: Tensor, masked_BL: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Apply one draw: return noisy tokens and targets (clean where masked, else `NOT_SCORED`), each [B, L]."""
    return tokens_BL.masked_fill(masked_BL, mask_id), tokens_BL.masked_fill(~masked_BL, NOT_SCORED)
