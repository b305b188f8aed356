"""What to run after a training recipe: commands that work as they are printed.

Names of files in capitals, such as PROMPTS.jsonl, stand for files of the user's own.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from llada.cli.adapters import adapter_fields

PAIRS = 128  # at most this many pairs are measured by the printed variance command, as in the paper
BATCH = 16
BUDGETS = (1, 2, 4, 8, 16)  # the values of n that the variance command measures by default


def command(*words: object) -> str:
    """A command line, quoted for a shell."""
    return shlex.join(str(word) for word in words)


def variance(output_dir: str, reference: str, data: str, pairs: int, budget: int | None) -> str:
    """The command for the variance of the scores, on whole batches of at most `PAIRS` pairs.

    Args:
        budget: forward passes of each response in the training run, which are measured too; None if not known.
    """
    batch = min(BATCH, pairs)
    more = () if budget is None or budget in BUDGETS else ("--budgets", *BUDGETS, budget)
    return command(
        "vrpo", "variance", "--model", output_dir, "--ref_model", reference, "--data", data,
        "--pairs", min(PAIRS, pairs // batch * batch), "--batch_size", batch, "--source_pairs", batch, *more,
        "--output", Path(output_dir, "variance"),
    )  # fmt: skip


def train(recipe: tuple[str, str], output_dir: str, suffix: str, data: str) -> str:
    """The command that trains `output_dir` further, into a directory beside it. recipe: its command."""
    target = Path(output_dir).with_name(f"{Path(output_dir).name}_{suffix}")
    options = ("--model_name_or_path", output_dir, "--dataset_name", data, "--output_dir", target)
    return command(*recipe, *options)


def sample(recipe: Sequence[str], output_dir: str, prompts: str, output: str) -> str:
    """The command that answers prompts into a file of the model's directory. recipe: its command, with a launcher."""
    options = ("--model", output_dir, "--prompts", prompts, "--output", Path(output_dir, output))
    return command(*recipe, *options)


def next_steps(
    output_dir: str,
    base: str | None,
    data: str,
    columns: list[str],
    rows: int | None,
    dropped: bool = False,
    budget: int | None = None,
    causal: bool = False,
    page: str | None = None,
) -> str:
    """Commands for a trained model or adapters, one a line under a comment, after the path of the run's page.

    Args:
        base: the model that training started from; None for a new one.
        data: the training rows, a file or a hub name.
        columns: the columns of `data`, which say what the training was and what the next step can be.
        rows: the number of examples that fit; None for a stream.
        dropped: whether training may have left out rows of `data`, whose prompts may then be none.
        budget: forward passes of each response in preference training (n); None in other training.
        causal: whether the model is autoregressive, with which neither the sampler nor preference training works.
        page: the page of the run, for a browser; None if there is none.
    """
    information = ("what it is", command("llada", "info", output_dir))
    steps = [information if causal else ("talk to it", command("llada", "chat", "--model", output_dir))]
    completions = (
        "answers to prompts of yours, a file with the column prompt",
        sample(("llada", "generate"), output_dir, "PROMPTS.jsonl", "completions.jsonl"),
    )
    if "chosen" in columns:
        steps += [information, completions]
        if base is not None and rows:
            steps.append(("how noisy its scores are", variance(output_dir, base, data, rows, budget)))
    elif {"completion", "messages"} & set(columns) and not causal:
        steps.append(completions)
        if {"prompt", "answer"} <= set(columns):
            what = "preference pairs from its own answers, checked against the column answer"
            recipe = ("accelerate", "launch", "-m", "vrpo", "make-pairs")
            prompts = "PROMPTS.jsonl" if dropped else data
            steps.append((what, sample(recipe, output_dir, prompts, "pairs.jsonl")))
        steps.append(("align it with preferences", train(("vrpo", "align"), output_dir, "aligned", "PAIRS.jsonl")))
    elif not {"completion", "messages"} & set(columns):
        steps.append(("fine-tune it on prompts and answers", train(("llada", "sft"), output_dir, "sft", "YOUR.jsonl")))
    if adapter_fields(output_dir) is not None:
        merged = Path(output_dir).with_name(Path(output_dir).name + "_merged")
        steps.append(("a model without adapters, to train on", command("llada", "merge", output_dir, merged)))
    seen = "" if page is None else f"The page of this run, for a browser: {page}\n"
    return f"{seen}Next:\n" + "\n".join(f"  # {what}\n  {line}" for what, line in steps)
