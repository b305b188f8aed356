"""The page of a run, for recipes of this package."""

import importlib
from pathlib import Path


def write_page(output_dir: str) -> Path:
    """Write the page of a run and return its path, by `vrpo.report`.

    It is found by its name at the end of a run: `llada` imports nothing of `vrpo`, and trains without it.
    """
    return importlib.import_module("vrpo.report").write_page(output_dir)
