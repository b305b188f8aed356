"""What a sampling design is, and a base class for designs that draw one response at a time.

Shapes: S draws, B responses, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

from llada.checks import PositiveInt, check_fields
from llada.diffusion.masking import MaskDraws, draw_rows


class Design(Protocol):
    """How the masks of a response are drawn and weighted. It never touches beta, learning rate or batch.

    A design is a frozen dataclass, whose fields are its options.
    """

    @property
    def n(self) -> int:
        """Forward passes for each response and model."""

    @property
    def shared_masks(self) -> bool:
        """Whether policy and reference see the same masks."""

    @property
    def independent(self) -> bool:
        """Whether the draws of a response are i.i.d., so that their sample variance is that of the score."""

    @property
    def biased(self) -> bool:
        """Whether the mean over draws is a biased estimate of the ELBO."""

    def draw(self, response_mask_BL: Tensor, generators: Sequence[Generator]) -> MaskDraws:
        """Draw n masks of each response with weights: weight times log-probability, averaged, estimates the ELBO.

        Args:
            response_mask_BL: bool, the response tokens.
            generators: one for each response, the only source of randomness.
        """


@dataclass(frozen=True)
class RowDesign:
    """Base class: a subclass draws masks [n, length] and weights [n] of one response in `draw_row`.

    Raises:
        ValueError: n_t is no integer of at least 1.
    """

    n_t: PositiveInt = 8
    shared_masks = True
    biased = False

    def __post_init__(self):
        check_fields(self)

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
