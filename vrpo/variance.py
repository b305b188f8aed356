"""The variance table of a checkpoint: what its preference scores, losses and gradients owe to the draws.

    python -m vrpo.variance --model POLICY --ref_model REFERENCE --data PAIRS.jsonl

What is measured and how: `vrpo.analysis.table`. Writes variance.json, .csv and .png.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from vrpo.analysis.settings import Settings


@dataclass
class Arguments(Settings):
    """The command line of `python -m vrpo.variance`."""

    model: str | None = field(default=None, metadata={"help": "Policy: a path or a hub name."})
    ref_model: str | None = field(default=None, metadata={"help": "Reference: a path or a hub name."})
    data: str | None = field(default=None, metadata={"help": "Preference pairs in TRL's formats."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a side; longer pairs are left out."})
    output: str = field(default="runs/variance", metadata={"help": "Folder of variance.json, .csv and .png."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the results in output."})
    device: str = field(default="auto", metadata={"help": "A torch device, or 'auto': a GPU where there is one."})
    dtype: str = field(default="auto", metadata={"help": "'auto' (as saved), 'float32' or 'bfloat16'."})

    def __post_init__(self):
        super().__post_init__()
        missing = [f"--{name}" for name in ("model", "ref_model", "data") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} must be 'auto', 'float32' or 'bfloat16'")
        if Path(self.output, "variance.json").exists() and not self.overwrite:
            raise ValueError(f"output={self.output} holds results: set overwrite to replace them")


def main(argv: list[str] | None = None) -> None:
    """Measure the models and pairs that the command line names, write the table and print it.

    Raises:
        ValueError: a setting that is missing or out of range, or what `vrpo.analysis.run` refuses.
    """
    (args,) = HfArgumentParser(Arguments, description=__doc__.splitlines()[0]).parse_args_into_dataclasses(argv)
    from vrpo.analysis.run import run  # after the options: it loads the models

    run(args)


if __name__ == "__main__":
    main()
