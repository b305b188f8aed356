"""The curves of a run, or of groups of runs, by optimizer step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import plotly.graph_objects as go

from vrpo.report import figures
from vrpo.report.catalogue import BOUND, LIKELIHOODS, LOG_RATIO, PREFERENCES, SHARED, TIME, Panel
from vrpo.report.curves import band_of, size_of, smooth, thinned, window_of
from vrpo.report.groups import Group
from vrpo.report.reading import Run, Series


@dataclass(frozen=True)
class Drawn:
    """A panel with its plot. notes: what had to be changed for it, in sentences."""

    panel: Panel
    plot: go.Figure
    notes: list[str] = field(default_factory=list)


KNOWN = ("rewards/", "logps/", "score/", "timestep", "noise/", "loss/", "throughput/", "memory/", "time/")


def series_of(run: Run, name: str) -> Series:
    """A metric of the log, or one that follows from it."""
    evaluation = "eval_" if name.startswith("eval_") else ""
    bare = name.removeprefix("eval_")
    if bare.startswith(LOG_RATIO):
        beta = run.beta
        if beta is None:
            return run.series("")
        return run.series(f"{evaluation}rewards/{bare.removeprefix(LOG_RATIO)}").map(lambda y: y / beta, 1 / beta)
    if bare == BOUND:
        if not evaluation:
            return run.series("")
        with np.errstate(over="ignore"):
            found = run.series("eval_loss").map(np.exp)
        return found.map(lambda y: np.where(np.isfinite(y), y, np.nan))
    return run.series(name)


def evaluations_of(runs: Sequence[Run], name: str) -> dict[str, str]:
    """The evaluations of a metric: names in the log, and of the evaluation set ("" for the only one)."""
    source = {BOUND: "loss"}.get(name, name.replace(LOG_RATIO, "rewards/"))
    if name == BOUND or name.startswith(LOG_RATIO):
        return {f"eval_{name}": ""} if any(f"eval_{source}" in run.metrics for run in runs) else {}
    logged = dict.fromkeys(metric for run in runs for metric in run.metrics if metric.startswith("eval_"))
    ends = [metric for metric in logged if metric == f"eval_{source}" or metric.endswith(f"_{source}")]
    return {metric: metric.removeprefix("eval_").removesuffix(source).rstrip("_") for metric in ends}


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The panels of which at least one curve was logged."""
    own = PREFERENCES if any(run.is_preference for run in runs) else LIKELIHOODS
    logged = dict.fromkeys(metric for run in runs for metric in run.metrics)
    tasks = {
        name: name.removeprefix("eval_")
        for name in logged
        if name.startswith("eval_") and "/" in name and not any(known in name for known in KNOWN)
    }
    found = []
    for panel in (*own, *SHARED):
        if panel.key == "benchmarks":
            panel = replace(panel, curves=tasks)
        curves = {
            name: label
            for name, label in panel.curves.items()
            if any(len(series_of(run, each).finite) for run in runs for each in (name, *evaluations_of(runs, name)))
        }
        if curves:
            found.append(replace(panel, curves=curves))
    return found


def draw(panel: Panel, groups: Sequence[Group]) -> Drawn:
    """The plot of a panel: curves of one run, or of each group a mean over its runs with its band."""
    plot = figures.figure("step", panel.unit)
    several, many = len(groups) > 1, len(panel.curves) > 1
    notes = list[str]()
    if several and many:
        dashes = zip(panel.curves.values(), figures.DASHES, strict=False)
        notes.append(f"{', '.join(f'{label}: {dash}' for label, dash in dashes)}.".capitalize())
    for group in groups:
        for number, (name, label) in enumerate(panel.curves.items()):
            color = group.color if several else figures.PALETTE[number % len(figures.PALETTE)]
            dash = figures.DASHES[number % len(figures.DASHES)] if several else "solid"
            shown = ", ".join([*([group.label] if several else []), *([label] if many or not several else [])])
            notes += training_curve(plot, group, name, shown, color, dash, panel.exact)
            has_curve = any(len(series_of(run, name)) for run in group.runs)
            for metric, held_out in evaluations_of(group.runs, name).items():
                title = " ".join(word for word in (shown, "held out" if has_curve else "", held_out) if word)
                point_color = color if several or many else figures.PALETTE[1]
                in_legend = bool(held_out) or (many and not has_curve)
                evaluation_points(plot, group, metric, title, point_color, in_legend)
    if panel.zero is not None:
        plot.add_hline(panel.zero, line=dict(color="#8a929b", width=1, dash="dot"))
    if panel.log and spans_decades(plot):
        plot.update_yaxes(type="log", dtick=1)
    if panel.unit.startswith("share"):
        plot.update_yaxes(rangemode="tozero")
    listed = sum(trace.showlegend is not False for trace in plot.data)
    plot.update_layout(showlegend=listed > 1 and not several)
    return Drawn(panel, plot, list(dict.fromkeys(notes)))


