"""What manifests cost: saving a checkpoint with them, over saving it as transformers' Trainer does.

python benchmarks/checkpoints.py [--rounds 15] [--json PATH]

The model has 100 MB of weights in float32, its optimizer 200 MB. Both ways save the same trainer in turns, and a ratio
is that of medians, with the middle half of the rounds' own ratios. "saving" is the time until training goes on. "until
whole" adds the time until the thread that hashes the files and flushes them to the disk has ended, as if training
waited for it. "flushed" has the Trainer's own files flushed to the disk too, which it does not do.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

FORMS = ("plain", "plain, flushed", "saving", "until whole")


def make_trainer(folder: str):
    """A trainer after one step, so that its optimizer has its state."""
    from datasets import Dataset

    from llada import LLaDAConfig, LLaDAModelLM, MaskedDiffusionConfig, MaskedDiffusionTrainer
    from llada.data.tokenizer import byte_tokenizer

    config = LLaDAConfig(
        d_model=512, n_layers=8, n_heads=8, mlp_hidden_size=1376, vocab_size=262, max_sequence_length=64,
        rope_theta=1e4, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261,
    )  # fmt: skip
    args = MaskedDiffusionConfig(
        output_dir=folder, use_cpu=True, report_to="none", per_device_train_batch_size=1, max_steps=1,
        gradient_accumulation_steps=1, disable_tqdm=True, save_strategy="no", log_level="error",
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "q", "completion": "a"}] * 2)
    trainer = MaskedDiffusionTrainer(
        LLaDAModelLM(config), args=args, train_dataset=rows, processing_class=byte_tokenizer()
    )
    trainer.train()
    return trainer


def flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def measure(trainer, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, in each form. The disk is idle when a round begins."""
    from transformers import Trainer

    from llada.training.saving import WholeCheckpoints

    class Plain(type(trainer)):
        """The same trainer without the methods of `WholeCheckpoints`."""

        def _save_checkpoint(self, model, trial):
            Trainer._save_checkpoint(self, model, trial)

        def save_model(self, output_dir=None, _internal_call=False):
            Trainer.save_model(self, output_dir, _internal_call)

    assert issubclass(type(trainer), WholeCheckpoints)
    ours = type(trainer)
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for number in range(rounds + 1):  # the first one warms up
        found = {}
        for name in ("plain", "whole") if number % 2 else ("whole", "plain"):
            trainer.__class__ = Plain if name == "plain" else ours
            trainer.state.global_step += 1
            os.sync()
            start = time.perf_counter()
            trainer._save_checkpoint(trainer.model, None)
            found["plain" if name == "plain" else "saving"] = time.perf_counter() - start
            if name == "plain":
                flush(folder / f"checkpoint-{trainer.state.global_step}")
            else:
                trainer.complete()
            found["plain, flushed" if name == "plain" else "until whole"] = time.perf_counter() - start
        for path in folder.glob("checkpoint-*"):
            for file in sorted(path.rglob("*"), reverse=True):
                file.unlink()
            path.rmdir()
        if number:
            for name, value in found.items():
                seconds[name].append(value)
    return seconds


def report(seconds: dict[str, list[float]], megabytes: float) -> dict:
    figures: dict = {"MB": megabytes, "seconds": {name: statistics.median(seconds[name]) for name in FORMS}}
    for name, base in (("saving", "plain"), ("until whole", "plain"), ("until whole", "plain, flushed")):
        ratios = [value / other for value, other in zip(seconds[name], seconds[base], strict=True)]
        lower, _, upper = statistics.quantiles(ratios, n=4)
        ratio = figures["seconds"][name] / figures["seconds"][base]
        figures[f"{name} / {base}"] = [ratio, lower, upper]
        print(f"{name} / {base}: {ratio:.3f} (middle half of rounds {lower:.3f} to {upper:.3f})")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="Write all figures to this file.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=".") as folder:  # a disk: /tmp may be memory
        trainer = make_trainer(folder)
        megabytes = sum(parameter.nbytes for parameter in trainer.model.parameters()) / 1e6
        figures = report(measure(trainer, Path(folder), arguments.rounds), megabytes)
    print(f"{megabytes:.0f} MB of weights; medians in seconds: {figures['seconds']}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
