"""Sampling designs that others published, as plans: baselines of `estimators.py`, not options of the package.

Each draws n masks of one response and their weights; the mean over draws of weight times S(M) estimates the ELBO.
"""

import numpy as np
import torch
from torch import Tensor

from llada.diffusion.masking import MaskPlan, exact_count_masks, timesteps
from llada.diffusion.random_streams import keyed_generator


def by_response(draw, scored_BL: Tensor, ids: list[int], n: int, seed: int, redraw: int) -> MaskPlan:
    """A plan from `draw(length, n, generator) -> (mask [n, length], weight [n])` for each response."""
    masked_SBL = torch.zeros(n, *scored_BL.shape, dtype=torch.bool)
    weight_SBL = torch.zeros(n, *scored_BL.shape, dtype=torch.float64)
    for row, scored_L in enumerate(scored_BL.cpu()):
        generator = keyed_generator(seed, redraw, ids[row % len(ids)], row // len(ids))
        mask_SL, weight_S = draw(int(scored_L.sum()), n, generator)
        masked_SBL[:, row, scored_L] = mask_SL
        weight_SBL[:, row, scored_L] = mask_SL * weight_S[:, None]
    return MaskPlan(masked_SBL, weight_SBL)


def gauss_legendre(length: int, n: int, generator):
    """GDPO (arXiv 2510.08554): fixed levels and weights of a quadrature in t. Biased: n levels do not cover [0, 1]."""
    node, weight = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(n))
    count_S = ((node + 1) / 2 * length).long().clamp(min=1)
    return exact_count_masks(count_S, length, generator), n * weight / 2 * length / count_S


def mirror(length: int, n: int, generator):
    """MIRROR (arXiv 2511.18159): two masks at each level, from opposite ends of one order; levels are independent."""
    u_S = timesteps(-(-n // 2), generator).repeat_interleave(2)[:n]
    count_S = (u_S * length).long().clamp(max=length - 1) + 1
    return exact_count_masks(count_S, length, generator, complementary=True), length / count_S.double()


def espo(length: int, n: int, generator):
    """ESPO's code (arXiv 2512.03759): counts 0..L with weight (L + 1) / l, each mask with its complement."""
    first = torch.randint(0, length + 1, (-(-n // 2),), generator=generator)
    count_S = torch.stack([first, length - first], 1).flatten()[:n]
    weight_S = torch.where(count_S > 0, (length + 1) / count_S.clamp(min=1), 0.0).double()
    return exact_count_masks(count_S, length, generator, complementary=True), weight_S


def balanced(length: int, n: int, generator):
    """Balanced coverage: stratified counts; from the heaviest mask on, each takes the tokens covered least so far."""
    count_S = (timesteps(n, generator, "stratified") * length).long().clamp(max=length - 1) + 1
    weight_S, mask_SL = length / count_S.double(), torch.zeros(n, length, dtype=torch.bool)
    covered_L = torch.zeros(length, dtype=torch.float64)
    for draw in weight_S.argsort(descending=True).tolist():
        tie_L = torch.rand(length, generator=generator, dtype=torch.float64) * 1e-9
        mask_SL[draw, (covered_L + tie_L).argsort()[: count_S[draw]]] = True
        covered_L += weight_S[draw] * mask_SL[draw]
    return mask_SL, weight_S


PUBLISHED = {"Gauss-Legendre": gauss_legendre, "MIRROR": mirror, "ESPO": espo, "balanced": balanced}
