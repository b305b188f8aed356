"""Verifiers: functions that compare an answer with the reference in the prompt's row of the dataset."""

from collections.abc import Callable
from typing import Any

Verifier = Callable[[dict[str, Any], str], bool]  # (row of the prompt, answer) -> is the answer right?


def same_as_answer(row: dict[str, Any], answer: str) -> bool:
    """Whether the answer equals the row's "answer" column, ignoring surrounding white space."""
    return answer.strip() == str(row["answer"]).strip()


def same_last_number(row: dict[str, Any], answer: str) -> bool:
    """Whether the answer and the row's "answer" column end with the same number (GSM8K)."""
    return last_number(answer) is not None and last_number(answer) == last_number(str(row["answer"]))


def last_number(text: str) -> float | None:
    """The last number in a text, ignoring thousands separators; None if the text has no number."""
    words = "".join(letter if letter.isdigit() or letter in ".-," else " " for letter in text).split()
    for word in reversed(words):
        try:
            return float(word.replace(",", "").rstrip("."))
        except ValueError:
            continue
    return None


VERIFIERS: dict[str, Verifier] = {"same_as_answer": same_as_answer, "same_last_number": same_last_number}
