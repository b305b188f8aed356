"""Held-out loss against compute: four sizes of an autoregressive model and of a LLaDA, trained on the same bytes.

    python examples/scaling.py --data FILE.txt        (3 seeds, 24 runs; the time that they took is in docs/results.md)

Both kinds are the same transformer (config field `causal`). A run sees each of its bytes once, and all models of a seed
have the same bytes. Windows begin with BOS, so that both kinds are scored on all bytes. Compute is 6 N D operations: N
parameters without embedding and head, D bytes. LLaDA's loss is a bound on its negative log-likelihood, the mean of 8
masks of each held-out window; that of the autoregressive model is exact. (LLaDA, arXiv 2502.09992, section 3.2,
compares the two by benchmark accuracy.)

Without --data the text is made up: the poems of `verses.py`. Lines go to runs/scaling/rows.jsonl, one for each run; a
run that is there is skipped. Then follow a table, the slopes of log loss over log operations, and a picture.
"""

import argparse
import itertools
import json
import random
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from verses import demonstrations

from llada import LLaDAConfig, LLaDAModelLM
from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.intervals import Interval
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo.analysis.statistics import jackknife

FOLDER = Path("runs/scaling")
TOKENIZER = byte_tokenizer()
IDS = special_ids(TOKENIZER)
SIZES = {"XS": (32, 2), "S": (48, 2), "M": (64, 3), "L": (96, 4)}  # width and layers
WINDOW, BATCH, STEPS, HELD_OUT = 64, 16, 512, 256  # bytes; windows of a step; steps; held-out windows
KINDS = {"autoregressive": True, "LLaDA": False}
RATE = 6e-3  # learning rate at a width of 32; it falls with the width


def poems() -> str:
    """A text for those who have none at hand, 0.9 MB."""
    return "\n".join(f"{row['prompt']}:{row['completion']}" for row in demonstrations(9_000, random.Random(0)))


def windows(text: str) -> list[list[int]]:
    """The bytes of a text in rows of `WINDOW`, each after BOS; the end of the text that fills none is left out."""
    lines = TOKENIZER(text.splitlines(keepends=True), add_special_tokens=False)["input_ids"]
    tokens = list(itertools.chain.from_iterable(lines))
    bos = TOKENIZER.bos_token_id
    return [[bos, *tokens[start : start + WINDOW]] for start in range(0, len(tokens) - WINDOW + 1, WINDOW)]


