"""The first lines of the page: what was run, how it ended, and a few numbers with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from llada.training.rules import LOGS
from vrpo.report.curves import mean_and_half_width
from vrpo.report.groups import Group, value_text
from vrpo.report.reading import Run

KINDS = {
    "VRPOTrainer": "Preference optimization (VRPO)",
    "MaskedDiffusionTrainer": "Masked diffusion training",
}
PREFERENCES = {
    "rewards/accuracies": "Accuracy",
    "rewards/margins": "Margin",
    "loss": "Loss",
    "rewards/chosen": "Reward of chosen",
    "score/variance": "Score variance",
}
FEWEST = 5  # log lines that an interval of their scatter needs: of fewer it is too uncertain
LIKELIHOODS = {"loss": "Loss", "bits_per_byte": "Bits per byte", "bits_per_token": "Bits per token"}


@dataclass(frozen=True)
class Figure:
    """A large number. half: of its 95% interval, or "". of: what it is of."""

    label: str
    value: str
    half: str
    of: str


def short(value: float, half: float = float("nan")) -> tuple[str, str]:
    """A value and half of its interval as text, with as many digits as the interval leaves meaning."""
    if not np.isfinite(half) or half <= 1e-6 * abs(value):  # equal values, but for rounding
        return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"), ""
    digits = int(np.clip(1 - np.floor(np.log10(half)), 0, 6))
    return f"{value:,.{digits}f}", f"{half:,.{digits}f}"


def final(run: Run, name: str) -> tuple[float, float, str] | None:
    """A metric at the end of a run, half of its 95% interval (nan: none), and of what it is.

    It is that of the last evaluation, or else the mean of the last log lines with Student's interval of it.
    After `load_best_model_at_end` the recipes evaluate the model that was loaded once more, at the last step.
    """
    evaluation = run.series(f"eval_{name}").finite
    if len(evaluation):
        step, best = evaluation.steps[-1], run.state.get("best_global_step")
        again = len(evaluation) > 1 and evaluation.steps[-2] == step
        if again and run.options.get("load_best_model_at_end") and best:
            step = best
        return float(evaluation.values[-1]), float(evaluation.half_widths[-1]), f"held out, step {step}"
    values = run.series(name).finite.values[-LOGS:]
    if len(values) < 2:
        return None
    mean, half = mean_and_half_width(values)
    return float(mean), float(half) if len(values) >= FEWEST else np.nan, f"training, last {len(values)} log lines"


def metrics_of(runs: Sequence[Run]) -> dict[str, str]:
    """The metrics that stand for the end of a run, and their names on the page."""
    return PREFERENCES if any(run.is_preference for run in runs) else LIKELIHOODS


def figures_of(run: Run) -> list[Figure]:
    """Four to six large numbers of a run; fewer if it has logged fewer."""
    found = []
    for name, label in metrics_of([run]).items():
        end = final(run, name)
        if end is not None:
            found.append(Figure(label, *short(end[0], end[1]), end[2]))
    found = found[:4]
    for unit in ("pairs", "rows"):
        speed = run.series(f"throughput/{unit}_per_second").finite.values
        if len(speed):
            found.append(Figure(f"{unit.capitalize()} in a second", short(float(np.median(speed)))[0], "", "median"))
    memory = run.series("memory/peak_gib").finite.values
    if len(memory):
        found.append(Figure("Peak memory", f"{short(float(memory.max()))[0]} GiB", "", "of a process"))
    return found[:6]


def kind_of(run: Run) -> str:
    trainer = str(run.record.get("trainer") or "")
    return KINDS.get(trainer, trainer) or ("Preference optimization" if run.is_preference else "Training")


def ending_of(run: Run) -> str:
    """How a run ended, in a few words."""
    if run.stopped_early:
        return f"stopped early at step {run.step} of {run.max_steps}, as early stopping asked"
    if run.finished:
        return f"finished, {run.step} steps"
    return f"stopped at step {run.step} of {run.max_steps}" if run.max_steps else f"stopped at step {run.step}"


def summary_of(run: Run) -> str:
    """What was run: the model, the data, the design, in one sentence; "" without run.json."""
    model, data, estimator = (run.record.get(name) or {} for name in ("model", "data", "estimator"))
    parts = []
    if model:
        size = f"{count(model.get('parameters'))} parameters" if model.get("parameters") else ""
        trained = model.get("trainable")
        what = "adapters" if model.get("adapters") else "all of them"
        trained_text = f", {count(trained)} trained ({what})" if trained else ""
        parts.append(f"{model.get('base') or 'a new model'}: {size}{trained_text}".rstrip(": "))
    if data.get("train"):
        rows = f" ({data['rows']:,} rows)" if data.get("rows") else ""
        held_out = f", {data['eval_rows']:,} held out" if data.get("eval_rows") else ""
        parts.append(f"trained on {data['train']}{rows}{held_out}")
    if estimator:
        losses = " + ".join(estimator.get("loss") or [])
        parts.append(f"{estimator.get('design')}, n = {estimator.get('n')}, beta {estimator.get('beta')}, {losses}")
    return "; ".join(parts)


def count(number: Any) -> str:
    """A large number in short: 1,234 or 8.02 billion."""
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:,}"


def time_text(text: Any) -> str:
    """A time of run.json for reading."""
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(text)


def comparison(groups: Sequence[Group]) -> dict[str, Any]:
    """The table of several runs: options that differ, and final metrics with 95% intervals.

    The intervals are Student's over the runs of a group; those of a group with one run are its own.
    """
    runs = [run for group in groups for run in group.runs]
    options = list(dict.fromkeys(name for group in groups for name in group.differing))
    metrics = {
        name: label for name, label in metrics_of(runs).items() if any(final(run, name) is not None for run in runs)
    }
    rows = []
    for group in groups:
        cells = []
        for name in metrics:
            ends = [end for run in group.runs if (end := final(run, name)) is not None]
            if len(ends) > 1:
                mean, half = mean_and_half_width(np.array([value for value, _, _ in ends]))
                cells.append(short(float(mean), float(half)))
            else:
                cells.append(short(*ends[0][:2]) if ends else ("", ""))
        values = [value_text(group.differing.get(name)) if group.differing else "?" for name in options]
        steps = " / ".join(dict.fromkeys(ending_of(run) for run in group.runs))
        rows.append({"group": group, "options": values, "cells": cells, "runs": len(group.runs), "steps": steps})
    held_out = any(run.series(f"eval_{name}").finite.steps.size for run in runs for name in metrics)
    return {"options": options, "metrics": list(metrics.values()), "rows": rows, "held_out": held_out}
