"""Tokenizer helpers: the chat template, the special ids, and the split of an example into prompt and response.

The published LLaDA chat template appends an assistant header to every rendering, finished dialogues included, so a
trainer that uses it teaches the model to open another turn after each answer. `load_tokenizer` replaces it by one that
honours `add_generation_prompt`. With this template a response ends with `END_OF_TURN`. In training, the collator
appends EOS tokens (`eos_tail`, `llada.data.collator`). Both are scored.
"""

from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llada.denoiser import DenoiserSpec
from llada.errors import PairError

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
Prompt = str | list[dict[str, str]]  # plain text, or messages with "role" and "content"


@dataclass(frozen=True)
class SpecialIds:
    """Special token ids. `eot` ends a chat turn; it is None if the tokenizer has no such token (`TEMPLATES`)."""

    mask: int
    eos: int
    pad: int
    eot: int | None


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a chat template that honours `add_generation_prompt`; "bytes" builds `byte_tokenizer`.

    Raises:
        ValueError: the tokenizer's template ignores `add_generation_prompt` and is not LLaDA's.
    """
    if name_or_path == "bytes":
        return byte_tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    vocabulary = tokenizer.get_vocab()
    template = next((template for turn_end, template in TEMPLATES.items() if turn_end in vocabulary), None)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = template
    elif not honours_generation_prompt(tokenizer):
        published = render(tokenizer, _DIALOGUE, open_turn=False)
        tokenizer.chat_template = template or CHAT_TEMPLATE
        if published != render(tokenizer, _DIALOGUE, open_turn=True):
            raise ValueError(
                f"the chat template of {name_or_path} ignores add_generation_prompt and is not LLaDA's: "
                "give the tokenizer a template that closes a finished dialogue"
            )
    return tokenizer


_DIALOGUE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def honours_generation_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template opens an assistant turn only if `add_generation_prompt` is set."""
    return render(tokenizer, _DIALOGUE, open_turn=False) != render(tokenizer, _DIALOGUE, open_turn=True)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], open_turn: bool) -> str:
    """The chat text of `messages`, followed by an assistant header if `open_turn`."""
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer ({tokenizer.name_or_path}) has no chat template, which messages need")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
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


def special_ids(tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec | None = None) -> SpecialIds:
    """Special ids from the model's spec, or from the tokenizer where the spec has none. A missing `pad` is `eos`.

    Raises:
        ValueError: neither has a mask or an EOS token, or model and tokenizer disagree on ids or size.
    """
    ids: dict[str, int | None] = {}
    for name in ("mask", "eos", "pad"):
        ours, theirs = getattr(spec, f"{name}_id", None), getattr(tokenizer, f"{name}_token_id")
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(f"{name}_token_id is {ours} in the model's config but {theirs} in the tokenizer")
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


def before_eos(ids: list[int], eos_id: int | None) -> list[int]:
    """The tokens before the first EOS, which are the answer; all tokens if there is no EOS."""
    return ids[: ids.index(eos_id)] if eos_id is not None and eos_id in ids else ids


def texts_of(part: str, value: Prompt) -> list[str]:
    """The text of a prompt or completion, one string for each message.

    Raises:
        PairError: a message has no text under "role" or "content".
    """
    if isinstance(value, str):
        return [value]
    for message in value:
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise PairError(part, f"a message needs text under 'role' and 'content': {message!r}")
    return [message["content"] for message in value]


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Prompt) -> tuple[list[int], list[int]]:
    """Token ids of the prompt (never masked) and of the response (scored), without the EOS tail.

    Plain text is tokenized as it is. Messages are rendered by the chat template: the prompt ends with the header of the
    assistant turn, the response with the tokens that close it. The two are tokenized separately, as in sampling.

    Raises:
        PairError: the prompt is empty, the response tokenizes to nothing, text is paired with messages, messages are
            malformed, or the template's rendering of the prompt is no prefix of its rendering of the whole dialogue.
    """
    for part, value in (("prompt", prompt), ("completion", completion)):
        if value is None:
            raise PairError(part, "the value is missing")
    if isinstance(prompt, str) != isinstance(completion, str):
        raise PairError("prompt", "prompt and completion must both be text or both be lists of messages")
    prompt_texts, completion_texts = texts_of("prompt", prompt), texts_of("completion", completion)
    if not prompt or (isinstance(prompt, list) and not prompt_texts[-1].strip()):
        raise PairError("prompt", "the prompt is empty")
    if not any(text.strip() if isinstance(completion, list) else text for text in completion_texts):
        raise PairError("completion", "the response tokenizes to nothing")
    if isinstance(prompt, str) or isinstance(completion, str):
        head, tail = prompt_texts[0], completion_texts[0]
    else:
        head = render(tokenizer, prompt, open_turn=True)
        whole = render(tokenizer, prompt + completion, open_turn=False)
        if not whole.startswith(head):
            raise PairError("prompt", "the chat template renders the prompt differently once the answer follows it")
        tail = whole[len(head) :]
    response_ids = tokenizer(tail, add_special_tokens=False).input_ids
    if not response_ids:
        raise PairError("completion", "the response tokenizes to nothing")
    return tokenizer(head, add_special_tokens=False).input_ids, response_ids
