"""The curves of a run, or of groups of runs, by optimizer step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import plotly.graph_objects as go

from vrpo.report import figures
from vrpo.report.catalogue import BOUND, LIKELIHOODS, LOG_RATIO, PREFERENCES, SHARED, TIME, Panel
from vrpo.report.curves import Band, band_of, smooth, thinned, window_of
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
            panel = Panel(panel.key, panel.title, panel.unit, tasks, panel.says)
        curves = {
            name: label
            for name, label in panel.curves.items()
            if any(len(series_of(run, name).finite) for run in runs) or evaluations_of(runs, name)
        }
        if curves:
            found.append(Panel(panel.key, panel.title, panel.unit, curves, panel.says, panel.log, panel.zero))
    return found


def draw(panel: Panel, groups: Sequence[Group]) -> Drawn:
    """The plot of a panel: curves of one run, or of each group a mean over its runs with its band."""
    plot = figures.figure("step", panel.unit)
    single = len(groups) == 1 and len(groups[0].runs) == 1
    notes = list[str]()
    for group in groups:
        for number, (name, label) in enumerate(panel.curves.items()):
            color = figures.PALETTE[number] if len(groups) == 1 else group.color
            dash = "solid" if len(groups) == 1 else figures.DASHES[number % len(figures.DASHES)]
            shown = label if len(groups) == 1 else group.label + (f", {label}" if len(panel.curves) > 1 else "")
            notes += training_curve(plot, group, name, shown, color, dash, raw=single)
            alone = len(panel.curves) == 1 and len(groups) == 1
            for metric, held_out in evaluations_of(group.runs, name).items():
                title = " ".join(word for word in (shown, "held out", held_out) if word)
                evaluation_points(plot, group, metric, title, figures.PALETTE[1] if alone else color)
    if panel.zero is not None:
        plot.add_hline(panel.zero, line=dict(color="#8a929b", width=1, dash="dot"))
    if panel.log and all_positive(plot):
        plot.update_yaxes(type="log")
    if panel.unit.startswith("share"):
        plot.update_yaxes(rangemode="tozero")
    plot.update_layout(showlegend=len(groups) == 1 and sum(trace.showlegend is not False for trace in plot.data) > 1)
    return Drawn(panel, plot, sorted(set(notes)))


def all_positive(plot: go.Figure) -> bool:
    return all(np.nanmin(trace.y, initial=np.inf) > 0 for trace in plot.data)


def training_curve(plot: go.Figure, group: Group, name: str, label: str, color: str, dash: str, raw: bool) -> list[str]:
    """Add the log lines of a metric. Returns what had to be done to them, in sentences."""
    found = [series_of(run, name) for run in group.runs]
    found = [series for series in found if len(series.finite)]
    if not found:
        return []
    notes, smoothed = list[str](), []
    for series in found:
        points, size = thinned(series)
        if size > 1:
            notes.append(f"Each point is the mean of {size} log lines, of {len(series):,}.")
        smoothed.append(smooth(points, window_of(len(points))))
        if raw and window_of(len(points)) > 1:
            figures.faint(plot, points.steps, points.values, color)
    if len(smoothed) == 1:
        only = len(smoothed[0].finite) == 1
        if only:
            figures.markers(
                plot, smoothed[0].steps, smoothed[0].values, smoothed[0].half_widths, label, color, "circle"
            )
        else:
            figures.line(plot, smoothed[0].steps, smoothed[0].values, label, color, dash)
        return notes
    middle = band_of(smoothed)
    add_band(plot, middle, color)
    figures.line(plot, middle.steps, middle.mean, label, color, dash)
    return notes


def evaluation_points(plot: go.Figure, group: Group, metric: str, label: str, color: str) -> None:
    """Add the evaluations of a metric: of one run with the intervals that it has logged, else with those over runs."""
    found = [series_of(run, metric).finite for run in group.runs]
    found = [series for series in found if len(series)]
    if len(found) == 1:
        figures.markers(plot, found[0].steps, found[0].values, found[0].half_widths, label, color)
    elif found:
        middle = band_of(found)
        figures.markers(plot, middle.steps, middle.mean, middle.half_widths, label, color)


def add_band(plot: go.Figure, middle: Band, color: str) -> None:
    if np.isfinite(middle.half_widths).any():
        figures.band(plot, middle.steps, middle.mean, middle.half_widths, color)


def draw_time(run: Run) -> Drawn | None:
    """Where the time of a run goes, as shares that add up to 1."""
    plot, notes = figures.figure("step", TIME.unit), list[str]()
    for number, (name, label) in enumerate(TIME.curves.items()):
        series, size = thinned(run.series(name))
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
    windows = {window_of(min(len(thinned(run.series("loss"))[0]), 10**6)) for run in runs if len(run.series("loss"))}
    if not windows or windows == {1}:
        return "Lines go through the log lines as they are."
    texts = " or ".join(str(each) for each in sorted(windows))
    return f"Lines are means over {texts} neighbouring points, which for a single run stand faintly behind them."
