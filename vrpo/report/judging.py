"""The rules that warn while a run trains, on the whole of its log: what they say at its end, and what they said before.

The rules and their bounds are those of `llada.training.rules` and `vrpo.training.rules`.
"""

import math
from dataclasses import dataclass

from llada.training.rules import LOGS, LowAdapterRate, RisingLoss, Rule, Settings, Verdict
from vrpo.report.reading import INTERVAL, Run, number
from vrpo.training.rules import RULES, MeaninglessAccuracy, UnmovedMargin, mean_and_error

LEVELS = WARNING, NOTE, GOOD = "warning", "note", "good"
AT_FIRST = (UnmovedMargin, MeaninglessAccuracy)  # say what is true of every run at its beginning


@dataclass(frozen=True)
class Finding:
    """level: WARNING, NOTE or GOOD. where: the optimizer steps that it is about. advice: what to do, or ""."""

    level: str
    title: str
    what: str
    where: str = ""
    advice: str = ""


def settings_of(run: Run) -> Settings:
    """What rules need to know of a run, from its files."""
    options = run.options
    rates = run.series("learning_rate").finite.values
    logged = float(rates.max()) if len(rates) else None
    warmup = number(options.get("warmup_steps", 0))
    warmup = 0.0 if math.isnan(warmup) else warmup
    adapters = bool((run.record.get("model") or {}).get("adapters", False))
    return Settings(
        learning_rate=options.get("learning_rate", logged),
        max_grad_norm=options.get("max_grad_norm"),
        warmup_steps=int(warmup) if warmup >= 1 else math.ceil(run.max_steps * warmup),  # as transformers reads it
        adapters=adapters,
        beta=run.beta,
        pairs=pairs_per_line(run),
    )


def pairs_per_line(run: Run) -> int | None:
    """Rows of all processes between two log lines; None if it is not known."""
    if run.options.get("logging_strategy", "steps") != "steps":  # logging_steps has its default, and no effect
        return None
    starts = run.record.get("starts") or [{}]
    counts = (
        run.state.get("train_batch_size") or run.options.get("per_device_train_batch_size"),
        run.options.get("gradient_accumulation_steps"),
        starts[-1].get("processes"),
        run.state.get("logging_steps") or run.options.get("logging_steps"),
    )
    known = [each for each in counts if isinstance(each, int | float) and each >= 1]
    return int(math.prod(known)) if len(known) == len(counts) else None


def judged(run: Run) -> list[Finding]:
    """What the rules of training say of the log."""
    settings = settings_of(run)
    rules: tuple[type[Rule], ...] = RULES if run.is_preference else (LowAdapterRate, RisingLoss)
    watches = [rule(settings) for rule in rules]
    firsts = [watch.verdict for watch in watches]  # since when a rule says what it says now
    ended: list[Verdict | None] = [None] * len(watches)  # the first that a rule said and then no longer
    for row in run.rows:
        line = {name: number(value) for name, value in row.items() if name != "step"}
        bad = {name for name, value in line.items() if math.isnan(value) and not name.endswith(INTERVAL)}
        if any(name.endswith(("rewards/margins", "rewards/accuracies")) for name in bad):  # rules read both together
            bad |= {name for name in line if name.endswith(("rewards/margins", "rewards/accuracies"))}
        line = {name: value for name, value in line.items() if name not in bad}
        for index, watch in enumerate(watches):
            watch.see(line, row["step"])
            if watch.verdict is None:
                ended[index], firsts[index] = ended[index] or firsts[index], None
            else:
                firsts[index] = firsts[index] or watch.verdict
    found = []
    for watch, first, past in zip(watches, firsts, ended, strict=True):
        if watch.verdict is not None and first is not None:
            where = f"from step {first.step} on, and still at step {run.step}" if first.step else "from the start"
            found.append(
                Finding(
                    WARNING, watch.verdict.title, sentence(watch.verdict.what), where, sentence(watch.verdict.advice)
                )
            )
        elif past is not None and not isinstance(watch, AT_FIRST):
            what = f"{sentence(past.what)} Later log lines no longer show it."
            found.append(Finding(NOTE, past.title, what, f"at step {past.step}", sentence(past.advice)))
    return found


def sentence(text: str) -> str:
    """Text with a capital and a full stop, unless it begins with the name of a metric."""
    if not text:
        return ""
    first = text.split(" ")[0]
    return (text if "/" in first or "_" in first or "=" in first else text[0].upper() + text[1:]) + "."


def last_lines(run: Run, name: str, lines: int = LOGS) -> tuple[float, float] | None:
    """The mean of a metric over its last log lines and its standard error; None for fewer than two lines."""
    values = run.series(name).finite.values[-lines:]
    return mean_and_error(values.tolist()) if len(values) > 1 else None
