"""What a variance table means for training, in sentences: how noisy the scores are, and which design and n to take."""

from typing import Any

from vrpo.analysis.suggestion import (
    epochs_for,
    noise_per_compute,
    share_over_epochs,
    with_fixed_pairs,
    with_pairs_to_spare,
)

DEFAULT_N = 8  # forward passes of each response and model in the paper and, by default, in the trainer (design "vrpo")
NOISY_FLIPS = 0.1  # share of scores with the wrong sign above which more forward passes are advised: our choice
RELIABLE = 0.8  # reliability of the scores above which noise hardly acts like a larger beta: our choice
WIDE = 2.0  # ratio of an interval's ends above which the advice says that it is uncertain: our choice


def advise(results: dict[str, Any]) -> list[str]:
    """Sentences about a result of `vrpo.analysis.table.measure`; every figure in them is from its rows.

    With the split of the gradient's noise, the advice is that of `vrpo.analysis.suggestion`. Without it, the advice is
    the smallest n at which neither score nor gradient varies more than with `vrpo` at n = 8, and there the design whose
    score varies least.
    """
    rows = [row for row in results["rows"] if row["shared_masks"] and row["n_y"] == 1 and not row["biased"]]
    paper = [row for row in rows if row["name"] == "vrpo"]
    default = next(row for row in paper if row["n"] == DEFAULT_N)
    split = results["split"]
    if variance(default) == 0:
        same = "Policy and reference give the same scores under any masks, so there is no noise in scores to reduce."
        return [same, *(split_advice(split, default, rows) if split else [])]
    found = [meaning(default)]
    each = single_draw(paper)
    for name in dict.fromkeys(row["name"] for row in rows if row["name"] != "vrpo"):
        at_4 = min((row for row in rows if row["name"] == name), key=lambda row: abs(row["n"] - 4))
        if variance(at_4) > 0:
            equal = f"about {each / variance(at_4):.2g}"
            found.append(f"`{name}` with n = {at_4['n']} has the score variance of `vrpo` with n = {equal}.")
    found += split_advice(split, default, rows) if split else quiet_advice(default, rows)
    return [*found, *larger_beta(rows), *uncertainty(default)]


def larger_beta(rows: list[dict[str, Any]]) -> list[str]:
    """How much larger a beta the noise of the scores acts like, with the fewest draws and with the trainer's default.

    `vrpo.analysis.statistics.reliability` says why.
    """
    paper = [row for row in rows if row["name"] == "vrpo" and row["reliability"] is not None]
    few = min(paper, key=lambda row: row["n"], default=None)
    if few is None or few["reliability"]["value"] > RELIABLE:
        return []
    default = next(row for row in paper if row["n"] == DEFAULT_N)
    factors = " and ".join(f"{1 / row['reliability']['value']:.2g} (n = {row['n']})" for row in (few, default))
    return [
        f"In the sigmoid loss, noise in the scores of `vrpo` acts like a beta that is larger by a factor of {factors}. "
        "For the policy that your beta asks for, divide beta by it."
    ]


