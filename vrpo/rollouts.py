"""On-policy preference pairs of sampled answers.

A verifier checks answers, and right ones are paired with wrong ones; or answers have rewards, from a function or from
the wins that a judge gives them, and the best answer to a prompt is paired with its worst.
"""

from collections.abc import Callable, Iterable
from itertools import combinations
from numbers import Real
from typing import TYPE_CHECKING, Any

from llada.checks import is_finite
from llada.errors import RecipeError
from llada.evaluation import Verifier, blaming, check_arguments, load_function

if TYPE_CHECKING:
    from llada.data.tokenizer import Prompt

# (rows of the prompts, answers to each) -> the reward of each answer
Scorer = Callable[[list[dict[str, Any]], list[list[str]]], list[list[float]]]

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


def best_and_worst(row: dict[str, Any], answers: list[str], rewards: list[float]) -> dict[str, Any] | None:
    """The pair of the answers with the highest and the lowest reward; of equal ones the first one that was sampled.

    Empty answers are left out, as they cannot be trained on. None if all others have the same reward.
    """
    kept = [(reward, text) for reward, text in zip(rewards, answers, strict=True) if text.strip()]
    if not kept:
        return None
    best, worst = (choose(kept, key=lambda pair: pair[0]) for choose in (max, min))
    if best[0] == worst[0] or best[1] == worst[1]:  # the latter if a reward is random
        return None
    return preference(row["prompt"], best[1], worst[1])


def load_reward(name: str, source: str) -> Scorer:
    """Rewards by a function of a file, FILE.py:function: (row of the prompt, answer) -> number, larger for better.

    Args:
        source: the file of the prompts, for messages.

    Raises:
        RecipeError: there is no such file or function. By the scorer: the function raised an error, or returned
            something else than a finite number; the message names it, the row and the answer.
    """
    function = load_function("reward", name)
    check_arguments("reward", name, function)

    def reward(index: int, row: dict[str, Any], answer: str) -> float:
        where = f"for row {index} (counted from 0) of {source} and the answer {answer!r}"
        with blaming("reward", name, where):
            value = function(row, answer)
        if not isinstance(value, Real) or not is_finite(value):
            raise RecipeError(f"reward={name!r} must return a finite number, and returned {value!r} {where}")
        return float(value)

    return lambda rows, answers: [
        [reward(index, row, text) for text in texts]
        for index, (row, texts) in enumerate(zip(rows, answers, strict=True))
    ]


def load_judge(name: str, source: str) -> Scorer:
    """Rewards by a judge class of a file, FILE.py:Class: how many of the other answers to its prompt an answer beats.

    The class has the interface of TRL's `BasePairwiseJudge`: `judge(prompts, completions, shuffle_order)` gets two
    completions of each prompt and returns 0 where the first one is better, 1 where the second one is, and -1 where it
    cannot tell, which counts for neither. It compares all answers to a prompt that differ and are not empty, in their
    order of sampling: answers to one prompt are independent samples, so that this order is random already. An object
    of the class is made for each call of the scorer, and holds no memory afterwards.

    Raises:
        RecipeError: there is no such file or class. By the scorer: the judge raised an error, or returned something
            else than one of these numbers for each comparison.
    """
    judge_class = load_function("judge", name)

    def wins(rows: list[dict[str, Any]], answers: list[list[str]]) -> list[list[float]]:
        compared = [
            (index, first, second)
            for index, texts in enumerate(answers)
            for first, second in combinations(range(len(texts)), 2)
            if texts[first] != texts[second] and texts[first].strip() and texts[second].strip()
        ]
        prompts = [as_text(rows[index]["prompt"]) for index, _, _ in compared]
        completions = [[answers[index][first], answers[index][second]] for index, first, second in compared]
        with blaming("judge", name, f"for the answers to {source}"):
            verdicts = list(judge_class().judge(prompts, completions, shuffle_order=False)) if compared else []
        if len(verdicts) != len(compared):
            raise RecipeError(f"judge={name!r} returned {len(verdicts)} verdicts for {len(compared)} comparisons")
        counts = [[0.0] * len(texts) for texts in answers]
        for (index, *sides), verdict in zip(compared, verdicts, strict=True):
            if verdict not in (-1, 0, 1):
                raise RecipeError(
                    f"judge={name!r} must return 0, 1 or -1, and returned {verdict!r} for two answers to row {index} "
                    f"(counted from 0) of {source}"
                )
            if verdict != -1:
                counts[index][sides[int(verdict)]] += 1
        return counts

    return wins


def as_text(prompt: "Prompt") -> str:
    """A prompt as one text, which TRL's judges take: of messages, role and content of each."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


def preference(prompt: "Prompt", chosen: str, rejected: str) -> dict[str, Any]:
    """A row in TRL's preference format: text for a text prompt, messages for messages."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    turns = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {"prompt": prompt, "chosen": next(turns), "rejected": next(turns)}
