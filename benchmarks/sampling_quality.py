"""Accuracy cost of the approximate modes of `generate`, for the quickstart's SFT model on held-out prompts.

python benchmarks/sampling_quality.py --model runs/quickstart/sft_model [--quick] [--json PATH]

In each mode the model answers 500 held-out prompts greedily and a program checks the answers. It prints the difference
from the exact mode in points, with its paired 95% interval over prompts, and the query tokens of a prompt.
(A growing canvas is for models that were trained on one; this one was not.)
"""

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from addition import is_right
from quickstart import GREEDY, TOKENIZER, prompts

import llada  # noqa: F401  (registers the model)
from llada.sampling.block_cache import SamplerStats
from llada.sampling.text import answers
from vrpo.analysis.statistics import paired_difference

BLOCK = GREEDY.gen_length // 2
MODES: dict[str, dict] = {
    "exact": {}, "threshold 0.9": {"threshold": 0.9}, "factor 0.5": {"factor": 0.5}, "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"}, "dual, refresh 4": {"cache": "dual", "refresh_every": 4},
    "dual, threshold 0.9": {"cache": "dual", "threshold": 0.9}, "growing": {"grow": True},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/quickstart/sft_model")
    parser.add_argument("--quick", action="store_true", help="50 prompts")
    parser.add_argument("--json", help="write rows {name, value, unit, low, high} here")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    number = 50 if args.quick else 500
    asked = prompts(number, random.Random(777), held_out=True)
    base = replace(GREEDY, gen_length=2 * BLOCK, steps=2 * BLOCK, block_length=BLOCK)
    rows, right = [], {}
    for name, changes in MODES.items():
        stats = SamplerStats()
        texts = answers(model, TOKENIZER, asked, replace(base, **changes), 1 if args.quick else 50, None, stats)
        right[name] = np.array([is_right({"prompt": p}, text) for p, text in zip(asked, texts, strict=True)])
        over = paired_difference(right[name], right["exact"])
        value, low, high = (100 * figure for figure in (over.value, over.low, over.high))
        gap = f"{value:+5.1f} [{low:+.1f}, {high:+.1f}]"
        tokens = stats.query_tokens / number
        print(f"{name:20} {100 * right[name].mean():5.1f}%  over exact {gap}  query tokens {tokens:.0f}")
        rows.append({"name": name, "value": value, "unit": "points", "low": low, "high": high})
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
