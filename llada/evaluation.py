"""Verifiers: functions that compare an answer with the reference in the prompt's row; how a user's own are loaded."""

import contextlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from llada.errors import RecipeError

Verifier = Callable[[dict[str, Any], str], bool]  # (row of the prompt, answer) -> is the answer right?

# A sign belongs to a number unless something precedes it from which the number could be subtracted.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]%.])[-\u2212])?[$€£¥]?(?P<money>(?<=[$€£¥])[-\u2212])?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?P<exponent>[eE][-+]?\d+(?!\w))?"
)


def same_as_answer(row: dict[str, Any], answer: str) -> bool:
    """Whether the answer equals the row's "answer" column, ignoring surrounding white space.

    Raises:
        ValueError: the row has no answer.
    """
    return answer.strip() == reference(row).strip()


def same_last_number(row: dict[str, Any], answer: str) -> bool:
    """Whether the answer and the row's "answer" column end with the same number (GSM8K); see `last_number`.

    Raises:
        ValueError: the row has no answer, or one without a number.
    """
    expected = last_number(reference(row))
    if expected is None:
        raise ValueError(f"has no number in 'answer': {row['answer']!r}")
    return last_number(answer) == expected


def reference(row: dict[str, Any]) -> str:
    """The row's "answer" column as text."""
    if row.get("answer") is None:
        raise ValueError("has no value in 'answer'")
    return str(row["answer"])


def last_number(text: str) -> float | None:
    """The last number in a text, as a grader of GSM8K reads it; None if the text has none.

    A number is a row of decimal digits, with commas before each three of them or without any, a decimal point with
    digits behind it, and an exponent such as e3, none of which needs to be there. So the comma in "3,4" separates two
    numbers, the point in "5." ends a sentence, and "10²" is 10. A currency sign before a number and a percent sign
    behind it are no part of it. A minus (or U+2212) directly before a number or its currency is its sign, unless it
    follows a letter, a digit, a point, a closing bracket or a percent sign: "10-3" and "10 - 3" end with 3, "= -3" with
    -3. Nothing is computed: "1/2" ends with 2. A number beyond the range of a float is none.
    """
    values = (value_of(found) for found in reversed(list(NUMBER.finditer(text))))
    return next((value for value in values if math.isfinite(value)), None)


def value_of(found: re.Match[str]) -> float:
    """The value of a match of `NUMBER`."""
    value = float(found["digits"].replace(",", "") + (found["exponent"] or ""))
    return -value if found["sign"] or found["money"] else value


VERIFIERS: dict[str, Verifier] = {"same_as_answer": same_as_answer, "same_last_number": same_last_number}


def load_verifier(name: str) -> Verifier:
    """A verifier by its name in `VERIFIERS`, or as FILE.py:function, whose results must be true or false.

    Raises:
        RecipeError: there is no such verifier or file, the file cannot be imported, or it has no such function. By the
            verifier of a file: it raised an error, or returned something else than true or false.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    verify = load_function("verifier", name, f"one of {sorted(VERIFIERS)}, or ")
    check_arguments("verifier", name, verify)

    def checked(row: dict[str, Any], answer: str) -> bool:
        with blaming("verifier", name, f"for the answer {answer!r}"):
            result = verify(row, answer)
        if type(result).__name__ not in ("bool", "bool_"):  # of Python, or of numpy, which is not imported for this
            raise RecipeError(f"verifier={name!r} must return true or false, and returned {result!r} for {answer!r}")
        return bool(result)

    return checked


def load_function(option: str, name: str, others: str = "") -> Callable[..., Any]:
    """The function or class that an option names as FILE.py:function.

    Args:
        others: what else the option may be, for its message.

    Raises:
        RecipeError: there is no such file, it cannot be imported, or it has no such function.
    """
    path, _, function = name.rpartition(":")
    if not path or not Path(path).is_file():
        absent = f": there is no file {path}" if path else ""
        raise RecipeError(f"{option}={name!r} must be {others}FILE.py:function of a file here{absent}")
    found = getattr(imported(option, path), function, None)
    if not callable(found):
        raise RecipeError(f"{option}={name!r}: {path} has no function {function!r}")
    return found


def check_arguments(option: str, name: str, function: Callable[..., Any]) -> None:
    """Raise RecipeError if a user's function cannot be called with the row of a prompt and an answer."""
    try:
        inspect.signature(function).bind({}, "")
    except TypeError as error:
        raise RecipeError(f"{option}={name!r} must take two arguments, (row, answer): {error}") from error
    except ValueError:  # of a function in C, whose arguments are not known
        return


def imported(option: str, path: str) -> ModuleType:
    """A Python file as a module.

    Raises:
        RecipeError: the file cannot be imported; the message says why, and in which line.
    """
    spec = importlib.util.spec_from_file_location(f"{option}_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{option}: {path} is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(f"{option}: {path} cannot be imported: {blame(error, path)}") from error
    return module


@contextlib.contextmanager
def blaming(option: str, name: str, where: str) -> Iterator[None]:
    """State in one line which function of a user failed, FILE.py:function, on what and in which line of its file.

    Raises:
        RecipeError: in place of any error.
    """
    try:
        yield
    except Exception as error:
        raise RecipeError(f"{option}={name!r} failed with {blame(error, name.rpartition(':')[0])}, {where}") from error


def blame(error: Exception, path: str) -> str:
    """An error of a user's file as text, with the last line of that file that it passed."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == Path(path).resolve():
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    where = f" (line {lines[-1]})" if lines else ""  # a SyntaxError names its line itself
    return f"{type(error).__name__}: {error}{where}"
