"""The screen about a checkpoint: counts by hand, ids checked against the tokenizer, dtypes from the files."""

import torch
from conftest import tiny_model, tiny_moe
from test_sft import IDS

from llada.cli.info import rows, sizes
from llada.data.tokenizer import byte_tokenizer
from llada.data.turns import record_turns


def test_counts_of_experts_by_hand():
    """2 layers of 4 experts of 3 x 32 x 24, 2 active; embedding and head 40 x 32 each; LoRA on 4 of 32 x 32 a layer."""
    model = tiny_moe()
    found = sizes(model, rank=3)
    assert found.total == sum(parameter.numel() for parameter in model.parameters())
    assert found.total - found.active == 2 * 2 * 3 * 32 * 24
    assert found.embedding == 2 * 40 * 32
    assert found.adapters == 2 * 4 * 3 * (32 + 32)
    tied = sizes(tiny_model(weight_tying=True), rank=3)
    assert (tied.embedding, tied.active) == (40 * 32, tied.total)


def test_the_screen_of_a_saved_model(tmp_path):
    tiny_model(dtype=torch.bfloat16, **IDS).save_pretrained(tmp_path)
    without = dict(rows(str(tmp_path), 16))
    assert "no tokenizer" in without["ids"]
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    shown = dict(rows(str(tmp_path), 16))
    assert shown["ids"] == "mask 258, eos 257, pad 257, eot 261; tokenizer of 262 agrees"
    assert shown["stored as"] == "BF16"
    assert shown["architecture"] == "LLaDAModelLM: dense, 2 layers, width 32, 4 heads (2 of keys and values)"
    record_turns(tokenizer, {"text": "plain"})  # the files have a template, which training did not use
    tokenizer.save_pretrained(tmp_path)
    assert dict(rows(str(tmp_path), 16))["ids"].endswith("; chat template not used: trained on plain text")
