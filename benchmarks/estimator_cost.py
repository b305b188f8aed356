"""Cost of loo_complementary relative to vrpo: time to draw masks and time of a training step, interleaved in one run.

python benchmarks/estimator_cost.py [--quick] [--json PATH]

Masks are drawn for n = 16 and 64 responses of 1,024 tokens on one core. Steps alternate between the designs, with a
model of width 256, 6 layers and a vocabulary of 32k, 2 pairs of prompt 64 and response 192, and n = 4. The ratio is
that of mean step times, with the 95% interval of a bootstrap over neighbouring pairs of steps. The redraw for the
logged variance is timed separately: it happens once in `variance_steps` (50) steps.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from llada import LLaDAConfig, LLaDAModelLM
from llada.data.tokenizer import byte_tokenizer
from llada.diffusion.random_streams import second_draw
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.estimators.designs import design, draw_for_pairs


def draw_seconds(name: str, repeats: int) -> float:
    """Fastest of several draws of the masks of a batch, seconds."""
    scored = torch.ones(64, 1024, dtype=torch.bool)
    times = []
    for repeat in range(repeats):
        start = time.perf_counter()
        draw_for_pairs(design(name, n_t=16), scored, list(range(32)), 0, repeat)
        times.append(time.perf_counter() - start)
    return min(times)


def trainers(folder: str) -> dict[str, VRPOTrainer]:
    """A trainer for each of the two designs, with the same initial model."""
    from datasets import Dataset

    config = LLaDAConfig(
        d_model=256, n_layers=6, n_heads=4, mlp_hidden_size=688, vocab_size=32_000, max_sequence_length=320,
        rope_theta=1e4, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261,
    )  # fmt: skip
    rows = [{"prompt": "q" * 60, "chosen": f"{i}a" * 95, "rejected": f"{i}b" * 95} for i in range(2)]
    found = {}
    for name in ("vrpo", "loo_complementary"):
        torch.manual_seed(0)
        args = VRPOConfig(
            folder, use_cpu=True, report_to="none", per_device_train_batch_size=2, gradient_accumulation_steps=1,
            estimator=name, n_t=4, variance_steps=0,
        )  # fmt: skip
        found[name] = VRPOTrainer(
            LLaDAModelLM(config), args=args, train_dataset=Dataset.from_list(rows), processing_class=byte_tokenizer()
        )
        found[name].current_gradient_accumulation_steps = 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 steps instead of 20")
    parser.add_argument("--json", help="write rows {name, value, unit, low, high} here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in ("vrpo", "loo_complementary"):
        milliseconds = 1000 * draw_seconds(name, 5 if args.quick else 20)
        print(f"masks of {name}, n = 16, 64 responses of 1,024 tokens: {milliseconds:.1f} ms")
        rows.append({"name": f"masks of {name}", "value": milliseconds, "unit": "ms", "low": None, "high": None})
    with tempfile.TemporaryDirectory() as folder:
        both = trainers(folder)
        batches = {name: next(iter(trainer.get_train_dataloader())) for name, trainer in both.items()}
        times: dict[str, list[float]] = {name: [] for name in both}
        for step in range((5 if args.quick else 20) + 1):
            for name, trainer in sorted(both.items(), reverse=bool(step % 2)):
                trainer.epoch_counter.epoch = step  # new masks: a step's time depends on how many tokens they mask
                start = time.perf_counter()
                trainer.training_step(trainer.model, batches[name])
                trainer.model.zero_grad()
                if step:  # the first step is a warm-up
                    times[name].append(time.perf_counter() - start)
        trainer, start = both["loo_complementary"], time.perf_counter()
        with torch.no_grad():
            trainer.scores(trainer.denoiser(trainer.model), batches["loo_complementary"], second_draw(0))
        redraw = time.perf_counter() - start
    both_T = torch.tensor([times["loo_complementary"], times["vrpo"]])
    drawn = torch.randint(both_T.shape[1], (2000, both_T.shape[1]), generator=torch.Generator().manual_seed(0))
    resampled = both_T[:, drawn].mean(-1)
    low, high = (resampled[0] / resampled[1]).quantile(torch.tensor([0.025, 0.975])).tolist()
    value = (both_T[0].mean() / both_T[1].mean()).item()
    seconds = torch.tensor(times["vrpo"]).median().item()
    print(f"step of loo_complementary over step of vrpo ({seconds:.2f} s): {value:.3f} [{low:.3f}, {high:.3f}]")
    print(f"redraw for the logged variance: {redraw / seconds:.2f} of a step, once in 50 steps")
    rows.append(
        {
            "name": "step of loo_complementary over step of vrpo",
            "value": value,
            "unit": "ratio",
            "low": low,
            "high": high,
        }
    )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
