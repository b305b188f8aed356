"""Is an answer right? Verifiers that compare it with a column of the prompt's row."""

from collections.abc import Callable
from typing import Any

Verifier = Callable[[dict[str, Any], str], bool]  # (the row of the prompt, an answer) -> is it right


def same_as_answer(row: dict[str, Any], answer: str) -> bool:
    """The answer equals the row's "answer" column, white space aside."""
    return answer.strip() == str(row["answer"]).strip()


def same_last_number(row: dict[str, Any], answer: str) -> bool:
    """The last number of the answer is the last number of the row's "answer" column (GSM8K)."""
    return last_number(answer) is not None and last_number(answer) == last_number(str(row["answer"]))


def last_number(text: str) -> float | None:
    """The last number in a text, thousands separators aside; None if there is none."""
    words = "".join(letter if letter.isdigit() or letter in ".-," else " " for letter in text).split()
    for word in reversed(words):
        try:
            return float(word.replace(",", "").rstrip("."))
        except ValueError:
            continue
    return None


VERIFIERS: dict[str, Verifier] = {"same_as_answer": same_as_answer, "same_last_number": same_last_number}
