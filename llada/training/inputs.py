"""What a trainer is made from: a model and a tokenizer by name or as objects, adapters, and rows in any form."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from llada.data.tokenizer import load_tokenizer, set_chat_template
from llada.denoiser import DenoiserSpec, as_denoiser
from llada.errors import DataError
from llada.models.common.lora import add_adapters, refuse_head_adapters, wrap_with_adapters
from llada.pretrained import check_config, from_files, read_object

logger = logging.getLogger(__name__)

ADAPTERS = "adapter_config.json"  # a directory with this file holds adapters instead of a model


def has_adapters(model) -> bool:
    """Whether a model is wrapped by PEFT."""
    return hasattr(model, "peft_config")


def load(
    model: PreTrainedModel | str, init_kwargs: dict[str, Any] | None, adapters: bool, quantization_config=None
) -> PreTrainedModel:
    """Load a model by name or path in fp32, or as saved if only adapters are trained; a model is returned as it is.

    A directory of adapters gives their base with these adapters, to be trained on.

    Args:
        init_kwargs: TRL's `model_init_kwargs`, the arguments of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: `init_kwargs` or `quantization_config` is given for a model that is already loaded, or both set the
            quantization; quantized weights would be trained themselves; or transformers has loaded adapters into it.
    """
    options = dict(init_kwargs or {})
    if quantization_config is not None and "quantization_config" in options:
        raise ValueError("quantization_config is set twice: as an argument and in model_init_kwargs. Set it once")
    if not isinstance(model, str):
        given = "model_init_kwargs" if options else "quantization_config" if quantization_config is not None else None
        if given:
            raise ValueError(f"{given} is for a model that is loaded by name, but the model is loaded already")
        if has_adapters(model) and not hasattr(model, "get_base_model"):
            raise ValueError(
                "the model has adapters that transformers has loaded, beside which none can be frozen: give the "
                "adapters' directory as model, or load them with peft.PeftModel.from_pretrained(base, DIRECTORY, "
                "is_trainable=True)"
            )
        return model
    adapters = adapters or Path(model, ADAPTERS).exists()
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if options.get("quantization_config") is not None and not adapters:
        raise ValueError("quantization_config freezes the weights: train adapters (peft_config)")
    if "torch_dtype" in options:  # the older name
        options["dtype"] = options.pop("torch_dtype")
    options.setdefault("dtype", "auto" if adapters else torch.float32)
    if not Path(model, ADAPTERS).exists():
        check_config(model)
        return from_files(AutoModelForCausalLM, model, **options)
    base = read_object(Path(model, ADAPTERS)).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise ValueError(f"{Path(model, ADAPTERS)} names no base model: base_model_name_or_path={base!r}")
    check_config(base)
    return add_adapters(from_files(AutoModelForCausalLM, base, **options), model, trainable=True)


def name_of(model) -> str:
    """The name or path from which a model was loaded; empty if it was built in memory."""
    return getattr(getattr(model, "config", None), "_name_or_path", "") or ""


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """The number of parameters that are trained and of all: of whole ones under ZeRO-3, and of 4-bit ones unpacked."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    counts = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in model.parameters()]
    return sum(count for count, trained in counts if trained), sum(count for count, _ in counts)


def row_length(max_length: int | None, context: int) -> int:
    """`max_length`, or the model's context where it is None.

    Raises:
        ValueError: `max_length` exceeds the context.
    """
    if max_length is not None and not 1 <= max_length <= context:
        raise ValueError(f"max_length={max_length} must be between 1 and the model's context, {context}")
    return context if max_length is None else max_length


def tokenizer_of(model, given, processing_class, revision: str | None, trainer: str) -> PreTrainedTokenizerBase:
    """The given tokenizer, or the one saved with the model or adapters.

    Args:
        given: the trainer's argument from which `model` was loaded; trainer: its name, for messages.

    Raises:
        TypeError: `processing_class` is no tokenizer.
        ValueError: there is none, and the model has no name; or its chat template ignores `add_generation_prompt`.
    """
    saved_here = isinstance(given, str) and Path(given, "tokenizer_config.json").exists()
    name = given if saved_here else name_of(model)
    if processing_class is None and not name:
        raise ValueError(
            f"{trainer} needs processing_class, the tokenizer: the model was not loaded from a name or path that could "
            "have one"
        )
    if processing_class is None:
        return load_tokenizer(name, revision)
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        kind = type(processing_class).__name__
        raise TypeError(f"processing_class must be a tokenizer (this package trains on text), but is a {kind}")
    if processing_class.chat_template is not None and set_chat_template(processing_class):
        logger.warning(
            "the tokenizer has LLaDA's published chat template, which opens another turn after every answer, and "
            "training would teach that: it was replaced by one that honours add_generation_prompt"
        )
    return processing_class


