"""Strict loading of weights: a tensor that is missing, unknown or misshapen raises an error that names it.

transformers only warns and initialises a missing tensor at random; a model with a random layer trains and samples, so
the mistake would go unnoticed. An unreadable file is named too, which the loader's own message does not do.
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

SHOWN = 8  # at most this many names are listed in a message


def listed(names) -> str:
    names = sorted(map(str, names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_loading_info(info: dict, source: str) -> None:
    """Raise ValueError unless the checkpoint had exactly the tensors of the model.

    Args:
        info: the loading info of `from_pretrained(..., output_loading_info=True)`.
        source: name or path of the checkpoint.
    """
    problems = {
        "missing": info["missing_keys"],
        "not of this model": info["unexpected_keys"],
        "of another shape": [
            f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]
        ],
    }
    found = [f"{len(names)} tensors {what}: {listed(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"{source} does not fit its config.json: " + "; ".join(found))


@contextlib.contextmanager
def explain_load_errors(source: str, expected: Callable[[], Iterable[str]]):
    """Turn a loader's error into one that names the file or the tensors at fault.

    Args:
        source: name or path of the checkpoint.
        expected: returns the names of the tensors that the files must have.

    Raises:
        ValueError: a local directory has a file that cannot be read, or lacks tensors. Other errors pass unchanged.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        names: set[str] = set()
        for file in sorted(Path(source).glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as tensors:
                    names |= set(tensors.keys())
            except SafetensorError as reason:
                raise ValueError(f"{file} cannot be read ({reason}): it is truncated or not a weight file") from error
        missing = set(expected()) - names if names else set()
        if missing:
            raise ValueError(f"{source} lacks {len(missing)} tensors: {listed(missing)}") from error
        raise
