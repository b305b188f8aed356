"""Tokenizer helpers: the chat template and the special ids.

The published LLaDA chat template appends an assistant header to every rendering, finished dialogues included, so a
trainer that uses it teaches the model to open another turn after each answer. `load_tokenizer` replaces it by one that
honours `add_generation_prompt`. With this template a response ends with `END_OF_TURN`. In training, the collator
appends EOS tokens (`eos_tail`, `llada.data.collator`). Both are scored.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llada.denoiser import DenoiserSpec
from llada.pretrained import from_files, unreachable

END_OF_TURN = "<|eot_id|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


# LLaDA-MoE: role names are upper-case, and a dialogue without a system message gets this one.
MOE_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<role>SYSTEM</role>detailed thinking off<|role_end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = {'system': 'SYSTEM', 'user': 'HUMAN', 'assistant': 'ASSISTANT'}[message['role']] %}"
    "{{ '<role>' + role + '</role>' + message['content'] | trim + '<|role_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)


TEMPLATES = {END_OF_TURN: CHAT_TEMPLATE, "<|role_end|>": MOE_CHAT_TEMPLATE}  # by the token that ends a turn
Prompt = str | list[dict[str, Any]]  # plain text, or messages with "role" and "content"


@dataclass(frozen=True)
class SpecialIds:
    """Special token ids. `eot` ends a chat turn; it is None if the tokenizer has no such token (`TEMPLATES`)."""

    mask: int
    eos: int
    pad: int
    eot: int | None


def load_tokenizer(name_or_path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a chat template that honours `add_generation_prompt`; "bytes" builds `byte_tokenizer`.

    Args:
        revision: a branch, tag or commit of the hub.

    Raises:
        OSError: there is no such tokenizer.
        ValueError: its files are damaged, which the message names, or need code that they bring along; or its template
            ignores `add_generation_prompt` and is not LLaDA's.
    """
    if name_or_path == "bytes":
        return byte_tokenizer()
    options = {} if revision is None else {"revision": revision}
    try:
        tokenizer = from_files(AutoTokenizer, name_or_path, **options)
    except OSError as error:
        raise unreachable(name_or_path, error) from error
    except Exception as error:  # of json, tokenizers and transformers, which name no file
        reason = unreadable_file(name_or_path) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"the tokenizer of {name_or_path} cannot be loaded: {reason}") from error
    try:
        set_chat_template(tokenizer)
    except TemplateError as error:
        raise ValueError(f"the chat template of {name_or_path} cannot be rendered: {error}") from error
    return tokenizer


def unreadable_file(folder: str) -> str | None:
    """Which file of a tokenizer's directory is damaged, and how; None if all can be read."""
    for file in sorted(Path(folder).glob("*.json")) + sorted(Path(folder).glob("*.jinja")):
        try:
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".json":
                json.loads(text)
        except ValueError as error:
            return f"{file} is damaged: {error}"
    if Path(folder).is_dir() and not Path(folder, "tokenizer.json").exists():
        return f"{folder} has no tokenizer.json"
    return None


