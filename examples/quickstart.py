"""Train and align a small LLaDA on a CPU in minutes: SFT, on-policy pairs, VRPO and the gain in accuracy.

    make quickstart            or            python examples/quickstart.py --seed 1

The task is column addition taught by demonstrations that are noisy by design (`addition.py`). The model is fine-tuned
on them, its own answers are checked by a program and paired, and VRPO makes it prefer the right ones. A control
continues SFT on the chosen answers of the same pairs for the same number of forward passes. All three are evaluated
greedily on prompts that appear in no demonstration and no pair.
"""

import argparse
import json
import logging
import random
import time
from pathlib import Path

import numpy as np
import torch
from addition import ANSWER_LENGTH, demonstration, is_held_out, is_right, prompts
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from quickstart_report import draw_report, print_report
from tqdm import tqdm
from transformers import TrainerCallback, set_seed

from llada import LLaDAConfig, LLaDAModelLM
from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import answers
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.rollouts import DIVERSE, pair_up

DEMONSTRATIONS, SFT_STEPS, SFT_BATCH = 40_000, 3000, 96
PAIR_PROMPTS, SAMPLES = 1000, 4
VRPO_STEPS, VRPO_BATCH, DRAWS = 60, 32, 4
HELD_OUT = 1000
# Sequences that VRPO forwards: chosen and rejected, DRAWS of each, through policy, reference and replay.
FORWARDS = VRPO_STEPS * VRPO_BATCH * 2 * DRAWS * 3
CONTROL_BATCH = 64
GREEDY = SamplerSettings(gen_length=ANSWER_LENGTH + 1, steps=16, block_length=ANSWER_LENGTH + 1)
# Two tokens a step at first, then one: the last tokens to be filled are those that depend on each other.
SAMPLED = SamplerSettings(gen_length=ANSWER_LENGTH + 1, steps=24, block_length=ANSWER_LENGTH + 1, **DIVERSE)
TOKENIZER = byte_tokenizer()


class Quiet(TrainerCallback):
    """Keeps the log lines for the report instead of printing them under the progress bar."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(logs | {"step": state.global_step})


def common(folder: Path, name: str, seed: int, **settings) -> dict:
    defaults = dict(
        output_dir=str(folder / name), seed=seed, use_cpu=True, report_to="none", save_strategy="no", max_length=48,
        logging_steps=5, dataloader_drop_last=True, weight_decay=0.0,
    )  # fmt: skip
    return defaults | settings


def train(trainer) -> list[dict[str, float]]:
    """Train with a progress bar only, and return the logged rows."""
    from transformers import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    quiet, bar = Quiet(), Bar()
    trainer.add_callback(quiet)
    trainer.add_callback(bar)
    trainer.train()
    return quiet.rows


class Bar(TrainerCallback):
    """A progress bar and nothing else."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc=f"{Path(args.output_dir).name:8}")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def is_right_on(model, held_out: list[str], name: str) -> np.ndarray:
    """Whether the greedy answer to each prompt is right, [prompts] bool."""
    model.eval()
    texts = answers(model, TOKENIZER, held_out, GREEDY, batch_size=250)
    texts = tqdm(texts, total=len(held_out), desc=f"{name:8}")
    return np.array([is_right({"prompt": p}, text) for p, text in zip(held_out, texts, strict=True)])


def bootstrap(difference: np.ndarray, seed: int, draws: int = 10_000) -> list[float]:
    """95% interval of the mean over prompts (percentiles of resampled means)."""
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), (draws, len(difference)))].mean(-1)
    return [float(value) for value in np.percentile(means, [2.5, 97.5])]


def copy_of(model: LLaDAModelLM) -> LLaDAModelLM:
    other = LLaDAModelLM(model.config)
    other.load_state_dict(model.state_dict())
    return other


