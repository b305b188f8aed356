"""A leave-one-out token baseline: the same forward passes, less variance, still unbiased.

    B_hat = sum_k w_k sum_{i in M_k} d_i(M_k)  -  sum_k w_k sum_i (1[i in M_k] - l_k / L) c_i^k

d_i(M) is the log-ratio (or log-probability) of token i under mask M, w_k the weight of draw k. The baseline c_i^k
predicts d_i from the draws that are independent of draw k, the *others* O_k:

    c_i^k = f_k ( sum_{j in O_k, i in M_j} d_i(M_j) / f_j + prior b_k ) / ( #{j in O_k : i in M_j} + prior ),
    b_k   = mean of d / f over all masked tokens of O_k,      f = 1 + slope x,   x = l / L.

Given its count and the others, M_k is a uniform subset of l_k tokens, so 1[i in M_k] - l_k / L has mean 0 while c_i^k
is fixed: nothing is added on average, for any prior > 0 (a control variate; leave-one-out baselines are those of
VIMCO, arXiv 1602.06725, here for tokens). It removes the noise of *which* tokens a mask happened to hit. It is linear
in d, so it changes the weights alone: one set of draws serves policy, reference and the gradient. Complementary masks
form a group; a draw's baseline uses only draws of other groups.

Shapes: S draws, G groups of them, B responses, L tokens.
"""

import torch
from torch import Tensor

from llada.checks import NonNegativeFloat, PositiveFloat, PositiveInt, check
from llada.diffusion.masking import MaskDraws


def leave_one_out(
    draws: MaskDraws, response_mask_BL: Tensor, group: int, prior: float, slope: float = 0.0
) -> MaskDraws:
    """Fold the baseline into the weights of the draws, in O(S L) for each response.

    With a_ki = w_k f_k (1[i in M_k] - x_k) / (#_ki + prior) and A_k = sum_i a_ki, the weight of token i in draw j
    loses 1 / f_j times the sum over the k of other groups of a_ki + prior A_k / N_k, N_k the masked tokens of O_k: the
    sum over all draws minus that over j's own group.

    Args:
        draws: exact-count masks with one weight for each draw and response, as drawn.
        response_mask_BL: bool, the tokens that may be masked.
        group: draws that depend on each other, next to each other (2 for complementary pairs, else 1).
        prior: pseudo-count that pulls a token's baseline to the mean over tokens; positive.
        slope: slope of the baseline in the masked fraction x: it is proportional to 1 + slope x.

    Returns:
        Draws with the same masks and new weights; `draws` itself if there is only one group and so no baseline.

    Raises:
        ValueError: group is below 1, prior is not positive, or slope is negative.
    """
    check("group", group, PositiveInt)
    check("prior", prior, PositiveFloat)
    check("slope", slope, NonNegativeFloat)
    n = len(draws.masked_SBL)
    if n <= group:
        return draws
    response_mask_BL = response_mask_BL.cpu()
    mask_SBL = draws.masked_SBL.double()
    count_SB = mask_SBL.sum(-1)
    weight_SB = draws.weight_SBL.amax(-1)  # one value wherever a token is masked, 0 elsewhere
    length_B = response_mask_BL.sum(-1)
    group_S = torch.arange(n) // group

    def others(values_S: Tensor) -> Tensor:
        """Sum over the draws of other groups, for each draw; [S, ...] in and out."""
        groups = torch.zeros(int(group_S[-1]) + 1, *values_S.shape[1:], dtype=values_S.dtype)
        groups.index_add_(0, group_S, values_S)
        return torch.sub(groups.sum(0), groups)[group_S]

    # In place from here: at [16, 64, 1024] a fresh tensor costs as much as the arithmetic on it.
    hidden_SB = count_SB / length_B
    scale_SB = 1 + slope * hidden_SB
    a_SBL = (mask_SBL - hidden_SB[..., None]).mul_(response_mask_BL).mul_((weight_SB * scale_SB)[..., None])
    a_SBL.div_(others(mask_SBL).add_(prior))
    shift_SB = prior * a_SBL.sum(-1) / others(count_SB)
    removed_SBL = others(a_SBL.add_(shift_SB[..., None])).div_(scale_SB[..., None]).mul_(mask_SBL)
    return MaskDraws(draws.masked_SBL, draws.weight_SBL - removed_SBL)
