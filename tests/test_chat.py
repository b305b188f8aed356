"""The chat: a dialogue that grows, a frame of an answer in the making, and what does not fit."""

import io

import torch
from conftest import tiny_model
from rich.console import Console
from test_sft import IDS, TOKENIZER

from llada.cli.chat import MASK, Chat, frame, talk
from llada.sampling.settings import SamplerSettings


def chat(gen_length: int = 8, context: int = 256) -> Chat:
    model = tiny_model(dtype=torch.float32, max_sequence_length=context, **IDS)
    return Chat(model, TOKENIZER, SamplerSettings(steps=gen_length, gen_length=gen_length, block_length=gen_length))


def test_a_frame_shows_masks_and_colours_by_confidence():
    ids = [*TOKENIZER("hé", add_special_tokens=False).input_ids, IDS["mask_token_id"], IDS["eos_token_id"]]
    shown = frame(TOKENIZER, ids, [0.2, 0.9, 0.9, 0.0, 0.9], IDS["mask_token_id"], set(TOKENIZER.all_special_ids))
    assert shown.plain == f"hé{MASK}"
    assert [(span.start, span.end, span.style) for span in shown.spans] == [
        (0, 1, "red"),
        (1, 2, "green"),
        (2, 3, "dim"),
    ]


def test_turns_are_remembered_and_every_step_is_shown():
    talker, frames = chat(), []
    answer, stats, seconds = talker.say("hello", frames.append)
    assert len(frames) == stats.forwards
    assert MASK not in frames[-1].plain
    assert seconds > 0
    assert talker.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": answer}]
    talker.say("again")
    assert [message["role"] for message in talker.messages] == ["user", "assistant"] * 2


def test_the_last_frame_has_no_masks_left():
    """An answer of EOS in the first of four blocks: the others are never run, and not shown as masks either."""
    talker, frames = chat(gen_length=16), []
    talker.settings = SamplerSettings(steps=16, gen_length=16, block_length=4)
    for parameter in talker.model.parameters():
        torch.nn.init.zeros_(parameter)
    body = talker.model.model.transformer
    for constant in (body.wte.weight, body.ln_f.weight, body.ff_out.weight[IDS["eos_token_id"]]):
        torch.nn.init.ones_(constant)
    answer, stats, _ = talker.say("hello", frames.append)
    assert (answer, stats.forwards, len(frames)) == ("", 4, 5)
    assert MASK not in frames[-1].plain


def test_a_plain_conversation_ends_at_an_empty_line_and_survives_one_that_is_too_long():
    out = io.StringIO()
    talker = chat(context=80)
    talk(talker, Console(file=out, width=200), ["a" * 100, "hi", "/new", "", "never"], live=False)
    assert "does not fit: context less gen_length is 72: /new starts over" in out.getvalue()
    assert talker.messages == []
