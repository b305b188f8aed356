"""Scores of preference pairs from ELBO draws, and the variance that the draws give them.

Shapes: S draws, B responses, P pairs. All values are in nats.
"""

from torch import Tensor


def ratio_variance(policy_SB: Tensor, reference_SB: Tensor) -> Tensor:
    """Estimated variance of each response's log-ratio, nats^2, [B]: sample variance over draws / n.

    For independent draws only (`Estimator.independent`), and at least two of them. Unbiased for coupled and for
    uncoupled designs: draw by draw, the difference of policy and reference is one sample of the log-ratio.

    Raises:
        ValueError: fewer than two draws.
    """
    if len(policy_SB) < 2:
        raise ValueError("the variance of a log-ratio needs at least two draws")
    return (policy_SB - reference_SB).var(0) / len(policy_SB)


def score_variance(variance_B: Tensor, beta: float) -> Tensor:
    """Variance of each pair's score s, [P], from that of its two log-ratios, which are drawn apart."""
    chosen_P, rejected_P = variance_B.chunk(2)
    return beta**2 * (chosen_P + rejected_P)


def log_ratios(policy_SB: Tensor, reference_SB: Tensor) -> tuple[Tensor, Tensor]:
    """B_theta - B_ref of the chosen and of the rejected responses, [P] each: averaged over draws before any loss.

    The average comes first because the log-sigmoid is concave: a loss averaged over draws keeps the bias of a single
    draw however many there are (ib., Theorem 1).
    """
    ratio_B = policy_SB.mean(0) - reference_SB.mean(0)
    chosen_P, rejected_P = ratio_B.chunk(2)
    return chosen_P, rejected_P


def budget_variance(level_variance: float, mask_variance: float, n_t: int, n_y: int) -> float:
    """Variance of B_hat by the paper's decomposition, V_t / n_t + V_y / (n_t n_y) (ib., Lemma 5).

    level_variance: variance over timesteps of the mean over masks; mask_variance: mean over timesteps of the variance
    over masks (both of one draw).
    """
    return level_variance / n_t + mask_variance / (n_t * n_y)


SATURATED = 6.0  # |s| above which the sigmoid's slope is below 0.25%: a pair that no longer teaches
