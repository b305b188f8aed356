"""Local data files: what keeps one from being read, named by file and line, whole or in the middle of a stream."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada.data.json_rows import NO_ROWS
from llada.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset


def check_readable(source: str, endings: list[str]) -> None:
    """Raise an error unless `source` is a data file that can be opened and holds something.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is a directory or empty, its name ends otherwise, or the system does not let it be read.
    """
    path = Path(source)
    if path.suffix not in endings:
        raise DataError(f"{source}: a data file ends with {', '.join(endings)}. Unpack or convert it first")
    if path.is_dir():
        raise DataError(f"{source} is a directory: give the path of one data file")
    if not path.exists():
        raise FileNotFoundError(f"no such data file: {source}")
    try:
        with open(path, "rb") as file:
            first = file.read(1)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    if not first:
        raise DataError(f"{source}: {NO_ROWS}")


@dataclass(frozen=True)
class FileState:
    """The size in bytes and time of change of a file, by which a change during reading is found."""

    path: str
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: str) -> "FileState":
        state = Path(path).stat()
        return cls(path, state.st_size, state.st_mtime_ns)

    def check(self) -> None:
        """Raise DataError if the file is gone or is another one now."""
        if not Path(self.path).exists() or FileState.of(self.path) != self:
            raise DataError(
                f"{self.path} has changed since it was opened: rows of two versions would be mixed. Write a new file "
                "under another name, and start again"
            )


def unreadable(source: str, error: Exception, row: int | None = None) -> DataError:
    """The error of a file that its reader has refused, with the place where it can be told.

    row: the number of rows of a stream that were read before.
    """
    where = "" if row is None else f" after row {row - 1} (counted from 0)" if row else " at its first row"
    not_text = isinstance(error, UnicodeDecodeError) or isinstance(error.__cause__, UnicodeDecodeError)
    if not_text and (line := line_of_no_text(source)):
        return DataError(f"{source} is not UTF-8 text: {line}")
    reason = str(error.__cause__ or error).strip()
    return DataError(f"{source} cannot be read as {Path(source).suffix}{where}: {reason}")


def line_of_no_text(source: str) -> str:
    """The first line of a file that is not UTF-8, and the byte in it; "" if there is none."""
    with open(source, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number} has the byte 0x{line[error.start]:02x} at its byte {error.start + 1}"
    return ""


def csv_columns(source: str) -> list[str]:
    """The columns that the first line of a CSV file names.

    Raises:
        DataError: a name stands there twice, the line is not UTF-8 text, or no other follows it.
    """
    with open(source, encoding="utf-8-sig", newline="") as file:
        try:
            columns = next(csv.reader(file), [])
            if not any(line.strip() for line in file):
                raise DataError(f"{source}: {NO_ROWS}")
        except (UnicodeDecodeError, csv.Error) as error:
            raise unreadable(source, error) from error
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{source}: its first line names the column {twice[0]!r} twice")
    return columns


def guarded(rows: "IterableDataset", state: FileState) -> "IterableDataset":
    """A stream of a local file that names the file, and the row, when its reader fails or the file changes."""
    from datasets import IterableDataset

    return IterableDataset.from_generator(read_on, rows.features, gen_kwargs={"rows": rows, "state": state})


def read_on(rows: "IterableDataset", state: FileState) -> Iterator[dict[str, Any]]:
    """The rows of a stream; see `guarded`."""
    state.check()
    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except DataError:
        raise
    except Exception as error:  # the readers of the formats raise errors of many libraries
        state.check()
        raise unreadable(state.path, error, number) from error
    state.check()
