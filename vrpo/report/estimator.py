"""Where the noise of scores and gradients comes from, and which n follows: from the log, or from a measurement."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from llada.cli import next_steps
from vrpo.analysis.advice import advise
from vrpo.analysis.settings import Settings
from vrpo.analysis.suggestion import epochs_for, share_over_epochs, with_fixed_pairs
from vrpo.report import figures
from vrpo.report.judging import pairs_per_line
from vrpo.report.reading import Run

BUDGETS = (1, 2, 4, 8, 16, 32)  # values of n
SPLIT = ("noise/estimator", "noise/between")
INDEPENDENT = ("vrpo", "vrpo_bernoulli", "naive_dpo")  # designs whose noise falls as 1 / n


@dataclass(frozen=True)
class Measured:
    """What is known of a run's noise: sentences, plots (title, what it shows, the plot), and a command ("": none)."""

    sentences: list[str] = field(default_factory=list)
    plots: list[tuple[str, str, go.Figure]] = field(default_factory=list)
    command: str = ""


def measured(run: Run) -> Measured:
    """All that the files of a preference run say of its noise, or how to measure it."""
    found = Measured([], [], "")
    from_log(run, found)
    if run.variance is not None:
        from_measurement(run.variance, found)
        return found
    return replace(found, command=variance_command(run))


def variance_command(run: Run) -> str:
    """The command that measures the noise of a run; "" if its reference or its data are not known."""
    base, data = (run.record.get("model") or {}).get("base"), (run.record.get("data") or {})
    if not base or not data.get("train"):
        return ""
    budget = (run.record.get("estimator") or {}).get("n")
    return next_steps.variance(str(run.folder), base, data["train"], data.get("rows") or next_steps.PAIRS, budget)


def from_log(run: Run, found: Measured) -> None:
    """Add what the split of the gradient's noise says, which `noise_split_steps` logs."""
    estimator, between = (run.series(name).finite for name in SPLIT)
    if not len(estimator) or not len(between):
        return
    masks, pairs = float(estimator.values[-1]), max(0.0, float(between.values[-1]))
    if masks + pairs <= 0:
        return
    share = masks / (masks + pairs)
    text = (
        f"Of the noise of a pair's gradient, {share:.0%} comes from masks and {1 - share:.0%} from the choice of pairs "
        f"(mean of all measurements up to step {estimator.steps[-1]})."
    )
    scale, batch = run.series("noise/scale").finite, pairs_per_line(run)
    if float(run.series("noise/signal").finite.values[-1:].sum()) <= 0:
        text += " The signal, the gradient's mean over pairs, does not stand out from it yet."
    elif len(scale):
        text += f" A batch of {scale.values[-1]:,.0f} pairs has as much noise as signal"
        lines = run.state.get("logging_steps") or 1
        text += f"; a step of this run has {batch / lines:g}." if batch is not None and lines >= 1 else "."
    found.sentences.append(text)
    record = run.record.get("estimator") or {}
    n, design = record.get("n"), record.get("design")
    if not isinstance(n, int) or design not in INDEPENDENT:
        return
    rows = [{"n": m, "estimator_share": {"value": share_at(share, n, m)}} for m in BUDGETS]
    if (run.state.get("num_train_epochs") or 1) < sys.maxsize:  # which transformers sets for a stream
        passed = run.series("epoch").finite.values[-1:].sum()
        found.sentences.append(suggested(rows, n, max(1, round(float(passed)))))
    found.plots.append(("The noise of a gradient by n", split_text(n), split_plot(masks, pairs, n)))


def share_at(share: float, n: int, other: int) -> float:
    """The masks' share of the noise at another n, for independent draws. Example: 0.5 at n = 2 is 1/3 at n = 4."""
    masks = share * n / other
    return masks / (masks + 1 - share) if share else 0.0


def suggested(rows: list[dict[str, Any]], n: int, epochs: int) -> str:
    """The smallest n at which masks add little to the noise that pairs have anyway, in a sentence."""
    wanted = Settings.noise_share
    best = with_fixed_pairs(rows, epochs, wanted)
    passes = f"{epochs} epoch{'s' * (epochs > 1)}"
    if best is not None:
        share = share_over_epochs(best["estimator_share"]["value"], epochs)
        text = (
            f"With a fixed set of pairs and {passes}, n = {best['n']} is the smallest at which masks add at most "
            f"{wanted:.0%} of the noise ({share:.0%}); the run has n = {n}."
        )
    else:
        enough = epochs_for(rows[-1]["estimator_share"]["value"], wanted)
        text = (
            f"With a fixed set of pairs and {passes}, even n = {rows[-1]['n']} leaves masks more than {wanted:.0%} of "
            f"the noise: it would reach that in {enough} epochs."
        )
    return f"{text} Where fresh pairs are to be had, spend forward passes on them first."


