"""Poems of the base model and of policies (`verses.py`): sampled, labelled, and measured against the base model.

What the second half of the quickstart and `benchmarks/frontier.py` share.
"""

import math
import random
from collections.abc import Iterator

import torch
from torch import Tensor
from verses import LENGTH, SHARPNESS, TOKENIZER, TOPICS, is_well_formed, rewards

from llada import LLaDAConfig, LLaDAModelLM, generate
from llada.data.tokenizer import special_ids
from llada.diffusion.likelihood import elbo_draws
from llada.diffusion.masking import MaskDraws
from llada.sampling.settings import SamplerSettings
from vrpo.estimators.designs import design

COMMON: dict = dict(
    use_cpu=True, report_to="none", save_strategy="no", weight_decay=0.0, dataloader_drop_last=True, log_level="error",
    disable_tqdm=True, logging_strategy="no", eos_tail="1", max_length=32, max_grad_norm=1.0, adam_beta2=0.98,
    lr_scheduler_type="cosine",
)  # fmt: skip
COMPLEMENTARY = {"levels": "mirrored", "complementary": True}  # the design `cpl`
# One token a step in random order, which is the order that the ELBO is about: `measured` says how far such samples are
# from the base model's.
SAMPLER = SamplerSettings(
    gen_length=LENGTH, steps=LENGTH, block_length=LENGTH, temperature=1.0, remasking="random", stop_at_eos=False
)


def model_config(width: int = 64) -> LLaDAConfig:
    ids = special_ids(TOKENIZER)
    return LLaDAConfig(
        d_model=width, n_layers=3, n_heads=4, mlp_hidden_size=width * 43 // 16, max_sequence_length=32,
        rope_theta=100.0, vocab_size=len(TOKENIZER), mask_token_id=ids.mask, eos_token_id=ids.eos, pad_token_id=ids.pad,
    )  # fmt: skip


def prompts_of(number: int, rng: random.Random) -> list[str]:
    return [rng.choice(list(TOPICS)) for _ in range(number)]


def prompt_ids(prompts: list[str]) -> Tensor:
    """[B, 1], the token of each topic: what the trainers make of a prompt, too."""
    return torch.tensor(TOKENIZER(prompts, add_special_tokens=False)["input_ids"])


def sample(model: LLaDAModelLM, prompts: list[str], seed: int, batch: int = 2000) -> Tensor:
    """One poem for each prompt, [B, LENGTH] token ids, one token a step in random order."""
    generator = torch.Generator().manual_seed(seed)
    parts = prompt_ids(prompts).split(batch)
    return torch.cat([generate(model, part, settings=SAMPLER, generator=generator)[:, 1:] for part in parts])


def twice(prompts: list[str]) -> list[str]:
    """Each prompt two times in a row, for two samples of it."""
    return [prompt for prompt in prompts for _ in range(2)]


def labelled(prompts: list[str], poems_BL: Tensor, rng: random.Random) -> list[dict[str, str]]:
    """Pairs of the two samples of each prompt (`twice`) with labels that are tossed, as `verses` says.

    Samples that are equal or empty make no pair.
    """
    texts, reward_B = TOKENIZER.batch_decode(poems_BL, skip_special_tokens=True), rewards(poems_BL).tolist()
    rows = []
    for index in range(0, len(prompts), 2):
        first_is_chosen = rng.random() < 1 / (1 + math.exp(-SHARPNESS * (reward_B[index] - reward_B[index + 1])))
        chosen, rejected = (index, index + 1) if first_is_chosen else (index + 1, index)
        if texts[chosen] != texts[rejected] and texts[chosen] and texts[rejected]:
            sides = {"chosen": " " + texts[chosen], "rejected": " " + texts[rejected]}
            rows.append({"prompt": prompts[index]} | sides)
    return rows


@torch.no_grad()
def log_ratios(
    policy: LLaDAModelLM, base: LLaDAModelLM, prompts: list[str], poems_BL: Tensor, draws: int, seed: int
) -> Tensor:
    """ELBO of the policy minus that of the base model, [B] in nats, under the same complementary masks."""
    tokens_BL = torch.cat([prompt_ids(prompts), poems_BL], 1)
    response_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    response_BL[:, :1] = False
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    masks = design("vrpo", n_t=draws, **COMPLEMENTARY).draw(response_BL, generators)
    parts = zip(tokens_BL.split(500), split(masks, 500), strict=True)
    return torch.cat([(elbo_draws(policy, part, of) - elbo_draws(base, part, of)).mean(0) for part, of in parts])


def measured(policy: LLaDAModelLM, base: LLaDAModelLM, number: int, seed: int = 10_000) -> dict:
    """Reward, KL from the base model with its standard error, and the share of well-formed poems, of fresh samples."""
    policy.eval()
    prompts = prompts_of(number, random.Random(seed))
    poems_BL = sample(policy, prompts, seed)
    difference_B = log_ratios(policy, base, prompts, poems_BL, 8, seed)
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
