"""Summarise a checkpoint: its architecture, its size, and the memory that it needs to run and to train.

    llada info PATH_OR_NAME [--rank 16]

No weights are loaded: sizes come from the config (on the meta device) and dtypes from the files' headers. Memory counts
weights, gradients and AdamW's two moments, but not activations, which depend on batch size and length.
"""

import argparse

from llada.cli import failure
from llada.cli.arguments import IMPORTING, program, saying


def parser() -> argparse.ArgumentParser:
    """The parser of all options."""
    parser = argparse.ArgumentParser(program(), description=__doc__.splitlines()[0])
    parser.add_argument("path", help="model or adapter directory, or hub name")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank for the counts and the memory estimate")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command: print the summary as a table."""
    args = parser().parse_args(argv)
    from rich.console import Console
    from rich.table import Table

    with saying(IMPORTING):
        from llada.cli.info import rows  # imported after the options are parsed

    table = Table(title=args.path, show_header=False, title_justify="left")
    for label, value in rows(args.path, args.rank):
        table.add_row(label, value)
    Console().print(table)


if __name__ == "__main__":
    failure.run(main)