def split_text(n: int) -> str:
    return (
        f"Variance of the gradient of one pair. What pairs add stays, what masks add falls as 1 / n for independent "
        f"draws; n = {n} was measured, the others follow from it."
    )


def split_plot(masks: float, pairs: float, n: int) -> go.Figure:
    """Bars of a gradient's variance by n: what masks add, measured at `n` and scaled by 1 / n, and what pairs add."""
    budgets = sorted({*BUDGETS, n})
    plot = figures.figure("n", "variance", height=320, barmode="stack")
    names = [f"<b>{m}</b>" if m == n else str(m) for m in budgets]
    for name, values, color in (
        ("pairs", [pairs] * len(budgets), figures.PALETTE[2]),
        ("masks", [masks * n / m for m in budgets], figures.PALETTE[0]),
    ):
        opacity = [0.95 if m == n else 0.55 for m in budgets]
        bar = dict(color=color, opacity=opacity)
        plot.add_trace(go.Bar(x=names, y=figures.single(values), name=name, marker=bar, hovertemplate="%{y:.3g}"))
    plot.update_xaxes(type="category")
    return plot.update_layout(showlegend=True)


def from_measurement(results: dict[str, Any], found: Measured) -> None:
    """Add what `python -m vrpo.variance` has measured: its advice, and its variance of the score by n."""
    if not {"rows", "split", "sources"} <= results.keys():
        found.sentences.append("variance.json is of another version: measure again with python -m vrpo.variance.")
        return
    found.sentences.extend(sentence.replace("`", "") for sentence in advise(results))
    found.plots.append(
        ("Score variance by design", "Variance of a pair's score over redrawn masks, with 95% intervals over pairs. "
         "Down and to the left is better.", variance_plot(results["rows"]))
    )  # fmt: skip
    if results["sources"]:
        shares = "Shares of the variance of one draw with shared masks, by what in the masks causes it."
        found.plots.append(("Sources of a draw's variance", shares, sources_plot(results["sources"])))


def variance_plot(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """The variance of a score by n, on two logarithmic axes, for each design of `variance.json` with shared masks."""
    plot = figures.figure("forward passes of each response (n)", "variance of the score", height=320)
    curves = [row for row in rows if row["shared_masks"] and row["n_y"] == 1 and row["score"]["value"] > 0]
    for number, name in enumerate(dict.fromkeys(row["name"] for row in curves)):
        own = sorted((row for row in curves if row["name"] == name), key=lambda row: row["n"])
        values = np.array([row["score"]["value"] for row in own])
        high = [np.nan if row["score"]["high"] is None else row["score"]["high"] for row in own]
        half = np.array(high, dtype=float) - values
        figures.markers(plot, [row["n"] for row in own], values, half, name, figures.PALETTE[number], "circle")
        low = [np.nan if row["score"]["low"] is None else row["score"]["low"] for row in own]
        if np.isfinite(half).any():
            below = figures.single(np.nan_to_num(values - np.array(low, dtype=float)))
            plot.data[-1].error_y.update(symmetric=False, arrayminus=below)
    plot.update_xaxes(type="log", tickvals=sorted({row["n"] for row in curves}))
    plot.update_yaxes(type="log")
    return plot.update_layout(showlegend=True)


def sources_plot(sources: dict[str, Any]) -> go.Figure:
    """The share of each source in the variance of a score, from `variance.json`."""
    plot = figures.figure("share of the variance", "", height=240, barmode="group", hovermode="closest")
    for number, (form, parts) in enumerate(sources.items()):
        shares = {name: cell["value"] for name, cell in parts.items() if name != "variance"}
        plot.add_trace(
            go.Bar(
                x=figures.single(list(shares.values())), y=list(shares), orientation="h", name=form,
                marker=dict(color=figures.PALETTE[number]), hovertemplate="%{y}: %{x:.0%}",
            )
        )  # fmt: skip
    return plot.update_layout(showlegend=True)
