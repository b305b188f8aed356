"""The intermediate results of a command that answers prompts, from which a killed run goes on."""

import contextlib
import fcntl
import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from llada.cli.arguments import note
from llada.errors import OutputError, RecipeError
from llada.files import delete_left, replace_file
from llada.output import writing

KEPT = "The answers so far are kept beside it: the same command goes on from them"


class PartFiles:
    """Intermediate results: each process writes a JSONL file (a part) of its own until the whole output is complete.

    The first line of a part holds the run's settings, each other line is {"index": ..., "completion": ...}. A last line
    without its end, which a killed process or a full disk may leave, is dropped, and its answer is sampled again. Any
    other line that is not as it was written is an error.

    Args:
        output: the file that is written when all answers are there.
        run: what decides the answers, by name: settings, and what `llada.cli.fingerprint` finds.
    """

    def __init__(self, output: str | Path, run: dict[str, Any]):
        self.output, self.run = Path(output), run

    def part(self, process: int) -> Path:
        """The part of a process."""
        return self.output.with_name(f"{self.output.name}.part{process}")

    def parts(self) -> list[Path]:
        """The parts that exist, of whatever number of processes."""
        found = self.output.parent.glob(f"{glob.escape(self.output.name)}.part*")
        return sorted(path for path in found if path.name.rpartition(".part")[2].isdecimal())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the output for this process meanwhile, which other runs respect.

        Raises:
            OutputError: another run writes the same output, or nothing can be written there.
        """
        with contextlib.ExitStack() as stack:
            with writing(self.output.parent, "Nothing was started"):
                self.output.parent.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(open(self.part(0), "ab"))
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"{self.output} is being written by another run: wait for it, or end it") from None
            except OSError:
                note(f"{self.output.parent}: no locks here, so that a second run is not noticed")
            yield

    def done(self) -> dict[int, str]:
        """Completions of all parts, by index.

        Raises:
            RecipeError: a part belongs to a run of another model or with other settings, or is damaged; the message
                names the file, and what differs or the line.
        """
        found: dict[int, str] = {}
        for part in self.parts():
            before, *rows = list(self.lines(part)) or [self.run]
            if different := [name for name, value in self.run.items() if before.get(name) != value]:
                raise RecipeError(self.other_run(part, before, different))
            for number, row in enumerate(rows, 2):
                index, completion = row.get("index"), row.get("completion")
                if type(index) is not int or not isinstance(completion, str):
                    raise RecipeError(self.damaged(part, number, "it holds no answer"))
                found[index] = completion
        return found

    def lines(self, part: Path) -> Iterator[dict[str, Any]]:
        """The objects in the whole lines of a part.

        Raises:
            RecipeError: the file cannot be read, or a line is no JSON object.
        """
        try:
            content = part.read_bytes()
        except OSError as error:
            raise RecipeError(f"{part} cannot be read: {error.strerror}") from error
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                value = json.loads(line.decode())
            except ValueError as error:  # no JSON, or no UTF-8
                raise RecipeError(self.damaged(part, number, str(error))) from error
            if not isinstance(value, dict):
                raise RecipeError(self.damaged(part, number, "it is no object"))
            yield value

    @staticmethod
    def damaged(part: Path, line: int, reason: str) -> str:
        """The message on a line of a part that is not as it was written."""
        what = "this line, whose answer is" if line > 1 else "the file, whose answers are"
        return f"{part} is damaged in line {line} ({reason}): delete {what} sampled again then, or set overwrite"

    def other_run(self, part: Path, before: dict[str, Any], different: list[str]) -> str:
        """The message on a part of another run, of which some entries are `different`."""
        found = " and ".join(f"{name}={before.get(name)!r}" for name in different)
        here = " and ".join(f"{self.run[name]!r}" for name in different)
        return (
            f"{part} was made with {found}, and this run has {here}: go on with the same model and settings, or set "
            "overwrite to start again"
        )

    def drop_others(self) -> None:
        """Empty the parts unless they are this run's: a run that overwrites goes on from its own, too.

        They keep their names, one of which is locked.
        """
        try:
            self.done()
        except RecipeError:
            for part in self.parts():
                os.truncate(part, 0)

    def append(self, process: int, found: dict[int, str]) -> None:
        """Add completions, by index, to the part of a process.

        Raises:
            OutputError: they cannot be written.
        """
        part = self.part(process)
        rows = [{"index": index, "completion": completion} for index, completion in found.items()]
        with writing(part, KEPT), open(part, "ab+") as file:
            heading = [] if cut_to_lines(file) else [self.run]
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in [*heading, *rows])
            file.write("".join(lines).encode())

    def finish(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write the output, which appears when it is whole, and remove the parts.

        Raises:
            OutputError: it cannot be written, or another run writes it.
        """
        with self.lock(), writing(self.output, KEPT):
            delete_left(self.output)
            replace_file(self.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            self.remove_parts()

    def remove_parts(self) -> None:
        """Remove the parts of all processes."""
        for part in self.parts():
            part.unlink()


def cut_to_lines(file: IO[bytes]) -> bool:
    """Cut a file after its last whole line; returns whether it has any."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read() != b"\n":  # a killed process was writing
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
    return end > 0
