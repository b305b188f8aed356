"""The command line of lm-evaluation-harness with the model `llada` (`llada.harness`).

    llada harness run --model llada --model_args pretrained=PATH --tasks gsm8k
    llada harness ls tasks
    llada harness run --help

Options are the harness's own; those of `--model_args` are in docs/evaluation.md.
"""

import sys

from llada.cli import failure
from llada.cli.arguments import IMPORTING, saying
from llada.errors import RecipeError


def main(argv: list[str] | None = None) -> None:
    """Register the model and hand over to the harness, which reads `sys.argv`.

    Raises:
        RecipeError: lm-evaluation-harness is not installed.
    """
    if (sys.argv[1:] if argv is None else argv) in (["-h"], ["--help"]):  # the harness takes seconds to say the same
        print(__doc__)
        return
    with saying(IMPORTING):
        try:
            from lm_eval.__main__ import cli_evaluate
        except ImportError as error:
            raise RecipeError('this needs lm-evaluation-harness: pip install "llada-vrpo[eval]"') from error
        import llada.harness.model  # noqa: F401  (registers the model)

    if argv is not None:
        sys.argv[1:] = argv
    cli_evaluate()


if __name__ == "__main__":
    failure.run(main)
