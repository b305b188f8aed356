"""Train and align a small LLaDA on a CPU in minutes: SFT, on-policy pairs, VRPO and the gain in accuracy.

    python examples/quickstart.py --seed 1                                     12 minutes on 2 cores
    make quickstart-short      or            python examples/quickstart.py --short      under 3 minutes
    make quickstart            the short run, and then poems: quickstart_poems.py

The task is column addition taught by demonstrations that are noisy by design (`addition.py`). The model is fine-tuned
on them, its own answers are checked by a program and paired, and VRPO makes it prefer the right ones. A control
continues SFT on the chosen answers of the same pairs for the same number of forward passes. All three are evaluated
greedily on prompts that appear in no demonstration and no pair. The short run does the same with sums of four figures.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from addition import ANSWER_LENGTH, carries, demonstration, is_held_out, is_right, prompts, random_prompt
from datasets import Dataset
from quickstart_report import compare_answers, draw_report, introduce, print_report
from quickstart_settings import FULL, SHORT, Size, set_threads
from quickstart_training import command, quieten, train
from tqdm import tqdm
from transformers import TrainerCallback, set_seed

from llada import LLaDAConfig, LLaDAModelLM
from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.intervals import Interval, proportion
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import answers
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.analysis.statistics import paired_difference
from vrpo.rollouts import DIVERSE, pair_up

GREEDY = SamplerSettings(gen_length=ANSWER_LENGTH + 1, steps=16, block_length=ANSWER_LENGTH + 1)
# Two tokens a step at first, then one: the last tokens to be filled are those that depend on each other.
SAMPLED = SamplerSettings(gen_length=ANSWER_LENGTH + 1, steps=24, block_length=ANSWER_LENGTH + 1, **DIVERSE)
TOKENIZER = byte_tokenizer()


def common(folder: Path, name: str, seed: int, **settings) -> dict:
    defaults = dict(
        output_dir=str(folder / name), seed=seed, use_cpu=True, report_to="none", log_level="error",
        save_strategy="no", max_length=48, logging_steps=5, dataloader_drop_last=True, weight_decay=0.0,
    )  # fmt: skip
    return defaults | settings


def greedy_answers(model, asked: list[str], name: str) -> list[str]:
    """The greedy answer to each prompt."""
    model.eval()
    texts = answers(model, TOKENIZER, asked, GREEDY, batch_size=250)
    return list(tqdm(texts, total=len(asked), desc=f"{name:8}"))


def are_right(asked: list[str], texts: list[str]) -> np.ndarray:
    """Whether the answer to each prompt is right, [prompts] bool."""
    return np.array([is_right({"prompt": prompt}, text) for prompt, text in zip(asked, texts, strict=True)])


def copy_of(model: LLaDAModelLM) -> LLaDAModelLM:
    other = LLaDAModelLM(model.config)
    other.load_state_dict(model.state_dict())
    return other


def fine_tune(folder: Path, seed: int, rng: random.Random, held_out: list[str], size: Size):
    """SFT from scratch: model, log, what is right at 80% of the steps (to show convergence) and the rows."""
    taught = [random_prompt(rng, size.figures) for _ in range(size.demonstrations)]
    rows = [{"prompt": p, "completion": demonstration(p, rng)} for p in taught if not is_held_out(p)]
    ids = special_ids(TOKENIZER)
    config = LLaDAConfig(
        d_model=96, n_layers=4, n_heads=4, mlp_hidden_size=256, max_sequence_length=64, rope_theta=100.0,
        vocab_size=len(TOKENIZER), mask_token_id=ids.mask, eos_token_id=ids.eos, pad_token_id=ids.pad,
        eot_token_id=ids.eot,
    )  # fmt: skip
    set_seed(seed)
    settings = common(
        folder, "sft", seed, max_steps=size.sft_steps, per_device_train_batch_size=size.sft_batch, learning_rate=3e-3,
        warmup_steps=min(100, size.sft_steps // 10), lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 2.0, "lr_end": 1e-6}, masks="exact_count", adam_beta2=0.98,
    )  # fmt: skip
    trainer = MaskedDiffusionTrainer(
        LLaDAModelLM(config), MaskedDiffusionConfig(**settings), train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )  # fmt: skip
    early: list[np.ndarray] = []

    class Early(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == int(0.8 * size.sft_steps):
                early.append(are_right(held_out, greedy_answers(model, held_out, "sft 80%")))
                model.train()

    trainer.add_callback(Early())
    log = train(trainer)
    return trainer.model, log, early[0], rows


def sample_pairs(model, rng: random.Random, seed: int, size: Size = FULL) -> list[dict]:
    """Sample answers of the model and pair right with wrong ones, at most two pairs of a prompt."""
    asked = prompts(size.pair_prompts, rng, held_out=False, figures=size.figures)
    model.eval()
    sampled = answers(
        model, TOKENIZER, (p for p in asked for _ in range(size.samples)), SAMPLED, 240,
        torch.Generator().manual_seed(seed),
    )  # fmt: skip
    sampled = iter(tqdm(sampled, total=size.pair_prompts * size.samples, desc="pairs   "))
    rows = []
    for prompt in asked:
        rows += pair_up({"prompt": prompt}, [next(sampled) for _ in range(size.samples)], is_right, most=2)
    return rows


def align(
    model, folder: Path, seed: int, pairs: list[dict], held_out_pairs: list[dict] | None = None, size: Size = FULL,
    page: bool = False, **changes,
):  # fmt: skip
    """Run VRPO on the pairs; return the trainer and its logged rows. `changes` are settings of `VRPOConfig`."""
    # The SFT term here is per sequence (0.05 of it), which is the response length times the per-token default.
    settings = common(
        folder, "vrpo", seed, max_steps=size.vrpo_steps, per_device_train_batch_size=size.vrpo_batch,
        gradient_accumulation_steps=1,
        learning_rate=size.vrpo_rate, warmup_steps=size.vrpo_steps // 6, lr_scheduler_type="linear", n_t=size.draws,
        loss_weights=[1.0, 0.05 * (ANSWER_LENGTH + 1)], logging_steps=2,
    )  # fmt: skip
    trainer = VRPOTrainer(
        model, args=VRPOConfig(**settings | changes), train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(held_out_pairs) if held_out_pairs else None, processing_class=TOKENIZER,
    )  # fmt: skip
    return trainer, train(trainer, page)


def continue_sft(model, folder: Path, seed: int, pairs: list[dict], size: Size):
    """The control: continue SFT on the chosen answers for as many forward passes as VRPO takes."""
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    batch = min(size.control_batch, len(rows))  # batches are whole, so a larger one would train on nothing
    settings = common(
        folder, "control", seed, max_steps=size.forwards // batch, per_device_train_batch_size=batch,
        learning_rate=2e-4, warmup_steps=10, lr_scheduler_type="linear", masks="exact_count",
    )  # fmt: skip
    trainer = MaskedDiffusionTrainer(
        model, MaskedDiffusionConfig(**settings), train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER
    )
    train(trainer)
    return trainer.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/quickstart")
    parser.add_argument("--short", action="store_true", help="a demonstration in under 3 minutes on 2 cores")
    args = parser.parse_args()
    folder, seed, size = Path(args.output), args.seed, SHORT if args.short else FULL
    folder.mkdir(parents=True, exist_ok=True)
    introduce(size, set_threads())
    quieten()
    results, shown, question, logs = run(folder, seed, size)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    compare_answers(shown)
    print_report(results)
    draw_report(results, *logs, folder / "report.png")
    print(f"\nWritten: {folder}/results.json, report.png, pairs.jsonl, sft_model/, model/")
    print(f"The page of the VRPO run, for a browser: {folder}/vrpo/report.html")
    print("Next, ask the aligned model, for example what only it has right:")
    print(f"    echo '{question}' | {command('llada')} chat --model {folder}/model --plain")


def run(folder: Path, seed: int, size: Size):
    """All stages; models and pairs are saved in the folder.

    Returns:
        The results that the report prints; {prompt: {arm: answer}} of a few prompts; a prompt that VRPO
        corrected; the logs of SFT and of VRPO.
    """
    seconds: dict[str, float] = {}

    def timed(name: str, work):
        start = time.perf_counter()
        result = work()
        seconds[name] = round(time.perf_counter() - start, 1)
        return result

    held_out = prompts(size.held_out, random.Random(12345), held_out=True, figures=size.figures)  # for every seed
    rng = random.Random(seed)
    sft, sft_log, early, taught = timed("sft", lambda: fine_tune(folder, seed, rng, held_out, size))
    answered = {"sft": timed("evaluate sft", lambda: greedy_answers(sft, held_out, "sft"))}
    pairs = timed("pairs", lambda: sample_pairs(sft, rng, seed, size))
    if len(pairs) < size.vrpo_batch:
        raise RuntimeError(f"{len(pairs)} pairs of right and wrong answers are less than a batch: try another --seed")
    overlap = set(held_out) & {row["prompt"] for row in [*taught, *pairs]}
    if overlap:
        raise RuntimeError(f"{len(overlap)} evaluation prompts were trained on, such as {overlap.pop()}")
    aligned, vrpo_log = timed("vrpo", lambda: align(copy_of(sft), folder, seed, pairs, size=size, page=True))
    vrpo = aligned.model
    answered["vrpo"] = timed("evaluate vrpo", lambda: greedy_answers(vrpo, held_out, "vrpo"))
    control = timed("control", lambda: continue_sft(copy_of(sft), folder, seed, pairs, size))
    answered["control"] = timed("evaluate control", lambda: greedy_answers(control, held_out, "control"))

    for name, model in (("sft_model", sft), ("model", vrpo)):
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
        GREEDY.save(folder / name)
    with open(folder / "pairs.jsonl", "w") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    right = {arm: are_right(held_out, texts) for arm, texts in answered.items()}
    shares = {arm: proportion(values) for arm, values in right.items()}
    steps = [row for row in vrpo_log if "rewards/margins" in row]
    results = {
        "seed": seed,
        "short": size.short,
        "prompts": size.held_out,
        "pairs": len(pairs),
        "forwards": size.forwards,
        "right_demonstrations": float(
            are_right([r["prompt"] for r in taught], [r["completion"] for r in taught]).mean()
        ),
        **{arm: {"accuracy": share.value, "ci95": [share.low, share.high]} for arm, share in shares.items()},
        "improvement": as_json(paired_difference(right["vrpo"], right["sft"])),
        "improvement_of_control": as_json(paired_difference(right["control"], right["sft"])),
        "vrpo_over_control": as_json(paired_difference(right["vrpo"], right["control"])),
        "sft_moved_in_last_fifth": float(right["sft"].mean() - early.mean()),
        "margin": steps[-1]["rewards/margins"],
        "score_variance": steps[-1]["score/variance"],
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
    }
    shown = {p: {arm: texts[held_out.index(p)] for arm, texts in answered.items()} for p in examples_of(held_out)}
    corrected = (p for p, was, now in zip(held_out, right["sft"], right["vrpo"], strict=True) if now and not was)
    return results, shown, next(corrected, held_out[0]), (sft_log, steps)


def examples_of(held_out: list[str]) -> list[str]:
    """The first two prompts with two carries and the first with one and with none."""
    return [
        p for number, most in ((2, 2), (1, 1), (0, 1)) for p in [p for p in held_out if carries(p) == number][:most]
    ]


def as_json(difference: Interval) -> dict:
    return {"mean": difference.value, "ci95": [difference.low, difference.high]}


if __name__ == "__main__":
    main()
