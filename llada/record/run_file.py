"""`run.json`: what a run is made of. Options, versions, machine, model, data, and each start of it."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from llada.record.rows import held_out_rows
from llada.training.base import DiffusionTrainerBase
from llada.training.inputs import has_adapters, name_of, parameter_counts
from llada.training.origin import command_of, is_secret, versions, without_secrets

FORMAT = 1
# Options that their class settles by itself from a default that says "as it fits": by the device, or the other options.
SETTLED = {
    "output_dir", "bf16", "activation_checkpointing", "gradient_checkpointing", "disable_tqdm", "accelerator_config",
    "dataloader_pin_memory", "ddp_find_unused_parameters", "pad_to_multiple_of",
}  # fmt: skip
SETTLED_VALUES: dict[str, Any] = {
    "report_to": [], "debug": [], "estimator_options": {}, "eval_tasks_args": {}, "loss_weights": [1.0, 0.05],
}  # fmt: skip


def json_value(value: Any) -> Any:
    """A value as JSON has it, without what is secret in it; text for what JSON does not have."""
    if isinstance(value, Enum):
        return json_value(value.value)
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): json_value(each) for key, each in value.items() if not is_secret(str(key))}
    if isinstance(value, list | tuple | set):
        return [json_value(each) for each in value]
    return json_value(value.to_dict()) if hasattr(value, "to_dict") else without_secrets(str(value))


def default_of(option: dataclasses.Field) -> Any:
    """The default of an option; `dataclasses.MISSING` where there is none."""
    return option.default if option.default_factory is dataclasses.MISSING else option.default_factory()


def options_of(configurations: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """All options of some dataclasses as JSON values, and the names of those that are not at their default."""
    options, changed = dict[str, Any](), []
    for configuration in configurations:
        for option in dataclasses.fields(configuration):
            if is_secret(option.name) or not option.init:
                continue
            value = options[option.name] = json_value(getattr(configuration, option.name))
            default = json_value(default_of(option))
            settled = option.name in SETTLED or SETTLED_VALUES.get(option.name, default) == value
            if value != default and not settled:
                changed.append(option.name)
    return options, sorted(changed)


def start_of(trainer: DiffusionTrainerBase) -> dict[str, Any]:
    """When, where and with what this start of a run began, and at which step."""
    device = trainer.args.device
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": trainer.state.global_step,
        "command": command_of(sys.orig_argv),
        "processes": trainer.args.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions(),
    }


def size_of(rows) -> int | None:
    """The number of rows of a dataset, or of several in a dict; None of a stream."""
    sizes = [
        len(each) if hasattr(each, "__len__") else None
        for each in (rows.values() if isinstance(rows, dict) else [rows])
    ]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def content_of(trainer: DiffusionTrainerBase, configurations: Sequence[Any]) -> dict[str, Any]:
    """`run.json` but for the starts.

    Args:
        configurations: dataclasses of options beside `trainer.args`; `dataset_name`, `eval_dataset_name` and
            `model_name_or_path` of these name data and model.
    """
    options, changed = options_of([trainer.args, *configurations])
    trained, total = parameter_counts(trainer.model)
    train, eval_name, held_out = options.get("dataset_name"), options.get("eval_dataset_name"), held_out_rows(trainer)
    design = getattr(trainer, "design", None)  # preference trainers have one
    return {
        "trainer": type(trainer).__name__,
        "output_dir": str(trainer.args.output_dir),
        "options": options,
        "changed": changed,
        "model": {
            "base": options.get("model_name_or_path") or name_of(trainer.model) or None,
            "parameters": total,
            "trainable": trained,
            "adapters": has_adapters(trainer.model),
            "context": trainer.spec.context,
        },
        "data": {
            "train": train,
            "rows": size_of(trainer.train_dataset),
            "eval": None if held_out is None else eval_name or train,
            "eval_rows": None if held_out is None else size_of(trainer.eval_dataset),
        },
        "estimator": None if design is None else {
            "design": options["estimator"], "n": design.n, "n_t": getattr(design, "n_t", design.n),
            "n_yt": getattr(design, "n_y", 1),
            "beta": options["beta"], "loss": options["loss_type"],
        },
    }  # fmt: skip


def starts_in(file: Path) -> list[dict[str, Any]]:
    """The starts that a `run.json` lists; none if it is missing or cannot be read."""
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
