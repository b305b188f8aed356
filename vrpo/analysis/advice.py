"""What a variance table means for training, in sentences: how noisy the scores are, and which design and n to take."""

from typing import Any

DEFAULT_N = 8  # forward passes of each response and model in the paper and, by default, in the trainer (design "vrpo")
NOISY_FLIPS = 0.1  # share of scores with the wrong sign above which more forward passes are advised: our choice
WIDE = 2.0  # ratio of an interval's ends above which the advice says that it is uncertain: our choice


def advise(results: dict[str, Any]) -> list[str]:
    """Sentences about a result of `vrpo.analysis.table.measure`; every figure in them is from its rows.

    The advice is the smallest n at which neither score nor gradient varies more than with `vrpo` at n = 8, and there
    the design whose score varies least.
    """
    rows = [row for row in results["rows"] if row["shared_masks"] and row["n_y"] == 1 and not row["biased"]]
    paper = [row for row in rows if row["name"] == "vrpo"]
    default = next(row for row in paper if row["n"] == DEFAULT_N)
    if variance(default) == 0:
        return ["Policy and reference give the same scores under any masks, so there is no noise to reduce."]
    found = [meaning(default)]
    each = single_draw(paper)
    for name in dict.fromkeys(row["name"] for row in rows if row["name"] != "vrpo"):
        at_4 = min((row for row in rows if row["name"] == name), key=lambda row: abs(row["n"] - 4))
        if variance(at_4) > 0:
            equal = f"about {each / variance(at_4):.2g}"
            found.append(f"`{name}` with n = {at_4['n']} has the score variance of `vrpo` with n = {equal}.")
    targets = {"score": variance(default)}  # the figure of the table
    if default["gradient"] is not None:
        targets["gradient"] = default["gradient"]["value"]
    quiet = [row for row in rows if row is default or all(row[key]["value"] <= targets[key] for key in targets)]
    best = min(quiet, key=lambda row: (row["n"], variance(row)))
    return [*found, recommendation(best, default, targets), *more_draws(best, rows), *uncertainty(default)]


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
