"""A task made by code whose answers have entropy: a table looked up digit by digit, in one of two manners.

    prompt     47302?
    careful    so 4=x, then 7=m, so 3=v, now 0=q, so 2=z.
    sloppy     um 4=x, eh 7=k, um 3=v, um 0=q, eh 2=z.!?~      other words, one to three wrong letters, a longer tail

Demonstrations are of both manners, so a model writes both; preferring the careful one changes its words, its letters
and its tail. Words and tails are random: their log-probabilities depend on what else is visible, which is what gives
an ELBO its variance.
"""

import random
from pathlib import Path

from transformers import set_seed

from llada import LLaDAConfig, LLaDAModelLM
from llada.tokenizer import byte_tokenizer, special_ids
from llada.trainer import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer

TOKENIZER = byte_tokenizer()
TABLE = "qkzvxjwmbf"
WORDS = {True: ("so", "then", "now"), False: ("um", "eh", "hm")}
DIGITS = 5
MAX_LENGTH = 80
VRPO_RATE = 5e-5  # 20 steps of it move the policy 6 to 10 nats of margin away from its reference


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


def small_models(
    folder: Path, seed: int = 0, sft_steps: int = 500, vrpo_steps: int = 20
) -> tuple[LLaDAModelLM, LLaDAModelLM]:
    """A reference fine-tuned on demonstrations and a policy aligned from it with VRPO: half a million parameters."""
    from datasets import Dataset

    rng, ids = random.Random(seed), special_ids(TOKENIZER)
    config = LLaDAConfig(
        d_model=96, n_layers=4, n_heads=4, mlp_hidden_size=256, max_sequence_length=MAX_LENGTH, rope_theta=100.0,
        vocab_size=len(TOKENIZER), mask_token_id=ids.mask, eos_token_id=ids.eos, pad_token_id=ids.pad,
        eot_token_id=ids.eot,
    )  # fmt: skip
    common = dict(use_cpu=True, report_to="none", save_strategy="no", weight_decay=0.0, dataloader_drop_last=True)
    common |= dict(seed=seed, logging_steps=50)
    set_seed(seed)
    sft = MaskedDiffusionConfig(
        str(folder / "sft"), max_steps=sft_steps, per_device_train_batch_size=64, learning_rate=2e-3, warmup_steps=50,
        lr_scheduler_type="cosine", masks="exact_count", adam_beta2=0.98, **common,
    )  # fmt: skip
    rows = Dataset.from_list(demonstrations(20_000, rng))
    trainer = MaskedDiffusionTrainer(LLaDAModelLM(config), sft, rows, processing_class=TOKENIZER)
    trainer.train()
    reference = LLaDAModelLM(config)
    reference.load_state_dict(trainer.model.state_dict())
    align = VRPOConfig(
        str(folder / "vrpo"), max_steps=vrpo_steps, per_device_train_batch_size=16, gradient_accumulation_steps=1,
        learning_rate=VRPO_RATE, warmup_steps=5, lr_scheduler_type="constant_with_warmup", n_t=4, **common,
    )  # fmt: skip
    pairs = Dataset.from_list(preferences(16 * vrpo_steps, rng))
    VRPOTrainer(trainer.model, args=align, train_dataset=pairs, processing_class=TOKENIZER).train()
    return reference.eval(), trainer.model.eval()
