"""Rows that cannot be trained on: all of a dataset are found in one pass, reported at once, and refused or left out.

The functions that tokenize rows do not raise. They give a row with a flaw empty ids and say what is wrong in the
columns `flaw` (what such rows have or are, such as "have an empty 'prompt'"; "" if nothing is wrong) and `flaw_detail`
(what is special to this row). `Report` collects them, `keep_valid` acts on them. The column `remark` says what a
user should know of a row that is trained on; a warning lists these rows.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llada.errors import SINGULAR, DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)
NAMED_ROWS = 10  # a report lists at most this many rows of each kind
FLAW_COLUMNS = ("flaw", "flaw_detail", "remark")


def name_rows(rows: list[int]) -> str:
    """The first numbers of a list of rows, for a message."""
    listed = ", ".join(map(str, rows[:NAMED_ROWS]))
    return f"row{'s' * (len(rows) > 1)} {listed}{', ...' * (len(rows) > NAMED_ROWS)} (counted from 0)"


@dataclass(frozen=True)
class Room:
    """What fits a row: `max_length` tokens, less an EOS tail of `tail` tokens."""

    max_length: int
    tail: int

    @property
    def tokens(self) -> int:
        """Tokens for prompt and response."""
        return self.max_length - self.tail

    @property
    def flaws(self) -> tuple[str, str]:
        """The flaw of a prompt that leaves no token to its answer, and that of an over-long row."""
        room = f"{self.tokens} tokens (max_length={self.max_length} less an EOS tail of {self.tail})"
        return f"have a prompt that leaves no room for an answer in {room}", f"are longer than {room}"

    def flaw(self, prompt_length: int, length: int) -> tuple[str, str]:
        """The flaw of a row of `length` tokens and its detail, or two empty strings if the row fits."""
        if prompt_length >= self.tokens:
            return self.flaws[0], f"{prompt_length} tokens"
        if length > self.tokens:
            return self.flaws[1], f"{length} tokens"
        return "", ""


@dataclass
class Report:
    """The flawed rows of a dataset, by kind.

    source: the dataset's name, such as its file. total: its number of rows, None for a stream. overlong: the kinds that
    a larger max_length would cure. rows: numbers of the rows of each kind. detail: that of the first row of each. use:
    what is to be done with the rows.
    """

    source: str
    total: int | None
    overlong: tuple[str, ...] = ()
    rows: dict[str, list[int]] = field(default_factory=dict)
    detail: dict[str, str] = field(default_factory=dict)
    use: str = "trained on"

    def add(self, row: int, flaw: str, detail: str) -> None:
        """Count a row; a second flaw of the same kind (another turn of a dialogue) counts once."""
        rows = self.rows.setdefault(flaw, [])
        if row not in rows[-1:]:
            rows.append(row)
        self.detail.setdefault(flaw, detail)

    def without(self, kinds: Iterable[str]) -> "Report":
        """The report of the other kinds."""
        rows = {flaw: rows for flaw, rows in self.rows.items() if flaw not in kinds}
        return Report(self.source, self.total, self.overlong, rows, self.detail)

    @property
    def flawed(self) -> set[int]:
        """The numbers of all flawed rows."""
        return {row for rows in self.rows.values() for row in rows}

    def __str__(self) -> str:
        count = len(self.flawed)
        of = "" if self.total is None else f" of {self.total}"
        head = f"{self.source}: {count}{of} row{'s' * ((self.total or count) > 1)} cannot be {self.use}:"
        return "\n".join([head, *self.kinds])

    @property
    def kinds(self) -> list[str]:
        """A line for each kind, with the numbers of its rows."""
        lines = []
        for flaw, rows in sorted(self.rows.items(), key=lambda kind: kind[1]):
            verb, rest = flaw.split(" ", 1)
            what = f"{len(rows)} rows {flaw}" if len(rows) > 1 else f"1 row {SINGULAR[verb]} {rest}"
            detail = f"; row {rows[0]}: {self.detail[flaw]}" if self.detail[flaw] else ""
            lines.append(f"  {what}: {name_rows(rows)}{detail}")
        return lines

    @property
    def advice(self) -> str:
        """What a user can do about the rows."""
        overlong = set(self.rows) & set(self.overlong)
        if overlong == set(self.rows):
            return "Raise max_length, or set drop_overlong to leave them out"
        advice = "Remove them, or set drop_invalid to leave them out"
        return f"{advice} (over-long rows: raise max_length, or set drop_overlong)" if overlong else advice

    def require_none(self, dropped: Iterable[str] = ()) -> None:
        """Raise DataError with the report and the advice if there is a flaw of a kind that is not dropped."""
        refused = self.without(dropped)
        if refused.rows:
            raise DataError(f"{refused}\n{refused.advice}")


@dataclass
class Filter:
    """Which tokenized rows are kept. A row that is neither kept nor dropped raises.

    room: what fits a row; None for rows that are cut to length. drop_invalid: leave out all flawed rows. drop_overlong:
    leave out over-long rows. total: number of rows, None for a stream. dropped: rows of a stream left out so far.
    remarked: whether a remark on a row of a stream was logged.
    """

    source: str
    room: Room | None
    drop_invalid: bool = False
    drop_overlong: bool = False
    total: int | None = None
    dropped: int = 0
    remarked: bool = False

    @property
    def report(self) -> Report:
        """An empty report."""
        return Report(self.source, self.total, self.room.flaws if self.room else ())

    def flaw(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """A tokenized row's flaw and its detail; the flaw is "" if the row can be trained on."""
        if row["flaw"] or self.room is None:
            return row["flaw"], row["flaw_detail"]
        prompt_length = row["prompt_length"] if "prompt_length" in row else len(row["prompt_ids"])
        return self.room.flaw(prompt_length, row["length"])

    def droppable(self, report: Report) -> list[str]:
        """The kinds of flaws whose rows are left out instead of raising."""
        return [flaw for flaw in report.rows if self.drop_invalid or (self.drop_overlong and flaw in report.overlong)]

    def find(self, dataset: "Dataset") -> tuple[Report, list[int], Report]:
        """The report of a tokenized dataset, the positions of the rows that can be trained on, and remarks on those."""
        names = ("row", "length", "prompt_length", "prompt_ids", *FLAW_COLUMNS)
        report, kept, remarks = self.report, [], self.report
        dataset = dataset.select_columns([name for name in names if name in dataset.column_names])
        position = 0
        for batch in dataset.iter(batch_size=1000):
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                flaw, detail = self.flaw(row)
                if flaw:
                    report.add(row["row"], flaw, detail)
                else:
                    kept.append(position)
                    if row["remark"]:
                        remarks.add(row["row"], row["remark"], "")
                position += 1
        return report, kept, remarks

    def __call__(self, row: dict[str, Any]) -> bool:
        """Whether a row of a stream is kept; a dropped row is warned of, from the eleventh on only their number."""
        flaw, detail = self.flaw(row)
        if not flaw:
            if row["remark"] and not self.remarked:
                self.remarked = True
                remarks = self.report
                remarks.add(row["row"], row["remark"], "")
                logger.warning("%s\nFurther rows of the stream may be like it", remark_warning(remarks))
            return True
        report = self.report
        report.add(row["row"], flaw, detail)
        report.require_none(self.droppable(report))
        self.dropped += 1
        if self.dropped <= NAMED_ROWS:
            logger.warning("%s\nThe row is left out", report)
        elif str(self.dropped).strip("0") == "1":  # 100, 1000, ...
            logger.warning("%s: %d rows were left out so far", self.source, self.dropped)
        return False


def remark_warning(remarks: Report) -> str:
    """The warning that rows are trained on although a user may not expect it, or "" without such rows."""
    return "\n".join([f"{remarks.source}: trained on are rows that", *remarks.kinds]) if remarks.rows else ""


def keep_valid(dataset: "Dataset | IterableDataset", keep: Filter) -> "Dataset | IterableDataset":
    """The tokenized rows that can be trained on, without the columns `flaw` and `flaw_detail`.

    Raises:
        DataError: there are flawed rows that the options do not drop, or no row is left. A stream raises as it is read.
    """
    if not hasattr(dataset, "__len__"):
        return dataset.filter(keep).remove_columns(list(FLAW_COLUMNS))
    report, kept, remarks = keep.find(dataset)
    report.require_none(keep.droppable(report))
    if report.rows:
        if not kept:
            raise DataError(f"{report}\nNothing is left to train on")
        logger.warning("%s\nThey are left out; %d examples remain", report, len(kept))
        dataset = dataset.select(kept)
    if remarks.rows:
        logger.warning("%s", remark_warning(remarks))
    return dataset.remove_columns(list(FLAW_COLUMNS))