def quiet_advice(default: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """The cheapest row that is as quiet as the default, for results without a split of the gradient's noise."""
    targets = {"score": variance(default)}  # the figure of the table
    if default["gradient"] is not None:
        targets["gradient"] = default["gradient"]["value"]
    quiet = [row for row in rows if row is default or all(row[key]["value"] <= targets[key] for key in targets)]
    best = min(quiet, key=lambda row: (row["n"], variance(row)))
    return [recommendation(best, default, targets), *more_draws(best, rows)]


def split_advice(split: dict[str, Any], default: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """The split of the default's noise, and the rows to train with where pairs are to spare and where they are not."""
    rows = [row for row in rows if "estimator_share" in row]
    between = split["between_variance"]
    text = (
        f"The gradient of a pair varies by {bounded(between)} between pairs and by "
        f"{bounded(default['estimator_variance'])} over masks of `vrpo` with n = {DEFAULT_N}"
    )
    if between["value"] <= 0:
        return [
            f"{text}, so {split['pairs']} pairs do not show how much of the noise is theirs: more --split_pairs do."
        ]
    scale = at_scale(default["noise_scale"])
    found = [f"{text}, {bounded_share(default['estimator_share'])} of its noise. {scale}"]
    spare = with_pairs_to_spare(rows, split["pair_cost"])
    ratio = noise_per_compute(spare, split["pair_cost"]) / noise_per_compute(default, split["pair_cost"])
    cost = f" that cost {split['pair_cost']:g} draws each" if split["pair_cost"] else ""
    found.append(
        f"With pairs to spare{cost}: {options(spare)}. For the same compute its gradient has {ratio:.0%} of the noise "
        f"of `vrpo` with n = {DEFAULT_N}."
    )
    found += fixed_advice(rows, split["epochs"], split["noise_share"])
    if between["low"] * WIDE < between["high"]:
        found.append("The variance between pairs is not known well: with more --split_pairs the advice may change.")
    return found


def fixed_advice(rows: list[dict[str, Any]], epochs: int, wanted: float) -> list[str]:
    """The row to train with where there are no more pairs, or what it would take to have one."""
    begin = f"With a fixed set of pairs and {epochs} epoch{'s' * (epochs > 1)}:"
    fixed = with_fixed_pairs(rows, epochs, wanted)
    if fixed:
        masks = bounded_share(over_epochs(fixed, epochs))
        text = f"{options(fixed)}, the fewest draws at which masks add at most {wanted:.0%} of the noise: {masks}."
        return [f"{begin} {text}", *more_draws(fixed, rows)]
    best = min(rows, key=lambda row: row["estimator_share"]["value"])
    enough = epochs_for(best["estimator_share"]["value"], wanted)
    return [
        f"{begin} nothing measured brings the share of masks down to {wanted:.0%}. {options(best)} comes closest, with "
        f"{bounded_share(over_epochs(best, epochs))}, and reaches it in {enough} epochs; or try larger --budgets."
    ]


def options(row: dict[str, Any]) -> str:
    """The trainer's options that name a row."""
    return f"`--estimator {row['name']} --n_t {row['n_t']}`"


def over_epochs(row: dict[str, Any], epochs: int) -> dict[str, float | None]:
    """The estimator's share of a row's noise over some epochs, with its interval."""
    return {key: None if end is None else share_over_epochs(end, epochs) for key, end in row["estimator_share"].items()}


def at_scale(scale: dict[str, float | None]) -> str:
    """What the gradient noise scale says about the size of a batch."""
    low = "unknown" if scale["low"] is None else f"{scale['low']:.2g}"
    if scale["value"] is None:
        return f"The gradient noise scale is above {low} pairs: these pairs are too few to show their mean gradient."
    high = "no bound" if scale["high"] is None else f"{scale['high']:.2g}"
    return f"A batch of {scale['value']:.2g} [{low}, {high}] pairs has as much noise as signal (gradient noise scale)."


def bounded(cell: dict[str, float | None] | None) -> str:
    """A value with its interval, if it has one."""
    if cell is None:
        return ""
    ends = "" if cell["low"] is None else f" [{cell['low']:.2g}, {cell['high']:.2g}]"
    return f"{cell['value']:.2g}{ends}"


def bounded_share(cell: dict[str, float | None]) -> str:
    """A share with its interval, in percent."""
    ends = "" if cell["low"] is None else f" [{cell['low']:.0%}, {cell['high']:.0%}]"
    return f"{cell['value']:.0%}{ends}"


def variance(row: dict[str, Any]) -> float:
    """The mean over pairs of the variance of the score."""
    return row["score"]["value"]


def single_draw(paper: list[dict[str, Any]]) -> float:
    """The variance of a single draw's score from the rows of the paper's design, which has independent draws.

    The variance at n is this over n, and all rows together estimate it better than one.
    """
    return sum(row["n"] * variance(row) for row in paper) / len(paper)


def meaning(row: dict[str, Any]) -> str:
    """What the noise of a row does to the pairs and to the loss."""
    deviation = variance(row) ** 0.5
    return (
        f"At n = {row['n']}, the trainer's default, masks alone move a score of `{row['name']}` by {deviation:.2g} "
        f"(standard deviation). Pairs whose margin is smaller are decided by noise: {row['flipped']['value']:.0%} of "
        f"the drawn scores have the wrong sign. The noise changes the mean loss by {row['bias']['value']:+.2g}."
    )


def recommendation(best: dict[str, Any], default: dict[str, Any], targets: dict[str, float]) -> str:
    """The design and n to train with, and its variances beside those of the trainer's default, the targets."""
    if best is default:
        return f"Recommended: the default, `--estimator vrpo --n_t {best['n_t']}`: nothing cheaper is as quiet."
    text = (
        f"Recommended: `--estimator {best['name']} --n_t {best['n_t']}`, with {best['n'] / default['n']:.0%} of the "
        f"default's forward passes. Its score varies {variance(best):.2g}, the default's {targets['score']:.2g}"
    )
    if best["gradient"] is None:
        return f"{text}. The gradient, which training follows, was not measured (--gradient)."
    after = best["gradient"]["value"]
    return f"{text}; its gradient, which training follows, {after:.2g}, the default's {targets['gradient']:.2g}."


def uncertainty(default: dict[str, Any]) -> list[str]:
    """A warning where the interval of the default's variance is wide."""
    low, high = default["score"]["low"], default["score"]["high"]
    if low is None or high <= WIDE * low:
        return []
    return [
        f"The variance of `vrpo` at n = {DEFAULT_N} is known to lie between {low:.2g} and {high:.2g} only: with more "
        "pairs or --repeats the advice may change."
    ]


def more_draws(best: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Whether the recommended row still decides many pairs by noise, and the quietest row instead."""
    if best["flipped"]["value"] <= NOISY_FLIPS:
        return []
    quietest = min(rows, key=variance)
    text = f"Even so {best['flipped']['value']:.0%} of its scores have the wrong sign"
    if quietest is best:
        return [f"{text}, and nothing measured is quieter: try larger --budgets."]
    return [
        f"{text}; with `{quietest['name']}` and n = {quietest['n']}, {quietest['flipped']['value']:.0%}. Early in "
        "training margins are near 0, and signs mean little."
    ]
