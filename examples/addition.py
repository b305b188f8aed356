"""A synthetic task: column addition with written carries, demonstrated by a writer who sometimes hurries.

    prompt     385+947?
    careful    5+7+0=12 8+4+1=13 3+9+1=13 1332      columns from the right: digit + digit + carry, then the result
    hurried    5+7+0=12 8+4+0=12 3+9+0=12 1222      forgets to carry

The demonstrations are noisy by design: the more carries a sum has, the more often its answer is hurried. Where hurried
answers are more frequent, a model that imitates well is wrong, and only preferences can correct it.
"""

import random
import zlib

# How often the writer hurries, by the number of carries that are written in the careful answer (columns 2 and 3).
HURRY = {0: 0.0, 1: 0.1, 2: 0.7}
ANSWER_LENGTH = 31


def work(a: int, b: int, careful: bool) -> str:
    """The worked answer, with or without carrying."""
    columns, digits, carry = [], [], 0
    for place in range(3):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        columns.append(f"{x}+{y}+{carry}={total:02d}")
        digits.append(total % 10)
        carry = total // 10 if careful else 0
    last = carry if careful else total // 10
    return " ".join([*columns, f"{last}{digits[2]}{digits[1]}{digits[0]}"])


def operands(prompt: str) -> tuple[int, int]:
    a, b = prompt.removesuffix("?").split("+")
    return int(a), int(b)


def right_answer(prompt: str) -> str:
    return work(*operands(prompt), careful=True)


def is_right(row: dict, answer: str) -> bool:
    """The verifier: every column, every carry and the result, letter by letter."""
    return answer.strip() == right_answer(row["prompt"])


def demonstration(prompt: str, rng: random.Random) -> str:
    """What the writer writes for a prompt."""
    a, b = operands(prompt)
    hurried = rng.random() < HURRY[carries(prompt)]
    return work(a, b, careful=not hurried)


def is_held_out(prompt: str) -> bool:
    """A fixed tenth of all prompts, by hash: never in demonstrations or pairs."""
    return zlib.crc32(prompt.encode()) % 10 == 0


def carries(prompt: str) -> int:
    """How many carries a careful answer writes as 1."""
    return right_answer(prompt).count("+1=")


def random_prompt(rng: random.Random, figures: str | None = None) -> str:
    """A sum of two three-digit numbers, uniformly from all or from those written with these figures (without 0)."""
    a, b = (rng.randint(100, 999) if figures is None else int("".join(rng.choices(figures, k=3))) for _ in range(2))
    return f"{a}+{b}?"


def prompts(number: int, rng: random.Random, held_out: bool, figures: str | None = None) -> list[str]:
    """That many distinct prompts, all held out or all not."""
    found: dict[str, None] = {}
    while len(found) < number:
        prompt = random_prompt(rng, figures)
        if is_held_out(prompt) == held_out:
            found[prompt] = None
    return list(found)
