"""Files of runs that never were, as recipes write them: for tests of the page, and to look at it.

python tests/report_runs.py FOLDER
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

PAIRS = 64  # in a log line
LEVELS = [round(0.05 + 0.1 * bin, 2) for bin in range(10)]
EOS = "<|endoftext|>"


def preference_log(rng, steps: int, growth: float = 1.0, noise: float = 0.6, every: int = 1) -> list[dict]:
    """Log lines of a run whose margin grows to `growth`; `noise` is the standard deviation of a drawn score."""
    rows = []
    for step in range(0, steps + 1, every):
        done = step / steps
        margin, spread = growth * done, 0.8 * growth * done
        drawn = margin + rng.normal() * math.sqrt((spread**2 + noise**2 * done) / PAIRS)
        chosen = 0.35 * drawn + 0.02 * rng.normal()
        accuracy = 0.5 + 0.4 * math.tanh(margin) + 0.03 * rng.normal()
        if step:
            rows.append({
                "loss": math.log(2) - 0.3 * drawn + 0.02 * rng.normal(), "rewards/margins": drawn, "epoch": 3 * done,
                "rewards/chosen": chosen, "rewards/rejected": chosen - drawn, "rewards/accuracies": accuracy,
                "logps/chosen": -61 + chosen / 0.2, "logps/rejected": -64 + (chosen - drawn) / 0.2,
                "score/saturated": 0.02 * done, "score/variance": noise**2 * done * (1 + 0.1 * rng.normal()),
                "loss/bias": 0.1 * noise**2 * done, "masked_fraction": 0.5 + 0.01 * rng.normal(),
                "learning_rate": 2e-5 * min(1, 10 * done) * (1 - 0.9 * done), "grad_norm": 1 + rng.gamma(2, 0.2),
                "throughput/pairs_per_second": 3 + 0.1 * rng.normal(), "memory/peak_gib": 18.4,
                "throughput/tokens_per_second": 1500 + 40 * rng.normal(),
                "time/reference": 0.28, "time/policy": 0.66, "time/data": 0.02, "time/other": 0.04, "step": step,
            })  # fmt: skip
            if step % (20 * every) == 0:
                rows[-1] |= {"noise/estimator": 3.1, "noise/between": 2.2 + done, "noise/signal": 0.4,
                             "noise/estimator_share": 3.1 / (5.3 + done),
                             "noise/scale": (5.3 + done) / 0.4}  # fmt: skip
        if step % (steps // 8 // every * every or every) == 0:
            rows.append({
                "eval_loss": math.log(2) - 0.24 * margin, "eval_rewards/margins": 0.85 * margin, "step": step,
                "eval_rewards/margins_ci95": 0.05 + 0.1 * done, "eval_rewards/accuracies_ci95": 0.05,
                "eval_rewards/accuracies": 0.5 + 0.3 * math.tanh(margin), "eval_rewards/chosen": 0.3 * margin,
                "eval_rewards/rejected": -0.55 * margin,
            })  # fmt: skip
            rows.append({"step": step, "epoch": 3 * done} | {
                f"eval_timestep_{side}/{t}": 0.4 + 3.2 * t**1.5 - sign * done * 0.3 * t + 0.02 * rng.normal()
                for side, sign in (("chosen", 1), ("rejected", -0.6)) for t in LEVELS
            })  # fmt: skip
    return rows


def likelihood_log(rng, steps: int) -> list[dict]:
    """Log lines of SFT."""
    rows = []
    for step in range(steps + 1):
        mean = 1.3 + 2.2 * math.exp(-5 * step / steps)
        if step:
            rows.append({
                "loss": mean * rng.gamma(9, 1 / 9), "learning_rate": 1e-3 * (1 - step / steps), "step": step,
                "grad_norm": 0.6 + 0.1 * rng.gamma(2), "throughput/rows_per_second": 11 + rng.normal(),
                "memory/peak_gib": 2.1, "time/policy": 0.95, "time/data": 0.03, "time/other": 0.02,
            })  # fmt: skip
        if step % (steps // 4) == 0:
            bits = {"eval_bits_per_token": mean / math.log(2), "eval_bits_per_byte": mean / math.log(2) / 3.9}
            rows.append({"eval_loss": mean, "step": step} | bits)
            levels = {f"eval_timestep/{t}": (0.3 + 1.4 * t) * mean for t in LEVELS}
            rows.append({"step": step} | levels)
    return rows


def answer(rng, words: str, sure: float, length: int = 48) -> dict:
    """An answer with confidences and passes, filled up with EOS to its length."""
    texts = [word if index == 0 else f" {word}" for index, word in enumerate(words.split(" "))]
    texts = texts[:length] + [EOS] * (length - len(texts))
    order = np.argsort(np.arange(length) + 6 * rng.normal(size=length)).argsort()
    confidence = np.clip(rng.beta(8 * sure, 8 * (1 - sure), size=length), 0.01, 1)
    tokens = [
        {"text": text, "confidence": float(doubt), "order": int(place)}
        for text, doubt, place in zip(texts, confidence, order // 2, strict=True)
    ]
    return {"answer": words, "tokens": tokens}


QUESTION = "A baker sells 12 rolls at 0.50 each and 3 loaves at 4 each. How much does she take in?"
CASES = (
    (QUESTION, "She takes 12 * 0.5 = 6 for the rolls and 3 * 4 = 12 for the loaves, so 18 in all.\nA: 18",
     "Rolls: 12 * 0.5 = 6. Loaves: 3 + 4 = 7.\nA: 13", "She sells 12 rolls for 12 * 5 = 60 and 4 loaves for 7.\nA: 67",
     "She takes 12 * 0.5 = 6 for the rolls and 3 * 4 = 12 for 3 loaves, that is 18 in all.\nA: 18"),
    ("Write <script>alert(1)</script> & say what it does.", "It shows an alert.", "It is bold.",
     "It shows <b>bold</b> text in the page.", "It shows an <script>alert('answer')</script> alert in the page."),
)  # fmt: skip


def samples(rng, steps: int, pairs: bool = True) -> dict:
    """samples.json: two prompts before and after."""
    found = []
    for step, column, sure in ((0, 3, 0.55), (steps, 4, 0.85)):
        answers = [
            {"prompt": case[0], "given": case[1], "given_rejected": case[2] if pairs else None}
            | answer(rng, case[column], sure)
            for case in CASES
        ]
        found.append({"step": step, "answers": answers})
    settings = {"steps": 48, "gen_length": 48, "block_length": 48, "temperature": 0.0}
    return {"format": 1, "settings": settings, "samples": found}


def record(folder: Path, trainer: str, **options) -> dict:
    """run.json."""
    preference = trainer == "VRPOTrainer"
    defaults = {"output_dir": str(folder), "seed": 0, "max_steps": 200, "learning_rate": 2e-5, "max_grad_norm": 1.0,
                "warmup_steps": 20, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 16,
                "logging_steps": 1, "num_train_epochs": 3.0, "bf16": True}  # fmt: skip
    own = {"beta": 0.2, "estimator": "vrpo", "n_t": 8, "loss_type": ["sigmoid", "sft"]} if preference else {}
    options = defaults | own | options
    versions = {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.24.0", "trl": "1.16.1", "peft": "0.21.2",
                "accelerate": "1.15.0", "llada-vrpo": "0.1.0"}  # fmt: skip
    command = ["python", "recipes/align.py", "--config", "recipes/vrpo_llada_8b_lora.yaml", "--dataset_name",
               "my pairs.jsonl", "--output_dir", str(folder)]  # fmt: skip
    start = {"time": "2026-12-01T09:12:44+00:00", "step": 0, "command": command, "processes": 1,
             "device": "NVIDIA H200", "versions": versions}  # fmt: skip
    again = start | {"time": "2026-12-01T13:40:02+00:00", "step": 80, "command": [*command, "--resume", "true"]}
    estimator = {"design": options.get("estimator"), "n": options.get("n_t"), "n_t": options.get("n_t"), "n_yt": 1,
                 "beta": options.get("beta"), "loss": options.get("loss_type")}  # fmt: skip
    return {
        "format": 1, "trainer": trainer, "output_dir": str(folder), "starts": [start, again], "options": options,
        "changed": ["output_dir", "max_steps", "learning_rate", "bf16"],
        "model": {"base": "GSAI-ML/LLaDA-8B-Instruct", "parameters": 8_015_581_184, "trainable": 41_943_040,
                  "adapters": True, "context": 4096},
        "data": {"train": "my pairs.jsonl", "rows": 4096, "eval": "my pairs.jsonl", "eval_rows": 256},
        "estimator": estimator if preference else None,
    }  # fmt: skip


def variance_table() -> dict:
    """variance.json: the score of `vrpo` has variance 3.2 / n, that of `loo_complementary` a quarter."""

    def cell(value: float, spread: float = 1.2) -> dict:
        return {"value": value, "low": value / spread, "high": value * spread}

    def row(name: str, n: int, score: float) -> dict:
        found = {"name": name, "n": n, "n_t": n, "n_y": 1, "shared_masks": True, "biased": False, "gradient": None}
        cells = {"score": score, "loss": score / 4, "bias": score / 10, "saturated": 0.01, "flipped": 0.4 / n}
        return found | {key: cell(value) for key, value in (cells | {"reliability": 1 / (1 + score)}).items()}

    rows = [row("vrpo", n, 3.2 / n) for n in (1, 2, 4, 8, 16)]
    rows += [row("loo_complementary", n, 0.8 / n) for n in (2, 4, 8, 16)]
    parts = {"variance": 3.2, "count": 0.7, "pattern": 0.3}
    sources = {"L/l": {name: cell(value) for name, value in parts.items()}}
    return {"rows": rows, "split": None, "sources": sources, "doubling_ratios": []}


def write(folder: Path, log: list[dict], steps: int, done: int | None = None, **files) -> Path:
    """Write a run. done: the step of its newest checkpoint, of a run that was stopped; files: further ones as JSON."""
    state = {
        "global_step": done or steps,
        "max_steps": steps,
        "train_batch_size": 4,
        "logging_steps": 1,
        "num_train_epochs": 3,
    }
    state["log_history"] = [row for row in log if row["step"] <= (done or steps)]
    place = folder / f"checkpoint-{done}" if done else folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "trainer_state.json").write_text(json.dumps(state))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def preference_run(folder: Path, seed: int = 0, steps: int = 200, growth=1.0, noise=0.6, done=None, **options) -> Path:
    rng = np.random.default_rng([seed, round(100 * noise)])
    run = record(folder, "VRPOTrainer", seed=seed, max_steps=steps, **options)
    log = preference_log(rng, steps, growth * (1 + 0.06 * rng.normal()), noise)
    return write(folder, log, steps, done, run=run, samples=samples(rng, done or steps))


def likelihood_run(folder: Path, seed: int = 0, steps: int = 200) -> Path:
    rng = np.random.default_rng(seed)
    run = record(folder, "MaskedDiffusionTrainer", seed=seed, max_steps=steps)
    return write(folder, likelihood_log(rng, steps), steps, run=run, samples=samples(rng, steps, pairs=False))


def comparison_runs(folder: Path, steps: int = 200) -> list[Path]:
    """Three designs with three seeds each."""
    designs = (("vrpo", 0.5, 1.0), ("naive_dpo", 1.6, 0.5), ("loo_complementary", 0.35, 1.15))
    return [
        preference_run(folder / f"{name}-{seed}", seed, steps, noise=noise, growth=growth, estimator=name)
        for name, noise, growth in designs
        for seed in range(3)
    ]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (preference_run(target / "vrpo") / "variance").mkdir(exist_ok=True)
    (target / "vrpo" / "variance" / "variance.json").write_text(json.dumps(variance_table()))
    preference_run(target / "noisy", noise=1.6, growth=0.5, done=120, n_t=1)
    likelihood_run(target / "sft")
    comparison_runs(target)
