"""Requests of the harness as token ids: checked for length before anything is computed, and sorted into questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from llada.diffusion.scoring import Answer
from llada.errors import RecipeError

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """A request as token ids, and its place: `where` names its task and document; `question` is equal for options."""

    context: Ids
    tokens: Ids
    size: float
    question: tuple
    where: str


def place(request: Any) -> str:
    """Where a request is from, for messages."""
    return f"document {request.doc_id} of task {request.task_name}"


def question_of(request: Any) -> tuple:
    """What the options of one question have in common.

    Some tasks ask for every option without its context too, to compare with it: those are a question of their own.
    """
    return request.task_name, request.doc_id, request.args[0] == ""


def stream_key(*parts: Any) -> int:
    """The key of the random stream of an answer or a question: a hash of what it is, whatever runs beside it."""
    return xxhash.xxh3_64_intdigest(repr(parts).encode()) >> 1


def fit(requests: Sequence[Encoded], room: int, truncate: bool, tell: Callable[[str], None]) -> list[Encoded]:
    """The requests with at most `room` tokens each.

    Args:
        truncate: cut the beginning of the context of those that are longer; `tell` gets a line that counts them.

    Raises:
        RecipeError: some are longer and are not to be cut, or nothing would be left of a context.
    """
    long = [each for each in requests if len(each.context) + len(each.tokens) > room]
    if not long:
        return list(requests)
    worst = max(long, key=lambda each: len(each.context) + len(each.tokens))
    found = (
        f"{len(long)} of {len(requests)} requests have more than the {room} tokens that fit (max_length): the longest, "
        f"{worst.where}, has {len(worst.context)} tokens of context and {len(worst.tokens)} to be scored"
    )
    if not truncate:
        raise RecipeError(f"{found}. Use fewer shots, or truncate=true to cut the beginning of contexts")
    if filled := next((each for each in long if len(each.tokens) >= room), None):
        raise RecipeError(f"{found}. {filled.where} cannot be cut: nothing of its context would be left")
    tell(f"{found}; the beginnings of their contexts are cut")
    return [
        Encoded(each.context[max(0, len(each.context) + len(each.tokens) - room) :], each.tokens, each.size,
                each.question, each.where)
        for each in requests
    ]  # fmt: skip


def questions(requests: Sequence[Encoded], coupled: bool) -> tuple[list[list[int]], list[list[Answer]]]:
    """The numbers of the requests of each question, and their answers.

    coupled: the answers of a question have one random stream; otherwise, each has its own.
    """
    numbers: dict[tuple, list[int]] = {}
    for number, each in enumerate(requests):
        numbers.setdefault(each.question, []).append(number)
    answers = [
        [
            Answer(
                requests[number].context, requests[number].tokens,
                stream_key(question[:2]) if coupled else stream_key(requests[number].context, requests[number].tokens),
                requests[number].size,
            )
            for number in of_question
        ]
        for question, of_question in numbers.items()
    ]  # fmt: skip
    return list(numbers.values()), answers
