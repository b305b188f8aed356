"""On-policy preference pairs: a verifier checks sampled answers, and right ones are paired with wrong ones."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llada.evaluation import Verifier

if TYPE_CHECKING:
    from llada.data.tokenizer import Prompt

# Sampler settings that keep the diversity of the model's distribution. The papers' low_confidence remasks unlikely
# tokens, which would leave hardly any wrong answer to learn from.
DIVERSE: dict[str, Any] = {"temperature": 1.0, "remasking": "top_probability"}


def pair_up(row: dict[str, Any], candidates: Iterable[str], verify: Verifier, most: int) -> list[dict[str, Any]]:
    """Up to `most` pairs of a right and a wrong answer to one prompt, in the order of sampling.

    Duplicate answers are dropped, and so are empty ones, which cannot be trained on.
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
