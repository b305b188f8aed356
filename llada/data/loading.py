"""Load rows from a local file or a hub dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada.data.json_rows import NO_ROWS, load_json
from llada.data.local_files import FileState, check_readable, csv_columns, guarded, unreadable
from llada.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def load_rows(
    source: str, name: str | None = None, split: str = "train", streaming: bool = False
) -> "Dataset | IterableDataset":
    """Load a local file (.jsonl, .json, .parquet, .csv, or .txt as one document) or a hub dataset.

    A local file is one split whatever its name, of which a slice such as "train[:100]" or "train[90%:]" is taken. Of a
    stream of a local file the first rows are read, so that a file that is broken there is found here.

    Raises:
        FileNotFoundError: `source` has the extension of a data file and does not exist.
        DataError: `source` is no dataset of the hub or of a directory; a local file is empty, broken, or changes while
            it is read; the message names the line, or the row and the reader's reason. A stream raises it as it is
            read. Or the slice cannot be taken.
    """

    path = Path(source)
    if path.suffix not in LOADERS and not path.is_file():
        return dataset_of(source, name, split, streaming)
    check_readable(source, list(LOADERS))
    if streaming and not split.isidentifier():
        raise DataError(f"split={split!r}: a stream of the file {source} has no slices. Load it without streaming")
    rows = whole_file(source, streaming)
    return rows if split.isidentifier() else slice_of(rows, split, source)


def dataset_of(source: str, name: str | None, split: str, streaming: bool) -> "Dataset | IterableDataset":
    """The rows of a hub dataset, or of a directory that holds one.

    Raises:
        DataError: there is no such dataset, configuration or split, or the hub cannot be reached.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(source, name, split=split, streaming=streaming)
    except (OSError, ValueError, DatasetGenerationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        what = "is a directory that holds no dataset" if Path(source).is_dir() else "is no file here and no hub dataset"
        raise DataError(f"{source} {what} that can be loaded: {reason}") from error


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

    loader, state = LOADERS[Path(source).suffix], FileState.of(source)
    if loader == "json":
        rows = load_json(source, streaming)
    else:
        options = reader_options(source, loader)
        try:
            rows = load_dataset(loader, data_files=source, split="train", streaming=streaming, **options)
            found = next(iter(rows), None) is not None
        except Exception as error:  # the readers of the formats raise errors of many libraries
            raise unreadable(source, error) from error
        if not found:
            raise DataError(f"{source}: {NO_ROWS}")
    if streaming:
        return guarded(rows, state)
    state.check()
    return rows


def reader_options(source: str, loader: str) -> dict[str, Any]:
    """How `datasets` reads a file: values as they stand there, where its defaults would give other ones.

    Raises:
        DataError: a file has no rows, or a CSV file names a column twice.
    """
    from datasets import Features, Value

    if loader == "text":
        return {"sample_by": "document", "encoding": "utf-8-sig"}
    if loader == "csv":  # without types and names of missing values, "007" stays text, and so does "NA"
        columns = csv_columns(source)
        return {"features": Features({name: Value("string") for name in columns}), "keep_default_na": False,
                "na_values": [""], "encoding": "utf-8-sig"}  # fmt: skip
    import pyarrow.parquet

    try:
        empty = not pyarrow.parquet.ParquetFile(source).metadata.num_rows
    except Exception as error:
        raise unreadable(source, error) from error
    if empty:  # which `datasets` cannot read
        raise DataError(f"{source}: {NO_ROWS}")
    return {}


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
