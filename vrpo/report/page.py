"""The page of one run, or of several beside each other: one HTML file that needs nothing else.

The template, its style and its script are in `templates/`. Jinja escapes whatever a run's files hold.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from llada.files import replace_file
from vrpo.report import estimator, figures, headline, panels, samples, timesteps
from vrpo.report.findings import GONE_WELL, findings_of
from vrpo.report.groups import Group, group_runs, value_text
from vrpo.report.judging import LEVELS, Finding
from vrpo.report.reading import Run, read_run

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Plot:
    """A plot in the page. key: its id. part: the heading under which it stands."""

    key: str
    title: str
    says: str
    json: str
    height: int
    notes: list[str]
    part: str = ""


def write_page(output_dir: str | Path) -> Path:
    """Write the page of a run into its directory, `report.html`; an older one is replaced.

    Returns the path of the page.

    Raises:
        FileNotFoundError, ValueError: there is no run, or a file of it is damaged (`vrpo.report.reading.read_run`).
    """
    return write([read_run(output_dir)], Path(output_dir, PAGE))


def write(runs: Sequence[Run], path: Path) -> Path:
    """Write the page of some runs to a file."""
    replace_file(path, render(runs))
    return path


def render(runs: Sequence[Run]) -> str:
    """The page of some runs, as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shell"] = shlex.join
    return environment.get_template("page.html").render(
        contents(group_runs(runs)),
        style=(TEMPLATES / "page.css").read_text(),
        script=(TEMPLATES / "page.js").read_text(),
        plotly=get_plotlyjs(),
    )


def contents(groups: Sequence[Group]) -> dict[str, Any]:
    """All that the template shows."""
    runs = [run for group in groups for run in group.runs]
    columns = samples.columns_of(groups)
    preference = [group.runs[0] for group in groups if group.runs[0].is_preference]
    return {
        "runs": [about(run) for run in runs],
        "groups": groups if len(groups) > 1 else [],
        "several": len(runs) > 1,
        "title": runs[0].name if len(runs) == 1 else title_of(groups),
        "kind": " / ".join(dict.fromkeys(headline.kind_of(run) for run in runs)),
        "comparison": headline.comparison(groups) if len(runs) > 1 else None,
        "findings": all_findings(groups),
        "curves": curve_plots(groups),
        "smoothing": panels.windows_text(runs),
        "band": any(len(group.runs) > 1 for group in groups),
        "timesteps": timestep_plots(groups),
        "cases": samples.cases_of(columns),
        "sampler": json.dumps(next((run.samples.get("settings") for run in runs if run.samples), None)),
        "animation": samples.animation(columns),
        "estimators": [noise_of(run, i, label_of(run, groups)) for i, run in enumerate(preference)],
    }


def label_of(run: Run, groups: Sequence[Group]) -> str:
    """How the page calls a run: by its group, and by its directory where the group has several."""
    group = next(group for group in groups if run in group.runs)
    if len(groups) == 1:
        return run.name
    return group.label if len(group.runs) == 1 else f"{group.label} ({run.name})"


def title_of(groups: Sequence[Group]) -> str:
    """What several runs are: the values of the one option in which they differ, or how many they are."""
    number = sum(len(group.runs) for group in groups)
    options = {name for group in groups for name in group.differing}
    if len(groups) == 1 or len(options) != 1 or not all(group.differing for group in groups):
        return f"{number} runs"
    (name,) = options
    return f"{name}: {', '.join(value_text(group.differing[name]) for group in groups)}"


def all_findings(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The findings by title, each with the runs that it is of: {"level", "title", "cases": [(runs, finding)]}.

    Of a group's runs, the first that has a finding speaks for all that have it.
    """
    several = sum(len(group.runs) for group in groups) > 1
    found = dict[tuple[str, str], list[tuple[str, Finding]]]()
    for group in groups:
        of_group = dict[tuple[str, str], list[tuple[Run, Finding]]]()
        for run in group.runs:
            for finding in findings_of(run):
                of_group.setdefault((finding.level, finding.title), []).append((run, finding))
        for key, cases in of_group.items():
            if several and key[1] == GONE_WELL:  # the table of several runs says it
                continue
            run, finding = cases[0]
            label = label_of(run, groups) if several else ""
            if len(group.runs) > 1:
                name = "" if len(groups) == 1 else f"{group.label}, "
                label = f"{name}{len(cases)} of {len(group.runs)} runs, such as {run.name}"
            found.setdefault(key, []).append((label, finding))
    ordered = sorted(found.items(), key=lambda each: LEVELS.index(each[0][0]))
    return [{"level": level, "title": title, "cases": cases} for (level, title), cases in ordered]


def plot_of(key: str, title: str, says: str, plot: go.Figure, notes: Sequence[str] = (), part: str = "") -> Plot:
    return Plot(key, title, says, figures.as_json(plot), plot.layout.height, list(notes), part)


def curve_plots(groups: Sequence[Group]) -> list[Plot]:
    """The curves by step."""
    runs = [run for group in groups for run in group.runs]
    drawn = [panels.draw(panel, groups) for panel in panels.panels_of(runs)]
    if len(runs) == 1 and (time := panels.draw_time(runs[0])) is not None:
        drawn.append(time)
    return [
        plot_of(each.panel.key, each.panel.title, each.panel.says, each.plot, each.notes, each.panel.part)
        for each in drawn
    ]


def timestep_plots(groups: Sequence[Group]) -> list[Plot]:
    """The loss by masking probability."""
    runs = [run for group in groups for run in group.runs]
    if not timesteps.sides_of(runs):
        return []
    says = (
        "Mean loss of held-out rows on fixed masks. Few masks are easy to fill in, many are hard. Training should "
        "lower the line, of pairs that of chosen answers."
    )
    if len(runs) > 1:
        says = "The last evaluation of each group, on the same masks of the same held-out rows."
        if len(groups) > 1 and len(timesteps.sides_of(runs)) > 1:
            says += " Chosen: solid, rejected: dash."
    found = [plot_of("timestep-lines", "By masking probability", says, timesteps.lines(groups))]
    if len(runs) == 1 and (change := timesteps.change_map(runs[0])) is not None:
        found.append(plot_of("timestep-map", "Over the run", change[1], change[0]))
    return found


def noise_of(run: Run, number: int, label: str) -> dict[str, Any]:
    """What is known of a run's noise: sentences, plots, and the command that measures more."""
    found = estimator.measured(run)
    plots = [plot_of(f"noise-{number}-{i}", title, says, plot) for i, (title, says, plot) in enumerate(found.plots)]
    return {"label": label, "sentences": found.sentences, "plots": plots, "command": found.command}


def about(run: Run) -> dict[str, Any]:
    """What is said of a run at the top of its page, and its configuration at the end."""
    options, changed = run.options, [name for name in run.record.get("changed") or [] if name in run.options]
    return {
        "name": run.name,
        "folder": str(run.folder),
        "kind": headline.kind_of(run),
        "ending": headline.ending_of(run),
        "finished": run.finished,
        "summary": headline.summary_of(run),
        "figures": headline.figures_of(run),
        "lines": len(run.rows),
        "changed": {name: options[name] for name in changed},
        "defaults": {name: options[name] for name in sorted(options) if name not in changed},
        "starts": [start | {"time": headline.time_text(start.get("time"))} for start in run.record.get("starts") or []],
    }
