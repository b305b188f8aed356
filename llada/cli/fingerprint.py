"""What makes a model answer as it does, in a few hashes, so that no output mixes the answers of two models."""

import json
from pathlib import Path

import xxhash
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llada.cli.adapters import adapter_fields, base_of
from llada.cli.checkpoint import commit_of
from llada.data.turns import speaks_in_turns
from llada.files import digest


def fingerprint(name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, str | None]:
    """Hashes of the parts of a model or adapter directory, by name of the part.

    The weight files are read whole, since the files of two merged adapters have the same sizes, starts and ends; of a
    hub model, the commit stands for them. Config and tokenizer are taken as loaded: their files may differ in what does
    not matter.

    Args:
        config, tokenizer: those of `llada.cli.checkpoint.load_config`.
    """
    base = base_of(name)
    return {
        "weights": hash_of_weights(base) or commit_of(config),
        "adapters": None if adapter_fields(name) is None else hash_of_adapters(name),
        "config": hash_of_config(config),
        "tokenizer": hash_of_tokenizer(tokenizer),
        "chat_template": hash_of([tokenizer.chat_template, speaks_in_turns(tokenizer)]),
    }


def hash_of(value: object) -> str:
    """The hash of a value as JSON; what JSON cannot write (a dtype, a set of names) counts as text."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def hash_of_weights(folder: str) -> str | None:
    """The hash of all weight files of a directory, with their names; None if it has none, as a hub name."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return hash_of({file.name: digest(file) for file in files}) if files else None


def hash_of_adapters(folder: str) -> str:
    """The hash of the weights and of the settings of adapters, but not of where their base is."""
    fields = adapter_fields(folder) or {}
    settings = {key: value for key, value in fields.items() if key not in ("base_model_name_or_path", "peft_version")}
    return hash_of([hash_of_weights(folder), settings])


def hash_of_config(config: PreTrainedConfig) -> str:
    """The hash of a model's config, but not of its place and of the library that wrote it."""
    ignored = ("_name_or_path", "transformers_version")
    fields = {key: value for key, value in config.to_dict().items() if key not in ignored}
    return hash_of(fields)


def hash_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hash of what turns text into ids and back: vocabulary, rules, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(rules, dict):  # each call sets these as it needs them
        rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hash_of([type(tokenizer).__name__, rules, tokens])
