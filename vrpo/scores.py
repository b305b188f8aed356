"""Scores of preference pairs from ELBO draws: log-ratios and their Monte Carlo variance.

    r = B_theta(y) - B_ref(y) for each side,   s = beta (r_chosen - r_rejected)   (LLaDA 1.5, arXiv 2505.19223, eq. 5)

Shapes: S draws, P pairs, L tokens. All values are in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llada.checks import Share, check

SATURATED = 6.0  # |s| above which the sigmoid's slope is below 0.25%, so that the pair has almost no gradient


@dataclass(frozen=True)
class PairScores:
    """One tensor for each side of P pairs, [..., P] each, such as ELBOs, log-ratios or lengths."""

    chosen: Tensor
    rejected: Tensor

    @classmethod
    def split(cls, values: Tensor) -> "PairScores":
        """Split a batch of responses, [..., 2P]: the P chosen, then the P rejected (`vrpo.collator.PairCollator`)."""
        chosen, rejected = values.chunk(2, -1)
        return cls(chosen, rejected)

    def joined(self) -> Tensor:
        """Both sides in the order of a batch, [..., 2P]."""
        return torch.cat([self.chosen, self.rejected], -1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "PairScores":
        return PairScores(function(self.chosen), function(self.rejected))

    def __sub__(self, other: "PairScores") -> "PairScores":
        return PairScores(self.chosen - other.chosen, self.rejected - other.rejected)

    @property
    def margin(self) -> Tensor:
        """Chosen minus rejected, [..., P]."""
        return self.chosen - self.rejected


def log_ratios(policy: PairScores, reference: PairScores) -> PairScores:
    """B_theta - B_ref of each side from ELBO draws [S, P]: averaged over draws before any loss.

    The average comes first because the log-sigmoid is concave: a loss averaged over draws keeps the bias of a single
    draw however many there are (LLaDA 1.5, Theorem 1).
    """
    return policy.map(lambda draws_SP: draws_SP.mean(0)) - reference.map(lambda draws_SP: draws_SP.mean(0))


def ratio_variance(policy: PairScores, reference: PairScores) -> PairScores:
    """Estimated variance of each log-ratio, nats^2, from ELBO draws [S, P]: sample variance over draws / n.

    For independent draws only (`Design.independent`), and at least two of them. Unbiased whether or not policy and
    reference share masks: draw by draw, their difference is one sample of the log-ratio.

    Raises:
        ValueError: fewer than two draws.
    """
    draws = len(policy.chosen)
    if draws < 2:
        raise ValueError("the variance of a log-ratio needs at least two draws")
    return (policy - reference).map(lambda ratio_SP: ratio_SP.var(0) / draws)


def score_variance(variance: PairScores, beta: float) -> Tensor:
    """Variance of each pair's score s, [P], from that of its two log-ratios, which are drawn independently."""
    return beta**2 * (variance.chosen + variance.rejected)


def length_weights(response_mask_BL: Tensor, alpha: float) -> Tensor:
    """Weight of each token in a length-desensitized log-ratio (LD-DPO, arXiv 2409.06411), [2P, L] float64.

    1 for the first min(L_w, L_l) tokens of each response, alpha for those of the longer one beyond them, 0 elsewhere.
    An ELBO is a sum over tokens, so draws whose `MaskDraws.weight_SBL` is multiplied by this estimate the weighted sum
    of the tokens' shares of the ELBO without bias.

    Args:
        response_mask_BL: bool, True on the tokens of the P chosen, then of the P rejected responses.

    Raises:
        ValueError: alpha is not between 0 and 1.

    Example: responses of 2 and 4 tokens, alpha = 0.3: weights (1, 1) and (1, 1, 0.3, 0.3).
    """
    check("ld_alpha", alpha, Share)
    position_BL = response_mask_BL.long().cumsum(-1)
    length = PairScores.split(position_BL[:, -1])
    shared_P = torch.minimum(length.chosen, length.rejected)
    beyond_BL = position_BL > torch.cat([shared_P, shared_P])[:, None]
    return response_mask_BL.double().masked_fill(beyond_BL & response_mask_BL, alpha)
