"""Write the page of a run, or of several runs beside each other: one HTML file that opens from the disk.

    vrpo report RUN [RUN ...] [--output FILE.html]

RUN is the output_dir of a run, finished or not. Runs that differ only in their seed are shown as one, with a mean and
an interval.
"""

import argparse
from pathlib import Path

from llada.cli import failure
from llada.cli.arguments import program


def parser() -> argparse.ArgumentParser:
    """The parser of all options."""
    parser = argparse.ArgumentParser(program(), description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the output_dir of a run")
    parser.add_argument(
        "--output", help="the file to write; default: report.html, in the run's directory or, of several runs, here"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command: write the page and print its path.

    Raises:
        FileNotFoundError, ValueError: a directory holds no run, or a file in it is damaged.
    """
    args = parser().parse_args(argv)
    from vrpo.report.page import PAGE, write  # imported after the options are parsed: they import plotly
    from vrpo.report.reading import read_run

    runs = [read_run(folder) for folder in args.runs]
    path = Path(args.output or (Path(args.runs[0], PAGE) if len(runs) == 1 else PAGE))
    print(f"Written: {write(runs, path)}")


if __name__ == "__main__":
    failure.run(main)
