"""Does preference learning pay? Reward against distance from the base model, beside what is possible.

python benchmarks/frontier.py base                                    train the base model once (16 minutes of CPU)
python benchmarks/frontier.py run ARM [ARM ...] --seeds 0 1 2 [--rates 1e-3 ...] [--budget 0.25]
python benchmarks/frontier.py table

The task is `examples/verses.py`. Each run writes one line to runs/frontier/runs.jsonl, and is skipped if its line is
there. A seed has its own pairs, training order and masks; the base model is the same for all. Cost is counted in units:
the forward pass of one response for one draw. A response costs VRPO 4 n of them (policy, reference, twice for the
backward pass), SFT 3; a run spends `--budget` times 400,000.

KL(policy || base) is that of sampling one token a step in random order, which is how poems are sampled here: the mean
over the policy's own samples of the difference of the two ELBOs, each over the order. It is an upper bound of the KL of
the poems alone.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor
from transformers import set_seed

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from verses import LENGTH, SHARPNESS, TOKENIZER, TOPICS, demonstrations, is_well_formed, rewards

from llada import LLaDAConfig, LLaDAModelLM, generate
from llada.data.tokenizer import special_ids
from llada.diffusion.likelihood import elbo_draws
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.analysis.frontier import best_of, kl_efficiency, tilt
from vrpo.estimators.designs import design

FOLDER = Path("runs/frontier")
UNITS = 400_000
SAMPLES = 2000  # of a policy, by which it is measured
BETA = 0.5
TUNING_SEEDS = (100, 101)
BATCH = 64
COMMON: dict = dict(
    use_cpu=True, report_to="none", save_strategy="no", weight_decay=0.0, dataloader_drop_last=True, log_level="error",
    disable_tqdm=True, logging_strategy="no", eos_tail="1", max_length=32, max_grad_norm=1.0,
)  # fmt: skip


COMPLEMENTARY = {"levels": "mirrored", "complementary": True}  # the design `cpl`


@dataclass(frozen=True)
class Arm:
    """What is trained: `pairs` of two samples of a prompt, from which SFT takes the chosen ones.

    best_of: SFT on the best of so many samples in place of pairs. The budget says how often they are passed over.
    """

    kind: str  # "sft" or "vrpo"
    rates: tuple[float, ...]
    pairs: int = 2048
    best_of: int | None = None
    settings: dict = field(default_factory=dict)


def preference(rates=(3e-4, 1e-3, 3e-3), **settings) -> Arm:
    settings = dict(beta=BETA, loss_weights=[1.0, 0.0]) | settings
    pairs = settings.pop("pairs", 2048)
    return Arm("vrpo", rates, pairs, settings=settings)


ARMS = {
    "sft": Arm("sft", (1e-4, 3e-4, 1e-3)),
    "sft best of 4": Arm("sft", (1e-4, 3e-4, 1e-3), best_of=4),
    "sft best of 16": Arm("sft", (1e-4, 3e-4, 1e-3), best_of=16),
    "naive_dpo": preference(estimator="naive_dpo"),
    "vrpo n=1": preference(n_t=1),
    "vrpo n=1, fresh pairs": preference(n_t=1, pairs=12_500),  # each is seen once at budget 0.25
    "vrpo n=1, hinge": preference(n_t=1, loss_type="hinge", loss_weights=[1.0]),  # linear up to its margin
    "vrpo n=2": preference(n_t=2),
    "vrpo n=8": preference(rates=(1e-3, 3e-3, 1e-2), n_t=8),  # an eighth of the steps of n = 1
    "cpl n=2": preference(estimator_options=COMPLEMENTARY, n_t=2),
    "cpl n=8": preference(estimator_options=COMPLEMENTARY, n_t=8),
}


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


def split(draws, size: int):
    for masked, weight in zip(draws.masked_SBL.split(size, 1), draws.weight_SBL.split(size, 1), strict=True):
        yield type(draws)(masked, weight)


def copy_of(model: LLaDAModelLM) -> LLaDAModelLM:
    other = LLaDAModelLM(model.config)
    other.load_state_dict(model.state_dict())
    return other


def pairs_of(base: LLaDAModelLM, number: int, seed: int) -> list[dict[str, str]]:
    """Two poems for each prompt, and a label that is tossed; kept in a file for the other arms of a seed."""
    file = FOLDER / f"pairs-{number}-{seed}.json"
    if file.exists():
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


def run(name: str, seed: int, rate: float, budget: float) -> dict:
    """Train an arm and measure it."""
    arm, base = ARMS[name], base_model()
    begin = time.perf_counter()
    options: dict = COMMON | dict(
        output_dir=str(FOLDER / f"scratch-{os.getpid()}"), seed=seed, learning_rate=rate, lr_scheduler_type="cosine",
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, adam_beta2=0.98,
    )  # fmt: skip
    units = budget * UNITS / BATCH
    if arm.kind == "sft":
        if arm.best_of:
            rows = best_samples(base, arm.pairs, arm.best_of, seed)
        else:
            rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs_of(base, arm.pairs, seed)]
        steps = int(units / 3)
        args = MaskedDiffusionConfig(**options, max_steps=steps, warmup_steps=steps // 10, masks="exact_count")
        trainer = MaskedDiffusionTrainer(
            copy_of(base), args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER
        )
    else:
        rows = pairs_of(base, arm.pairs, seed)
        draws = VRPOConfig(**options, max_steps=1, **arm.settings).design().n
        steps = int(units / (8 * draws))
        args = VRPOConfig(**options, max_steps=steps, warmup_steps=steps // 10, variance_steps=0, **arm.settings)
        trainer = VRPOTrainer(
            copy_of(base), base, args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER
        )
    trainer.train()
    found = measured(trainer.model, base_model(), SAMPLES)
    return {
        "arm": name, "seed": seed, "rate": rate, "budget": budget, "steps": steps, "pairs": len(rows), **found,
        "seconds": round(time.perf_counter() - begin, 1),
    }  # fmt: skip


def objective(row: dict) -> float:
    """What DPO's optimum maximizes: E[r] - (beta / g) KL, with the beta of `preference`."""
    return row["reward"] - BETA / SHARPNESS * row["kl"]


