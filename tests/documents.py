"""The fenced blocks of README and documentation, their marks, and how a block is run (CONTRIBUTING.md has the rules).

    <!-- run -->                   the block is run by the quick tests, after those of its page before it
    <!-- run: slow -->             the same, by the slow tests only
    <!-- not run: REASON -->       it is not
    <!-- from: FILE -->            its lines stand in that file of the repository; "# ..." stands for lines left out

A mark is the line before a block of Python or shell. A block with title="NAME" is a file that later blocks of its page
use.
"""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "recipes" / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"```(?P<language>\w*)(?P<options>.*)")
MARK = re.compile(r"<!-- (?P<kind>run|not run|from)(?:: (?P<detail>.+))? -->")
TITLE = re.compile(r'title="([^"]+)"')
OMITTED = "# ..."
NEED_A_MARK = ("sh", "python")
# What only a shell can do. `$` and `&` also stand in quoted words, but not in those of our documents.
OF_A_SHELL = re.compile(r"[|;&$<>]|^(for|while|done)\b", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: the line of its fence, its language, its mark (None without one), its title, its text."""

    line: int
    language: str
    kind: str | None
    detail: str | None
    title: str | None
    text: str

    @property
    def slow(self) -> bool:
        return (self.kind, self.detail) == ("run", "slow")


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    blocks, lines = [], iter(enumerate(text.splitlines(), 1))
    before = ""
    for number, line in lines:
        if fence := FENCE.match(line):
            inside = []
            for _, each in lines:
                if each.startswith("```"):
                    break
                inside.append(each)
            mark, title = MARK.fullmatch(before), TITLE.search(fence["options"])
            kind, detail = (mark["kind"], mark["detail"]) if mark else (None, None)
            blocks.append(Block(number, fence["language"], kind, detail, title and title[1], "\n".join(inside) + "\n"))
        before = line
    return blocks


def flaw_of(block: Block) -> str | None:
    """What is wrong with a block's language or mark; None if nothing is."""
    if not block.language:
        return "has no language after its fence: sh, python, text, json or yaml"
    if block.title is not None or block.language not in NEED_A_MARK:
        return None if block.kind is None or block.title is None else "is a file by its title, and needs no mark"
    if block.kind is None:
        return "has no mark: <!-- run -->, <!-- run: slow -->, <!-- not run: REASON --> or <!-- from: FILE -->"
    if block.kind == "run" and block.detail not in (None, "slow"):
        return f"has the mark run: {block.detail}, which is not slow"
    if block.kind != "run" and not block.detail:
        return f"has the mark '{block.kind}' without a reason or a file"
    return None


def is_excerpt(text: str, source: str) -> bool:
    """Whether the lines of a block stand in a source in their order, those between two "# ..." next to each other."""
    lines, begin = source.splitlines(), 0
    for piece in re.split(rf"^\s*{re.escape(OMITTED)}\n", textwrap.dedent(text), flags=re.M):
        wanted = textwrap.dedent(piece).strip("\n")
        size = wanted.count("\n") + 1
        ends = (
            start + size
            for start in range(begin, len(lines) - size + 1)
            if textwrap.dedent("\n".join(lines[start : start + size])) == wanted
        )
        if (end := next(ends, None)) is None:
            return False
        begin = end
    return True


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_shell(text: str, monkeypatch: Any) -> None:
    """Run a block of shell in the current directory: in this process, or by bash if it has loops, pipes or the like."""
    if OF_A_SHELL.search(re.sub(r"'[^']*'|#.*", "", text)):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        subprocess.run(["bash", "-euc", text], env=environment, check=True, timeout=300)
        return
    for words in commands(text):
        run_command(words, monkeypatch)


def run_command(words: list[str], monkeypatch: Any) -> None:
    """Run a command in this process, which has imported torch already.

    `accelerate launch` is left out, and what it would start runs as one process.

    Raises:
        ValueError: it is neither a Python program nor a console command of this package.
        RuntimeError: its exit status is not 0.
    """
    if words[:2] == ["accelerate", "launch"]:
        script = next(number for number, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        if "--config_file" in words:
            load_config_from_file(words[words.index("--config_file") + 1])
        words = ["python", *words[script:]]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
    monkeypatch.setattr("llada.cli.failure.run", lambda main: main())  # which ends the process at an error
    try:
        if words[:2] == ["python", "-m"]:
            monkeypatch.setattr(sys, "argv", words[2:])
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        elif words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
        elif words[0] in scripts:
            monkeypatch.setattr(sys, "argv", words)
            module, _, function = scripts[words[0]].partition(":")
            getattr(importlib.import_module(module), function)()
        else:
            raise ValueError(f"{words[0]} is neither Python nor a console command of this package")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise RuntimeError(f"{shlex.join(words)} ended with {end.code}") from end
