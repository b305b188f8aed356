"""What to run after a training recipe: commands that work as they are printed."""

import shlex
import sys
from pathlib import Path

from llada.cli.adapters import adapter_fields

PAIRS = 128  # at most this many pairs are measured by the printed variance command, as in the paper
BATCH = 16


def command(*words: object) -> str:
    """A command line, quoted for a shell."""
    return shlex.join(str(word) for word in words)


def recipe(name: str) -> str:
    """The path of another recipe, beside the running one if that is a recipe."""
    beside = Path(sys.argv[0]).with_name(name)
    return str(beside if beside.is_file() else Path("recipes", name))


def variance(output_dir: str, reference: str, data: str, pairs: int) -> str:
    """The command for the variance of the scores, on whole batches of at most `PAIRS` pairs."""
    batch = min(BATCH, pairs)
    return command(
        "python", "-m", "vrpo.variance", "--model", output_dir, "--ref_model", reference, "--data", data,
        "--pairs", min(PAIRS, pairs // batch * batch), "--batch_size", batch, "--source_pairs", batch,
        "--output", Path(output_dir, "variance"),
    )  # fmt: skip


def next_steps(output_dir: str, base: str | None, data: str, columns: list[str], rows: int | None) -> str:
    """Commands for a trained model or adapters, one a line under a comment.

    Args:
        base: the model that training started from; None for a new one.
        data: the training rows, a file or a hub name.
        columns: the columns of `data`, which say what the next step can be.
        rows: the number of examples that fit; None for a stream.
    """
    steps = [("talk to it", command("python", "-m", "llada.chat", "--model", output_dir))]
    if "chosen" in columns:
        if base is not None and rows:
            steps.append(("how noisy its scores are", variance(output_dir, base, data, rows)))
    elif {"prompt", "answer"} <= set(columns):
        pairs, run = str(Path(output_dir, "pairs.jsonl")), ("accelerate", "launch")
        made = command(*run, recipe("make_pairs.py"), "--model", output_dir, "--prompts", data, "--output", pairs)
        steps.append(("preference pairs from its own right and wrong answers", made))
    if adapter_fields(output_dir) is not None:
        merged = Path(output_dir).with_name(Path(output_dir).name + "_merged")
        steps.append(
            ("a model without adapters, to train on", command("python", "-m", "llada.merge", output_dir, merged))
        )
    return "Next:\n" + "\n".join(f"  # {what}\n  {line}" for what, line in steps)
