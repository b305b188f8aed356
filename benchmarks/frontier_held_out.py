"""Held-out loss and margin of arms of `frontier.py`, scored with 64 draws.

    python benchmarks/frontier_held_out.py ARM [ARM ...] --seeds 0 1 2 3 4 5 --rate 1e-3 --budget 0.25

Each arm is trained again, and scored on 256 pairs of the base model's poems that no run trains on, under the same
masks for all. The loss is DPO's at beta 0.5, whatever the arm's own. Lines go to runs/frontier/held_out.jsonl; an arm
and seed that are there are skipped. `table` in place of arms prints means with 95% intervals over seeds, and
differences from the first arm.
"""

import argparse
import json
import math

import torch
import torch.nn.functional as F
from frontier import BETA, over_seeds, run
from frontier_poems import FOLDER, TOKENIZER, base_model, pairs_of
from poems import log_ratios
from verses import LENGTH

from llada import LLaDAModelLM
from vrpo.scores import PairScores

PAIRS, DRAWS, SEED = 256, 64, 9_999
KEYS = ("loss", "margin", "accuracy", "reward", "kl")


def held_out(policy: LLaDAModelLM, base: LLaDAModelLM) -> dict[str, float]:
    """Mean loss, margin in nats and share of positive margins of the held-out pairs."""
    rows = pairs_of(base, PAIRS, SEED, FOLDER / f"pairs-{PAIRS}-{SEED}.json")
    poems = [row[side] for side in ("chosen", "rejected") for row in rows]
    ids = TOKENIZER(poems, add_special_tokens=False, padding="max_length", max_length=LENGTH, return_tensors="pt")
    prompts = [row["prompt"] for row in rows] * 2
    margin_P = PairScores.split(log_ratios(policy, base, prompts, ids["input_ids"], DRAWS, SEED)).margin
    return {
        "loss": float(-F.logsigmoid(BETA * margin_P).mean()),
        "margin": float(margin_P.mean()),
        "accuracy": float((margin_P > 0).double().mean()),
    }


def table(rows: list[dict]) -> None:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    of = {arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in arms}
    print("arm | seeds | " + " | ".join(KEYS) + " | loss over the first arm's")
    for arm in arms:
        both = sorted(of[arm].keys() & of[arms[0]].keys())
        apart = over_seeds([of[arm][seed]["loss"] - of[arms[0]][seed]["loss"] for seed in both])
        cells = [over_seeds([row[key] for row in of[arm].values()]) for key in KEYS]
        print(" | ".join([arm, str(len(of[arm])), *cells, apart]))
    print(f"loss without training {math.log(2):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+", help="or: table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--budget", type=float, default=0.25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = FOLDER / "held_out.jsonl"
    for name in args.arms if args.arms != ["table"] else []:
        for seed in args.seeds:
            done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            key = {"arm": name, "seed": seed, "rate": args.rate, "budget": args.budget}
            if any(key.items() <= row.items() for row in done):
                continue
            folder = FOLDER / f"policy-{name}-{seed}"
            found = run(name, seed, args.rate, args.budget, str(folder))
            found |= held_out(LLaDAModelLM.from_pretrained(folder).eval(), base_model())
            with open(file, "a") as out:
                out.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)
    if args.arms == ["table"]:
        table([json.loads(line) for line in file.read_text().splitlines()])


if __name__ == "__main__":
    main()
