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
            {name: values_of(members[0]).get(name) for name in names} if members[0].options else {},
        )
        for number, (label, members) in enumerate(zip(labels, found.values(), strict=True))
    ]


def key_of(run: Run) -> str:
    """Equal for the runs of a group."""
    if not run.options:
        return str(run.folder.resolve())
    kept = {name: value for name, value in run.options.items() if has_effect(name)}
    return json.dumps([run.record.get("trainer"), kept, facts_of(run)], sort_keys=True, default=str)


def facts_of(run: Run) -> dict[str, Any]:
    """What was run beside its options: a trainer that was built in Python has no options that name model and data."""
    starts = run.record.get("starts") or [{}]
    facts = {
        f"{part}.{name}": value
        for part in ("data", "estimator")
        for name, value in (run.record.get(part) or {}).items()
    }
    base = (run.record.get("model") or {}).get("base")
    return facts | {"model.base": base, "processes": starts[-1].get("processes")}


def values_of(run: Run) -> dict[str, Any]:
    """Options and facts by name."""
    return facts_of(run) | run.options


def has_effect(option: str) -> bool:
    """Whether an option other than the seed can change what a run learns."""
    return option not in WITHOUT_EFFECT and not option.startswith(WITHOUT_EFFECT_BEGINS)


def differing_options(runs: Sequence[Run]) -> list[str]:
    """The options, but for those without effect, that do not have the same value in all runs.

    Facts (`facts_of`) are added where runs that have these options in common differ in them.
    """
    known = [run.options for run in runs if run.options]
    names = sorted({name for options in known for name in options if has_effect(name)})
    names = [name for name in names if len({json.dumps(each.get(name), default=str) for each in known}) > 1]
    every = [values_of(run) for run in runs if run.options]
    for fact in sorted({name for run in runs for name in facts_of(run)}):
        seen = dict[str, str]()
        for each in every:
            alike = json.dumps([each.get(name) for name in names], default=str)
            value = json.dumps(each.get(fact), default=str)
            if seen.setdefault(alike, value) != value:
                names.append(fact)
                break
    return names


def label_of(run: Run, names: Sequence[str]) -> str:
    """How a legend calls a group: its values of the options in which groups differ, or its directory's name."""
    if not run.options or not names:
        return run.name
    return ", ".join(f"{name}={value_text(values_of(run).get(name))}" for name in names)


def value_text(value: Any) -> str:
    """A value of an option, in short."""
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
