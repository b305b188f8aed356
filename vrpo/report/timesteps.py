"""The loss by masking probability: on the same masks of the same held-out rows, before, after and in between."""

import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from vrpo.report import figures
from vrpo.report.curves import band_of
from vrpo.report.groups import Group
from vrpo.report.reading import Run, Series, number

NAME = re.compile(r"eval_timestep(?:_(?P<side>chosen|rejected))?/(?P<level>[0-9.]+)$")
MAPPED = 3  # evaluations from which on a map over steps says more than two lines


def sides_of(runs: Sequence[Run]) -> list[str]:
    """ "chosen" and "rejected", or "" for rows that are no pairs; empty if the loss by timestep was not logged."""
    found = dict.fromkeys(match["side"] or "" for run in runs for name in run.metrics if (match := NAME.match(name)))
    return list(found)


def table(run: Run, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps [N], masking probabilities [T] in order, and losses [N, T] in nats per masked token, nan where missing."""
    prefix = f"eval_timestep_{side}/" if side else "eval_timestep/"
    names = sorted(
        (name for name in run.metrics if name.startswith(prefix)), key=lambda name: float(name[len(prefix) :])
    )
    rows = [row for row in run.rows if any(name in row for name in names)]
    steps = np.array([row["step"] for row in rows], dtype=np.int32)
    levels = np.array([float(name[len(prefix) :]) for name in names])
    return steps, levels, np.array([[number(row.get(name)) for name in names] for row in rows])


def lines(groups: Sequence[Group]) -> go.Figure:
    """Loss over masking probability: first and last evaluation of a run, or the last ones of groups."""
    plot = figures.figure("masking probability", "nats per masked token", height=340)
    single = len(groups) == 1 and len(groups[0].runs) == 1
    for group in groups:
        for number_, side in enumerate(sides_of(group.runs)):
            color = figures.PALETTE[number_] if len(groups) == 1 else group.color
            tables = [table(run, side) for run in group.runs]
            tables = [each for each in tables if len(each[0])]
            if not tables:
                continue
            if single:
                steps, levels, losses = tables[0]
                figures.line(
                    plot, levels, losses[0], f"{side} step {steps[0]}".strip(), figures.faded(color, 0.6), "dot"
                )
                if len(steps) > 1:
                    figures.line(plot, levels, losses[-1], f"{side} step {steps[-1]}".strip(), color)
                continue
            last = [Series((1000 * levels).round().astype(int), losses[-1], losses[-1]) for _, levels, losses in tables]
            middle = band_of(last)
            label = f"{group.label if len(groups) > 1 else ''} {side}".strip() or "last evaluation"
            if np.isfinite(middle.half_widths).any():
                figures.band(plot, middle.steps / 1000, middle.mean, middle.half_widths, color)
            figures.line(plot, middle.steps / 1000, middle.mean, label, color, figures.DASHES[number_])
    return plot.update_layout(showlegend=len(groups) == 1)


def rejected_minus_chosen(
    tables: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, levels and the difference of losses, at the steps and levels of both sides: an empty bin has no level."""
    (steps, levels, rejected), (other_steps, other_levels, chosen) = tables["rejected"], tables["chosen"]
    steps, rows, other_rows = np.intersect1d(steps, other_steps, return_indices=True)
    levels, columns, other_columns = np.intersect1d(levels, other_levels, return_indices=True)
    return steps, levels, rejected[np.ix_(rows, columns)] - chosen[np.ix_(other_rows, other_columns)]


def change_map(run: Run) -> tuple[go.Figure, str] | None:
    """A map over steps and masking probabilities of what changed since the first evaluation, and what it shows.

    Of pairs, it is how much more the rejected answers' loss has grown than the chosen ones'. None for few evaluations.
    """
    sides = sides_of([run])
    tables = {side: table(run, side) for side in sides}
    if not tables or min(len(steps) for steps, _, _ in tables.values()) < MAPPED:
        return None
    steps, levels, losses = tables[sides[0]]
    if set(sides) == {"chosen", "rejected"}:
        steps, levels, change = rejected_minus_chosen(tables)
        title = "loss of rejected minus loss of chosen answers"
        says = "Orange: at this masking probability the policy prefers the chosen answers more than it did."
    else:
        change, title = losses, "loss"
        says = "Blue: the loss at this masking probability has fallen, orange: it has risen."
    if len(steps) < MAPPED or not len(levels):
        return None
    change = change - change[0]
    largest = float(np.nanmax(np.abs(change), initial=0.0)) or 1.0
    plot = figures.figure("step", "masking probability", height=340, hovermode="closest")
    plot.add_trace(
        go.Heatmap(
            x=[str(step) for step in steps], y=levels, z=figures.single(change.T), colorscale=figures.DIVERGING,
            zmin=-largest, zmax=largest, xgap=1, ygap=1,
            colorbar=dict(thickness=10, outlinewidth=0, title=dict(text="nats")),
            hovertemplate="step %{x}, masked %{y:.2f}: %{z:+.3g} nats<extra></extra>",
        )
    )  # fmt: skip
    plot.update_xaxes(type="category")
    return plot, f"Change of the {title} since the first evaluation, nats per masked token. {says}"