def divided(text: str, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """The windows that a run trains on, a random choice of the first nine tenths, and held-out ones from the rest.

    Raises:
        ValueError: the text is too short.
    """
    rows = windows(text)
    split = len(rows) * 9 // 10
    wanted = STEPS * BATCH
    if split < wanted:
        raise ValueError(f"--data has {len(rows)} windows of {WINDOW} bytes; needed are {-(-wanted * 10 // 9)}")
    held_out = rows[split:]
    return random.Random(seed).sample(rows[:split], wanted), held_out[:: max(1, len(held_out) // HELD_OUT)][:HELD_OUT]


def new_model(size: str, causal: bool) -> LLaDAModelLM:
    width, layers = SIZES[size]
    return LLaDAModelLM(LLaDAConfig(
        d_model=width, n_layers=layers, n_heads=2, mlp_hidden_size=width * 8 // 3 // 8 * 8, rope_theta=1e4,
        max_sequence_length=WINDOW + 1, causal=causal, vocab_size=len(TOKENIZER), mask_token_id=IDS.mask,
        eos_token_id=IDS.eos, pad_token_id=IDS.pad, bos_token_id=TOKENIZER.bos_token_id,
    ))  # fmt: skip


def parameters(model: LLaDAModelLM) -> int:
    """Parameters without embedding and head."""
    return sum(weight.numel() for weight in model.model.transformer.blocks.parameters())


def run(text: str, kind: str, size: str, seed: int) -> dict:
    """Train a model, and return its held-out loss in nats a byte, beside what it cost."""
    begin, causal, rate = time.process_time(), KINDS[kind], RATE * 32 / SIZES[size][0]
    train, held_out = ([{"input_ids": row, "labels": [-100, *row[1:]]} for row in rows] for rows in divided(text, seed))
    set_seed(seed)
    model = new_model(size, causal)
    args = MaskedDiffusionConfig(
        output_dir=str(FOLDER), seed=seed, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=rate,
        lr_scheduler_type="cosine", warmup_steps=STEPS // 10, save_strategy="no", report_to="none",
        per_device_eval_batch_size=64, logging_strategy="no", disable_tqdm=True, log_level="error", use_cpu=True,
        **({} if causal else {"masks": "exact_count", "eval_draws": 8}),
    )  # fmt: skip
    trainer = MaskedDiffusionTrainer(
        model, args, train_dataset=Dataset.from_list(train), eval_dataset=Dataset.from_list(held_out),
        processing_class=TOKENIZER,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    number, tokens = parameters(model), STEPS * BATCH * WINDOW
    return {
        "rate": rate, "parameters": number, "tokens": tokens, "flops": 6 * number * tokens,
        "loss": trainer.evaluate()["eval_loss"], "cpu_seconds": round(time.process_time() - begin),
    }  # fmt: skip


def of(rows: list[dict], kind: str, size: str) -> torch.Tensor:
    """The losses of a kind and size, in the order of their seeds."""
    found = sorted((row for row in rows if row["kind"] == kind and row["size"] == size), key=lambda row: row["seed"])
    return torch.tensor([row["loss"] for row in found], dtype=torch.float64)


def slopes(rows: list[dict], kind: str) -> torch.Tensor:
    """The slope of log loss over log operations of each seed, by least squares."""
    flops = [next(row["flops"] for row in rows if row["size"] == size) for size in SIZES]
    losses = torch.stack([of(rows, kind, size) for size in SIZES], -1).numpy()
    return torch.tensor([np.polyfit(np.log(flops), np.log(loss), 1)[0] for loss in losses])


def over_seeds(values: torch.Tensor) -> Interval:
    """The mean and its 95% interval over seeds."""
    return jackknife(torch.mean, values)


def report(rows: list[dict]) -> None:
    """Print the losses by size, and the slopes."""
    seeds = sorted({row["seed"] for row in rows})
    print(f"\nHeld-out nats a byte, seeds {seeds} [95% intervals]; LLaDA's loss is a bound, the other is exact")
    print(f"{'size':6}{'parameters':>11}{'6ND':>9}{'autoregressive':>24}{'LLaDA (bound)':>24}{'ratio':>24}")
    for size in SIZES:
        losses = [of(rows, kind, size) for kind in KINDS]
        number, flops = next((row["parameters"], row["flops"]) for row in rows if row["size"] == size)
        cells = [over_seeds(values) for values in (*losses, losses[1] / losses[0])]
        print(f"{size:6}{number:11,}{flops:9.2g}" + "".join(f"{cell!s:>24}" for cell in cells))
    found = [slopes(rows, kind) for kind in KINDS]
    for kind, values in zip((*KINDS, "LLaDA less autoregressive"), (*found, found[1] - found[0]), strict=True):
        print(f"slope of log loss over log 6ND, {kind}: {over_seeds(values)}")
    print(f"CPU time of all runs: {sum(row['cpu_seconds'] for row in rows) / 60:.1f} minutes")


def draw(rows: list[dict], path: Path) -> None:
    """Draw loss against operations: a line through the means over seeds, and a point for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.4), constrained_layout=True)
    for kind, name in (("autoregressive", "autoregressive, exact"), ("LLaDA", "LLaDA, bound on the likelihood")):
        own = [row for row in rows if row["kind"] == kind]
        flops = sorted({row["flops"] for row in own})
        (line,) = axis.plot(flops, [float(of(rows, kind, size).mean()) for size in SIZES], label=name)
        axis.plot([row["flops"] for row in own], [row["loss"] for row in own], ".", color=line.get_color())
    axis.set(xlabel="6 N D, operations", ylabel="held-out loss, nats a byte", xscale="log", yscale="log")
    for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        ticks("{x:g}")
    axis.set_title(f"{rows[0]['tokens']:,} bytes of {rows[0]['data']}")
    axis.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a text file of 0.6 MB or more; default: made-up poems")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file, name = FOLDER / "rows.jsonl", Path(args.data).name if args.data else "poems"
    text = Path(args.data).read_text() if args.data else poems()
    wanted = []
    for seed, size, kind in itertools.product(args.seeds, args.sizes, KINDS):
        key = {"data": name, "kind": kind, "size": size, "seed": seed}
        done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        found = next((row for row in done if key.items() <= row.items()), None)
        if found is None:
            found = key | run(text, kind, size, seed)
            with open(file, "a") as out:
                out.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)
        wanted.append(found)
    if len(args.seeds) < 2 or set(args.sizes) != set(SIZES):
        return  # no intervals, or no slopes
    report(wanted)
    if find_spec("matplotlib") is None:
        print("No picture: it needs matplotlib (pip install matplotlib)")
        return
    draw(wanted, FOLDER / "scaling.png")
    print(f"Picture: {FOLDER / 'scaling.png'}")


if __name__ == "__main__":
    main()
