"""Check a data file before training or sampling: all rows that cannot be used, the lengths in tokens, and what to do.

    vrpo check FILE [--model NAME_OR_PATH] [--max_length N] [--allow_special_tokens]

FILE holds preference pairs, prompts and completions, messages, texts or only prompts to be answered (a local file or a
hub dataset). The exit status is 0 if every row can be used, 1 if not, and 2 if the file cannot be checked.
"""

import argparse
import sys

from llada.cli.arguments import IMPORTING, program, saying


def parser() -> argparse.ArgumentParser:
    """The parser of all options."""
    parser = argparse.ArgumentParser(program(), description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a .jsonl, .json, .parquet, .csv or .txt file, or a hub dataset's name")
    parser.add_argument("--model", help="model whose tokenizer and context count; default: a token for each byte")
    parser.add_argument(
        "--max_length", type=int, help="tokens of a row, one EOS included; default: the model's context"
    )
    parser.add_argument(
        "--allow_special_tokens", action="store_true", help="plain text may spell special tokens, as in rendered chats"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command: print the report and exit."""
    args = parser().parse_args(argv)
    with saying(IMPORTING):
        from datasets import disable_progress_bars

        from vrpo.analysis.rows import check  # imported after the options are parsed

    disable_progress_bars()
    try:
        with saying(f"reading {args.file}"):
            checked = check(args.file, args.model, args.max_length, args.allow_special_tokens)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(checked)
    sys.exit(1 if checked.report.rows else 0)


if __name__ == "__main__":
    main()
