"""The command line of a recipe: its options, its YAML file and a short help. Importing it does not import torch."""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from trl import ModelConfig, ScriptArguments, TrlParser
from yaml import YAMLError

from llada.checks import NOT_EMPTY, NonNegativeInt, PositiveInt, Range, as_mapping, check_fields
from llada.cli.arguments import OneLineErrors, program, unknown_names
from llada.errors import RecipeError

EPILOG = (
    "Options of transformers.TrainingArguments (output_dir, max_steps, num_train_epochs, per_device_train_batch_size, "
    "...) are accepted too; --help_all lists them. --dataset_name may be a .jsonl, .parquet, .csv or .txt file. "
    "--config FILE.yaml may set any of them; the command line overrides the file."
)


@dataclass
class RecipeArguments(ScriptArguments):
    """TRL's script arguments (`dataset_name` may be a local file), and options for starting a run.

    Raises:
        ValueError: an option is of another type or out of range, or `architecture` is no mapping.
    """

    eval_dataset_name: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "Held-out file or hub dataset."}
    )
    eval_fraction: Annotated[float, Range(at_least=0, below=1)] = field(
        default=0.0, metadata={"help": "Without eval_dataset_name, hold out this share of the rows (from the end)."}
    )
    tokenizer: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "Tokenizer name or path, or 'bytes'; default: the model's."}
    )
    architecture: dict | str | None = field(
        default=None,
        metadata={"help": "Fields of LLaDAConfig (with num_experts, of LLaDAMoEConfig) for a new model."},
    )
    eval_tasks: Annotated[list[str], NOT_EMPTY] | None = field(
        default=None,
        metadata={"help": "Tasks of lm-evaluation-harness, at every evaluation, or at the end without held-out rows."},
    )
    eval_tasks_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "How they are answered (llada.harness.settings), and data files, as JSON."}
    )
    eval_tasks_limit: PositiveInt | None = field(default=None, metadata={"help": "Documents of each task."})
    sample_prompts: NonNegativeInt = field(
        default=4,
        metadata={"help": "Held-out prompts (or else training prompts) answered before and after, for samples.json."},
    )
    expected_processes: PositiveInt | None = field(
        default=None, metadata={"help": "Raise an error unless the launcher started this many processes."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Continue the run in output_dir from its newest whole checkpoint."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the run in output_dir."})

    def __post_init__(self):
        check_fields(self)
        if self.architecture is not None:
            self.architecture = as_mapping("architecture", self.architecture)
        self.eval_tasks_args = as_mapping("eval_tasks_args", self.eval_tasks_args)
        if self.eval_tasks is None and (self.eval_tasks_args or self.eval_tasks_limit):
            raise RecipeError("eval_tasks_args and eval_tasks_limit need eval_tasks")


class RecipeParser(OneLineErrors, TrlParser):
    """TRL's parser, whose errors are one message.

    Args:
        dataclass_types: the options. description: the docstring of the command, whose first line its help shows.

    file_keys: the keys of the YAML file that was read.
    """

    file_keys: frozenset[str] = frozenset()

    def __init__(self, dataclass_types: Iterable[type], description: str = "", **options):
        super().__init__(
            list(dataclass_types), prog=program(), description=description.partition("\n")[0], **options
        )  # fmt: skip
        for action in self._actions:
            if action.dest == "report_to":  # transformers' type is `str | list[str]`, of which TRL takes the first
                action.nargs = "+"

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        self.file_keys = frozenset(kwargs)
        names = [action.dest for action in self._actions]
        if unknown := sorted(self.file_keys - set(names)):
            raise RecipeError(unknown_names(unknown, names))
        return super().set_defaults_with_config(**kwargs)


def blamed(message: str, config: str | None, file_keys: frozenset[str], argv: Sequence[str]) -> str:
    """Where the options that a message names are set: the YAML file, the command line, or both; "" for defaults.

    Args:
        config: the YAML file, if there is one. file_keys: its keys. argv: the command line, which overrides them.
    """
    named = set(re.findall(r"\w+", re.sub(r"did you mean \S+", "", message)))
    given = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")} - {"config"}
    in_file = config is not None and bool(named & (file_keys - given))
    return " and ".join([str(config)] * in_file + ["the command line"] * bool(named & given))


def parse(dataclass_types: Sequence[type], argv: Sequence[str] | None = None, description: str = "") -> tuple[Any, ...]:
    """Parse with `RecipeParser`: the command line overrides the YAML file after --config.

    Raises:
        RecipeError, FileNotFoundError: an option or key is unknown or invalid; the YAML file does not exist.
    """
    argv = ["--help" if word == "--help_all" else word for word in (sys.argv[1:] if argv is None else argv)]
    config = argv[argv.index("--config") + 1] if "--config" in argv[:-1] else None
    if config is not None and not Path(config).is_file():
        raise FileNotFoundError(f"no such config file: {config}")
    parser = RecipeParser(dataclass_types, description)
    try:
        return parser.parse_args_and_config(argv)
    except YAMLError as error:
        raise RecipeError(f"{config} is no YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        where = blamed(str(error), config, parser.file_keys, argv)
        raise RecipeError(f"{where}: {error}" if where else str(error)) from error


def short_help(
    options: type, description: str, argv: Sequence[str] | None = None, own: Sequence[type] = (RecipeArguments,)
) -> None:
    """On `--help`, print a recipe's own options and exit, before the trainer's configuration is imported (seconds).

    Args:
        options: the options that the trainer adds to TrainingArguments, such as `MaskedDiffusionOptions`.
        own: the dataclasses of the recipe itself.
    """
    if {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
        RecipeParser([*own, ModelConfig, options], description, epilog=EPILOG).print_help()
        raise SystemExit(0)