def spans_decades(plot: go.Figure) -> bool:
    """Whether all values are positive and the largest is 100 times the smallest or more."""
    values = np.concatenate([trace.y[np.isfinite(trace.y)] for trace in plot.data])
    return len(values) > 0 and 0 < 100 * values.min() <= values.max()


def training_curve(
    plot: go.Figure, group: Group, name: str, label: str, color: str, dash: str, exact: bool
) -> list[str]:
    """Add the log lines of a metric. Returns what had to be done to them, in sentences."""
    found = [series for run in group.runs if len((series := series_of(run, name)).finite)]
    if not found:
        return []
    longest = max(len(series) for series in found)
    size = size_of(longest)
    points = [thinned(series, size) for series in found]
    window = 1 if exact else window_of(len(points[0]))
    middle = band_of([smooth(each, window) for each in points])
    if len(found) == 1 and window > 1:
        figures.faint(plot, points[0].steps, points[0].values, color)
    if np.isfinite(middle.half_widths).any():
        figures.band(plot, middle.steps, middle.mean, middle.half_widths, color)
    if np.isfinite(middle.mean).sum() == 1:
        figures.markers(plot, middle.steps, middle.mean, middle.half_widths, label, color, "circle")
    else:
        figures.line(plot, middle.steps, middle.mean, label, color, dash)
    return [f"Each point is the mean of {size} of the {longest:,} log lines."] if size > 1 else []


def evaluation_points(plot: go.Figure, group: Group, metric: str, label: str, color: str, in_legend: bool) -> None:
    """Add the evaluations of a metric: of one run with the intervals that it has logged, else with those over runs."""
    found = [series for run in group.runs if len(series := series_of(run, metric).finite)]
    if not found:
        return
    middle = band_of(found)
    widths = found[0].half_widths if len(found) == 1 else middle.half_widths
    steps, values = (found[0].steps, found[0].values) if len(found) == 1 else (middle.steps, middle.mean)
    figures.markers(plot, steps, values, widths, label, color, showlegend=in_legend)


def draw_time(run: Run) -> Drawn | None:
    """Where the time of a run goes, as shares that add up to 1."""
    plot, notes = figures.figure("step", TIME.unit), list[str]()
    for number, (name, label) in enumerate(TIME.curves.items()):
        series = run.series(name)
        size = size_of(len(series))
        series = thinned(series, size)
        if len(series):
            color = figures.PALETTE[number]
            figures.line(
                plot, series.steps, series.values, label, color, stackgroup="time", fillcolor=figures.faded(color, 0.6)
            )
            notes += [f"Each point is the mean of {size} log lines."] if size > 1 else []
    if not plot.data:
        return None
    plot.update_layout(showlegend=True, yaxis=dict(range=[0, 1]))
    return Drawn(TIME, plot, notes[:1])


def windows_text(runs: Sequence[Run]) -> str:
    """How the curves were made, for all panels at once."""
    lengths = [len(run.series("loss")) for run in runs]
    size = size_of(max(lengths, default=0))
    windows = sorted({window_of(-(-length // size)) for length in lengths if length})
    if not windows or windows == [1]:
        return "Lines go through the log lines as they are."
    texts = " or ".join(str(each) for each in windows)
    behind = ", which stand faintly behind them" if len(runs) == 1 else ""
    return f"Lines are means over {texts} neighbouring points{behind}."
