"""The table that ends a run of the tests: fault, number of trials, what the user sees, what is lost."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

SHOWN = 4  # lines of each fault


@dataclass
class Seen:
    """What came of one kind of fault."""

    lines: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    where: Counter = field(default_factory=Counter)


TABLE: dict[str, Seen] = defaultdict(Seen)


def record(fault: str, line: str, lost: int = 0, where: str = "") -> None:
    """Add a trial to the table.

    Args:
        line: what the user sees; lines that differ only in numbers and names count as one.
        lost: what had been done and must be done again: steps, or answers. where: the event that the fault hit.
    """
    seen = TABLE[fault]
    shape = re.sub(r"\d+|\S*[/.]\S*", "#", line)
    seen.examples.setdefault(shape, line)
    seen.lines[shape] += 1
    seen.lost.append(lost)
    if where:
        seen.where[where] += 1


def lines() -> list[str]:
    """The table as text."""
    found = []
    for fault, seen in TABLE.items():
        found.append(f"{fault}: {len(seen.lost)} tried, at most {max(seen.lost)} lost, {sum(seen.lost)} in all")
        found += [
            f"    {many} x {seen.examples[shape] or '(nothing)'}" for shape, many in seen.lines.most_common(SHOWN)
        ]
        if len(seen.lines) > SHOWN:
            found.append(f"    and {len(seen.lines) - SHOWN} other lines")
        if seen.where:
            found.append("    at: " + ", ".join(f"{where} {many}" for where, many in seen.where.most_common()))
    return found
