"""Rows of a local JSON file with the values that stand in it, where `datasets` would give other ones.

`datasets` reads a column of mixed types as its feature `Json` and takes the text "4" in it for the number 4, so that
one number among texts spoils all rows; a column of dates in text becomes one of timestamps.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

NO_ROWS = "the file has no rows"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SURROGATE = re.compile("[\ud800-\udfff]")
FIRST_ROWS = 10_000  # rows of a stream whose columns are its columns


def json_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a file with an object in each line, or with one array of objects.

    Raises:
        DataError: the file is no JSON, a row is no object, or has a name twice or text that is no Unicode; the message
            names the line or the row.
    """
    for where, row in json_values(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}: {where} is no object of columns and values: {json.dumps(row)[:80]}")
        yield row


def json_values(path: str) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines or of one array, each with its place in the file for messages."""
    with open(path, "rb") as file:
        start = file.read(4).removeprefix(BYTE_ORDER_MARK)
        file.seek(0)
        if start[:1] == b"[" or Path(path).suffix == ".json":
            try:
                whole = parsed(path, "the file", file.read().removeprefix(BYTE_ORDER_MARK))
            except json.JSONDecodeError as error:
                if error.msg != "Extra data":  # there are further lines, each with a value of its own
                    raise DataError(not_json(path, error.lineno, error)) from error
                file.seek(0)
            else:
                values = whole if isinstance(whole, list) else [whole]
                yield from ((f"row {number} (counted from 0)", value) for number, value in enumerate(values))
                return
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if not line.strip():
                continue
            try:
                value = parsed(path, f"line {number}", line)
            except json.JSONDecodeError as error:
                raise DataError(not_json(path, number, error)) from error
            yield f"line {number}", value


def parsed(path: str, where: str, line: bytes) -> Any:
    """The value of JSON text.

    Raises:
        DataError: it is not UTF-8, is nested too deeply, has a name twice in an object, or spells half of a surrogate
            pair, which is no character: readers give the last value of the name, and leave the half out.
        json.JSONDecodeError: it is no JSON.
    """

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: {where} has the name {twice!r} twice in one object")
        return value

    try:
        value = json.loads(line.decode().rstrip(), object_pairs_hook=as_object)
    except UnicodeDecodeError as error:
        before = line[: error.start].count(b"\n")
        place = f"line {before + 1}" if where == "the file" else where
        raise DataError(f"{path} is not UTF-8 text: {place} has the byte 0x{line[error.start]:02x}") from error
    except RecursionError as error:
        raise DataError(f"{path}: {where} is nested too deeply") from error
    if b"\\u" in line and (match := SURROGATE.search(json.dumps(value, ensure_ascii=False))):
        raise DataError(f"{path}: {where} has half of a surrogate pair, which is no character: {match[0]!a}")
    return value


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


def load_json(path: str, streaming: bool) -> "Dataset | IterableDataset":
    """The rows of a JSON file, with each value as it stands there.

    A stored file is read through once by `json_rows`, which names the lines of what is wrong. Then `datasets` reads it,
    unless it would give other values: beyond the first megabytes it makes text of numbers and lists without a word.

    Raises:
        DataError: see `json_rows`; or the file has no rows.
    """
    from datasets import load_dataset

    if streaming:
        return load_exact(path, streaming)
    kinds: dict[tuple, set[type]] = {}
    try:
        for row in json_rows(path):
            add_kinds(kinds, (), row)
    except RecursionError as error:
        raise DataError(f"{path}: a row is nested too deeply") from error
    if not kinds:
        raise DataError(f"{path}: {NO_ROWS}")
    if all(len(types) == 1 for types in kinds.values()):
        try:
            rows = load_dataset("json", data_files=path, split="train")
            rows.data.validate(full=True)
        except Exception:  # valid JSON that Arrow cannot hold
            return load_exact(path, streaming)
        if rows.features and keeps_values(dict(rows.features)):
            return rows
    return load_exact(path, streaming)


def add_kinds(kinds: dict[tuple, set[type]], place: tuple, value: Any) -> None:
    """Add the types of a value and of all in it to `kinds`, by their place in a row; None is of any type."""
    if value is None:
        return
    kinds.setdefault(place, set()).add(type(value))
    if isinstance(value, dict):
        for name, entry in value.items():
            add_kinds(kinds, (*place, name), entry)
    elif isinstance(value, list):
        for entry in value:
            add_kinds(kinds, (*place, None), entry)


def load_exact(path: str, streaming: bool) -> "Dataset | IterableDataset":
    """The rows of a JSON file, read line by line, with each value as it stands there.

    The columns of a stream are those of its first `FIRST_ROWS` rows. It has no features, as Arrow holds none of it.

    Raises:
        DataError: see `json_rows`; or the file has no rows.
    """
    from datasets import Dataset, Features, IterableDataset, Json
    from datasets.fingerprint import Hasher

    rows = islice(json_rows(path), FIRST_ROWS if streaming else None)
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        raise DataError(f"{path}: {NO_ROWS}")
    options = {"path": path, "columns": columns}
    if streaming:
        return IterableDataset.from_generator(filled_rows, gen_kwargs=options)
    state, features = Path(path).stat(), Features({column: Json() for column in columns})
    # The file's time is in the fingerprint, by which `datasets` caches rows: the path of a changed file is the same.
    fingerprint = Hasher.hash([str(Path(path).resolve()), state.st_mtime_ns, state.st_size, columns])
    return Dataset.from_generator(json_texts, features, gen_kwargs=options, fingerprint=fingerprint)


def filled_rows(path: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a JSON file, with None where a column is missing.

    `columns` is no list, because `datasets` would take a list for shards.

    Raises:
        DataError: a row has another column.
    """
    for number, row in enumerate(json_rows(path)):
        if not row.keys() <= set(columns):
            later = sorted(row.keys() - set(columns))
            raise DataError(
                f"{path}: row {number} (counted from 0) has the column {later[0]!r}, which the first {FIRST_ROWS} rows "
                "lack: give it to the first row (null will do), or load the file without streaming"
            )
        yield {column: row.get(column) for column in columns}


def json_texts(path: str, columns: tuple[str, ...]) -> Iterator[dict[str, str | None]]:
    """The rows of a JSON file, each value as JSON.

    The feature `Json` stores text that is JSON as it is and decodes it when it is read: given as JSON, text stays text.
    """
    for row in filled_rows(path, columns):
        yield {column: None if value is None else json.dumps(value) for column, value in row.items()}
