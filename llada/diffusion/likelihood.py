"""Likelihood of a sequence under a masked diffusion model: ELBO draws, the exact ELBO, Monte Carlo log-likelihood.

    B(y | x) = E_{t ~ U[0,1]} E_{y_t} [ (1/t) sum_{i masked} log p(y_i | y_t, x) ]              (LLaDA, eq. 4 and 12)
             = E_{l ~ U{1..L}} E_{|M| = l} [ (L/l) sum_{i in M} log p(y_i | y without M, x) ]   (ib., eq. 6 and 14)
             = sum_M  1 / (l C(L, l))  sum_{i in M} log p(y_i | y without M, x),   l = |M|      (exact: 2^L - 1 masks)

B is a lower bound on log p(y | x). All values are in nats, summed over tokens.

The model is a `llada.denoiser.Denoiser`; only its `log_probs` and its mask id are used.

Shapes: S draws, B sequences, L tokens, R rows of one forward pass (each one draw of one sequence), K token weights.
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from llada.checks import PositiveInt, Range, check
from llada.denoiser import Denoiser, as_denoiser, check_masked
from llada.diffusion.forwards import Forward, whole_batches
from llada.diffusion.masking import MaskDraws, corrupt, exact_count_masks


def mask_id_of(denoiser: Denoiser) -> int:
    """The id of the MASK token.

    Raises:
        ValueError: the model is autoregressive, or its config has no mask id.
    """
    check_masked(denoiser.spec)
    if denoiser.spec.mask_id is None:
        raise ValueError("the model's config has no mask_token_id")
    return denoiser.spec.mask_id


def row_elbos(
    denoiser: Denoiser,
    tokens_BL: Tensor,
    draws: MaskDraws,
    rows: Forward,
    attention_mask: Tensor | None = None,
    token_weights: tuple[Tensor | None, ...] = (None,),
) -> Tensor:
    """ELBO estimates of the rows of one forward pass, [K, R], nats, for K token weights; see `elbo_draws`."""
    index, columns = torch.tensor(rows.sequences, device=tokens_BL.device), slice(rows.width)
    masked_RL, weight_RL = (values.to(tokens_BL.device) for values in rows.masks(draws))
    noisy_RL, target_RL = corrupt(tokens_BL[index, columns], masked_RL, mask_id_of(denoiser))
    attention_RL = None if attention_mask is None else attention_mask[index, columns]
    values_RL = denoiser.log_probs(noisy_RL, target_RL, attention_RL)
    terms_RL = weight_RL.to(values_RL.dtype).to(values_RL.device) * values_RL
    factors = (None if factor_BL is None else factor_BL.to(terms_RL)[index, columns] for factor_BL in token_weights)
    return torch.stack([(terms_RL if factor is None else factor * terms_RL).sum(-1) for factor in factors])


def elbo_draws(
    denoiser: nn.Module | Denoiser,
    tokens_BL: Tensor,
    draws: MaskDraws,
    attention_mask: Tensor | None = None,
    token_weights: tuple[Tensor | None, ...] = (None,),
    forwards: list[Forward] | None = None,
) -> Tensor:
    """One ELBO estimate for each draw and sequence, [S, B], nats; the mean over draws estimates the ELBO.

    Neither masks nor weights depend on the parameters, so autograd through this value gives the gradient's estimate.

    Args:
        attention_mask: [B, L], 0 on padding.
        token_weights: factors [B, L] of the tokens' terms (None: 1 for all). With K of them, the K weighted ELBOs come
            from the same forward passes, and the result is [S, B] for one and [K, S, B] for several.
        forwards: the rows of each forward pass (`llada.diffusion.forwards`), together all draws of all sequences; by
            default, one pass for each draw.
    """
    denoiser, (number, sequences, width) = as_denoiser(denoiser), draws.masked_SBL.shape
    forwards = forwards or whole_batches(range(number), [width] * sequences, width)
    elbos = [row_elbos(denoiser, tokens_BL, draws, rows, attention_mask, token_weights) for rows in forwards]
    elbos_KSB = in_order(torch.cat(elbos, 1), forwards, number, sequences)
    return elbos_KSB[0] if len(token_weights) == 1 else elbos_KSB


def in_order(values_KN: Tensor, forwards: list[Forward], draws: int, sequences: int) -> Tensor:
    """The values of all rows by draw and sequence, [K, S, B], from those in the order of the forward passes."""
    index = [draw * sequences + b for rows in forwards for draw, b in zip(rows.draws, rows.sequences, strict=True)]
    order = torch.tensor(index, device=values_KN.device).argsort()
    return values_KN[:, order].view(len(values_KN), draws, sequences)


def exact_elbo(
    denoiser: nn.Module | Denoiser, tokens_L: Tensor, response_mask_L: Tensor, eps: float = 0.0, batch_size: int = 64
) -> Tensor:
    """The ELBO of one sequence by enumerating every non-empty mask of its n scored tokens, a differentiable scalar.

    With eps > 0, it is the expectation of the floored Bernoulli estimator instead (t uniform on [eps, 1], weight 1/t):
    a mask M with |M| = l then has the coefficient

        1/(1 - eps) int_eps^1 t^(l-1) (1-t)^(n-l) dt = P(Bin(n, eps) < l) / ((1 - eps) l C(n, l)),

    because the incomplete beta function of integers is a binomial tail. Its difference from eps = 0 is the bias.

    Args:
        tokens_L: clean tokens of one sequence; response_mask_L: bool, the tokens that may be masked (at most 20).

    Raises:
        ValueError: more than 20 scored tokens (a million masks), or none; eps is not in [0, 1), or batch_size below 1.
    """
    check("eps", eps, Annotated[float, Range(at_least=0, below=1)])
    check("batch_size", batch_size, PositiveInt)
    denoiser, length = as_denoiser(denoiser), int(response_mask_L.sum())
    if not 1 <= length <= 20:
        raise ValueError(f"exact_elbo enumerates 2^n masks: n={length} scored tokens must be between 1 and 20")
    code_M = torch.arange(1, 2**length)
    mask_Mn = (code_M[:, None] >> torch.arange(length)) & 1 == 1
    coefficient = [1.0] * (length + 1)
    for count in range(1, length + 1):
        tail = sum(math.comb(length, k) * eps**k * (1 - eps) ** (length - k) for k in range(count))
        coefficient[count] = tail / ((1 - eps) * count * math.comb(length, count))
    coefficient_M = torch.tensor(coefficient, dtype=torch.float64)[mask_Mn.sum(-1)]
    masked_ML = torch.zeros(len(code_M), len(tokens_L), dtype=torch.bool)
    masked_ML[:, response_mask_L.cpu()] = mask_Mn
    total = torch.zeros((), device=tokens_L.device)
    for masked_BL, coefficient_B in zip(
        masked_ML.to(tokens_L.device).split(batch_size),
        coefficient_M.to(tokens_L.device).split(batch_size),
        strict=True,
    ):
        noisy_and_target = corrupt(tokens_L.expand(len(masked_BL), -1), masked_BL, mask_id_of(denoiser))
        values_BL = denoiser.log_probs(*noisy_and_target)
        total = total + (coefficient_B.to(values_BL.dtype) * values_BL.sum(-1)).sum()
    return total


def systematic_counts(rows: int, length: int, generator: Generator) -> Tensor:
    """`rows` masked counts in 1..length, evenly spread from one uniform start (wrapping around), [rows].

    Each count by itself is uniform. The counts are dependent: they cover 1..length more evenly than independent ones.
    """
    start = torch.rand((), generator=generator, dtype=torch.float64) * length
    spread = (start + torch.arange(rows, dtype=torch.float64) * length / rows) % length
    return spread.long().clamp(max=length - 1) + 1


@torch.no_grad()
def log_likelihood(
    denoiser: nn.Module | Denoiser,
    tokens_L: Tensor,
    response_mask_L: Tensor,
    generator: Generator,
    n: int = 128,
    group: int = 16,
    counts: Callable[[int, int, Generator], Tensor] = systematic_counts,
) -> tuple[float, float]:
    """Monte Carlo estimate of one sequence's ELBO as the papers compute it, and its standard error, both in nats.

    Averages n exact-count masks with weight L/l (n = 128 is LLaDA's setting; 1 suffices for a single token), computed
    in n / group forward passes of `group` rows. The masked counts of a group are spread evenly and groups are
    independent, so the standard error is that of the mean over groups (nan when there is only one).

    Args:
        tokens_L: clean tokens; response_mask_L: bool, the answer (the rest is never masked).
        generator: CPU generator for counts and masks.
        counts: (rows, length, generator) -> masked counts of a group; the default is unbiased.

    Raises:
        ValueError: n or group is below 1, n is no multiple of group, or `response_mask_L` has no True.
    """
    check("n", n, PositiveInt)
    check("group", group, PositiveInt)
    denoiser, length = as_denoiser(denoiser), int(response_mask_L.sum())
    if length == 0:
        raise ValueError("log_likelihood of an empty answer: response_mask_L has no True")
    if n % group:
        raise ValueError(f"n={n} draws must be a multiple of group={group}")
    tokens_GL, response_mask_L = tokens_L.expand(group, -1), response_mask_L.cpu()
    means = []
    for _ in range(n // group):
        count_G = counts(group, length, generator)
        masked_GL = torch.zeros(group, len(response_mask_L), dtype=torch.bool)
        masked_GL[:, response_mask_L] = exact_count_masks(count_G, length, generator)
        noisy_and_target = corrupt(tokens_GL, masked_GL.to(tokens_L.device), mask_id_of(denoiser))
        values_GL = denoiser.log_probs(*noisy_and_target)
        means.append((values_GL.double().sum(-1).cpu() * length / count_G).mean())
    estimates = torch.stack(means)
    standard_error = estimates.std() / len(estimates) ** 0.5 if len(estimates) > 1 else math.nan
    return float(estimates.mean()), float(standard_error)
