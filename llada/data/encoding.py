"""From a prompt and its answer, as text or as messages, to token ids; everything that may be wrong with the two.

Messages are rendered by the tokenizer's chat template, which gets what the columns `tools` and `chat_template_kwargs`
(TRL's names) of their row hold. A tool call is a message with `tool_calls`, whose `content` may be None.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llada.data.roles import check_role, check_shown
from llada.data.special_tokens import check_ids, check_turns
from llada.data.tokenizer import Prompt, render
from llada.errors import PairError

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")

MISSING = "have no value in {part}"
EMPTY = "have an empty {part}"
MALFORMED = "have something else than text or a list of messages in {part}"
NOT_TEXT = "have something else than text in {part}"
NOT_UNICODE = "have text in {part} with half of a surrogate pair, which is no character"
OF_ANOTHER_TYPE = "have {type} in {{part}}, where text or a list of messages belongs"
OF_TWO_KINDS = (
    "have text on one side of 'prompt' and {part} and messages on the other: both must be text, or both lists of "
    "messages with 'role' and 'content'"
)
NOT_RENDERED = "have messages in {part} that the chat template does not accept"
NO_PREFIX = "have messages in {part} that the chat template renders differently once the answer follows them"
TOOLS_IGNORED = "have 'tools', which the chat template does not render"
TOOL_CALLS_IGNORED = "have tool calls in {part}, which the chat template does not render"
KWARGS_IGNORED = "have 'chat_template_kwargs' that the chat template does not read"
SPELLS_MASK = "have text in {part} that spells the mask token"
OTHERS_SCORED = "have messages of other roles than assistant in {part}, whose words are scored like its own"
MALFORMED_TOOLS = "have 'tools' that are neither a list nor the JSON text of one"
MALFORMED_KWARGS = "have 'chat_template_kwargs' that are no dictionary"
OPTIONS_WITHOUT_MESSAGES = "have 'tools' or 'chat_template_kwargs', which need messages, beside a {part} of text"


def texts_of(part: str, value: Prompt) -> list[str]:
    """The text of a prompt or completion, one string for each message; of a message that only calls tools it is "".

    Raises:
        PairError: the value is neither text nor messages with text under "role" and "content"; text is no Unicode.
    """
    if isinstance(value, str):
        check_unicode(part, value)
        return [value]
    check_type(part, value)
    for message in value:
        role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, Mapping) else (0, 0)
        if not isinstance(role, str) or not (isinstance(content, str) or (content is None and calls_tools(message))):
            raise PairError(part, MALFORMED, f"a message needs text under 'role' and 'content': {message!r}")
        check_unicode(part, content or "")
    return [message.get("content") or "" for message in value]


def check_unicode(part: str, text: str) -> None:
    """Raise PairError if a text has half of a surrogate pair, as a line typed in another encoding does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PairError(part, NOT_UNICODE, f"character {error.start + 1}") from error


def check_type(part: str, value: Any) -> None:
    """Raise PairError unless a value is text or a list; the flaw says which type it has."""
    if isinstance(value, str | list):
        return
    names = {bool: "true or false", int: "a number", float: "a number", dict: "a dictionary", type(None): "no value"}
    name = names.get(type(value), f"a value of type {type(value).__name__}")
    raise PairError(part, OF_ANOTHER_TYPE.format(type=name), f"found {value!r}")


