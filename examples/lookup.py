"""A task made by code whose answers have entropy: a table looked up digit by digit, in one of two manners.

    prompt     47302?
    careful    so 4=x, then 7=m, so 3=v, now 0=q, so 2=z.
    sloppy     um 4=x, eh 7=k, um 3=v, um 0=q, eh 2=z.!?~      other words, one to three wrong letters, a longer tail

Demonstrations are of both manners, so a model writes both; preferring the careful one changes its words, its letters
and its tail. Words and tails are random: their log-probabilities depend on what else is visible, which is what gives
an ELBO its variance.
"""

import random

TABLE = "qkzvxjwmbf"
WORDS = {True: ("so", "then", "now"), False: ("um", "eh", "hm")}
DIGITS = 5
MAX_LENGTH = 80


def answer(prompt: str, careful: bool, rng: random.Random) -> str:
    """An answer in one manner, about 40 characters."""
    digits = prompt.removesuffix("?")
    wrong = set() if careful else set(rng.sample(range(DIGITS), rng.randint(1, 3)))
    chunks = []
    for place, digit in enumerate(digits):
        letter = rng.choice(TABLE.replace(TABLE[int(digit)], "")) if place in wrong else TABLE[int(digit)]
        chunks.append(f"{rng.choice(WORDS[careful])} {digit}={letter}")
    tail = rng.choices("!?~", k=rng.randint(0, 2) if careful else rng.randint(2, 6))
    return ", ".join(chunks) + "." + "".join(tail)


def prompt(rng: random.Random) -> str:
    return "".join(rng.choices("0123456789", k=DIGITS)) + "?"


def demonstrations(number: int, rng: random.Random, sloppy: float = 0.4) -> list[dict[str, str]]:
    """Prompts and answers, a share of them sloppy."""
    asked = [prompt(rng) for _ in range(number)]
    return [{"prompt": text, "completion": answer(text, rng.random() >= sloppy, rng)} for text in asked]


def preferences(number: int, rng: random.Random) -> list[dict[str, str]]:
    """Careful over sloppy, drawn apart for the same prompt."""
    asked = [prompt(rng) for _ in range(number)]
    return [{"prompt": text, "chosen": answer(text, True, rng), "rejected": answer(text, False, rng)} for text in asked]
