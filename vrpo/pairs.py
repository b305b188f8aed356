"""On-policy preference pairs: sample answers, check them with a verifier, pair right ones with wrong ones."""

from collections.abc import Callable, Iterable
from typing import Any

from llada.tokenizer import Prompt

Verifier = Callable[[dict[str, Any], str], bool]  # (the row of the prompt, an answer) -> is it right


# Settings of the sampler that leave answers as diverse as the model is. The papers' low_confidence would draw unlikely
# tokens again: hardly a wrong answer would be left to learn from.
DIVERSE: dict[str, Any] = {"temperature": 1.0, "remasking": "top_probability"}


def pair_up(row: dict[str, Any], candidates: Iterable[str], verify: Verifier, most: int) -> list[dict[str, Any]]:
    """Up to `most` pairs of a right and a wrong answer to one prompt, in the order they were sampled; texts differ.

    Answers that are empty are neither: they cannot be trained on.
    """
    distinct = [text for text in dict.fromkeys(candidates) if text.strip()]
    right = [text for text in distinct if verify(row, text)]
    wrong = [text for text in distinct if text not in right]
    return [preference(row["prompt"], good, bad) for good, bad in list(zip(right, wrong, strict=False))[:most]]


def preference(prompt: Prompt, chosen: str, rejected: str) -> dict[str, Any]:
    """A row in TRL's preference format: text for a text prompt, messages for messages."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    turns = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {"prompt": prompt, "chosen": next(turns), "rejected": next(turns)}


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
