"""Variance of preference scores of a small model trained here: the paper's table, with loo_complementary added.

    python examples/compare_estimators.py

The script trains a reference and a policy on a synthetic task (`spelling.py`), redraws masks on fresh pairs, prints a
table and writes variance.json, .csv and .png to runs/compare_estimators. `python -m vrpo.variance` does this for your
own models and pairs.
"""

import argparse
import logging
import random
import time
from pathlib import Path

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from spelling import MAX_LENGTH, TOKENIZER, preferences, small_models
from tqdm import tqdm

from llada.data.tokenizer import special_ids
from vrpo.analysis.report import draw_variance, print_variance
from vrpo.analysis.run import write
from vrpo.analysis.settings import Settings
from vrpo.analysis.table import measure
from vrpo.collator import PairCollator
from vrpo.data import prepare_pairs


def batches_of(number: int, size: int, seed: int, one_manner: bool = False) -> list:
    """Fresh pairs of the task, tokenized and collated."""
    ids = special_ids(TOKENIZER)
    rows = Dataset.from_list(preferences(number, random.Random(seed), one_manner))
    pairs = list(prepare_pairs(rows, TOKENIZER, ids, MAX_LENGTH))
    collate = PairCollator(ids.pad, ids.eos, 1)
    return [collate(pairs[i : i + size]) for i in range(0, number, size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("runs/compare_estimators"))
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    start = time.perf_counter()
    settings = Settings(pairs=args.pairs, batch_size=8, repeats=8, budgets=[1, 2, 4, 8], seed=args.seed)
    reference, policy = small_models(args.output, args.seed)
    batches = batches_of(args.pairs, settings.batch_size, seed=args.seed + 1000)
    with tqdm(total=len(batches) * len(settings.rows()), desc="variance") as bar:
        results = measure(policy, reference, batches, settings, bar.update)
    write(results, args.output)
    print_variance(results)
    draw_variance(results, args.output / "variance.png")
    print(f"{time.perf_counter() - start:.0f} s. Written: {args.output}/variance.json, .csv, .png")


if __name__ == "__main__":
    main()
