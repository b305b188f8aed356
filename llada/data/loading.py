"""Load rows from a local file or a hub dataset."""

from pathlib import Path
from typing import TYPE_CHECKING

from llada.data.json_rows import NO_ROWS, keeps_values, load_exact
from llada.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def load_rows(
    source: str, name: str | None = None, split: str = "train", streaming: bool = False
) -> "Dataset | IterableDataset":
    """Load a local file (.jsonl, .json, .parquet, .csv, or .txt as one document) or a hub dataset.

    A local file is one split whatever its name, of which a slice such as "train[:100]" or "train[90%:]" is taken. Of a
    stream of a local file the first rows are read, so that a broken file is found here.

    Raises:
        FileNotFoundError: `source` has the extension of a data file and does not exist.
        DataError: a local file is empty or broken; the message names the line, or gives the reader's reason. Or the
            slice cannot be taken.
    """
    from datasets import load_dataset

    path = Path(source)
    if path.suffix not in LOADERS:
        return load_dataset(source, name, split=split, streaming=streaming)
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {source}")
    if not path.stat().st_size:
        raise DataError(f"{source}: {NO_ROWS}")
    if streaming and not split.isidentifier():
        raise DataError(f"split={split!r}: a stream of the file {source} has no slices. Load it without streaming")
    rows = whole_file(source, streaming)
    return rows if split.isidentifier() else slice_of(rows, split, source)


def slice_of(rows: "Dataset", split: str, source: str) -> "Dataset":
    """The rows of a split such as "train[10:20]" of the dataset that a local file is.

    Raises:
        DataError: `split` is no name with a slice, or holds no row.
    """
    from datasets import ReadInstruction

    try:
        (span,) = ReadInstruction.from_spec(split).to_absolute({split.split("[")[0]: len(rows)})
    except (AssertionError, ValueError) as error:
        raise DataError(
            f"split={split!r} of {source}, a file of {len(rows)} rows, must be a name with at most one slice, such as "
            f"'train[:100]' or 'train[90%:]': {error}"
        ) from error
    if span.from_ >= span.to:
        raise DataError(f"split={split!r} of {source}, a file of {len(rows)} rows, has no rows")
    return rows.select(range(span.from_, span.to))


def whole_file(source: str, streaming: bool) -> "Dataset | IterableDataset":
    """All rows of a local file that is not empty; see `load_rows`."""
    from datasets import load_dataset

    path = Path(source)
    loader = LOADERS[path.suffix]
    options = {"sample_by": "document"} if loader == "text" else {}
    try:
        rows = load_dataset(loader, data_files=str(path), split="train", streaming=streaming, **options)
        if streaming:
            next(iter(rows), None)
        else:
            rows.data.validate(full=True)  # Arrow's reader of JSON lets bytes pass that are not UTF-8
    except Exception as error:  # the readers of the formats raise errors of many libraries
        if loader == "json":
            return load_exact(source, streaming)
        reason = str(error.__cause__ or error).strip()
        raise DataError(f"{source} cannot be read as {path.suffix}: {reason}") from error
    if loader == "json" and not (rows.features and keeps_values(dict(rows.features))):
        return load_exact(source, streaming)
    return rows


def column_names(dataset: "Dataset | IterableDataset") -> list[str]:
    """The columns of a dataset; of a stream that does not declare them, those of its first row ([] without one)."""
    return list(dataset.column_names or next(iter(dataset), {}))


def check_columns(dataset: "Dataset | IterableDataset", source: str) -> list[str]:
    """The columns of a dataset.

    Raises:
        DataError: the dataset is empty, or has images.
    """
    columns = column_names(dataset)
    if not columns or (hasattr(dataset, "__len__") and not len(dataset)):
        raise DataError(f"{source} has no rows")
    images = sorted({"image", "images"} & set(columns))
    if images:
        raise DataError(
            f"{source} is vision-related: it has the column {images[0]!r}. This package trains on text, no "
            "model of its families is a vision-language model: remove the column"
        )
    return columns
