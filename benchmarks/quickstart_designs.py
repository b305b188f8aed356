"""Does less variance give a better model? The quickstart's VRPO stage with `vrpo` and `loo_complementary`, n = 2.

python benchmarks/quickstart_designs.py --sft runs/quickstart/sft_model [--quick] [--json PATH]

Each run samples its own pairs from the fine-tuned model of `python examples/quickstart.py` and aligns it. It measures
accuracy on the held-out prompts, and margin, reward accuracy and the preference loss (with and without its SFT term) on
held-out pairs, with 64 draws of one design for both. Three learning rates for each design are compared on 2 seeds, by
accuracy (or by held-out preference loss: --by loss); the best of each then runs on 4 fresh seeds. Only those are in the
table: means and differences with Student's 95% intervals over seeds, all of which start from the same fine-tuned model.
--json writes one line for each run, and a run whose line exists is not repeated.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from datasets.utils.logging import disable_progress_bar
from quickstart import FULL, align, are_right, greedy_answers, prompts, sample_pairs

from llada import LLaDAModelLM
from vrpo.analysis.statistics import jackknife

DESIGNS, RATES = ("vrpo", "loo_complementary"), (5e-5, 1e-4, 2e-4)
CHOOSING, FRESH = (100, 101), (200, 201, 202, 203)
COLUMNS = ("accuracy", "margin", "reward_accuracy", "loss", "with_sft")


def one_run(sft: str, name: str, rate: float, seed: int, steps: int, folder: Path) -> dict:
    """Align the model with one design, rate and seed; return the run's settings and measurements."""
    model = LLaDAModelLM.from_pretrained(sft)
    pairs_file = folder / f"pairs{seed}.json"
    if not pairs_file.exists():
        pairs_file.write_text(json.dumps(sample_pairs(model, random.Random(seed), seed)))
    pairs = json.loads(pairs_file.read_text())
    asked = sorted({pair["prompt"] for pair in pairs})
    apart = set(asked[: len(asked) // 5])  # prompts are random, so the first in sorted order are a random fifth
    settings = dict(estimator=name, n_t=2, learning_rate=rate, max_steps=steps, variance_steps=0, eval_draws=64)
    trainer, _ = align(
        model, folder, seed, [p for p in pairs if p["prompt"] not in apart],
        [p for p in pairs if p["prompt"] in apart], **settings,
    )  # fmt: skip
    trained = trainer.evaluate()["eval_loss"]
    trainer.args.loss_type, trainer.args.loss_weights = ["sigmoid"], [1.0]  # the preference loss without its SFT term
    found = trainer.evaluate()
    held_out = prompts(FULL.held_out, random.Random(12345), held_out=True)
    return {
        "sft": sft, "design": name, "rate": rate, "seed": seed, "steps": steps, "pairs": len(pairs),
        "accuracy": float(are_right(held_out, greedy_answers(trainer.model, held_out, name)).mean()),
        "margin": found["eval_rewards/margins"],
        "reward_accuracy": found["eval_rewards/accuracies"],
        "loss": found["eval_loss"],
        "with_sft": trained,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sft", default="runs/quickstart/sft_model")
    parser.add_argument("--quick", action="store_true", help="4 steps, one rate, two seeds, to check that it runs")
    parser.add_argument("--by", choices=("accuracy", "loss"), default="accuracy", help="criterion to choose the rate")
    parser.add_argument("--json", type=Path, help="one JSON line for each run; continued if it exists")
    args = parser.parse_args()
    rates, choosing, fresh = ((5e-5,), (100,), (200, 201)) if args.quick else (RATES, CHOOSING, FRESH)
    steps = 4 if args.quick else 60
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    done: dict[tuple, dict] = {}
    if args.json and args.json.exists():
        for row in map(json.loads, args.json.read_text().splitlines()):
            done[row["sft"], row["design"], row["rate"], row["seed"], row["steps"]] = row

    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, rate: float, seed: int) -> dict:
            key = (args.sft, name, rate, seed, steps)
            if key not in done:
                done[key] = one_run(*key, Path(folder))
                if args.json:
                    with open(args.json, "a") as file:
                        file.write(json.dumps(done[key]) + "\n")
            return done[key]

        columns: dict[str, torch.Tensor] = {}
        for name in DESIGNS:
            found = {rate: sum(run(name, rate, seed)[args.by] for seed in choosing) for rate in rates}
            best = (min if args.by == "loss" else max)(found, key=found.__getitem__)
            rows = [run(name, best, seed) for seed in fresh]
            columns[name] = torch.tensor([[row[column] for column in COLUMNS] for row in rows], dtype=torch.float64)
            print(
                f"{name}: learning rate {best} by {args.by}",
                {rate: round(value / len(choosing), 4) for rate, value in found.items()},
            )
    columns["loo_complementary - vrpo"] = columns["loo_complementary"] - columns["vrpo"]
    for name, values_RC in columns.items():
        found = (f"{column} {jackknife(torch.mean, values_RC[:, c])}" for c, column in enumerate(COLUMNS))
        print(f"{name:12}", *found, sep="  ")


if __name__ == "__main__":
    main()
