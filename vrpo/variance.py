"""The variance table of a checkpoint: what its preference scores, losses and gradients owe to the draws.

    python -m vrpo.variance --model POLICY --ref_model REFERENCE --data PAIRS.jsonl

What is measured and how: `vrpo.analysis.table`. Writes variance.json, .csv and .png.
"""

import csv
import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser

import llada  # noqa: F401  (registers the models)
from llada.cli.loading import load_config
from llada.data.loading import load_rows
from llada.data.tokenizer import special_ids
from llada.training.base import row_length
from vrpo.analysis.report import draw_variance, print_variance
from vrpo.analysis.table import Settings, measure
from vrpo.data import PairCollator, prepare_pairs
from vrpo.training.reference import make_reference


@dataclass
class Arguments(Settings):
    """The command line of `python -m vrpo.variance`."""

    model: str | None = field(default=None, metadata={"help": "Policy: a path or a hub name."})
    ref_model: str | None = field(default=None, metadata={"help": "Reference: a path or a hub name."})
    data: str | None = field(default=None, metadata={"help": "Preference pairs in TRL's formats."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a side; longer pairs are left out."})
    output: str = field(default="runs/variance", metadata={"help": "Folder of variance.json, .csv and .png."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the results in output."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "A torch device."})
    dtype: str = field(default="auto", metadata={"help": "'auto' (as saved), 'float32' or 'bfloat16'."})

    def __post_init__(self):
        super().__post_init__()
        missing = [f"--{name}" for name in ("model", "ref_model", "data") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} must be 'auto', 'float32' or 'bfloat16'")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: this machine has no GPU that torch can use")
        if Path(self.output, "variance.json").exists() and not self.overwrite:
            raise ValueError(f"output={self.output} holds results: set overwrite to replace them")


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
        writer = csv.DictWriter(file, flat[0])
        writer.writeheader()
        writer.writerows(flat)


def main(argv: list[str] | None = None) -> None:
    """Measure the models and pairs that the command line names, write the table and print it.

    Raises:
        ValueError: a setting that is missing or out of range, results that are there, fewer pairs than asked for, a
            reference with another vocabulary, a row that cannot be read.
    """
    from tqdm import tqdm

    (args,) = HfArgumentParser(Arguments, description=__doc__.splitlines()[0]).parse_args_into_dataclasses(argv)
    Path(args.output).mkdir(parents=True, exist_ok=True)  # before an hour's work: it may be a file
    if find_spec("matplotlib") is None:
        raise ImportError("the picture needs matplotlib: pip install matplotlib")
    tokenizer, config = load_config(args.model)
    configs = config, AutoConfig.from_pretrained(args.ref_model)
    specs = [each.denoiser_spec for each in configs]
    ids = special_ids(tokenizer, specs[0])
    length = min(row_length(args.max_length, spec.context) for spec in specs)
    rows = load_rows(args.data, None, "train", False)
    pairs = prepare_pairs(rows, tokenizer, ids, length, drop_overlong=True, allow_identical=True, source=args.data)
    if len(pairs) < args.pairs:
        raise ValueError(
            f"{args.data}: {len(pairs)} pairs fit max_length={length}, but pairs={args.pairs}: ask for fewer"
        )
    policy = AutoModelForCausalLM.from_pretrained(args.model, config=config, dtype=args.dtype).to(args.device).eval()
    reference = make_reference(policy, args.ref_model)
    assert reference is not None  # that is for adapters
    reference.to(args.device)
    collate = PairCollator(ids.pad, ids.eos, 1)
    chosen = list(pairs.select(range(args.pairs)))
    batches = [
        {key: value.to(args.device) for key, value in collate(chosen[i : i + args.batch_size]).items()}
        for i in range(0, args.pairs, args.batch_size)
    ]
    with tqdm(total=len(batches) * len(args.rows()), desc="variance") as bar:
        results = measure(policy, reference, batches, args, bar.update)
    results["settings"] = asdict(args)
    results["machine"] = {"device": args.device, "python": platform.python_version(), "torch": torch.__version__,
                          "transformers": transformers.__version__}  # fmt: skip
    write(results, Path(args.output))
    print_variance(results)
    draw_variance(results, Path(args.output) / "variance.png")
    print(f"Written: {args.output}/variance.json, .csv, .png")


if __name__ == "__main__":
    main()