def table() -> None:
    """For each arm, the rate that is best on the tuning seeds, and intervals over the other seeds at that rate."""
    rows = [json.loads(line) for line in (FOLDER / "runs.jsonl").read_text().splitlines()]
    base_rewards = load_file(FOLDER / "base_rewards.safetensors")["rewards"]
    best = tilt(base_rewards, SHARPNESS / BETA)
    print(f"base: reward {base_rewards.mean():.3f}, deviation {base_rewards.std():.3f}, {len(base_rewards)} samples")
    print(f"optimum: reward {best.reward:.3f}, KL {best.kl:.2f}, effective samples {best.effective:.0f}")
    for k in (1, 2, 4, 16, 64):
        print(f"best of {k}: reward {best_of(base_rewards, k).reward:.3f}, KL {best_of(base_rewards, k).kl:.2f}")
    print("arm | budget | rate | seeds | reward | KL | efficiency | share of the optimum's objective | well-formed")
    for name, budget in dict.fromkeys((row["arm"], row["budget"]) for row in rows):
        mine = [row for row in rows if (row["arm"], row["budget"]) == (name, budget)]
        tuning = [row for row in mine if row["seed"] in TUNING_SEEDS]
        rates = sorted({row["rate"] for row in mine})
        score = {rate: mean(objective(row) for row in tuning if row["rate"] == rate) for rate in rates if tuning}
        rate = max(score, key=lambda rate: score[rate]) if score else rates[0]
        for seeds, chosen in (("tuning", tuning), ("fresh", [row for row in mine if row not in tuning])):
            final = [row for row in chosen if row["rate"] == rate]
            if final:
                columns = [over_seeds([row[key] for row in final]) for key in ("reward", "kl")]
                columns.append(over_seeds([kl_efficiency(base_rewards, row["reward"], row["kl"]) for row in final]))
                share = over_seeds([objective(row) / (best.reward - BETA / SHARPNESS * best.kl) for row in final])
                well = over_seeds([row["well_formed"] for row in final])
                print(" | ".join([name, f"{budget:g}", f"{rate:g}", f"{len(final)} {seeds}", *columns, share, well]))


def over_seeds(values: list[float | None]) -> str:
    """A mean with its 95% interval over seeds; a dash where a value is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    half = float(stats.t.ppf(0.975, len(known) - 1)) * stdev(known) / len(known) ** 0.5
    return f"{mean(known):.3f} +- {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["base", "run", "table"])
    parser.add_argument("arms", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rates", type=float, nargs="+")
    parser.add_argument("--budget", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.command == "base":
        if not (FOLDER / "base").exists():
            train_base()
        score_base()
        return
    if args.command == "table":
        table()
        return
    file = FOLDER / "runs.jsonl"
    for name in args.arms:
        for seed in args.seeds:
            for rate in args.rates or ARMS[name].rates:
                done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
                key = {"arm": name, "seed": seed, "rate": rate, "budget": args.budget}
                if any(key.items() <= row.items() for row in done):
                    continue
                found = run(name, seed, rate, args.budget)
                with open(file, "a") as out:
                    out.write(json.dumps(found) + "\n")
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
