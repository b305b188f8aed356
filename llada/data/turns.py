"""Whether a model was trained on turns of a dialogue or on plain text; the answer is saved with its tokenizer.

A tokenizer often has a chat template that its model has never seen, such as one that was put there for a later SFT.
`tokenizer_config.json` keeps what training saw under `trained_on_turns`, and the tokenizer is saved with every
checkpoint, adapter directory and merged model.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from llada.data.tokenizer import TEMPLATES

KEY = "trained_on_turns"
TEXT_COLUMNS = {"text", "prompt", "completion", "chosen", "rejected", "messages", "conversations"}


def has_turns(row: Mapping[str, Any]) -> bool:
    """Whether a row of training data is a dialogue: a column of messages, or text that holds a turn's end token."""
    return any(
        any(end in value for end in TEMPLATES) if isinstance(value, str) else isinstance(value, list) and bool(value)
        for value in row.values()
    )


def record_turns(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> None:
    """Note in the tokenizer whether the training data, of which `row` is one row, are dialogues.

    Nothing is noted of rows that are tokenized already, so that the template decides.
    """
    if "input_ids" not in row:
        text = {name: value for name, value in row.items() if name in TEXT_COLUMNS}
        tokenizer.init_kwargs[KEY] = has_turns(text)


def speaks_in_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template applies: there is one, and no training on plain text has been recorded."""
    return tokenizer.chat_template is not None and tokenizer.init_kwargs.get(KEY, True)