def calls_tools(message: Mapping[str, Any]) -> bool:
    """Whether a message has tool calls."""
    return bool(message.get("tool_calls"))


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template's variables that a row's `tools` (a list or its JSON text) and `chat_template_kwargs` set.

    An entry that is None counts as absent, because Arrow fills structs of different rows to the same fields.

    Raises:
        PairError: one of the two is malformed.
    """
    tools, options = (row.get(column) for column in TEMPLATE_COLUMNS)
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise PairError("prompt", MALFORMED_TOOLS, str(error)) from error
    if tools and not isinstance(tools, list):
        raise PairError("prompt", MALFORMED_TOOLS, f"found {tools!r}")
    if options is not None and not isinstance(options, Mapping):
        raise PairError("prompt", MALFORMED_KWARGS, f"found {options!r}")
    given = without_none(dict(options or {}))
    return given | {"tools": without_none(tools)} if tools else given


def without_none(value):
    """A list or dictionary without the entries of its dictionaries that are None, at any depth."""
    from trl.trainer.utils import remove_none_values  # it is slow to import

    return remove_none_values(value) if value else value


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    completion: Prompt,
    options: dict[str, Any] | None = None,
    mask_id: int | None = None,
    allow_special_tokens: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt (never masked) and of the response (scored), without the EOS tail.

    Plain text is tokenized as it is. Messages are rendered by the chat template: the prompt ends with the header of the
    assistant turn, the response with the tokens that close it. The two are tokenized separately, as in sampling.

    Args:
        options: variables of the chat template (`template_options`), for messages only.
        mask_id: the mask token, which no text may spell.
        allow_special_tokens: plain text may spell other special tokens, such as those of a chat that is rendered
            already. Messages may not (`llada.data.special_tokens`).

    Raises:
        PairError: a side is missing, empty, malformed, tokenizes to nothing or spells a special token; text is paired
            with messages; the chat template refuses the messages, does not know a role, would leave out a message,
            tools or tool calls, or its rendering of the prompt is no prefix of its rendering of the whole dialogue.
        ValueError: there are messages, and the tokenizer has no chat template.
    """
    for part, value in (("prompt", prompt), ("completion", completion)):
        if value is None:
            raise PairError(part, MISSING)
        if value == []:
            raise PairError(part, EMPTY)
        texts_of(part, value)  # checks its type first: a number is neither text nor messages
    if isinstance(prompt, str) != isinstance(completion, str):
        kinds = ["text" if isinstance(value, str) else "messages" for value in (prompt, completion)]
        raise PairError("completion", OF_TWO_KINDS, f"the prompt is {kinds[0]}, the answer {kinds[1]}")
    prompt_texts, completion_texts = texts_of("prompt", prompt), texts_of("completion", completion)
    if isinstance(prompt, str) or isinstance(completion, str):
        if options:
            raise PairError("prompt", OPTIONS_WITHOUT_MESSAGES)
        head, tail = prompt_texts[0], completion_texts[0]
    else:
        # A tool may return nothing, and a tool call has no text.
        if not prompt or not (prompt_texts[-1].strip() or prompt[-1]["role"] == "tool" or calls_tools(prompt[-1])):
            raise PairError("prompt", EMPTY)
        if not any(text.strip() for text in completion_texts) and not any(map(calls_tools, completion)):
            raise PairError("completion", EMPTY)
        head, tail = render_pair(tokenizer, prompt, completion, options or {})
    encoded = [tokenizer(text, add_special_tokens=False).input_ids if text else [] for text in (head, tail)]
    for part, value, ids in zip(("prompt", "completion"), (prompt, completion), encoded, strict=True):
        check_encoded(tokenizer, part, value, ids, mask_id, allow_special_tokens)
    check_turns(tokenizer, "prompt", [value for name, value in (options or {}).items() if name != "chat_template"])
    return encoded[0], encoded[1]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    mask_id: int | None = None,
    allow_special_tokens: bool = False,
) -> list[int]:
    """Token ids of a prompt that is to be answered: plain text, or messages and the header of an assistant turn.

    Args: see `encode_pair`, whose prompts are tokenized like these.

    Raises:
        PairError: the prompt is missing, empty, malformed, or spells a special token; the chat template refuses the
            messages, does not know a role or would leave out a message.
        ValueError: there are messages, and the tokenizer has no chat template.
    """
    if prompt is None:
        raise PairError("prompt", MISSING)
    if not any(texts_of("prompt", prompt)):
        raise PairError("prompt", EMPTY)
    if isinstance(prompt, str):
        text = prompt
    else:
        messages = [present(message) for message in prompt]
        text = rendered(tokenizer, "prompt", messages, open_turn=True)
        check_nothing_is_ignored(tokenizer, len(messages), messages, text, {}, open_turn=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    check_encoded(tokenizer, "prompt", prompt, ids, mask_id, allow_special_tokens)
    return ids


def check_encoded(
    tokenizer: PreTrainedTokenizerBase,
    part: str,
    value: Prompt,
    ids: list[int],
    mask_id: int | None,
    allow_special_tokens: bool,
) -> None:
    """Raise PairError if a prompt or completion, whose token ids are `ids`, is empty or spells a special token."""
    if not ids:
        raise PairError(part, EMPTY)
    if mask_id in ids:
        raise PairError(part, SPELLS_MASK)
    if not isinstance(value, str):
        check_turns(tokenizer, part, value)
    elif not allow_special_tokens:
        check_ids(tokenizer, part, ids)


def remark_on(part: str, completion: Prompt) -> str:
    """What a user should know of a completion that can be trained on: that others speak in it; else "".

    part: the name of its column.
    """
    others = not isinstance(completion, str) and any(message["role"] != "assistant" for message in completion)
    return OTHERS_SCORED.format(part=repr(part)) if others else ""


def render_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: list[dict], completion: list[dict], options: dict[str, Any]
) -> tuple[str, str]:
    """The chat text of the prompt, up to the open assistant turn, and of the completion.

    Raises:
        PairError: see `encode_pair`.
    """

    prompt, completion = ([present(message) for message in part] for part in (prompt, completion))
    whole = prompt + completion
    head = rendered(tokenizer, "prompt", prompt, open_turn=True, **options)
    text = rendered(tokenizer, "completion", whole, **options)
    check_nothing_is_ignored(tokenizer, len(prompt), whole, text, options)
    if not text.startswith(head):
        raise PairError("prompt", NO_PREFIX)
    return head, text[len(head) :]


