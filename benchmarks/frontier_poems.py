"""The base model and the rows of `frontier.py`, kept in files; what poems are measured by is `examples/poems.py`."""

import json
import random
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import set_seed

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from poems import COMMON, labelled, measured, model_config, prompts_of, sample, twice
from verses import TOKENIZER, demonstrations, rewards

from llada import LLaDAModelLM
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer

FOLDER = Path("runs/frontier")
SAMPLES = 2000  # of a policy, by which it is measured


def base_model() -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(FOLDER / "base").eval()


def train_base() -> None:
    set_seed(0)
    settings = MaskedDiffusionConfig(
        str(FOLDER / "sft"), max_steps=3000, per_device_train_batch_size=256, learning_rate=3e-3, warmup_steps=100,
        masks="exact_count", **COMMON,
    )  # fmt: skip
    rows = Dataset.from_list(demonstrations(60_000, random.Random(0)))
    trainer = MaskedDiffusionTrainer(
        LLaDAModelLM(model_config()), settings, train_dataset=rows, processing_class=TOKENIZER
    )
    trainer.train()
    trainer.model.save_pretrained(FOLDER / "base")


def score_base() -> None:
    """The rewards of the base model's own poems, from which the optimum follows."""
    base = base_model()
    poems_BL = sample(base, prompts_of(60_000, random.Random(1)), 0)
    save_file({"rewards": rewards(poems_BL)}, FOLDER / "base_rewards.safetensors")
    print(json.dumps(measured(base, base, SAMPLES)))


def pairs_of(base: LLaDAModelLM, number: int, seed: int, file: Path | None = None) -> list[dict[str, str]]:
    """Two poems for each prompt, and a label that is tossed; kept in the file, if any, for the other arms of a seed."""
    if file and file.exists():
        return json.loads(file.read_text())
    rng = random.Random(seed)
    prompts = twice(prompts_of(number, rng))
    rows = labelled(prompts, sample(base, prompts, seed), rng)
    if file:
        file.with_suffix(".new").write_text(json.dumps(rows))
        file.with_suffix(".new").replace(file)
    return rows


def best_samples(base: LLaDAModelLM, number: int, k: int, seed: int) -> list[dict[str, str]]:
    """The best of k poems for each prompt."""
    prompts = prompts_of(number, random.Random(seed))
    poems_BL = sample(base, [prompt for prompt in prompts for _ in range(k)], seed)
    best_B = rewards(poems_BL).view(number, k).argmax(1) + k * torch.arange(number)
    texts = TOKENIZER.batch_decode(poems_BL[best_B], skip_special_tokens=True)
    return [{"prompt": prompt, "completion": " " + text} for prompt, text in zip(prompts, texts, strict=True)]
