"""Reading published and saved weights: a tensor that is missing, unknown or misshapen is an error that names it.

transformers would give a missing tensor random values and a warning; a model with a random layer trains and samples, so
nobody would notice. A broken file is named too, which its error message alone does not do.
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

SHOWN = 8  # names in a message, of those that there are


def listed(names) -> str:
    names = sorted(map(str, names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_loading_info(info: dict, source: str) -> None:
    """Raise ValueError unless the checkpoint had exactly the tensors of the model.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` tells.
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
    """Say which file or tensor a load failed at.

    Args:
        expected: gives the names of the tensors that the files must have.

    Raises:
        ValueError: instead of the loader's own error, for a local directory with a truncated or foreign file, or
            without a tensor that its stacked experts need.
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
