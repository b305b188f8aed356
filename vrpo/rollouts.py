"""On-policy preference pairs: sample answers, check them with a verifier, pair right ones with wrong ones."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llada.evaluation import Verifier

if TYPE_CHECKING:
    from llada.data.tokenizer import Prompt

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


def preference(prompt: "Prompt", chosen: str, rejected: str) -> dict[str, Any]:
    """A row in TRL's preference format: text for a text prompt, messages for messages."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    turns = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {"prompt": prompt, "chosen": next(turns), "rejected": next(turns)}