def rendered(
    tokenizer: PreTrainedTokenizerBase, part: str, messages: list[dict], open_turn: bool = False, **options: Any
) -> str:
    """The chat text of messages; PairError if the chat template refuses them."""
    try:
        return render(tokenizer, messages, open_turn, **options)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        if tokenizer.chat_template is None:
            raise
        raise PairError(part, NOT_RENDERED, f"{type(error).__name__}: {error}") from error


def present(message: dict[str, Any]) -> dict[str, Any]:
    """A message without entries that are None, except `content`, which templates expect."""
    filled = {key: value for key, value in message.items() if value is not None}
    return {"content": None} | {
        key: without_none(value) if isinstance(value, list | dict) else value for key, value in filled.items()
    }


def check_nothing_is_ignored(
    tokenizer, prompt_length: int, whole: list[dict], text: str, options: dict[str, Any], open_turn: bool = False
) -> None:
    """Raise PairError if the template does not know a role, or leaves out a message, tools, tool calls or an option.

    Something is left out if the text is the same without it.

    Args:
        prompt_length: number of messages that belong to the prompt.
        text: what `whole` is rendered to, with an assistant header at its end if `open_turn`.
    """

    def same(part: str, messages: list[dict], options: dict[str, Any] = options) -> bool:
        try:
            return rendered(tokenizer, part, messages, open_turn, **options) == text
        except PairError:
            return False  # the template needs what was left out, so it reads it

    template = options.get("chat_template") or tokenizer.get_chat_template(tools=options.get("tools"))
    if "tools" in options and same("prompt", whole, {name: options[name] for name in options if name != "tools"}):
        raise PairError("prompt", TOOLS_IGNORED)
    for index, message in enumerate(whole):
        part = "prompt" if index < prompt_length else "completion"
        check_role(part, message["role"], template)
        silent = {key: value for key, value in message.items() if key != "tool_calls"}
        if calls_tools(message) and same(part, [*whole[:index], silent, *whole[index + 1 :]]):
            raise PairError(part, TOOL_CALLS_IGNORED)
        check_shown(part, whole, index, text, same)
    names = set(options) - {"tools", "chat_template"}
    unread = sorted(name for name in names if not re.search(rf"\b{re.escape(name)}\b", template))
    if unread:
        raise PairError("prompt", KWARGS_IGNORED, ", ".join(unread))
