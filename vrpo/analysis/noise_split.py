"""Measure how much of a gradient's noise comes from the pairs and how much from the masks, for each design and n.

`vrpo.gradient_noise` has the formulas. The pairs are the first ones of the table, and their redraws and scores
are its first redraws. What is measured is the gradient of one pair's loss with respect to the parameters that the
setting `gradient` names. A pair's mean gradient is kept as it is up to `KEPT` numbers; of larger gradients, the
variance over redraws and the squared norm are exact too, and inner products of different pairs are those of
projections, with a standard error of 0.14% of the product of their norms.
"""

import torch
from torch import Tensor, nn

from vrpo.analysis.redraw import Batch, mask_redraws, redrawn_gradients, slopes
from vrpo.analysis.settings import Settings
from vrpo.analysis.statistics import Cell, interval, inverse, within_0_and_1
from vrpo.collator import pairs_of
from vrpo.estimators.designs import Design
from vrpo.gradient_noise import KEPT, PairGradients, estimator_share, projection, signal_to_noise
from vrpo.scores import PairScores


def pair_gradients(
    policy: nn.Module,
    batches: list[Batch],
    design: Design,
    redrawn: list[PairScores],
    parameters: list[nn.Parameter],
    settings: Settings,
) -> PairGradients | None:
    """Gradients of the first `split_pairs` pairs at their first redraws; None for fewer than 3 pairs.

    Args:
        redrawn: log-ratios [R, P] of each batch under the design, nats, with at least as many redraws.
    """
    loss, redraws = settings.loss(), range(settings.split_redraws)
    mean, square, variance = list[Tensor](), list[float](), list[float]()
    for batch, ratio in zip(batches, redrawn, strict=True):
        pairs, tokens = pairs_of(batch), batch["input_ids"].numel()
        length = PairScores.split(batch["response_mask"].sum(-1).cpu())
        slope_RB = len(pairs) * slopes(loss, ratio, length)  # of each pair's own loss, where the loss is their mean
        for number, pair in enumerate(pairs[: settings.split_pairs - len(mean)]):
            draw, slope_R2 = mask_redraws(pair, design, settings.seed), slope_RB[: len(redraws), number :: len(pairs)]
            noise = redrawn_gradients(policy, pair, draw, redraws, parameters, slope_R2, tokens)
            mean.append(projection([total / len(redraws) for total in noise.total], KEPT))
            square.append(noise.squared_mean)
            variance.append(noise.variance)
    if len(mean) < 3:
        return None
    mean_PK = torch.stack(mean).double()
    gram_PP = mean_PK @ mean_PK.T
    gram_PP.diagonal().copy_(torch.tensor(square, dtype=torch.float64))
    return PairGradients(gram_PP, torch.tensor(variance, dtype=torch.float64), len(redraws))


def noise_split(
    found: list[PairGradients | None], designs: list[Design], settings: Settings
) -> tuple[dict | None, list[dict[str, Cell]]]:
    """What `vrpo.analysis.advice` needs of the split beside the rows, and cells to add to each row.

    The variance between pairs and the squared signal that shares and noise scales refer to are those of the unbiased
    design whose masks add the least noise: it measures them best, and noise in the loss's slope changes them least. The
    cells `between_variance` and `squared_signal` of a row are those of its own gradients.

    Args:
        found: gradients of the pairs for each row of the table; None for a row that is not split.
    """
    usable = [each for each, design in zip(found, designs, strict=True) if each is not None and not design.biased]
    if not usable or not any(each.variance_P.any() for each in usable):
        return None, [{} for _ in found]
    quiet = min(usable, key=lambda each: float(each.estimator))
    summary = {
        "pairs": len(quiet.variance_P), "redraws": quiet.redraws, "pair_cost": settings.pair_cost,
        "epochs": settings.epochs, "noise_share": settings.noise_share,
    }  # fmt: skip
    return summary | own_cells(quiet), [{} if each is None else cells(each, quiet) for each in found]


def own_cells(gradients: PairGradients) -> dict[str, Cell]:
    """Variance between pairs and squared signal, with intervals over pairs."""
    pairs = torch.arange(len(gradients.variance_P))
    return {
        "between_variance": interval(pairs, lambda kept: gradients.of(kept).between),
        "squared_signal": interval(pairs, lambda kept: gradients.of(kept).signal),
    }


def cells(row: PairGradients, quiet: PairGradients) -> dict[str, Cell]:
    """The cells of a row, in the unit of a squared gradient, as shares, and in pairs (the noise scale)."""
    pairs = torch.arange(len(row.variance_P))

    def share(kept: Tensor) -> Tensor:
        return estimator_share(row.of(kept).estimator, quiet.of(kept).between)

    def ratio(kept: Tensor) -> Tensor:
        return signal_to_noise(row.of(kept).estimator, quiet.of(kept).between, quiet.of(kept).signal)

    return {
        "estimator_variance": interval(row.variance_P, positive=True),
        "estimator_share": within_0_and_1(interval(pairs, share)),
        "noise_scale": inverse(interval(pairs, ratio)),
    } | own_cells(row)
