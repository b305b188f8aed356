"""Text is data: which special tokens a text spells, so that no text becomes a turn, an end or a mask by accident.

A tokenizer reads `<|eot_id|>` in a text as the token that ends a turn. Such text is refused, by one rule for training,
sampling, evaluation and checks: what goes through a chat template never spells a special token, and plain text only
where `allow_special_tokens` is set, for chats that are rendered already.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llada.errors import PairError

SPELLS_SPECIAL = "have text in {part} that spells a special token (if it is rendered already, set allow_special_tokens)"
SPELLS_SPECIAL_IN_TURN = "have messages in {part} that spell a special token, which only the chat template may write"

_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple, frozenset[int]]] = WeakKeyDictionary()


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that text must not become: all special tokens, and what the chat template writes around a turn.

    The second are there because a tokenizer may hold the tokens of its turns as added tokens that are not special.
    Other added tokens (runs of spaces, `<think>`) are text. So is the unknown token, which no text spells: it stands
    for what the vocabulary lacks.
    """
    state = (tokenizer.chat_template, len(tokenizer), tuple(tokenizer.all_special_ids))
    if tokenizer not in _known or _known[tokenizer][0] != state:
        _known[tokenizer] = state, frozenset(_special_token_ids(tokenizer))
    return _known[tokenizer][1]


def _special_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder
    ids = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    names = ("mask", "eos", "bos", "pad", "sep", "cls")
    if tokenizer.unk_token_id not in [getattr(tokenizer, f"{name}_token_id") for name in names]:
        ids.discard(tokenizer.unk_token_id)
    if tokenizer.chat_template is not None:
        try:
            turn = tokenizer.apply_chat_template(
                [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, KeyError, ValueError):
            turn = ""  # the template needs more than a turn; its special tokens are in the list
        ids |= set(added) & set(tokenizer(turn, add_special_tokens=False).input_ids)
    return ids


def check_ids(tokenizer: PreTrainedTokenizerBase, part: str, ids: list[int], flaw: str = SPELLS_SPECIAL) -> None:
    """Raise PairError if a text that is tokenized to `ids` spells a special token; the first is named."""
    special = special_token_ids(tokenizer)
    if not special.isdisjoint(ids):
        raise PairError(part, flaw, tokenizer.convert_ids_to_tokens(next(token for token in ids if token in special)))


def check_turns(tokenizer: PreTrainedTokenizerBase, part: str, value: Any) -> None:
    """Raise PairError if a string at any depth of messages, or of the template's variables, spells a special token."""
    text = "\n".join(strings_in(value))
    check_ids(tokenizer, part, tokenizer(text, add_special_tokens=False).input_ids if text else [],
              SPELLS_SPECIAL_IN_TURN)  # fmt: skip


def strings_in(value: Any) -> Iterator[str]:
    """All strings in lists and dictionaries, names of their fields included, because templates print those of tools."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from strings_in(name)
            yield from strings_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from strings_in(entry)
