"""Rows of a local JSON file with the values that stand in it, where `datasets` would give other ones.

`datasets` reads a column of mixed types as its feature `Json` and takes the text "4" in it for the number 4, so that
one number among texts spoils all rows; a column of dates in text becomes one of timestamps.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

NO_ROWS = "the file has no rows"


def json_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a file with an object in each line, or with one array of objects.

    Raises:
        DataError: the file is no JSON, or a row is no object; the message names the line or the row.
    """
    try:
        for where, row in json_values(path):
            if not isinstance(row, dict):
                raise DataError(f"{path}: {where} is no object of columns and values: {json.dumps(row)[:80]}")
            yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error


def json_values(path: str) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines or of one array, each with its place in the file for messages."""
    with open(path, encoding="utf-8-sig") as file:
        array = file.read(1) == "["
        file.seek(0)
        if array or Path(path).suffix == ".json":
            try:
                whole = json.load(file)
            except json.JSONDecodeError as error:
                if error.msg != "Extra data":  # there are further lines, each with a value of its own
                    raise DataError(not_json(path, error.lineno, error)) from error
                file.seek(0)
            else:
                values = whole if isinstance(whole, list) else [whole]
                yield from ((f"row {number} (counted from 0)", value) for number, value in enumerate(values))
                return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise DataError(not_json(path, number, error)) from error
            yield f"line {number}", value


def not_json(path: str, line: int, error: json.JSONDecodeError) -> str:
    """The message on a line that is no JSON."""
    return f"{path}: line {line} is not JSON: {error.msg} (column {error.colno})"


def keeps_values(feature: Any) -> bool:
    """Whether a feature that `datasets` inferred from JSON gives the file's own values."""
    from datasets import Json, List, Value

    if isinstance(feature, dict):
        return all(map(keeps_values, feature.values()))
    if isinstance(feature, List):
        return keeps_values(feature.feature)
    inferred_time = isinstance(feature, Value) and feature.dtype.startswith(("timestamp", "date", "time"))
    return not isinstance(feature, Json) and not inferred_time


def load_exact(path: str, streaming: bool) -> "Dataset | IterableDataset":
    """The rows of a JSON file, read line by line, with each value as it stands there.

    Raises:
        DataError: the file has no rows, is no JSON, or a row is no object.
    """
    from datasets import Dataset, Features, IterableDataset, Json
    from datasets.fingerprint import Hasher

    columns = tuple(dict.fromkeys(column for row in json_rows(path) for column in row))
    if not columns:
        raise DataError(f"{path}: {NO_ROWS}")
    features, options = Features({column: Json() for column in columns}), {"path": path, "columns": columns}
    if streaming:
        return IterableDataset.from_generator(filled_rows, features, gen_kwargs=options)
    state = Path(path).stat()
    # The file's time is in the fingerprint, by which `datasets` caches rows: the path of a changed file is the same.
    fingerprint = Hasher.hash([str(Path(path).resolve()), state.st_mtime_ns, state.st_size, columns])
    return Dataset.from_generator(filled_rows, features, gen_kwargs=options, fingerprint=fingerprint)


def filled_rows(path: str, columns: tuple[str, ...]) -> Iterator[dict[str, str | None]]:
    """The rows of a JSON file, each value as JSON, and None where a column is missing.

    The feature `Json` stores text that is JSON as it is and decodes it when it is read: given as JSON, text stays text.
    `columns` is no list, because `datasets` would take a list for shards.
    """
    for row in json_rows(path):
        yield {column: None if row.get(column) is None else json.dumps(row[column]) for column in columns}
