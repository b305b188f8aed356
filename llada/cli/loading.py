"""Loading of the model, tokenizer and datasets that a recipe's options name."""

import logging
import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.utils import is_bitsandbytes_available
from trl import ModelConfig, get_peft_config, get_quantization_config

from llada.checks import OneOf, PositiveInt, Range, check
from llada.cli.adapters import adapter_fields, base_of, base_revision
from llada.cli.arguments import saying, unknown_names
from llada.cli.checkpoint import commit_of, pinned_config, tokenizer_source
from llada.cli.recipe import RecipeArguments
from llada.data.encoding import TEMPLATE_COLUMNS
from llada.data.loading import check_columns, load_rows
from llada.data.tokenizer import complete_ids, load_tokenizer, special_ids
from llada.errors import RecipeError
from llada.models.common.lora import add_adapters
from llada.models.registry import config_class
from llada.pretrained import from_files
from llada.training.base import DiffusionTrainerBase
from llada.training.inputs import row_length

logger = logging.getLogger(__name__)

# Backends of attention that the families take. Those of flash attention need a GPU and a package of their own.
ATTENTION = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
SHUFFLE_BUFFER = 10_000  # rows in the shuffle buffer of a stream


def load_model(
    recipe: RecipeArguments, model_args: ModelConfig, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, from a checkpoint (`model_name_or_path`) or new (`architecture`), and its tokenizer.

    From an adapter directory, it is the base with these adapters, which training continues.

    Raises:
        RecipeError: neither or both are given, a new model has no tokenizer, or an option is not supported.
        ValueError: the tokenizer lacks a mask or EOS token or disagrees with the config.
    """
    if (recipe.architecture is None) == (model_args.model_name_or_path is None):
        raise RecipeError("give either model_name_or_path (a checkpoint) or architecture (a new model)")
    check("attn_implementation", model_args.attn_implementation, Annotated[str, OneOf(ATTENTION)] | None)
    quantization = get_quantization_config(model_args)
    if quantization is not None and not is_bitsandbytes_available():
        raise RecipeError(
            "load_in_4bit and load_in_8bit need bitsandbytes: pip install bitsandbytes, or leave them out"
        )
    if quantization is not None and not model_args.use_peft:
        raise RecipeError("load_in_4bit and load_in_8bit freeze the weights: train adapters with use_peft: true")
    name = recipe.tokenizer or model_args.model_name_or_path
    if name is None:
        raise RecipeError("a new model needs tokenizer: a name, a path, or 'bytes'")
    path = model_args.model_name_or_path
    dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
    set_seed(seed)  # for the weights of a new model and of new adapters
    source = tokenizer_source(name)
    if recipe.architecture is not None:
        assert not isinstance(recipe.architecture, str)  # `RecipeArguments` has read the JSON
        tokenizer = load_tokenizer(source)
        config = new_config(recipe.architecture, tokenizer)
        dtype = torch.float32 if dtype in ("auto", None) else dtype
        attention = model_args.attn_implementation
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention), tokenizer
    assert path is not None  # one of the two is given
    base = base_of(path)
    config = pinned_config(base, base_revision(path) or model_args.model_revision)
    revision = commit_of(config)  # of weights and tokenizer too, whatever is pushed meanwhile
    tokenizer = load_tokenizer(source, revision if source == base else None)
    special_ids(tokenizer, config.denoiser_spec)  # checked before gigabytes of weights are read
    model = from_files(
        AutoModelForCausalLM, base, revision=revision or "main", dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        **({} if quantization is None else {"quantization_config": quantization}),
    )  # fmt: skip
    model.config._commit_hash = revision  # for adapters, which name their base's commit
    complete_ids(tokenizer, model.config)
    return (model if base == path else add_adapters(model, path, trainable=True)), tokenizer


def peft_config_of(model_args: ModelConfig, model: PreTrainedModel) -> Any:
    """The configuration of new adapters; None if the options ask for none, or training continues saved ones.

    Raises:
        RecipeError: `lora_target_modules` names a module that the model does not have, or a number is out of range.
    """
    path, config = model_args.model_name_or_path, get_peft_config(model_args)
    if config is None:
        return None
    check("lora_r", model_args.lora_r, PositiveInt)
    check("lora_dropout", model_args.lora_dropout, Annotated[float, Range(at_least=0, below=1)])
    if path is None or adapter_fields(path) is None:
        config.target_modules = target_modules(model_args.lora_target_modules, model)
        return config
    logger.warning(
        "training continues the adapters of %s; lora_r, lora_target_modules and the like are theirs. For new adapters, "
        "merge these (llada merge %s MERGED) and train MERGED",
        path, path,
    )  # fmt: skip
    return None


def target_modules(targets: str | list[str] | None, model: PreTrainedModel) -> Any:
    """`lora_target_modules`, checked against the modules of a model.

    TRL makes a string of a single name, and PEFT takes a string for a pattern of whole names, so that a single name
    becomes a list again; "all-linear" and patterns stay strings.

    Raises:
        RecipeError: no module has such a name, or none fits the pattern; the message lists the names of linear layers.
    """
    if targets is None or targets == "all-linear":
        return targets
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        if any(re.fullmatch(targets, name) for name in names):
            return targets
        targets = [targets]
    absent = [each for each in targets if not any(f".{name}".endswith(f".{each}") for name in names)]
    if absent:
        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise RecipeError(
            f"lora_target_modules: the model has no module {', '.join(absent)}; its linear layers are "
            f"{', '.join(sorted(linear))}"
        )
    return targets


def new_config(architecture: dict, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration of a new model: the given fields, completed by the tokenizer's vocabulary size and special ids.

    With `num_experts` among the fields it is a LLaDA-MoE.

    Raises:
        RecipeError: a field is unknown.
        ValueError: sizes are inconsistent, or neither fields nor tokenizer have a mask or EOS token.
    """
    kind = config_class(architecture)
    known = list(kind.__dataclass_fields__)
    if unknown := sorted(set(architecture) - set(known)):
        raise RecipeError(f"architecture: {unknown_names(unknown, known, f'field of {kind.__name__}')}")
    fields = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id} | architecture
    config = kind(**fields)
    complete_ids(tokenizer, config)
    return config


