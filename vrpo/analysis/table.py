"""Variance of scores, losses and gradients caused by mask sampling: every design on the same pairs, with intervals.

The rows are those of the paper's ablation (LLaDA 1.5, arXiv 2505.19223, Table 2: (n_t, n_y, shared)), then the
`designs` of the settings at each of their `budgets`; the protocol is the paper's (ib., D.5: 128 pairs, batches of 16, 8
repeats).
Variances are over repeats, averaged over pairs (score, loss) or over batches (gradient: total variance over the named
parameters of the gradient of the batch's mean loss), with jackknife 95% intervals over pairs or batches; those of
variances and of their ratios are taken on the log scale and so are positive. For the designs in the plot, the variance
of the gradient of single pairs is also split into what pairs and what masks add (`vrpo.analysis.noise_split`).
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn

from vrpo.analysis.noise_split import noise_split, pair_gradients
from vrpo.analysis.redraw import Batch, mask_redraws, masked_sum_tables, redrawn_elbos, redrawn_gradients, slopes
from vrpo.analysis.settings import Settings
from vrpo.analysis.statistics import (
    covariances,
    interval,
    inverse_variance_mean,
    one_minus_correlation,
    ratio_of_means,
    reliability,
    within_0_and_1,
)
from vrpo.analysis.variance_sources import split_bernoulli, split_exact_count
from vrpo.estimators.designs import ComposedDesign, Design, design
from vrpo.losses.noise_bias import loss_bias, loss_of_ratio
from vrpo.losses.pairwise import PreferenceLoss
from vrpo.scores import SATURATED, PairScores, score_variance

VARIANCES = ("score", "loss", "gradient")


def measure(
    policy: nn.Module,
    reference: nn.Module,
    batches: list[Batch],
    settings: Settings,
    tick: Callable[[], None] = lambda: None,
) -> dict:
    """Measure every design of the settings; `vrpo.analysis.report.print_variance` prints the result.

    Args:
        batches: from `PairCollator`, on the models' device.
        tick: called after each batch of each row (there are `len(batches) * len(settings.rows())`).

    Returns:
        {"rows": one dict a design (name, n_t, n_y, shared_masks, n, score, loss, gradient, bias, saturated, flipped,
        reliability, and the cells of `vrpo.analysis.noise_split` for a design in the plot; intervals as {value, low,
        high}),
        "split": what its cells share (None: not measured), "doubling_ratios": variance at 2n over variance at n,
        "one_minus_correlation": 1 - correlation of policy and reference, "sources": shares of a draw's variance}.

    Raises:
        ValueError: the model does not say which parameters `settings.gradient` names.
    """
    parameters = chosen_parameters(policy, settings.gradient)
    designs, loss, redraws = settings.rows(), settings.loss(), range(settings.repeats)
    lengths = [PairScores.split(batch["response_mask"].sum(-1).cpu()) for batch in batches]
    redrawn: list[list[PairScores]] = []  # log-ratios [R, P] of each design and batch
    gradients, moments, splits = [], [], []
    for name, each in designs:
        redrawn.append([])
        gradients.append(list[float]())
        for batch, length in zip(batches, lengths, strict=True):
            draw = mask_redraws(batch, each, settings.seed)
            policy_RB, reference_RB = redrawn_elbos(policy, reference, batch, draw, redraws)
            if (name, each) == ("vrpo", ComposedDesign(4)):  # the sides are drawn independently: covariances add
                both = torch.stack(covariances(policy_RB, reference_RB), -1)
                moments.append(both.unflatten(0, (2, -1)).sum(0))
            redrawn[-1].append(PairScores.split(policy_RB - reference_RB))
            if parameters:
                slope_RB = slopes(loss, redrawn[-1][-1], length)
                noise = redrawn_gradients(policy, batch, draw, redraws, parameters, slope_RB)
                gradients[-1].append(noise.variance)
            tick()
        is_split = parameters and settings.split_pairs and on_curve(name, each)
        splits.append(pair_gradients(policy, batches, each, redrawn[-1], parameters, settings) if is_split else None)
    unbiased = [ratios for (_, each), ratios in zip(designs, redrawn, strict=True) if not each.biased]
    best = [best_ratio(list(of_batch)) for of_batch in zip(*unbiased, strict=True)]
    items = [per_pair_statistics(loss, ratios, best, lengths) for ratios in redrawn]
    if parameters:
        for item, of_batches in zip(items, gradients, strict=True):
            item["gradient"] = torch.tensor(of_batches, dtype=torch.float64)
    split, split_cells = noise_split(splits, [each for _, each in designs], settings)
    rows = [row(name, each, item) for (name, each), item in zip(designs, items, strict=True)]
    return {
        "rows": [cells | more for cells, more in zip(rows, split_cells, strict=True)],
        "split": split,
        "doubling_ratios": doubling_ratios(designs, items),
        "one_minus_correlation": interval(torch.cat(moments), one_minus_correlation, positive=True),
        "sources": sources(policy, reference, batches, settings) if settings.source_pairs else None,
    }


def row(name: str, design: Design, item: dict[str, Tensor]) -> dict:
    """A design's row of the table, with intervals over pairs (for the gradient, over batches)."""
    options = {"n_t": design.n, "n_y": 1} | asdict(design)  # type: ignore[call-overload]
    facts = {"name": name, **options, "n": design.n, "shared_masks": design.shared_masks, "biased": design.biased}
    cells = {key: interval(values, positive=key in VARIANCES) for key, values in item.items() if key != "squared"}
    cells |= {key: within_0_and_1(cells[key]) for key in ("saturated", "flipped")}
    signal = float(item["squared"].mean()) > 0  # not at policy = reference, where all scores are 0
    reliable = within_0_and_1(interval(item["squared"], reliability, item["score"])) if signal else None
    return facts | {"gradient": None, "reliability": reliable} | cells


def best_ratio(redrawn: list[PairScores]) -> tuple[PairScores, PairScores]:
    """The best estimate of a batch's log-ratios from all unbiased designs, and its variance."""
    ratio_B, variance_B = inverse_variance_mean([ratios.joined() for ratios in redrawn])
    return PairScores.split(ratio_B), PairScores.split(variance_B)


def per_pair_statistics(
    loss: PreferenceLoss,
    redrawn: list[PairScores],
    best: list[tuple[PairScores, PairScores]],
    lengths: list[PairScores],
) -> dict[str, Tensor]:
    """Statistics over redraws, [pairs] each: variance of score and loss, bias of the loss, two shares of the scores.

    The shares are of scores that are saturated and of scores whose sign is not that of the best estimate. With them
    comes the squared exact score, without bias: the square of the best estimate less its variance.

    Args:
        redrawn: log-ratios [R, P] of each batch, nats; best: `best_ratio` for each batch.
    """
    names = ("score", "loss", "bias", "saturated", "flipped", "squared")
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for ratios, (exact, exact_variance), length in zip(redrawn, best, lengths, strict=True):
        score_RP = loss.beta * ratios.margin
        found["score"].append(score_RP.var(0))
        found["loss"].append(loss_of_ratio(loss, ratios, length).var(0))
        found["bias"].append(loss_bias(loss, ratios, exact, exact_variance, length))
        found["saturated"].append((score_RP.abs() > SATURATED).double().mean(0))
        found["flipped"].append((score_RP * exact.margin < 0).double().mean(0))
        found["squared"].append(loss.beta**2 * exact.margin.square() - score_variance(exact_variance, loss.beta))
    return {key: torch.cat(values) for key, values in found.items()}


def chosen_parameters(policy: nn.Module, gradient: str) -> list[nn.Parameter]:
    """The parameters that the setting `gradient` names.

    Raises:
        ValueError: the model does not say which ones they are.
    """
    if gradient in ("none", "full"):
        return list(policy.parameters()) if gradient == "full" else []
    which = {"up": "first_up_projection", "head": "get_output_embeddings"}[gradient]
    if not hasattr(policy, which):
        raise ValueError(f"gradient={gradient!r}: {type(policy).__name__} has no {which}(): use 'full' or 'none'")
    found = getattr(policy, which)()
    return list(found.parameters()) if gradient == "head" else found  # the head is the embedding where they are tied


def on_curve(name: str, each: Design) -> bool:
    """Whether a row is on its design's budget curve: one mask at each timestep, and nothing else is changed."""
    return each == design(name, n_t=each.n)


def doubling_ratios(designs: list[tuple[str, Design]], items: list[dict[str, Tensor]]) -> list[dict]:
    """The variance at 2n forward passes over that at n, for each budget n of each design in the plot."""
    curve = {(name, each.n): item for (name, each), item in zip(designs, items, strict=True) if on_curve(name, each)}
    return [
        {"name": name, "n": n}
        | {
            key: interval(curve[name, 2 * n][key], ratio_of_means, item[key], positive=True) if key in item else None
            for key in VARIANCES
        }
        for (name, n), item in sorted(curve.items(), key=lambda row: (row[0][0] != "vrpo", row[0][1]))
        if (name, 2 * n) in curve and item["score"].any()
    ]


def sources(policy, reference, batches: list[Batch], settings: Settings) -> dict:
    """Variance of a single draw's score in the L/l and the 1/t form, and the share of each source, over pairs."""
    parts: dict[str, list[list[float]]] = {"L/l": [], "1/t": []}
    for batch in batches:
        size = len(batch["example_id"])
        if len(parts["L/l"]) < settings.source_pairs:
            found = masked_sum_tables(policy, reference, batch, counts=24, masks=16, seed=settings.seed)
            for chosen, rejected in zip(found[:size], found[size:], strict=True):
                exact = [split_exact_count(table) for table in (chosen, rejected)]
                floored = [split_bernoulli(table) for table in (chosen, rejected)]
                # In the L/l form the count takes the place of the timestep.
                parts["L/l"].append([sum(s.level for s in exact), sum(s.pattern for s in exact)])
                parts["1/t"].append([sum(getattr(s, part) for s in floored) for part in ("level", "count", "pattern")])
    shares = {}
    for form, names in (("L/l", ("count", "pattern")), ("1/t", ("level", "count", "pattern"))):
        part_PK = settings.beta**2 * torch.tensor(parts[form], dtype=torch.float64)
        shares[form] = {"variance": interval(part_PK.sum(-1), positive=True)} | {
            name: within_0_and_1(interval(part_PK, partial(share, k))) for k, name in enumerate(names) if part_PK.any()
        }
    return shares


def share(column: int, part_PK: Tensor) -> Tensor:
    return part_PK[:, column].sum() / part_PK.sum()
