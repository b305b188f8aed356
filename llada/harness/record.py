"""`evaluation.json`: what was measured of one model, by benchmark, from which an evaluation goes on.

{"model": ..., "fingerprint": {hashes of weights, tokenizer, ...},
 "benchmarks": {"llada-1.5/gsm8k": {"settings": {...}, "figures": [...], "published": 83.3, ...}}}
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llada.errors import RecipeError
from llada.files import delete_left, replace_file
from llada.output import writing

NAME = "evaluation.json"


class Record:
    """The finished benchmarks of a directory; each is written as it is finished.

    Args:
        folder: the directory. model: the model's name. fingerprint: see `llada.cli.fingerprint`. overwrite: drop what
            is of another model or of other settings, in place of an error.

    Raises:
        RecipeError: the file is damaged, or of another model; the message names the parts that differ.
    """

    def __init__(self, folder: str | Path, model: str, fingerprint: Mapping[str, Any], overwrite: bool):
        self.file = Path(folder, NAME)
        self.content: dict[str, Any] = {"model": model, "fingerprint": dict(fingerprint), "benchmarks": {}}
        self.overwrite = overwrite
        if not self.file.exists():
            return
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            before, benchmarks = found["fingerprint"], dict(found["benchmarks"])
        except (ValueError, KeyError, TypeError) as error:
            if overwrite:
                return
            raise RecipeError(
                f"{self.file} is damaged ({error}): restore it, or set overwrite to begin again"
            ) from error
        different = [name for name, value in fingerprint.items() if before.get(name) != value]
        if different and overwrite:
            return
        if different:
            raise RecipeError(
                f"{self.file} is of another model, {found.get('model')}: {', '.join(different)} differ from those of "
                f"{model}. Choose another output, or set overwrite to begin again"
            )
        self.content["benchmarks"] = benchmarks

    def finished(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The entry of a benchmark, "SUITE/BENCHMARK"; None if it has not been run, or is to be run again.

        Raises:
            RecipeError: it was run with other settings; the message names them.
        """
        entry = self.content["benchmarks"].get(name)
        if entry is None:
            return None
        before, now = flat(entry["settings"]), flat(json.loads(json.dumps(settings)))
        different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if different and self.overwrite:
            return None
        if different:
            changes = ", ".join(f"{key}={before.get(key)!r} and not {now.get(key)!r}" for key in different)
            raise RecipeError(
                f"{self.file} has {name} with {changes}: choose another output, or set overwrite to begin again"
            )
        return entry

    def add(self, name: str, entry: Mapping[str, Any]) -> None:
        """Write the file with one more benchmark.

        Raises:
            OutputError: it cannot be written.
        """
        self.content["benchmarks"][name] = dict(entry)
        with writing(self.file.parent, "The benchmarks before this one are kept"):
            delete_left(self.file)
            replace_file(self.file, json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested mapping as one, whose keys are joined by points: {"sampler": {"steps": 8}} is {"sampler.steps": 8}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found
