"""A task whose best policy is known: small poems with a mood, of which the more cheerful one is likely to be chosen.

    prompt   sea                                            reward   mean mood of the nine words that have one, -1 to 1
    poem     cold gulls wander slowly                       (the base model's poems: mean about 0)
             plain waves fade badly
             clear boats play softly

Three lines of adjective, noun, verb and adverb. The nouns belong to the prompt and differ, the adjectives differ, and
the adverbs of lines one and three rhyme (the even and the odd words of `ADVERBS`). The reward sees none of these rules,
so `is_well_formed` shows what a policy loses on its way to a higher reward.

Of two poems with rewards r1 and r2, the first is chosen with probability sigmoid(SHARPNESS (r1 - r2)). DPO's loss with
such labels has its minimum at the policy

    pi(y | x)  proportional to  pi_base(y | x) exp((SHARPNESS / beta) r(y))

so that the best reward for each distance from the base model is known (`vrpo.analysis.frontier`).
"""

import math
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

TOPICS = {
    "sea": "gulls waves boats shells harbours tides sailors ropes",
    "city": "trams roofs windows streets bells porters lamps bridges",
    "forest": "ferns owls foxes brooks oaks mosses paths hares",
    "garden": "roses bees gates sparrows beds pots vines wells",
    "winter": "sledges drifts stoves icicles pines crows mittens trails",
    "market": "stalls pears baskets cooks scales crates cheeses lanterns",
}
# From the gloomiest word to the most cheerful one, at equal steps from -1 to 1.
ADJECTIVES, VERBS, ADVERBS = (
    words.split()
    for words in (
        "rotten bitter grim sour cold grey dull plain quiet soft clear warm bright merry golden radiant",
        "drown weep ache wither sink fade wait rest sway wander hum play sing dance laugh rejoice",
        "hopelessly bitterly grimly badly coldly wearily slowly plainly "
        "quietly softly calmly warmly gladly brightly merrily joyfully",
    )
)
LINES, LENGTH = 3, 13  # words of a poem and an EOS
SHARPNESS = 8.0
SPREAD = 0.5  # of the moods of the words that the writer of demonstrations takes
GRADED = (ADJECTIVES, VERBS, ADVERBS)
MOOD = {word: 2 * index / (len(words) - 1) - 1 for words in GRADED for index, word in enumerate(words)}
NOUNS = {topic: words.split() for topic, words in TOPICS.items()}


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<|mdm_mask|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>", clean_up_tokenization_spaces=False,
    )  # fmt: skip


TOKENIZER = word_tokenizer([*TOPICS, *(noun for nouns in NOUNS.values() for noun in nouns), *MOOD])


def pick(words: list[str], rng: random.Random, but: list[str]) -> str:
    """A word with a mood near 0, none of those that are taken."""
    free = [word for word in words if word not in but]
    return rng.choices(free, [math.exp(-((MOOD[word] / SPREAD) ** 2) / 2) for word in free])[0]


def demonstration(topic: str, rng: random.Random) -> str:
    """A well-formed poem with words of any mood, mostly middling ones."""
    adjectives: list[str] = []
    for _ in range(LINES):
        adjectives.append(pick(ADJECTIVES, rng, adjectives))
    nouns = rng.sample(NOUNS[topic], LINES)
    verbs = [pick(VERBS, rng, []) for _ in range(LINES)]
    first = pick(ADVERBS, rng, [])
    sound = ADVERBS.index(first) % 2
    adverbs = [first, pick(ADVERBS, rng, []), pick(ADVERBS[sound::2], rng, [])]
    return " ".join(word for line in zip(adjectives, nouns, verbs, adverbs, strict=True) for word in line)


def is_well_formed(topic: str, poem: str) -> bool:
    """Whether a poem keeps all rules of the demonstrations."""
    words = poem.split()
    if len(words) != 4 * LINES:
        return False
    adjectives, nouns, verbs, adverbs = (words[place::4] for place in range(4))
    in_place = all(map(ADJECTIVES.__contains__, adjectives)) and all(map(VERBS.__contains__, verbs))
    if not in_place or not all(word in ADVERBS for word in adverbs):
        return False
    differ = len(set(adjectives)) == len(set(nouns)) == LINES and set(nouns) <= set(NOUNS[topic])
    return differ and (ADVERBS.index(adverbs[0]) - ADVERBS.index(adverbs[2])) % 2 == 0


MOOD_OF_ID = torch.tensor([MOOD.get(TOKENIZER.convert_ids_to_tokens(index), 0.0) for index in range(len(TOKENIZER))])


def rewards(tokens_BL: Tensor) -> Tensor:
    """The reward of each poem, [B], from its token ids."""
    return MOOD_OF_ID[tokens_BL].sum(-1) / (len(GRADED) * LINES)


def mood(poem: str) -> float:
    """The reward of a poem from its text."""
    return sum(MOOD.get(word, 0.0) for word in poem.split()) / (len(GRADED) * LINES)


def demonstrations(number: int, rng: random.Random) -> list[dict[str, str]]:
    topics = [rng.choice(list(TOPICS)) for _ in range(number)]
    return [{"prompt": topic, "completion": " " + demonstration(topic, rng)} for topic in topics]


def as_poem(text: str) -> str:
    """The words of a text in lines."""
    words = text.split()
    return "\n".join(" ".join(words[start : start + 4]) for start in range(0, len(words), 4))
