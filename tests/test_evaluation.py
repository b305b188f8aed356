"""Verifiers: what number an answer ends with, rows without an answer to compare with, and files of one's own."""

import pytest

from llada.errors import RecipeError
from llada.evaluation import last_number, load_verifier, same_as_answer, same_last_number

NUMBERS = {
    "3 and 4": 4,
    "none": None,
    "": None,
    ".": None,
    "-": None,
    "½": None,
    # a sentence goes on
    "so 1,234.50.": 1234.5,
    "5.": 5,
    "5.0.": 5,
    "5.-": 5,
    "5 -": 5,
    "costs $3.50.": 3.5,
    "**42**": 42,
    "\\boxed{42}": 42,
    "2nd": 2,
    # signs and subtractions
    "#### -7": -7,
    "x=-3": -3,
    "(-3)": -3,
    "**-3**": -3,
    "−7": -7,
    "-.5": -0.5,
    "5 ... 10-3": 3,
    "10 - 3": 3,
    "(2)-3": 3,
    "10%-5": 5,
    "12-15": 15,
    "12–15": 15,
    "2024-01-15": 15,
    "5->6": 6,
    # thousands separators, and commas between numbers
    "12,345,678": 12345678,
    "-1,000": -1000,
    "3,4": 4,
    "1,23": 23,
    "1234,567": 567,
    "1,234,5678": 5678,
    # units
    "$1,234": 1234,
    "-$5": -5,
    "$-5": -5,
    "$ 5": 5,
    "€7": 7,
    "50%": 50,
    "5 m²": 5,
    # other ways to write numbers
    "10²": 10,
    "1e3": 1000,
    "1.5E-3": 0.0015,
    "3e": 3,
    ".5": 0.5,
    "1/2": 2,
    "３": 3,
    "7, not 1e400": 7,
    "9" * 400: None,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_last_number(text):
    assert last_number(text) == NUMBERS[text]


def test_gsm8k_answers_are_compared_by_their_last_number():
    row = {"answer": "He has <<2+2=4>>4.\n#### 4"}
    assert same_last_number(row, "So 4.0")
    assert not same_last_number(row, "So 5")
    assert not same_last_number(row, "no number")


@pytest.mark.parametrize(
    ("verify", "row", "message"),
    [
        (same_as_answer, {}, "has no value in 'answer'"),
        (same_as_answer, {"answer": None}, "has no value in 'answer'"),
        (same_last_number, {"answer": None}, "has no value in 'answer'"),
        (same_last_number, {"answer": "yes"}, "has no number in 'answer': 'yes'"),
    ],
)
def test_a_row_without_a_reference_is_an_error(verify, row, message):
    with pytest.raises(ValueError, match=message):
        verify(row, "4")


FILES = {
    "fails.py": "import json\nraise KeyError('x')\n",
    "syntax.py": "def odd(row, answer)\n",
    "odd.py": "def odd(row, answer):\n    return len(answer) % 2\n\n\nnumber = 3\n",
    "none.py": "def odd(row, answer):\n    pass\n",
    "raises.py": "def odd(row, answer):\n    return row['missing'] == answer\n",
    "text.txt": "def odd(row, answer): return True\n",
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("same_as", r"verifier='same_as' must be one of \['same_as_answer', 'same_last_number'\], or FILE.py:function"),
        ("", "verifier='' must be one of"),
        ("absent.py:odd", "or FILE.py:function of a file here"),
        ("odd.py", "or FILE.py:function of a file here"),
        ("odd.py:", "odd.py has no function ''"),
        ("odd.py:even", "odd.py has no function 'even'"),
        ("odd.py:number", "odd.py has no function 'number'"),
        ("fails.py:odd", r"fails.py cannot be imported: KeyError: 'x' \(line 2\)"),
        ("syntax.py:odd", r"syntax.py cannot be imported: SyntaxError: expected ':' \(syntax.py, line 1\)"),
        ("text.txt:odd", "text.txt is no Python file"),
    ],
)
def test_a_verifier_that_cannot_be_loaded_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_verifier(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd.py:odd", "must return true or false, and returned 1 for 'abc'"),
        ("none.py:odd", "must return true or false, and returned None for 'abc'"),
        ("raises.py:odd", r"failed with KeyError: 'missing' \(line 2\), for the answer 'abc'"),
    ],
)
def test_a_verifier_that_does_not_work_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_verifier(name)({}, "abc")


def test_a_file_of_verifiers_may_define_dataclasses_and_return_numpy_s_booleans(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\nimport numpy\n\n\n@dataclass\n"
        "class Rule:\n    words: list[str] = field(default_factory=list)\n\n\ndef odd(row, answer):\n"
        "    return numpy.bool_(len(answer) % 2 == 1)\n"
    )
    verify = load_verifier(f"{tmp_path / 'mine.py'}:odd")
    assert [verify({}, "abc"), verify({}, "ab")] == [True, False]
