"""Does preference learning pay? Reward against distance from the base model, beside what is possible.

python benchmarks/frontier.py base                                    train the base model once (16 minutes of CPU)
python benchmarks/frontier.py run ARM [ARM ...] --seeds 0 1 2 [--rates 1e-3 ...] [--budget 0.25] [--save DIR]
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
import os
import time
from dataclasses import dataclass, field, replace
from statistics import mean, stdev

import torch
from datasets import Dataset
from frontier_poems import (
    COMMON,
    FOLDER,
    SAMPLES,
    TOKENIZER,
    base_model,
    best_samples,
    measured,
    pairs_of,
    score_base,
    train_base,
)
from poems import COMPLEMENTARY
from quickstart import copy_of
from safetensors.torch import load_file
from scipy import stats
from verses import SHARPNESS

from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.analysis.frontier import best_of, kl_efficiency, tilt

UNITS = 400_000
BETA = 0.5
TUNING_SEEDS = (100, 101)
BATCH = 64


@dataclass(frozen=True)
class Arm:
    """What is trained: `pairs` of two samples of a prompt, from which SFT takes the chosen ones.

    best_of: SFT on the best of so many samples in place of pairs. The budget says how often they are passed over.
    rounds: pairs and budget are split over so many rounds, whose pairs and reference are those of the policy so far.
    """

    kind: str  # "sft" or "vrpo"
    rates: tuple[float, ...]
    pairs: int = 2048
    best_of: int | None = None
    rounds: int = 1
    settings: dict = field(default_factory=dict)


def preference(rates=(3e-4, 1e-3, 3e-3), **settings) -> Arm:
    settings = dict(beta=BETA, loss_weights=[1.0, 0.0]) | settings
    pairs, rounds = settings.pop("pairs", 2048), settings.pop("rounds", 1)
    return Arm("vrpo", rates, pairs, rounds=rounds, settings=settings)


ARMS = {
    "sft": Arm("sft", (1e-4, 3e-4, 1e-3)),
    "sft best of 4": Arm("sft", (1e-4, 3e-4, 1e-3), best_of=4),
    "sft best of 16": Arm("sft", (1e-4, 3e-4, 1e-3), best_of=16),
    "naive_dpo": preference(estimator="naive_dpo"),
    "vrpo n=1": preference(n_t=1),
    "vrpo n=1, fresh pairs": preference(n_t=1, pairs=12_500),  # each is seen once at budget 0.25
    "vrpo n=1, hinge": preference(n_t=1, loss_type="hinge", loss_weights=[1.0]),  # linear up to its margin
    "vrpo n=2": preference(n_t=2),
    "vrpo n=4": preference(n_t=4),
    "vrpo n=8": preference(rates=(1e-3, 3e-3, 1e-2), n_t=8),  # an eighth of the steps of n = 1
    "vrpo n=64": preference(rates=(3e-3, 1e-2), n_t=64),
    "uncoupled n=2": preference(n_t=2, estimator_options={"shared_masks": False}),
    "cpl n=2": preference(estimator_options=COMPLEMENTARY, n_t=2),
    "cpl n=8": preference(estimator_options=COMPLEMENTARY, n_t=8),
    "loo n=4": preference(estimator="loo_complementary", n_t=4),
    "loo n=8": preference(rates=(1e-3, 3e-3, 1e-2), estimator="loo_complementary", n_t=8),
    "cpl n=2, three rounds": preference(estimator_options=COMPLEMENTARY, n_t=2, rounds=3),
    # Settings B and C of docs/notes/frontier.md
    "B, vrpo n=2": preference(n_t=2, pairs=512),
    "B, cpl n=2": preference(estimator_options=COMPLEMENTARY, n_t=2, pairs=512),
    "B, uncoupled n=2": preference(n_t=2, estimator_options={"shared_masks": False}, pairs=512),
    "B, vrpo n=8": preference(rates=(3e-3,), n_t=8, pairs=512),
    "C, vrpo n=1": preference(rates=(3e-4,), n_t=1, beta=0.02),
    "C, vrpo n=2": preference(rates=(3e-4,), n_t=2, beta=0.02),
    "C, cpl n=2": preference(rates=(3e-4,), estimator_options=COMPLEMENTARY, n_t=2, beta=0.02),
    "C, uncoupled n=2": preference(rates=(3e-4,), n_t=2, estimator_options={"shared_masks": False}, beta=0.02),
}
for name, arm in list(ARMS.items()):
    for beta in (0.75, 0.25, 0.125, 0.0625) if arm.kind == "vrpo" else ():
        ARMS[f"{name}, beta {beta}"] = replace(arm, settings=arm.settings | {"beta": beta})
for weight in (0.1, 1.0):  # of the SFT loss, which is a mean over tokens
    tuned = ARMS["vrpo n=1, beta 0.125"]
    settings = tuned.settings | {"loss_weights": [1.0, weight]}
    ARMS[f"vrpo n=1, beta 0.125, sft {weight}"] = replace(tuned, settings=settings)


def run(name: str, seed: int, rate: float, budget: float, save: str | None = None) -> dict:
    """Train an arm and measure it; with `save`, keep policy and tokenizer in that directory."""
    arm, base = ARMS[name], base_model()
    kept = FOLDER / f"pairs-{arm.pairs}-{seed}.json"
    begin = time.perf_counter()
    options: dict = COMMON | dict(
        output_dir=str(FOLDER / f"scratch-{os.getpid()}"), seed=seed, learning_rate=rate,
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=1,
    )  # fmt: skip
    units = budget * UNITS / BATCH
    if arm.kind == "sft":
        if arm.best_of:
            rows = best_samples(base, arm.pairs, arm.best_of, seed)
        else:
            pairs_P = pairs_of(base, arm.pairs, seed, kept)
            rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs_P]
        steps = int(units / 3)
        args = MaskedDiffusionConfig(**options, max_steps=steps, warmup_steps=steps // 10, masks="exact_count")
        trainer = MaskedDiffusionTrainer(
            copy_of(base), args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER
        )
        trainer.train()
        pairs, by_round = len(rows), [measured(trainer.model, base, SAMPLES)]
        policy = trainer.model
    else:
        draws = VRPOConfig(**options, max_steps=1, **arm.settings).design().n
        steps = int(units / (8 * draws * arm.rounds))
        args = VRPOConfig(**options, max_steps=steps, warmup_steps=steps // 10, variance_steps=0, **arm.settings)
        policy, pairs, by_round = base, 0, []
        for number in range(arm.rounds):
            file = kept if arm.rounds == 1 else None  # what is kept is of the base model
            rows = pairs_of(policy.eval(), arm.pairs // arm.rounds, seed + 1000 * number, file)
            trainer = VRPOTrainer(
                copy_of(policy), policy, args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER
            )
            trainer.train()
            policy, pairs = trainer.model, pairs + len(rows)
            by_round.append(measured(policy, base, SAMPLES))
    if save:
        policy.save_pretrained(save)
        TOKENIZER.save_pretrained(save)
    return {
        "arm": name, "seed": seed, "rate": rate, "budget": budget, "steps": steps, "pairs": pairs,
        **by_round[-1], **({"by_round": by_round} if arm.rounds > 1 else {}),
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
    parser.add_argument("--save", help="directory of the trained policy, for `python -m vrpo.variance`")
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
                found = run(name, seed, rate, args.budget, args.save)
                with open(file, "a") as out:
                    out.write(json.dumps(found) + "\n")
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