def fine_tune(folder: Path, seed: int, rng: random.Random, held_out: list[str]):
    """SFT from scratch: model, log, what is right at 80% of the steps (to show convergence) and the prompts."""
    taught = [rng.choice(range(100, 1000)) for _ in range(2 * DEMONSTRATIONS)]
    rows = [f"{a}+{b}?" for a, b in zip(taught[::2], taught[1::2], strict=True)]
    rows = [{"prompt": p, "completion": demonstration(p, rng)} for p in rows if not is_held_out(p)]
    ids = special_ids(TOKENIZER)
    config = LLaDAConfig(
        d_model=96, n_layers=4, n_heads=4, mlp_hidden_size=256, max_sequence_length=64, rope_theta=100.0,
        vocab_size=len(TOKENIZER), mask_token_id=ids.mask, eos_token_id=ids.eos, pad_token_id=ids.pad,
        eot_token_id=ids.eot,
    )  # fmt: skip
    set_seed(seed)
    settings = common(
        folder, "sft", seed, max_steps=SFT_STEPS, per_device_train_batch_size=SFT_BATCH, learning_rate=3e-3,
        warmup_steps=100, lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2.0, "lr_end": 1e-6},
        masks="exact_count", adam_beta2=0.98,
    )  # fmt: skip
    trainer = MaskedDiffusionTrainer(
        LLaDAModelLM(config), MaskedDiffusionConfig(**settings), Dataset.from_list(rows), processing_class=TOKENIZER
    )
    early: list[np.ndarray] = []

    class Early(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == int(0.8 * SFT_STEPS):
                early.append(is_right_on(model, held_out, "sft 80%"))
                model.train()

    trainer.add_callback(Early())
    log = train(trainer)
    return trainer.model, log, early[0], {row["prompt"] for row in rows}


def sample_pairs(model, rng: random.Random, seed: int) -> list[dict]:
    """Sample answers of the model and pair right with wrong ones, at most two pairs of a prompt."""
    asked = prompts(PAIR_PROMPTS, rng, held_out=False)
    model.eval()
    sampled = answers(
        model, TOKENIZER, (p for p in asked for _ in range(SAMPLES)), SAMPLED, 240, torch.Generator().manual_seed(seed)
    )
    sampled = iter(tqdm(sampled, total=PAIR_PROMPTS * SAMPLES, desc="pairs   "))
    rows = []
    for prompt in asked:
        rows += pair_up({"prompt": prompt}, [next(sampled) for _ in range(SAMPLES)], is_right, most=2)
    return rows


def align(model, folder: Path, seed: int, pairs: list[dict], held_out_pairs: list[dict] | None = None, **changes):
    """Run VRPO on the pairs; return the trainer and its logged rows. `changes` are settings of `VRPOConfig`."""
    # The SFT term here is per sequence (0.05 of it), which is the response length times the per-token default.
    settings = common(
        folder, "vrpo", seed, max_steps=VRPO_STEPS, per_device_train_batch_size=VRPO_BATCH,
        gradient_accumulation_steps=1,
        learning_rate=5e-5, warmup_steps=10, lr_scheduler_type="linear", n_t=DRAWS,
        loss_weights=[1.0, 0.05 * (ANSWER_LENGTH + 1)], logging_steps=2,
    )  # fmt: skip
    trainer = VRPOTrainer(
        model, args=VRPOConfig(**settings | changes), train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(held_out_pairs) if held_out_pairs else None, processing_class=TOKENIZER,
    )  # fmt: skip
    return trainer, train(trainer)


def continue_sft(model, folder: Path, seed: int, pairs: list[dict]):
    """The control: continue SFT on the chosen answers for as many forward passes as VRPO takes."""
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    settings = common(
        folder, "control", seed, max_steps=FORWARDS // CONTROL_BATCH, per_device_train_batch_size=CONTROL_BATCH,
        learning_rate=2e-4, warmup_steps=10, lr_scheduler_type="linear", masks="exact_count",
    )  # fmt: skip
    trainer = MaskedDiffusionTrainer(
        model, MaskedDiffusionConfig(**settings), Dataset.from_list(rows), processing_class=TOKENIZER
    )
    train(trainer)
    return trainer.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/quickstart")
    args = parser.parse_args()
    folder, seed = Path(args.output), args.seed
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    seconds: dict[str, float] = {}

    def timed(name: str, work):
        start = time.perf_counter()
        result = work()
        seconds[name] = round(time.perf_counter() - start, 1)
        return result

    held_out = prompts(HELD_OUT, random.Random(12345), held_out=True)  # the same for every seed
    rng = random.Random(seed)
    sft, sft_log, early, taught = timed("sft", lambda: fine_tune(folder, seed, rng, held_out))
    right = {"sft": timed("evaluate sft", lambda: is_right_on(sft, held_out, "sft"))}
    pairs = timed("pairs", lambda: sample_pairs(sft, rng, seed))
    overlap = set(held_out) & (taught | {pair["prompt"] for pair in pairs})
    if overlap:
        raise RuntimeError(f"{len(overlap)} evaluation prompts were trained on, such as {overlap.pop()}")
    aligned, vrpo_log = timed("vrpo", lambda: align(copy_of(sft), folder, seed, pairs))
    vrpo = aligned.model
    right["vrpo"] = timed("evaluate vrpo", lambda: is_right_on(vrpo, held_out, "vrpo"))
    control = timed("control", lambda: continue_sft(copy_of(sft), folder, seed, pairs))
    right["control"] = timed("evaluate control", lambda: is_right_on(control, held_out, "control"))

    steps = [row for row in vrpo_log if "rewards/margins" in row]
    results = {
        "seed": seed,
        "prompts": HELD_OUT,
        "pairs": len(pairs),
        "forwards": FORWARDS,
        **{arm: {"accuracy": float(values.mean()), "ci95": bootstrap(values, seed)} for arm, values in right.items()},
        "improvement": versus(right["vrpo"], right["sft"], seed),
        "improvement_of_control": versus(right["control"], right["sft"], seed),
        "vrpo_over_control": versus(right["vrpo"], right["control"], seed),
        "sft_moved_in_last_fifth": float(right["sft"].mean() - early.mean()),
        "margin": steps[-1]["rewards/margins"],
        "score_variance": steps[-1]["score/variance"],
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    for name, model in (("sft_model", sft), ("model", vrpo)):
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    with open(folder / "pairs.jsonl", "w") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    print_report(results)
    draw_report(results, sft_log, steps, folder / "report.png")
    print(f"\nWritten: {folder}/results.json, report.png, pairs.jsonl, sft_model/, model/")


def versus(treated: np.ndarray, base: np.ndarray, seed: int) -> dict:
    """Mean difference over prompts and its paired bootstrap interval."""
    difference = treated.astype(float) - base.astype(float)
    return {"mean": float(difference.mean()), "ci95": bootstrap(difference, seed)}


if __name__ == "__main__":
    main()
