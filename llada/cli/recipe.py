"""The command line of a recipe: its options, a YAML file below them, and a short help. Nothing heavy is imported."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, ScriptArguments, TrlParser

from llada.errors import RecipeError

EPILOG = (
    "Options of transformers.TrainingArguments (max_steps, bf16, ...) are taken too: --help_all lists them. "
    "--config FILE.yaml gives any of them; the command line overrides it."
)


@dataclass
class RecipeArguments(ScriptArguments):
    """TRL's script arguments, where `dataset_name` may be a local file, plus what starting a run needs."""

    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out file or hub dataset."})
    eval_fraction: float = field(
        default=0.0, metadata={"help": "Without eval_dataset_name: the last share of the rows is held out."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer name or path, or 'bytes'; default: the model's."}
    )
    architecture: dict | str | None = field(
        default=None,
        metadata={"help": "Fields of LLaDAConfig (LLaDAMoEConfig, with num_experts) for a new model."},
    )
    expected_processes: int | None = field(
        default=None, metadata={"help": "Stop unless the launcher started this many processes."}
    )
    resume: bool = field(default=False, metadata={"help": "Continue the run in output_dir from its last checkpoint."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the run in output_dir."})


def parse(dataclass_types: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """`TrlParser`: a YAML file after --config, overridden by the command line; an unknown key is an error."""
    argv = ["--help" if word == "--help_all" else word for word in (sys.argv[1:] if argv is None else argv)]
    config = argv[argv.index("--config") + 1] if "--config" in argv[:-1] else "the command line"
    if "--config" in argv[:-1] and not Path(config).is_file():
        raise FileNotFoundError(f"no such config file: {config}")
    try:
        return TrlParser(list(dataclass_types)).parse_args_and_config(argv)
    except ValueError as error:
        raise RecipeError(f"{config}: {error}") from error


def short_help(options: type, description: str, argv: Sequence[str] | None = None) -> None:
    """Answer `--help` with a recipe's own options and exit; the trainer's configuration takes seconds to import.

    Args:
        options: what the trainer adds to TrainingArguments, such as `MaskedDiffusionOptions`.
    """
    if {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
        TrlParser(
            [RecipeArguments, ModelConfig, options], description=description.splitlines()[0], epilog=EPILOG
        ).print_help()
        raise SystemExit(0)
