"""Runs that differ only in their seed, as one group, and in which options groups differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vrpo.report.figures import PALETTE
from vrpo.report.reading import Run

# Options that say where a run writes, what it says, or when it looks, and not what it learns; and the seeds.
WITHOUT_EFFECT = frozenset({
    "seed", "data_seed", "output_dir", "run_name", "overwrite", "resume", "resume_from_checkpoint", "report_to",
    "disable_tqdm", "push_to_hub", "local_rank", "ref_log_probs_dir", "expected_processes", "sample_prompts", "project",
})  # fmt: skip
WITHOUT_EFFECT_BEGINS = ("hub_", "log_", "logging_", "save_", "trackio_")
SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class Group:
    """Runs with the same options but for the seed. label: the options in which it differs from other groups."""

    label: str
    color: str
    runs: tuple[Run, ...]
    differing: dict[str, Any]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The groups of some runs, in the order in which they are given.

    Runs without run.json have no known options: each of them is a group of its own, under its directory's name.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(key_of(run), []).append(run)
    firsts = [each[0] for each in found.values()]
    names = differing_options(firsts)
    labels = [label_of(run, names) for run in firsts]
    return [
        Group(
            label if labels.count(label) == 1 else f"{label} ({members[0].name})",
            PALETTE[number % len(PALETTE)],
            tuple(members),
            {name: members[0].options.get(name) for name in names} if members[0].options else {},
        )
        for number, (label, members) in enumerate(zip(labels, found.values(), strict=True))
    ]


def key_of(run: Run) -> str:
    """Equal for the runs of a group."""
    if not run.options:
        return str(run.folder.resolve())
    kept = {name: value for name, value in run.options.items() if has_effect(name)}
    return json.dumps([run.record.get("trainer"), kept], sort_keys=True, default=str)


def has_effect(option: str) -> bool:
    """Whether an option other than the seed can change what a run learns."""
    return option not in WITHOUT_EFFECT and not option.startswith(WITHOUT_EFFECT_BEGINS)


def differing_options(runs: Sequence[Run]) -> list[str]:
    """The options, but for those without effect, that do not have the same value in all runs."""
    known = [run.options for run in runs if run.options]
    names = sorted({name for options in known for name in options if has_effect(name)})
    return [name for name in names if len({json.dumps(each.get(name), default=str) for each in known}) > 1]


def label_of(run: Run, names: Sequence[str]) -> str:
    """How a legend calls a group: its values of the options in which groups differ, or its directory's name."""
    if not run.options or not names:
        return run.name
    return ", ".join(f"{name}={value_text(run.options.get(name))}" for name in names)


def value_text(value: Any) -> str:
    """A value of an option, in short."""
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
