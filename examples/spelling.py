"""A synthetic task whose answers have high entropy: digits spelled out by careful and sloppy writers.

    prompt    4730168?
    careful   four seven thRee zero one six eight
    sloppy    FoUr seVeN ThReE zerO TWo sIx eIGht

A careful answer has one letter in ten capitalised and no wrong word; a sloppy one has every second letter capitalised
and one word in four wrong. Four demonstrations in ten are sloppy; pairs prefer careful over sloppy. So a preference is
spread over most tokens. With `one_manner=True` all letters of an answer are small or all are capital: one visible
letter reveals which, and most of a preference lies in fully masked draws, the hard case for estimators.
"""

import random
from pathlib import Path

from transformers import set_seed

from llada import LLaDAConfig, LLaDAModelLM
from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer

TOKENIZER = byte_tokenizer()
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = 7
MAX_LENGTH = 64
COMMON: dict = dict(use_cpu=True, report_to="none", save_strategy="no", weight_decay=0.0, dataloader_drop_last=True)
COMMON |= dict(logging_steps=50)
VRPO_RATE = 3e-5  # 20 steps at this rate move the policy 6 to 10 nats of margin away from its reference


def prompt(rng: random.Random) -> str:
    return "".join(rng.choices("0123456789", k=DIGITS)) + "?"


def answer(prompt: str, careful: bool, rng: random.Random, one_manner: bool = False) -> str:
    """An answer, about 34 characters."""
    capitals = (0.0 if careful else 1.0) if one_manner else (0.1 if careful else 0.5)
    words = [
        rng.choice(WORDS) if not careful and rng.random() < 0.25 else WORDS[int(digit)]
        for digit in prompt.removesuffix("?")
    ]
    return "".join(letter.upper() if rng.random() < capitals else letter for letter in " ".join(words))


def demonstrations(number: int, rng: random.Random, one_manner: bool = False) -> list[dict[str, str]]:
    """Prompts and answers, four in ten of them sloppy."""
    asked = [prompt(rng) for _ in range(number)]
    return [{"prompt": text, "completion": answer(text, rng.random() >= 0.4, rng, one_manner)} for text in asked]


def preferences(number: int, rng: random.Random, one_manner: bool = False) -> list[dict[str, str]]:
    """Careful over sloppy answers, drawn independently for the same prompt."""
    sides = {"chosen": True, "rejected": False}
    return [
        {"prompt": text} | {side: answer(text, careful, rng, one_manner) for side, careful in sides.items()}
        for text in (prompt(rng) for _ in range(number))
    ]


def fine_tuned(folder: Path, seed: int, one_manner: bool, steps: int) -> LLaDAModelLM:
    """A model of half a million parameters after SFT on demonstrations."""
    from datasets import Dataset

    ids = special_ids(TOKENIZER)
    config = LLaDAConfig(
        d_model=96, n_layers=4, n_heads=4, mlp_hidden_size=256, max_sequence_length=MAX_LENGTH, rope_theta=100.0,
        vocab_size=len(TOKENIZER), mask_token_id=ids.mask, eos_token_id=ids.eos, pad_token_id=ids.pad,
        eot_token_id=ids.eot,
    )  # fmt: skip
    set_seed(seed)
    settings = MaskedDiffusionConfig(
        str(folder / "sft"), max_steps=steps, per_device_train_batch_size=64, learning_rate=2e-3, warmup_steps=50,
        lr_scheduler_type="cosine", masks="exact_count", adam_beta2=0.98, **COMMON, seed=seed,
    )  # fmt: skip
    rows = Dataset.from_list(demonstrations(20_000, random.Random(seed), one_manner))
    trainer = MaskedDiffusionTrainer(LLaDAModelLM(config), settings, train_dataset=rows, processing_class=TOKENIZER)
    trainer.train()
    return trainer.model.eval()


def aligned(reference: LLaDAModelLM, folder: Path, seed: int, one_manner: bool, rate: float = VRPO_RATE):
    """A policy after 20 steps of VRPO from the reference, on 320 pairs."""
    from datasets import Dataset

    policy = LLaDAModelLM(reference.config)
    policy.load_state_dict(reference.state_dict())
    settings = VRPOConfig(
        str(folder / "vrpo"), max_steps=20, per_device_train_batch_size=16, gradient_accumulation_steps=1,
        learning_rate=rate, warmup_steps=5, lr_scheduler_type="constant_with_warmup", n_t=4, **COMMON, seed=seed,
    )  # fmt: skip
    pairs = Dataset.from_list(preferences(320, random.Random(seed + 1), one_manner))
    VRPOTrainer(policy, reference, settings, train_dataset=pairs, processing_class=TOKENIZER).train()
    return policy.eval()


def small_models(
    folder: Path, seed: int = 0, one_manner: bool = False, sft_steps: int = 200
) -> tuple[LLaDAModelLM, LLaDAModelLM]:
    """Reference and policy, for measurements. After 200 steps the reference writes words; by 500 it has converged."""
    reference = fine_tuned(folder, seed, one_manner, sft_steps)
    return reference, aligned(reference, folder, seed, one_manner)