def set_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a tokenizer a chat template if it lacks one, or has the published one, which opens a turn after each answer.

    Returns whether the published template was replaced.

    Raises:
        ValueError: the tokenizer's template ignores `add_generation_prompt` and is not LLaDA's.
    """
    vocabulary = tokenizer.get_vocab()
    template = next((template for turn_end, template in TEMPLATES.items() if turn_end in vocabulary), None)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = template
        return False
    if honours_generation_prompt(tokenizer):
        return False
    published, kept = render(tokenizer, _DIALOGUE, open_turn=False), tokenizer.chat_template
    tokenizer.chat_template = template or CHAT_TEMPLATE
    if published != render(tokenizer, _DIALOGUE, open_turn=True):
        tokenizer.chat_template = kept
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} ignores add_generation_prompt and is not LLaDA's: give the "
            "tokenizer a template that closes a finished dialogue"
        )
    return True


_DIALOGUE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def honours_generation_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template opens an assistant turn only if `add_generation_prompt` is set."""
    return render(tokenizer, _DIALOGUE, open_turn=False) != render(tokenizer, _DIALOGUE, open_turn=True)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], open_turn: bool, **options: Any) -> str:
    """The chat text of `messages`, followed by an assistant header if `open_turn`.

    options: `tools` and other variables that the template reads.

    Raises:
        ValueError: the tokenizer has no chat template.
        jinja2.TemplateError: the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer ({tokenizer.name_or_path}) has no chat template, which messages need")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn, **options)
    assert isinstance(text, str)
    return text


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each of the 256 bytes and LLaDA's special tokens (262 in all), built offline."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        extra_special_tokens=["<|start_header_id|>", "<|end_header_id|>", END_OF_TURN],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def set_template(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give a tokenizer the chat template of a Jinja file or of another tokenizer, by name or path.

    Raises:
        ValueError: `source` has no chat template, or one that ignores `add_generation_prompt`.
    """
    template = Path(source).read_text() if Path(source).is_file() else load_tokenizer(source).chat_template
    if template is None:
        raise ValueError(f"chat_template_path={source!r}: that tokenizer has no chat template")
    tokenizer.chat_template = template
    if not honours_generation_prompt(tokenizer):
        raise ValueError(f"chat_template_path={source!r}: the template ignores add_generation_prompt")


def set_eos(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, token: str) -> None:
    """Make a token of the vocabulary the EOS of a tokenizer and of a model's config.

    Raises:
        ValueError: it is not in the vocabulary.
    """
    if token not in tokenizer.get_vocab():
        raise ValueError(f"eos_token={token!r} is not in the tokenizer's vocabulary")
    tokenizer.eos_token = token
    config.eos_token_id = tokenizer.eos_token_id


def special_ids(tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec | None = None) -> SpecialIds:
    """Special ids from the model's spec, or from the tokenizer where the spec has none. A missing `pad` is `eos`.

    Raises:
        ValueError: neither has a mask or an EOS token, or model and tokenizer disagree on ids or size.
    """
    ids: dict[str, int | None] = {}
    for name in ("mask", "eos", "pad"):
        ours, theirs = getattr(spec, f"{name}_id", None), getattr(tokenizer, f"{name}_token_id")
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"{name}_token_id is {ours} in the model's config but {theirs} in the tokenizer "
                f"({tokenizer.name_or_path or type(tokenizer).__name__}): take the tokenizer that belongs to the model"
            )
        ids[name] = theirs if ours is None else ours
    for name in ("mask", "eos"):
        if ids[name] is None:
            raise ValueError(
                f"the tokenizer ({tokenizer.name_or_path or type(tokenizer).__name__}) has no {name} token and the "
                f"model's config no {name}_token_id: a masked diffusion model needs both"
            )
        if not 0 <= ids[name] < len(tokenizer):  # type: ignore[operator]
            raise ValueError(f"{name}_token_id={ids[name]} is outside the tokenizer's {len(tokenizer)} tokens")
    if spec is not None and len(tokenizer) > spec.vocabulary:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds {spec.vocabulary} (embedding_size)"
        )
    vocabulary = tokenizer.get_vocab()
    eot = None if spec is None else spec.eot_id
    eot = next((vocabulary[end] for end in TEMPLATES if end in vocabulary), None) if eot is None else eot
    assert ids["mask"] is not None
    assert ids["eos"] is not None
    return SpecialIds(ids["mask"], ids["eos"], ids["eos"] if ids["pad"] is None else ids["pad"], eot)


def complete_ids(tokenizer: PreTrainedTokenizerBase, config) -> SpecialIds:
    """The special ids of a model's config and tokenizer (`special_ids`); those that the config lacks are set in it.

    A model that is saved with this config then needs no tokenizer to be sampled from.

    Args:
        config: a config of `llada.models`.

    Raises:
        ValueError: see `special_ids`.
    """
    ids = special_ids(tokenizer, config.denoiser_spec)
    config.set_special_ids(**vars(ids))
    return ids
