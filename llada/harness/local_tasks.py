"""Data and scores of the harness tasks in `llada/harness/tasks`, which read local files and never the hub.

The harness calls the functions of this module by name, from the tasks' YAML files. A path reaches them as `metadata`
of its `TaskManager`, on its command line as well:

    lm_eval --include_path llada/harness/tasks --tasks gsm8k_local --num_fewshot 4 \\
        --metadata '{"gsm8k_file": "test.jsonl", "gsm8k_fewshot_file": "train.jsonl"}' ...

`llada evaluate` has options of the same names. An error is raised as the task is loaded, before any model is.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada.data.loading import column_names, load_rows
from llada.errors import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER = Path(__file__).with_name("tasks")
FILES = ("gsm8k_file", "gsm8k_fewshot_file", "poem_file")


def gsm8k(gsm8k_file: str | None = None, gsm8k_fewshot_file: str | None = None, **others) -> dict[str, "Dataset"]:
    """GSM8K from files with the columns `question` and `answer`: its splits "test" and "train" (examples to show).

    Without `gsm8k_fewshot_file` there are no examples, and only `num_fewshot` 0 can be asked for: drawn from the
    questions themselves, an example could be the one that is asked.

    Args:
        others: the rest of the harness's metadata, which is not looked at, here and below.

    Raises:
        RecipeError: a path is missing, or a file lacks a column or has an answer that does not end with "#### number".
        FileNotFoundError, DataError: a file is missing or broken.
    """
    test = table("gsm8k_file", gsm8k_file, ("question", "answer"))
    check_answers(str(gsm8k_file), test)
    if gsm8k_fewshot_file is None:
        return {"test": test, "train": test.select([])}
    return {"test": test, "train": table("gsm8k_fewshot_file", gsm8k_fewshot_file, ("question", "answer"))}


def poems(poem_file: str | None = None, **others) -> dict[str, "Dataset"]:
    """Pairs of successive lines of poems, columns `first` and `second`: the split "test".

    Raises:
        RecipeError, FileNotFoundError, DataError: see `gsm8k`.
    """
    return {"test": table("poem_file", poem_file, ("first", "second"))}


def tiny(**others) -> dict[str, "Dataset"]:
    """Sixteen sums that come with this package, with the columns of GSM8K and `choices` and `gold`: split "test"."""
    return {"test": load_rows(str(FOLDER / "tiny.jsonl"))}


def table(option: str, path: str | None, columns: tuple[str, ...]) -> "Dataset":
    """The rows of a local file, with columns of text that must be there and not empty.

    Raises:
        RecipeError: there is no path or no such column, or a row has no text there; the message names option and file.
        FileNotFoundError, DataError: the file is missing or broken.
    """
    if path is None:
        raise RecipeError(f"{option} is missing: a local file with the columns {' and '.join(map(repr, columns))}")
    if not Path(path).suffix:
        raise RecipeError(f"{option}={path} must be a local file, such as one that ends with .jsonl")
    rows = load_rows(path)
    if absent := [name for name in columns if name not in column_names(rows)]:
        raise RecipeError(f"{option}={path}: columns are {sorted(column_names(rows))}; missing: {', '.join(absent)}")
    for name in columns:
        for index, value in enumerate(rows[name]):
            if not isinstance(value, str) or not value.strip():
                raise RecipeError(f"{option}={path}: row {index} (counted from 0) has no text in {name!r}: {value!r}")
    return rows


def check_answers(path: str, rows: "Dataset") -> None:
    """Raise RecipeError for an answer without the mark "#### ", behind which GSM8K has the number that is compared."""
    for index, answer in enumerate(rows["answer"]):
        if "#### " not in answer:
            raise RecipeError(f"gsm8k_file={path}: row {index} (counted from 0) has no '#### NUMBER' in 'answer'")


def has_second(row: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the second line of a pair stands in the answer to the first one (LLaDA, section 3.3)."""
    return {"acc": float(row["second"] in results[0])}


def has_first(row: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the first line of a pair stands in the answer to the second one."""
    return {"acc": float(row["first"] in results[0])}
