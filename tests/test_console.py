"""The console commands `llada` and `vrpo`: which subcommands there are, and completion by a real bash."""

import shutil
import subprocess

import pytest

import llada.__main__
import vrpo.__main__
from llada.cli import console
from llada.errors import RecipeError

SOME = {name: llada.__main__.COMMANDS[name] for name in ("chat", "sft", "merge", "harness")}
TABLES = {"llada": llada.__main__.COMMANDS, "vrpo": vrpo.__main__.COMMANDS}


def run(name: str, *words: str) -> None:
    console.run(name, "What it is.", TABLES[name], words)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_the_help_has_a_line_for_each_subcommand(name, word, capsys):
    run(name, word)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"usage: {name} COMMAND [options]", "", "What it is."]
    for command, (_, line) in TABLES[name].items():
        assert [command, line] in [each.split(maxsplit=1) for each in lines]
        assert len(line) < 90


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "llada",
            ["tchat"],
            r"'tchat' is no command of llada \(did you mean chat\?\): chat, info, .*harness; ",
        ),
        (
            "vrpo",
            ["make_pairs", "--help"],
            r"'make_pairs' is no command of vrpo \(did you mean make-pairs\?\): ",
        ),
        ("vrpo", ["zzz"], "'zzz' is no command of vrpo: align, check, .*; `vrpo --help` says what they do"),
        ("vrpo", ["--model", "a"], "'--model' is no command of vrpo"),
        ("vrpo", [], "vrpo needs a command: align, check"),
        ("vrpo", ["--print-completion"], "--print-completion : the shell must be one of bash, zsh, fish"),
        ("vrpo", ["--print-completion", "csh"], "--print-completion csh: the shell must be one of bash, zsh, fish"),
    ],
)
def test_what_is_no_subcommand_is_named_with_what_there_is(name, words, message):
    with pytest.raises(RecipeError, match=message) as found:
        run(name, *words)
    assert "\n" not in str(found.value)


def test_words_after_a_subcommand_are_its_own(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("llada", "info", "--help")
    assert stopped.value.code == 0
    assert "--rank" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="absent does not exist"):
        run("llada", "merge", "./absent", "out")


def test_the_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    run("vrpo", "--version")
    assert capsys.readouterr().out == f"vrpo {version('llada-vrpo')}\n"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The completion of some of `llada`'s subcommands, in a directory with one file."""
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    (folder / "llada.bash").write_text(console.completion("llada", SOME, "bash"))
    (folder / "prompts.jsonl").write_text("")
    return folder / "llada.bash"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("llada ", {*SOME}),
        ("llada ch", {"chat"}),
        ("llada chat --gen", {"--gen_length"}),
        ("llada chat --model pro", {"prompts.jsonl"}),
        ("llada sft --dataset_name pro", {"prompts.jsonl"}),
        ("llada sft --max_st", {"--max_steps"}),  # of transformers
        ("llada merge pro", {"prompts.jsonl"}),
        ("llada merge a b --dtype b", {"bfloat16"}),
        ("llada --print-completion z", {"zsh"}),
    ],
)
def test_bash_completes_subcommands_options_choices_and_files(script, typed, expected):
    """As the tab key asks for it: the words of the line, the last of which may be empty."""
    words = typed.split(" ")
    code = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        'eval "$(complete -p llada | sed "s/.*-F \\([^ ]*\\) .*/\\1/")"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    found = subprocess.run(["bash", "-c", code, "bash", str(script), *words], cwd=script.parent, capture_output=True,
                           text=True, timeout=60)  # fmt: skip
    assert found.returncode == 0, found.stderr
    shown = {line for line in found.stdout.split("\n") if line}
    assert {line for line in shown if "-" not in line.removeprefix("--")} == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_the_same_subcommands_and_options(shell):
    """Of one subcommand whose parser is made at once; these shells are not run."""
    pytest.importorskip("shtab")
    text = console.completion("llada", {"merge": TABLES["llada"]["merge"]}, shell)
    assert all(word in text for word in ("merge", "overwrite", "dtype", "bfloat16"))
