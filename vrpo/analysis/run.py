"""The variance table of saved models and a file of pairs, written as variance.json, .csv and .png."""

import csv
import json
import platform
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from llada.cli.arguments import note
from llada.cli.checkpoint import load_config, load_merged, model_config
from llada.data.loading import load_rows
from llada.data.tokenizer import complete_ids
from llada.training.inputs import row_length
from vrpo.analysis.report import draw_variance, print_variance
from vrpo.analysis.settings import TableArguments
from vrpo.analysis.table import measure
from vrpo.collator import PairCollator
from vrpo.data import prepare_pairs
from vrpo.training.reference import make_reference


def write(results: dict, folder: Path) -> None:
    """variance.json (everything) and variance.csv (the rows)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "variance.json").write_text(json.dumps(results, indent=1))
    with open(folder / "variance.csv", "w", newline="") as file:
        flat = [
            {key: value for key, value in row.items() if not isinstance(value, dict)}
            | {
                f"{key}_{end}": value
                for key, ends in row.items()
                if isinstance(ends, dict)
                for end, value in ends.items()
            }
            for row in results["rows"]
        ]
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)


def choose_device(name: str) -> str:
    """The device of that name; "auto" is a GPU if there is one.

    Raises:
        ValueError: a GPU is named and torch finds none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: this machine has no GPU that torch can use")
    return name


def load_scored(name: str, config: PreTrainedConfig, dtype: str | torch.dtype, device: str) -> PreTrainedModel:
    """A model, or a base with its adapters merged; a line says if rounding lost a part of the adapters' update."""
    model, lost = load_merged(name, config, dtype)
    if lost:
        print(f"{name}: merging lost {lost:.1%} of the adapters' update to {model.dtype}; --dtype float32 keeps all")
    return model.to(device)


def run(args: TableArguments) -> None:
    """Measure the variance, write the table and print it.

    Raises:
        ValueError: a missing GPU, no pair that fits or fewer than asked for, or a reference with another vocabulary.
    """
    assert args.model is not None  # `TableArguments` raises if one of these three is None
    assert args.ref_model is not None
    assert args.data is not None
    Path(args.output).mkdir(parents=True, exist_ok=True)  # fail now, not after an hour, if it is a file
    picture = find_spec("matplotlib") is not None
    if not picture:
        note('the table comes without its picture, which needs matplotlib: pip install "llada-vrpo[report]"')
    device = choose_device(args.device)
    tokenizer, config = load_config(args.model)
    ref_config = model_config(args.ref_model)
    ids = complete_ids(tokenizer, config)
    complete_ids(tokenizer, ref_config)  # as in training, the policy's tokenizer has the ids that a config lacks
    length = min(row_length(args.max_length, each.denoiser_spec.context) for each in (config, ref_config))
    rows = load_rows(args.data, None, "train", False)
    pairs = prepare_pairs(
        rows, tokenizer, ids, length, allow_identical=True, drop_invalid=True, source=args.data,
        allow_special_tokens=args.allow_special_tokens,
    )  # fmt: skip
    try:
        number, batch_size = args.sizes(len(pairs))
    except ValueError as error:
        raise ValueError(f"{args.data}, max_length={length}: {error}") from error
    print(f"{number} of {len(rows)} pairs of {args.data}, in {number // batch_size} batches of {batch_size}")
    policy = load_scored(args.model, config, args.dtype, device)
    reference = load_scored(args.ref_model, ref_config, policy.dtype, device)
    make_reference(policy, reference)  # checks that the two fit each other
    collate = PairCollator(ids.pad, ids.eos, 1)
    chosen = list(pairs.select(range(number)))
    batches = [
        {key: value.to(device) for key, value in collate(chosen[i : i + batch_size]).items()}
        for i in range(0, number, batch_size)
    ]
    with tqdm(total=len(batches) * len(args.rows()), desc="variance") as bar:
        results = measure(policy, reference, batches, args, bar.update)
    results["settings"] = asdict(args) | {"pairs": number, "batch_size": batch_size}
    results["machine"] = {"device": device, "python": platform.python_version(), "torch": torch.__version__,
                          "transformers": transformers.__version__}  # fmt: skip
    write(results, Path(args.output))
    print_variance(results)
    if picture:
        draw_variance(results, Path(args.output) / "variance.png")
    print(f"Written: {args.output}/variance.json, .csv{', .png' if picture else ''}")
