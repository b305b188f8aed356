"""Poems of the base model and of policies: sampled, paired, and measured, for `frontier.py`."""

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import set_seed

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from verses import LENGTH, SHARPNESS, TOKENIZER, TOPICS, demonstrations, is_well_formed, rewards

from llada import LLaDAConfig, LLaDAModelLM, generate
from llada.data.tokenizer import special_ids
from llada.diffusion.likelihood import elbo_draws
from llada.diffusion.masking import MaskDraws
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo.estimators.designs import design

FOLDER = Path("runs/frontier")
SAMPLES = 2000  # of a policy, by which it is measured
COMMON: dict = dict(
    use_cpu=True, report_to="none", save_strategy="no", weight_decay=0.0, dataloader_drop_last=True, log_level="error",
    disable_tqdm=True, logging_strategy="no", eos_tail="1", max_length=32, max_grad_norm=1.0,
)  # fmt: skip
COMPLEMENTARY = {"levels": "mirrored", "complementary": True}  # the design `cpl`


def model_config() -> LLaDAConfig:
    ids = special_ids(TOKENIZER)
    return LLaDAConfig(
        d_model=64, n_layers=3, n_heads=4, mlp_hidden_size=172, max_sequence_length=32, rope_theta=100.0,
        vocab_size=len(TOKENIZER), mask_token_id=ids.mask, eos_token_id=ids.eos, pad_token_id=ids.pad,
    )  # fmt: skip


def base_model() -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(FOLDER / "base").eval()


def train_base() -> None:
    set_seed(0)
    settings = MaskedDiffusionConfig(
        str(FOLDER / "sft"), max_steps=3000, per_device_train_batch_size=256, learning_rate=3e-3, warmup_steps=100,
        lr_scheduler_type="cosine", masks="exact_count", adam_beta2=0.98, **COMMON,
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


def prompts_of(number: int, rng: random.Random) -> list[str]:
    return [rng.choice(list(TOPICS)) for _ in range(number)]


def prompt_ids(prompts: list[str]) -> Tensor:
    """[B, 1], the token of each topic: what the trainers make of a prompt, too."""
    return torch.tensor(TOKENIZER(prompts, add_special_tokens=False)["input_ids"])


def sample(model: LLaDAModelLM, prompts: list[str], seed: int, batch: int = 2000) -> Tensor:
    """One poem for each prompt, [B, LENGTH] token ids, one token a step in random order."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(gen_length=LENGTH, steps=LENGTH, block_length=LENGTH, temperature=1.0, remasking="random")
    found = [
        generate(model, part, generator=generator, stop_at_eos=False, **options)[:, 1:]
        for part in prompt_ids(prompts).split(batch)
    ]
    return torch.cat(found)


@torch.no_grad()
def measured(policy: LLaDAModelLM, base: LLaDAModelLM, number: int, seed: int = 10_000) -> dict:
    """Reward, KL from the base model with its standard error, and the share of well-formed poems, of fresh samples."""
    policy.eval()
    prompts = prompts_of(number, random.Random(seed))
    poems_BL = sample(policy, prompts, seed)
    tokens_BL = torch.cat([prompt_ids(prompts), poems_BL], 1)
    response_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    response_BL[:, :1] = False
    generators = [torch.Generator().manual_seed(seed + row) for row in range(number)]
    draws = design("vrpo", n_t=8, **COMPLEMENTARY).draw(response_BL, generators)
    difference_B = torch.cat(
        [
            (elbo_draws(policy, part, chunk) - elbo_draws(base, part, chunk)).mean(0)
            for part, chunk in zip(tokens_BL.split(500), split(draws, 500), strict=True)
        ]
    )
    reward_B = rewards(poems_BL)
    texts = TOKENIZER.batch_decode(poems_BL, skip_special_tokens=True)
    return {
        "reward": float(reward_B.mean()),
        "reward_error": float(reward_B.std() / number**0.5),
        "kl": float(difference_B.mean()),
        "kl_error": float(difference_B.std() / number**0.5),
        "well_formed": sum(map(is_well_formed, prompts, texts)) / number,
        "example": f"{prompts[0]}: {texts[0]}",
    }


def split(draws: MaskDraws, size: int) -> Iterator[MaskDraws]:
    """The masks of `size` sequences after another."""
    for masked, weight in zip(draws.masked_SBL.split(size, 1), draws.weight_SBL.split(size, 1), strict=True):
        yield MaskDraws(masked, weight)


def copy_of(model: LLaDAModelLM) -> LLaDAModelLM:
    other = LLaDAModelLM(model.config)
    other.load_state_dict(model.state_dict())
    return other


def pairs_of(base: LLaDAModelLM, number: int, seed: int, file: Path | None = None) -> list[dict[str, str]]:
    """Two poems for each prompt, and a label that is tossed; kept in the file, if any, for the other arms of a seed."""
    if file and file.exists():
        return json.loads(file.read_text())
    rng = random.Random(seed)
    prompts = [prompt for prompt in prompts_of(number, rng) for _ in range(2)]
    poems_BL = sample(base, prompts, seed)
    texts, reward_B = TOKENIZER.batch_decode(poems_BL, skip_special_tokens=True), rewards(poems_BL).tolist()
    rows = []
    for index in range(0, len(prompts), 2):
        first_is_chosen = rng.random() < 1 / (1 + math.exp(-SHARPNESS * (reward_B[index] - reward_B[index + 1])))
        chosen, rejected = (index, index + 1) if first_is_chosen else (index + 1, index)
        if texts[chosen] != texts[rejected] and texts[chosen] and texts[rejected]:
            sides = {"chosen": " " + texts[chosen], "rejected": " " + texts[rejected]}
            rows.append({"prompt": prompts[index]} | sides)
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
