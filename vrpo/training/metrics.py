"""Metrics of preference training, under TRL's names.

Shapes: S draws, P pairs. Each metric is one value for each pair; rewards are beta times log-ratios, logps are ELBOs in
nats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.trainer_utils import EvalPrediction

from llada.diffusion.masking import MaskDraws
from vrpo.estimators.designs import Design
from vrpo.losses.noise_bias import second_order_bias
from vrpo.losses.pairwise import LossInputs, PreferenceLoss
from vrpo.scores import SATURATED, PairScores, log_ratios, ratio_variance, score_variance

WITH_INTERVAL = ("rewards/accuracies", "rewards/margins", "logps/accuracies")


@dataclass(frozen=True)
class BatchScores:
    """ELBO draws of one batch, [S, P] for each side, the design that drew them, and the policy's masks.

    unweighted: the policy's ELBOs without the token weights of `ld_alpha`; None if these are `policy`.
    """

    policy: PairScores
    reference: PairScores
    draws: MaskDraws
    design: Design
    unweighted: PairScores | None = None

    @property
    def has_sample_variance(self) -> bool:
        """Whether the design has a sample variance: its draws are independent and at least two."""
        return self.design.independent and self.design.n > 1

    def loss_inputs(self, length: PairScores) -> LossInputs:
        """Inputs of the losses: log-ratios and ELBOs averaged over draws."""
        policy, reference = (side.map(lambda draws_SP: draws_SP.mean(0)) for side in (self.policy, self.reference))
        whole = self.unweighted and self.unweighted.map(lambda draws_SP: draws_SP.mean(0))
        return LossInputs(policy - reference, policy, length, whole)


@dataclass(frozen=True)
class RatioNoise:
    """An estimate of the log-ratios, [P] for each side in nats, and the variance of such an estimate, nats^2."""

    ratio: PairScores
    variance: PairScores


def noise_of_draws(scores: BatchScores) -> RatioNoise:
    """Log-ratios and their variance from the draws of one score, which must satisfy `has_sample_variance`."""
    policy, reference = scores.policy, scores.reference
    return RatioNoise(log_ratios(policy, reference), ratio_variance(policy, reference))


def noise_of_two(first: BatchScores, second: BatchScores) -> RatioNoise:
    """Log-ratios and their variance from two scores of a batch with independent masks, for any design.

    Half of the squared difference is an unbiased estimate of the variance. For normal noise it is independent of the
    mean of the two, at which the loss's second derivative is taken.
    """
    one, other = (
        (scores.policy - scores.reference).map(lambda ratio_SP: ratio_SP.mean(0)) for scores in (first, second)
    )
    return RatioNoise(
        PairScores((one.chosen + other.chosen) / 2, (one.rejected + other.rejected) / 2),
        (one - other).map(lambda difference_P: difference_P.square() / 2),
    )


@torch.no_grad()
def pair_metrics(
    scores: BatchScores, length: PairScores, loss: PreferenceLoss, noise: RatioNoise | None
) -> dict[str, Tensor]:
    """The metrics of a batch.

    Args:
        length: response tokens. noise: that of these scores; None if this step does not estimate it.
    """
    ratio, elbo = log_ratios(scores.policy, scores.reference), scores.policy.map(lambda draws_SP: draws_SP.mean(0))
    score_P = loss.beta * ratio.margin
    masked = scores.draws.masked_SBL.sum((0, 2)).to(score_P) / scores.design.n
    metrics = {
        "rewards/chosen": loss.beta * ratio.chosen,
        "rewards/rejected": loss.beta * ratio.rejected,
        "rewards/accuracies": (score_P > 0).to(score_P),
        "rewards/margins": score_P,
        "logps/chosen": elbo.chosen,
        "logps/rejected": elbo.rejected,
        "logps/accuracies": (elbo.margin > 0).to(score_P),
        "masked_fraction": (masked / length.joined()).view(2, -1).mean(0),
        "score/saturated": (score_P.abs() > SATURATED).to(score_P),
    }
    if noise is not None:
        metrics["score/variance"] = score_variance(noise.variance, loss.beta)
        if loss.has_second_order_bias:
            metrics["loss/bias"] = second_order_bias(loss, noise.ratio, noise.variance, length)
    return metrics


def mean_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Means over the evaluation set; `predictions` maps metric names to one value for each pair.

    Those of `WITH_INTERVAL` also come with the suffix `_ci95`: half the width of the normal 95% interval over pairs.
    """
    metrics = {name: float(values.mean()) for name, values in prediction.predictions.items()}
    for name in WITH_INTERVAL:
        values = prediction.predictions[name]
        metrics[f"{name}_ci95"] = (
            float(1.96 * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
        )
    return metrics
