"""Merge trained adapters (LoRA) into their base model and save the result as a model of its own.

    llada merge ADAPTER OUT [--dtype float32] [--overwrite]

ADAPTER is the output_dir of a training run with adapters; its config names the base model. OUT gets the weights, the
tokenizer with its chat template, and the sampler settings. OUT appears only when it is complete.
"""

import argparse

from llada.cli import failure
from llada.cli.arguments import IMPORTING, program, saying


def parser() -> argparse.ArgumentParser:
    """The parser of all options."""
    parser = argparse.ArgumentParser(program(), description=__doc__.splitlines()[0])
    parser.add_argument("adapter", help="directory with adapter_config.json")
    parser.add_argument("out", help="directory to write")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
        help="dtype of the merged weights; auto: the base's as saved",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the model in OUT")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command: merge, save and say what was written."""
    args = parser().parse_args(argv)
    with saying(IMPORTING):
        from llada.cli.merge import merge  # imported after the options are parsed

    with saying(f"merging {args.adapter} into its base"):
        report = merge(args.adapter, args.out, args.dtype, args.overwrite)
    print(report)


if __name__ == "__main__":
    failure.run(main)
