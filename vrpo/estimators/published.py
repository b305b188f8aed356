"""Sampling designs that others published, to be compared with and trained with by name.

Each draws n_t masks of a response, one forward pass each; policy and reference share them.

Shapes: S draws, B responses, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from llada.diffusion.masking import MaskDraws, draw_rows, exact_count_masks, timesteps


@dataclass(frozen=True)
class PublishedDesign:
    """Draws masks [n, length] and weights [n] of one response in `draw_row`.

    Raises:
        ValueError: n_t below 1.
    """

    n_t: int = 8
    shared_masks = True
    biased = False

    def __post_init__(self):
        if self.n_t < 1:
            raise ValueError(f"n_t={self.n_t} must be at least 1")

    @property
    def n(self) -> int:
        return self.n_t

    @property
    def independent(self) -> bool:
        return self.n == 1

    def draw(self, response_mask_BL: Tensor, generators: Sequence[Generator]) -> MaskDraws:
        return draw_rows(response_mask_BL, generators, self.n, self.draw_row)

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class GaussLegendre(PublishedDesign):
    """GDPO (arXiv 2510.08554): fixed levels and weights of a quadrature in t. Biased: n levels do not cover [0, 1]."""

    biased = True

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        node, weight = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(self.n))
        count_S = ((node + 1) / 2 * length).long().clamp(min=1)
        return exact_count_masks(count_S, length, generator), self.n * weight / 2 * length / count_S


class Mirror(PublishedDesign):
    """MIRROR (arXiv 2511.18159): two masks at each level, from opposite ends of one order; levels are independent."""

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        u_S = timesteps(-(-self.n // 2), generator).repeat_interleave(2)[: self.n]
        count_S = (u_S * length).long().clamp(max=length - 1) + 1
        return exact_count_masks(count_S, length, generator, complementary=True), length / count_S.double()


class EspoPairs(PublishedDesign):
    """ESPO's code (arXiv 2512.03759): counts 0..L with weight (L + 1) / l, each mask with its complement."""

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        first = torch.randint(0, length + 1, (-(-self.n // 2),), generator=generator)
        count_S = torch.stack([first, length - first], 1).flatten()[: self.n]
        weight_S = torch.where(count_S > 0, (length + 1) / count_S.clamp(min=1), 0.0).double()
        return exact_count_masks(count_S, length, generator, complementary=True), weight_S


class BalancedCoverage(PublishedDesign):
    """Stratified counts; from the heaviest mask on, each takes the tokens that were covered least so far."""

    def draw_row(self, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        count_S = (timesteps(self.n, generator, "stratified") * length).long().clamp(max=length - 1) + 1
        weight_S, mask_SL = length / count_S.double(), torch.zeros(self.n, length, dtype=torch.bool)
        covered_L = torch.zeros(length, dtype=torch.float64)
        for draw in weight_S.argsort(descending=True).tolist():
            tie_L = torch.rand(length, generator=generator, dtype=torch.float64) * 1e-9
            mask_SL[draw, (covered_L + tie_L).argsort()[: count_S[draw]]] = True
            covered_L += weight_S[draw] * mask_SL[draw]
        return mask_SL, weight_S


PUBLISHED: dict[str, PublishedDesign] = {
    "gauss_legendre": GaussLegendre(), "mirror": Mirror(), "espo": EspoPairs(), "balanced": BalancedCoverage(),
}  # fmt: skip
