"""One screen about a checkpoint: what it is, how large, and what it takes to run and to train.

    python -m llada.info PATH_OR_NAME [--rank 16]

Nothing is loaded: sizes come from the config (on the meta device) and dtypes from the files. Memory counts weights,
gradients and AdamW's two moments, not activations: those depend on batch and length.
"""

import argparse

import llada  # noqa: F401  (registers the families)


def main() -> None:
    """The command: print the screen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="a directory or a hub name")
    parser.add_argument("--rank", type=int, default=16, help="rank of LoRA")
    args = parser.parse_args()
    from rich.console import Console
    from rich.table import Table

    from llada.cli.info import rows  # after the options: it loads the models

    table = Table(title=args.path, show_header=False, title_justify="left")
    for label, value in rows(args.path, args.rank):
        table.add_row(label, value)
    Console().print(table)


if __name__ == "__main__":
    main()
