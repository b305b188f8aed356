"""The fixed rows of a run on which its record is made: the first held-out ones, or else the first it is trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from llada.training.base import DiffusionTrainerBase

LOOKED_AT = 16  # rows, for each prompt that is wanted: the same prompt may come many times
DOCUMENT_PROMPT = 32  # tokens of a document that stand for its prompt, at most


@dataclass(frozen=True)
class Asked:
    """A prompt, and what the data give as its answer: token ids. rejected: of preference data; None of others."""

    prompt: list[int]
    given: list[int]
    rejected: list[int] | None = None


def held_out_rows(trainer: DiffusionTrainerBase):
    """The held-out rows of a trainer, of several sets the first; None if there are none."""
    rows = trainer.eval_dataset
    return next(iter(rows.values()), None) if isinstance(rows, dict) else rows


def batches(trainer: DiffusionTrainerBase, rows, number: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the first rows of a dataset, of the size and the form that evaluations have, on the CPU."""
    collator, size, left = trainer.collator(training=False), trainer.args.per_device_eval_batch_size, iter(rows)
    used = trainer._signature_columns if trainer.args.remove_unused_columns else None
    for start in range(0, number, size):
        if found := list(islice(left, min(size, number - start))):
            yield collator([row if used is None else {key: row[key] for key in row if key in used} for row in found])


def sides_of(batch: dict[str, Tensor]) -> int:
    """2 for a batch of pairs, whose second half are the rejected answers, else 1."""
    return len(batch["input_ids"]) // len(batch["example_id"])


def asked(trainer: DiffusionTrainerBase, number: int) -> list[Asked]:
    """The first different prompts of the rows, with their first answers; without those that leave an answer no room.

    Of a document, the prompt is its first half, or its first 32 tokens if that is less.
    """
    held_out = held_out_rows(trainer)
    rows = trainer.train_dataset if held_out is None else held_out
    found: dict[tuple[int, ...], Asked] = {}
    for batch in batches(trainer, rows, LOOKED_AT * number):
        parts = [parts_of(batch, row, trainer.spec.eos_id) for row in range(len(batch["input_ids"]))]
        pairs = len(parts) // sides_of(batch)
        for index, (prompt, given) in enumerate(parts[:pairs]):
            rejected = parts[pairs + index][1] if pairs < len(parts) else None
            if 0 < len(prompt) < trainer.spec.context:
                found.setdefault(tuple(prompt), Asked(prompt, given, rejected))
        if len(found) >= number:
            break
    return list(found.values())[:number]


def parts_of(batch: dict[str, Tensor], row: int, eos_id: int | None) -> tuple[list[int], list[int]]:
    """Prompt and answer of a row of a batch: the tokens before the first scored one, and the scored ones after it."""
    real_L, scored_L = batch["attention_mask"][row].bool(), batch["response_mask"][row]
    if "segment_ids" in batch:  # the first of those that are packed
        real_L = real_L & (batch["segment_ids"][row] == batch["segment_ids"][row, 0])
    ids, scored = batch["input_ids"][row][real_L].tolist(), scored_L[real_L].tolist()
    first = scored.index(True) if True in scored else len(ids)
    if first:
        end = next((i for i in range(first, len(ids)) if not scored[i]), len(ids))
        return ids[:first], ids[first:end]
    if eos_id in ids[2:]:
        ids = ids[: ids.index(eos_id, 2)]  # another document follows
    first = min(DOCUMENT_PROMPT, len(ids) // 2)
    return ids[:first], ids[first:]
