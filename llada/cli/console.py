"""The console commands `llada` and `vrpo`: tables of subcommands, each in a module with `main(argv)` and `parser()`.

Only the module of the subcommand that is called is imported, so that the list of them costs nothing.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from llada.errors import RecipeError

SHELLS = ("bash", "zsh", "fish")
COMPLETION = "--print-completion"


def run(name: str, purpose: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str] | None = None) -> None:
    """Run a console command: hand the words after the subcommand to its `main`.

    Args:
        name: of the console command. purpose: one line on it.
        commands: module and one line of help of each subcommand, by name.

    Raises:
        RecipeError: there is no such subcommand or shell; the message says what there is.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else ""
    if first in commands:
        importlib.import_module(commands[first][0]).main(words[1:])
    elif first in ("-h", "--help"):
        print(listing(name, purpose, commands))
    elif first == "--version":
        print(f"{name} {version('llada-vrpo')}")
    elif first.partition("=")[0] == COMPLETION:
        shell = first.partition("=")[2] or " ".join(words[1:2])
        if shell not in SHELLS:
            raise RecipeError(f"{COMPLETION} {shell}: the shell must be one of {', '.join(SHELLS)}")
        print(completion(name, commands, shell))
    else:
        near = difflib.get_close_matches(first.replace("_", "-"), commands, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        what = f"{first!r} is no command of {name}{meant}" if words else f"{name} needs a command"
        raise RecipeError(f"{what}: {', '.join(commands)}; `{name} --help` says what they do")


def listing(name: str, purpose: str, commands: Mapping[str, tuple[str, str]]) -> str:
    """The help of a console command: a line for each subcommand."""
    width = max(map(len, commands))
    return "\n".join([
        f"usage: {name} COMMAND [options]", "", purpose, "",
        *(f"  {command:{width}}  {line}" for command, (_, line) in commands.items()), "",
        f"`{name} COMMAND --help` lists a command's options, `{name} --version` prints the version, and",
        f"`{name} {COMPLETION} {'|'.join(SHELLS)}` a script for completion with the tab key.",
    ])  # fmt: skip


def completion(name: str, commands: Mapping[str, tuple[str, str]], shell: str) -> str:
    """A script by which a shell completes subcommands, options, and the values of those with a choice.

    Any other text may be a file, whose name is completed. The script is made of all commands' parsers, which takes
    seconds; the shell then starts no Python.
    """
    import shtab

    root: Any = argparse.ArgumentParser(name)
    root.add_argument("--version", action="store_true", help="print the version")
    root.add_argument(COMPLETION, choices=SHELLS, help="print a script for completion")
    subcommands = root.add_subparsers()
    for command, (module, line) in commands.items():
        # A command whose options are another library's has no parser here.
        parser = getattr(importlib.import_module(module), "parser", None)
        parents = [] if parser is None else [parser()]
        added = subcommands.add_parser(command, help=line, parents=parents, add_help=parser is None)
        for action in added._actions:
            if action.nargs != 0 and not action.choices and action.type in (None, str):
                action.complete = shtab.FILE
    return shtab.complete(root, shell)
