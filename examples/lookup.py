"""A task made by code whose answers have entropy: a table looked up digit by digit, by a writer who slips now and then.

    prompt     47302816?
    answer     S4x T7m S3v U0k N2z T8b E1g S6w~

For each digit a mark, the digit and its letter in the table. A part is written well (mark S, T or N) or carelessly
(mark U, E or H; every second letter wrong), part by part: one part in ten of a careful answer slips, seven in ten of a
sloppy one, which has a longer tail too. So what is wrong with an answer is local, and a mark is one token, as words are
in a real vocabulary. `one_manner=True` makes all parts of an answer alike: then one visible mark tells all, and nearly
all of a preference lies in the masks that hide everything, the hard case for any estimator.
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
MARKS = {True: "STN", False: "UEH"}
DIGITS = 8
MAX_LENGTH = 80
VRPO_RATE = 6.5e-5  # 20 steps of it move the policy 6 to 10 nats of margin away from its reference


def answer(prompt: str, careful: bool, rng: random.Random, one_manner: bool = False) -> str:
    """An answer, about 34 characters."""
    slips = (not careful) if one_manner else (0.1 if careful else 0.7)
    parts = []
    for digit in prompt.removesuffix("?"):
        well = rng.random() >= slips
        wrong = not well and rng.random() < 0.5
        letter = rng.choice(TABLE.replace(TABLE[int(digit)], "")) if wrong else TABLE[int(digit)]
        parts.append(rng.choice(MARKS[well]) + digit + letter)
    return " ".join(parts) + "".join(rng.choices("!?~", k=rng.randint(0, 2) if careful else rng.randint(1, 5)))


def prompt(rng: random.Random) -> str:
    return "".join(rng.choices("0123456789", k=DIGITS)) + "?"


def demonstrations(number: int, rng: random.Random, one_manner: bool = False) -> list[dict[str, str]]:
    """Prompts and answers, four in ten of them sloppy."""
    asked = [prompt(rng) for _ in range(number)]
    return [{"prompt": text, "completion": answer(text, rng.random() >= 0.4, rng, one_manner)} for text in asked]


def preferences(number: int, rng: random.Random, one_manner: bool = False) -> list[dict[str, str]]:
    """Careful over sloppy, drawn apart for the same prompt."""
    sides = {"chosen": True, "rejected": False}
    return [
        {"prompt": text} | {side: answer(text, careful, rng, one_manner) for side, careful in sides.items()}
        for text in (prompt(rng) for _ in range(number))
    ]


def small_models(
    folder: Path, seed: int = 0, sft_steps: int = 500, vrpo_steps: int = 20, one_manner: bool = False
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
    rows = Dataset.from_list(demonstrations(20_000, rng, one_manner))
    trainer = MaskedDiffusionTrainer(LLaDAModelLM(config), sft, rows, processing_class=TOKENIZER)
    trainer.train()
    reference = LLaDAModelLM(config)
    reference.load_state_dict(trainer.model.state_dict())
    align = VRPOConfig(
        str(folder / "vrpo"), max_steps=vrpo_steps, per_device_train_batch_size=16, gradient_accumulation_steps=1,
        learning_rate=VRPO_RATE, warmup_steps=5, lr_scheduler_type="constant_with_warmup", n_t=4, **common,
    )  # fmt: skip
    pairs = Dataset.from_list(preferences(16 * vrpo_steps, rng, one_manner))
    VRPOTrainer(trainer.model, args=align, train_dataset=pairs, processing_class=TOKENIZER).train()
    return reference.eval(), trainer.model.eval()
