"""Sampling designs of other papers, available by name for training and comparison.

Each design draws n_t masks of a response, one forward pass each; policy and reference share them.

Shapes: S draws, B responses, L tokens.
"""

import numpy as np
import torch
from torch import Generator, Tensor

from llada.diffusion.masking import exact_count_masks, timesteps
from vrpo.estimators.protocol import RowDesign


class GaussLegendre(RowDesign):
    """GDPO (arXiv 2510.08554): timesteps and weights of a quadrature in t. Biased: n nodes do not cover [0, 1]."""

    biased = True

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        node, weight = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(self.n))
        count_S = ((node + 1) / 2 * length).long().clamp(min=1)
        return exact_count_masks(count_S, length, generator), self.n * weight / 2 * length / count_S


class Mirror(RowDesign):
    """MIRROR (arXiv 2511.18159): independent timesteps, each with two masks from opposite ends of one order."""

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        u_S = timesteps(-(-self.n // 2), generator).repeat_interleave(2)[: self.n]
        count_S = (u_S * length).long().clamp(max=length - 1) + 1
        return exact_count_masks(count_S, length, generator, complementary=True), length / count_S.double()


class EspoPairs(RowDesign):
    """ESPO's code (arXiv 2512.03759): counts 0..L with weight (L + 1) / l, each mask with its complement."""

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        first = torch.randint(0, length + 1, (-(-self.n // 2),), generator=generator)
        count_S = torch.stack([first, length - first], 1).flatten()[: self.n]
        weight_S = torch.where(count_S > 0, (length + 1) / count_S.clamp(min=1), 0.0).double()
        return exact_count_masks(count_S, length, generator, complementary=True), weight_S


class BalancedCoverage(RowDesign):
    """Stratified counts; in order of decreasing weight, each mask takes the tokens with the least covered weight."""

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        count_S = (timesteps(self.n, generator, "stratified") * length).long().clamp(max=length - 1) + 1
        weight_S, mask_SL = length / count_S.double(), torch.zeros(self.n, length, dtype=torch.bool)
        covered_L = torch.zeros(length, dtype=torch.float64)
        for draw in weight_S.argsort(descending=True).tolist():
            tie_L = torch.rand(length, generator=generator, dtype=torch.float64) * 1e-9
            mask_SL[draw, (covered_L + tie_L).argsort()[: count_S[draw]]] = True
            covered_L += weight_S[draw] * mask_SL[draw]
        return mask_SL, weight_S


PUBLISHED: dict[str, RowDesign] = {
    "gauss_legendre": GaussLegendre(), "mirror": Mirror(), "espo": EspoPairs(), "balanced": BalancedCoverage(),
}  # fmt: skip
