"""Which errors a recipe states as a message, and which keep their traceback."""

import json
import sys

import pytest

from llada.cli import failure
from llada.data.loading import load_rows
from llada.errors import RecipeError


def raised_by(tmp_path, statement: str, module: str) -> Exception:
    """The error of a statement in the file of a module with this name."""
    path = tmp_path / "module.py"
    path.write_text(f"def call():\n    {statement}\n")
    names = {"__name__": module}
    exec(compile(path.read_text(), str(path), "exec"), names)
    with pytest.raises(Exception) as found:  # noqa: PT011
        names["call"]()
    failure.linecache.checkcache(str(path))
    return found.value


MESSAGES = [
    ("raise ValueError('n_t=0 must be positive')", "vrpo.training.config"),
    ("raise FloatingPointError(\n        'the loss is not finite'\n    )", "llada.training.base"),
    ("raise OSError('x is not a local folder and is not a valid model identifier')", "transformers.utils.hub"),
    ("open('absent.yaml')", "transformers.trainer"),
    ("raise OSError(28, 'No space left on device')", "pyarrow.lib"),
    ("raise OSError(30, 'Read-only file system')", "datasets.arrow_writer"),
    ("raise OSError(5, 'Input/output error')", "datasets.arrow_dataset"),
    ("from llada.errors import OutputError\n    raise OutputError('runs/x cannot be written')", "llada.output"),
    ("raise ValueError('Unrecognized model in x')", "transformers.models.auto.configuration_auto"),
]
BUGS = [
    ("int('a')", "llada.data.formats"),  # a ValueError of Python, in our file
    ("list(zip([1], [], strict=True))", "llada.data.formats"),
    ("raise ValueError('optimizer got an empty parameter list')", "torch.optim.optimizer"),
    ("raise RuntimeError('the pass trained no step')", "llada.training.base"),
    ("[][0]", "vrpo.data"),
    ("raise PermissionError(13, 'Permission denied')", "llada.cli.train"),
]


@pytest.mark.parametrize(("statement", "module"), MESSAGES)
def test_what_names_an_option_or_a_file_is_for_the_user(tmp_path, statement, module):
    assert failure.is_for_the_user(raised_by(tmp_path, statement, module))


@pytest.mark.parametrize(("statement", "module"), BUGS)
def test_any_other_error_is_a_bug(tmp_path, statement, module):
    assert not failure.is_for_the_user(raised_by(tmp_path, statement, module))


class Exited(BaseException):
    pass


@pytest.fixture
def calls(monkeypatch):
    """What `failure.run` does to its process: `os._exit` would end the tests, and `sleep` would take its time."""
    found = []

    def leave(status):
        found.append(("exit", status))
        raise Exited

    monkeypatch.setattr(failure.os, "_exit", leave)
    monkeypatch.setattr(failure.time, "sleep", lambda seconds: found.append("sleep"))
    return found


def absent():
    load_rows("absent.jsonl")


def bug():
    raise KeyError("a")


def test_one_process_prints_the_message(calls, capsys):
    with pytest.raises(Exited):
        failure.run(absent)
    assert capsys.readouterr().err == "FileNotFoundError: no such data file: absent.jsonl\n"
    assert calls == [("exit", 1)]
    with pytest.raises(KeyError):
        failure.run(bug)


@pytest.mark.parametrize(("rank", "expected"), [("0", [("exit", 1)]), ("1", ["sleep", ("exit", 1)])])
def test_a_process_of_torchrun_leaves_the_message_to_its_report(tmp_path, monkeypatch, calls, capsys, rank, expected):
    """The second process waits before it speaks: the launcher ends it meanwhile if the first one failed."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Exited):
        failure.run(absent)
    assert calls == expected
    assert capsys.readouterr().err == ""
    written = json.loads((tmp_path / "error.json").read_text())
    assert written["message"] == "FileNotFoundError: no such data file: absent.jsonl"
    with pytest.raises(KeyError):
        failure.run(bug)  # waits too: a lost connection to a process that failed looks like this
    assert calls[-1] == "sleep"


def test_ctrl_c_ends_with_the_code_that_shells_expect_and_no_traceback(calls, capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(Exited):
        failure.run(interrupted)
    assert calls == [("exit", 130)]
    assert capsys.readouterr().err == "interrupted\n"


def test_a_run_that_a_signal_stopped_keeps_its_code(calls):
    with pytest.raises(SystemExit) as stopped:
        failure.run(lambda: sys.exit(75))
    assert stopped.value.code == 75
    assert calls == []


def test_options_that_parse_does_not_know_are_for_the_user():
    from llada.cli.recipe import RecipeArguments, parse

    with pytest.raises(RecipeError) as found:
        parse((RecipeArguments,), ["--learning_rte", "1"])
    assert failure.is_for_the_user(found.value)