def load_datasets(
    recipe: RecipeArguments,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    trainer: type[DiffusionTrainerBase],
    columns: Sequence[tuple[str, ...]],
) -> tuple[Any, Any]:
    """Training and evaluation rows, tokenized by `trainer.prepare`; the second is None if nothing is held out.

    A stream is shuffled with a buffer of `SHUFFLE_BUFFER` rows.

    Args:
        columns: see `load_columns`.

    Raises:
        RecipeError: data or columns are missing, or `eval_fraction` is set for a stream or leaves no row to train on.
        llada.errors.DataError: a row cannot be trained on; the message names file, row and column.
    """
    check_data_options(recipe)
    spec = config.denoiser_spec
    ids, max_length = special_ids(tokenizer, spec), row_length(args.max_length, spec.context)

    documents = getattr(args, "dataset_text_field", "text")
    columns = [tuple(documents if name == "text" else name for name in names) for names in columns]

    def prepared(source: str, split: str, streaming: bool, training: bool = True):
        with saying(f"reading {source}"):
            rows = load_columns(source, recipe.dataset_config, split, streaming, columns)
        return trainer.prepare(rows, tokenizer, ids, args, max_length, source, training)

    with args.main_process_first(desc="tokenizing"):
        train = prepared(recipe.dataset_name, recipe.dataset_train_split, recipe.dataset_streaming)
        if recipe.dataset_streaming:
            train = train.shuffle(seed=args.seed, buffer_size=SHUFFLE_BUFFER)
        if recipe.eval_dataset_name:
            return train, prepared(recipe.eval_dataset_name, recipe.dataset_test_split, streaming=False, training=False)
    if recipe.eval_fraction and getattr(args, "eval_packing", None) not in (None, getattr(args, "packing", None)):
        raise RecipeError(
            "eval_packing differs from packing, but eval_fraction holds out packed rows: use eval_dataset_name"
        )
    if not recipe.eval_fraction:
        return train, None
    split = len(train) - max(1, round(recipe.eval_fraction * len(train)))
    if split < 1:
        raise RecipeError(
            f"eval_fraction={recipe.eval_fraction:g} holds out all {len(train)} rows of {recipe.dataset_name} that can "
            "be trained on: use a smaller one, or more rows"
        )
    return train.select(range(split)), train.select(range(split, len(train)))


def check_data_options(recipe: RecipeArguments) -> None:
    """Raise RecipeError unless the options name training data and at most one kind of evaluation data."""
    if recipe.dataset_name is None:
        raise RecipeError("dataset_name is missing: a local .jsonl, .parquet, .csv or .txt file, or a hub dataset")
    if recipe.eval_fraction and (recipe.dataset_streaming or recipe.eval_dataset_name):
        raise RecipeError("eval_fraction holds out rows of a dataset that is not streamed: use eval_dataset_name alone")


def load_columns(source: str, name: str | None, split: str, streaming: bool, columns: Sequence[tuple[str, ...]]) -> Any:
    """Load rows, and keep of their columns the first of the sets in `columns` that is complete, and those of templates.

    Raises:
        DataError: there are no rows, or there are images.
        RecipeError: no set is complete; the message lists the columns found and those needed.
    """
    rows = load_rows(source, name, split, streaming)
    found = check_columns(rows, source)
    wanted = next((names for names in columns if set(names) <= set(found)), None)
    if wanted is None:
        needed = ", or ".join(" and ".join(map(repr, names)) for names in columns)
        raise RecipeError(
            f"{source}: columns are {sorted(found)}; this recipe needs {needed} (documents: llada pretrain; "
            "prompts and answers: llada sft; preferences: vrpo align)"
        )
    return rows.select_columns([*wanted, *(column for column in TEMPLATE_COLUMNS if column in found)])