def name_beginning(model, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the config of a model its tokenizer's BOS token, which the Trainer does with a warning at each start."""
    if hasattr(model, "config") and tokenizer.bos_token_id is not None:
        model.config.bos_token_id = tokenizer.bos_token_id


def with_adapters(model, peft_config):
    """The model with new adapters, if any are asked for.

    Raises:
        ValueError: the model has adapters already or on its head, or the method learns a prompt instead of weights.
        TypeError: `peft_config` is no PEFT configuration.
    """
    if peft_config is None:
        for adapter in getattr(model, "peft_config", {}).values():
            check_not_prompts(adapter)
        if has_adapters(model):
            refuse_head_adapters(model)
            warn_of_subdirectory(model)
        return model
    from peft import PeftConfig

    if not isinstance(peft_config, PeftConfig):
        raise TypeError(
            f"peft_config must be a peft.PeftConfig such as LoraConfig, but is {type(peft_config).__name__}"
        )
    if has_adapters(model):
        raise ValueError(
            "the model has adapters already and peft_config asks for new ones: merge them first (merge_and_unload()), "
            "or leave peft_config out to train those"
        )
    check_not_prompts(peft_config)
    return wrap_with_adapters(model, peft_config)


def warn_of_subdirectory(model) -> None:
    """Warn of an adapter that PEFT saves beside the tokenizer, not with it, so that output_dir itself loads nowhere."""
    if (name := model.active_adapter) != "default":
        logger.warning(
            "the adapter is named %r: PEFT saves it in the subdirectory %s of output_dir and of its checkpoints, which "
            "is the path to load it from. An adapter named 'default' is saved in output_dir itself", name, name,
        )  # fmt: skip


def check_not_prompts(peft_config) -> None:
    """Raise ValueError if a PEFT method learns a prompt instead of weights."""
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"{type(peft_config).__name__} is not supported: it puts virtual tokens before the row, and these models "
            "mask and score tokens at their positions in the row. Use LoraConfig"
        )


@contextlib.contextmanager
def what_is_known(args: TrainingArguments, spec: DenoiserSpec) -> Iterator[None]:
    """Set options of which torch warns where their defaults gain nothing, unless they are given, for a constructor.

    Memory is pinned for copies to an accelerator. A backward pass reaches all parameters of a model without auxiliary
    losses; those with them have experts, of which some may see no token. The same options may then serve for another
    model, so the second is taken back; the first depends on the machine alone.
    """
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False
    given = args.ddp_find_unused_parameters
    if given is None and not spec.auxiliary_losses:
        args.ddp_find_unused_parameters = False
    try:
        yield
    finally:
        args.ddp_find_unused_parameters = given


def as_datasets(data, name: str) -> Any:
    """Rows as a `Dataset` or `IterableDataset`; of a mapping (a DatasetDict, or a dict of datasets), each value.

    Raises:
        TypeError: the rows are in no form that can be read. DataError: there are none.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(data, Mapping):
        return {key: as_datasets(rows, f"{name}[{key!r}]") for key, rows in data.items()}
    if isinstance(data, (list, tuple)) and all(isinstance(row, Mapping) for row in data):
        columns = list(dict.fromkeys(column for row in data for column in row))  # from_list takes the first row's
        data = Dataset.from_list([{column: row.get(column) for column in columns} for row in data])
    if not isinstance(data, (Dataset, IterableDataset)):
        raise TypeError(
            f"`{name}` must be a `Dataset` or `IterableDataset` or a list of rows (dicts), but is {type(data).__name__}"
        )
    undeclared = isinstance(data, IterableDataset) and data.column_names is None
    if (isinstance(data, Dataset) and len(data) == 0) or (undeclared and next(iter(data), None) is None):
        raise DataError(f"{name} has no rows")
    return data


def set_router_weight(model, weight: float | None) -> None:
    """Set the weight of the load-balancing loss of a mixture of experts; None keeps the model's.

    Raises:
        ValueError: the model has no experts.
    """
    if weight is None:
        return
    if "aux_loss" not in as_denoiser(model).spec.auxiliary_losses:
        if weight:
            raise ValueError(
                f"router_aux_loss_coef={weight} is for models with experts, and {type(model).__name__} has none"
            )
        return
    model.config.router_aux_loss_coef = weight


def activation_offloading(model):
    """TRL's context in which the activations of a graph are kept in the CPU's memory."""
    from trl.models.activation_offloading import get_act_offloading_ctx_manager

    return get_act_offloading_ctx_manager(model=model, warn_if_no_head=False)
