"""Load rows from a local file or a hub dataset."""

from pathlib import Path
from typing import TYPE_CHECKING

from llada.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def load_rows(
    source: str, name: str | None = None, split: str = "train", streaming: bool = False
) -> "Dataset | IterableDataset":
    """Load a local file (.jsonl, .json, .parquet, .csv, or .txt as one document) or a hub dataset.

    Raises:
        FileNotFoundError: `source` has the extension of a data file and does not exist.
    """
    from datasets import load_dataset

    path = Path(source)
    if path.suffix not in LOADERS:
        return load_dataset(source, name, split=split, streaming=streaming)
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {source}")
    loader = LOADERS[path.suffix]
    options = {"sample_by": "document"} if loader == "text" else {}
    return load_dataset(loader, data_files=str(path), split="train", streaming=streaming, **options)


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
