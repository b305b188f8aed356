"""Answers before and after: their tokens, what changed between them, and the passes in which they were written."""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vrpo.report.groups import Group

TAIL = 3  # equal tokens at the end of an answer from which on they are counted instead of shown
ALIKE = 0.3  # share of equal words below which changes are not marked: nearly all words would be
WORDS = re.compile(r"\w+|[^\w\s]|\s+")
SPECIAL = re.compile(r"(<\|[^|<>]*\|>)")  # how LLaDA's tokenizers spell special tokens


@dataclass(frozen=True)
class Piece:
    """A token of an answer. doubt: 1 - confidence; None if it is not known. changed: not in the other answer.

    after: it stands after the end of the answer.
    """

    text: str
    doubt: float | None
    changed: bool
    after: bool = False


@dataclass(frozen=True)
class Answer:
    """label: the column that it stands in. end: a token that ends the answer `repeats` times, and is not in `pieces`.

    rewritten: nearly all words differ from those of the other answer. blank: it has no visible character.
    """

    label: str
    pieces: list[Piece]
    end: str
    repeats: int
    rewritten: bool
    blank: bool


@dataclass(frozen=True)
class Case:
    """A prompt, its answers, and what the data gives as chosen and as rejected (None: nothing).

    prompt: text and special tokens in turn.
    """

    prompt: list[str]
    answers: list[Answer]
    given: str | None
    rejected: str | None


Column = tuple[str, list[dict[str, Any]]]  # a label, and the answers to all prompts


def columns_of(groups: Sequence[Group]) -> list[Column]:
    """The first and the last answers of a run; of several, the first ones and the last ones of each group's first run.

    Empty without samples. Prompts that are not in all columns are left out; all columns have the order of the first.
    """
    columns: list[Column] = []
    for group in groups:
        run = next((run for run in group.runs if (run.samples or {}).get("samples")), None)
        if run is None or run.samples is None:
            continue
        first, *rest = run.samples["samples"]
        if not columns:
            columns.append((f"Step {first['step']}", first["answers"]))
        last = rest[-1] if rest else None if len(groups) == 1 else first
        if last is not None:
            name = f"Step {last['step']}"
            columns.append((name if len(groups) == 1 else f"{group.label}, {name.lower()}", last["answers"]))
    found = [(label, {answer["prompt"]: answer for answer in answers}) for label, answers in columns]
    shared = [prompt for prompt in (found[0][1] if found else ()) if all(prompt in answers for _, answers in found)]
    return [(label, [answers[prompt] for prompt in shared]) for label, answers in found]


def cases_of(columns: Sequence[Column]) -> list[Case]:
    """The answers to each prompt beside each other. Changes are to the first answer, and in this to the second."""
    found = []
    for rows in zip(*(answers for _, answers in columns), strict=True):
        tokens, ends = zip(*(without_tail(tokens_of(row)) for row in rows), strict=True)
        lengths = [row.get("length", len(each)) for row, each in zip(rows, tokens, strict=True)]
        texts = [
            "".join(token["text"] for token in each[:length]) for each, length in zip(tokens, lengths, strict=True)
        ]
        answers = []
        for index, (label, _) in enumerate(columns):
            other = texts[0] if index else texts[min(1, len(texts) - 1)]
            changed, rewritten = changed_characters(texts[index], other)
            end, repeats = ends[index]
            answers.append(
                Answer(
                    label,
                    pieces_of(tokens[index], changed, lengths[index]),
                    end,
                    repeats,
                    rewritten,
                    not texts[index].strip(),
                )
            )
        found.append(
            Case(SPECIAL.split(rows[0]["prompt"].strip()), answers, rows[0].get("given"), rows[0].get("given_rejected"))
        )
    return found


def tokens_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens of an answer; the whole answer as one of them if they were not recorded."""
    return row.get("tokens") or [{"text": row.get("answer") or "", "confidence": None, "order": 0}]


def without_tail(tokens: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], tuple[str, int]]:
    """Tokens without the equal ones at their end, and which these are and how many; ("", 0) if they are few."""
    count = 0
    while count < len(tokens) and tokens[-1 - count]["text"] == tokens[-1]["text"]:
        count += 1
    if count < TAIL or not tokens[-1]["text"].strip():
        return tokens, ("", 0)
    return tokens[: len(tokens) - count], (tokens[-1]["text"], count)


def changed_characters(text: str, other: str) -> tuple[list[bool], bool]:
    """Which characters of a text are in words that the other text does not have there, and whether most are.

    In that case none is marked.
    """
    words, others = WORDS.findall(text), WORDS.findall(other)
    matcher = difflib.SequenceMatcher(None, words, others, autojunk=False)
    if text != other and matcher.ratio() < ALIKE:
        return [False] * len(text), True
    changed = [True] * len(words)
    for block in matcher.get_matching_blocks():
        changed[block.a : block.a + block.size] = [False] * block.size
    return [mark for word, mark in zip(words, changed, strict=True) for _ in word], False


def pieces_of(tokens: list[dict[str, Any]], changed: list[bool], length: int) -> list[Piece]:
    """The tokens with their doubts; one is changed if a character of it that is no space is.

    length: how many of the tokens are the answer.
    """
    found, position = list[Piece](), 0
    for index, token in enumerate(tokens):
        if index >= length:
            found.append(Piece(token["text"], None, False, True))
            continue
        text = token["text"]
        marks = changed[position : position + len(text)]
        position += len(text)
        confidence = token.get("confidence")
        doubt = None if confidence is None else round(1 - min(1.0, max(0.0, confidence)), 2)
        found.append(
            Piece(text, doubt, any(mark and not letter.isspace() for mark, letter in zip(marks, text, strict=True)))
        )
    return found


def animation(columns: Sequence[Column]) -> str:
    """All answers with the pass of each token, as JSON for a <script> element; "" without recorded passes.

    {"columns": labels, "cases": [{"prompt": str, "answers": [{"tokens": [[text, confidence, pass], ...], "end": the
    number of tokens before the equal ones at the end}]}]}
    """
    cases = []
    for rows in zip(*(answers for _, answers in columns), strict=True):
        if not all(row.get("tokens") for row in rows):
            return ""
        answers = [
            {
                "tokens": [[each["text"], round(each["confidence"], 3), each["order"]] for each in row["tokens"]],
                "end": len(without_tail(row["tokens"])[0]),
            }
            for row in rows
        ]
        cases.append({"prompt": SPECIAL.sub(" ", rows[0]["prompt"]).strip(), "answers": answers})
    if not cases:
        return ""
    return json.dumps({"columns": [label for label, _ in columns], "cases": cases}).replace("<", "\\u003c")
