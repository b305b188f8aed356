"""Prompts that cannot be continued: each is named by its row and value before the model is called."""

import pytest
import torch
from conftest import tiny_model

import llada
from llada.sampling.loop import infill

IDS, MASK = torch.tensor([[5, 6, 7], [8, 9, 10]]), 39
FLOATS = IDS.double()
ALLOWED = "is outside the model's vocabulary, 0 to 39"


def with_value(value: float, ids: torch.Tensor = IDS, row: int = 1, position: int = 2) -> torch.Tensor:
    changed = ids.clone()
    changed[row, position] = value
    return changed


def ones(**changes) -> torch.Tensor:
    return torch.ones(2, 3, **changes)


BAD = {  # arguments, and what the message says
    "too large": ({"input_ids": with_value(40)}, f"row 1: the token id 40 at position 2 {ALLOWED}"),
    "far too large": ({"input_ids": with_value(2**40)}, f"row 1: the token id {2**40} at position 2 {ALLOWED}"),
    "negative": ({"input_ids": with_value(-1)}, f"row 1: the token id -1 at position 2 {ALLOWED}"),
    "not scored": ({"input_ids": with_value(-100, row=0)}, f"row 0: the token id -100 at position 2 {ALLOWED}"),
    "integers of 32 bits": ({"input_ids": IDS.int()}, "must be token ids .*, and are torch.int32"),
    "padding": (
        {"input_ids": with_value(-100, position=0), "attention_mask": with_value(0, ones(), position=0)},
        f"row 1: the token id -100 at position 0 \\(padding\\) {ALLOWED}",
    ),
    "floats": ({"input_ids": FLOATS}, "must be token ids .*, and are torch.float64, such as 5.0 in row 0"),
    "nan": ({"input_ids": with_value(torch.nan, FLOATS)}, "must be token ids .*, and are torch.float64"),
    "booleans": ({"input_ids": IDS > 6}, "must be token ids .*, and are torch.bool, such as False in row 0"),
    "bytes": ({"input_ids": IDS.byte()}, "must be token ids .*, and are torch.uint8"),
    "shorts": ({"input_ids": IDS.short()}, "must be token ids .*, and are torch.int16"),
    "complex": ({"input_ids": IDS.cfloat()}, "must be token ids .*, and are torch.complex64"),
    "list": ({"input_ids": IDS.tolist()}, r"must be a tensor of token ids \[B, L\], and is a list"),
    "text": ({"input_ids": "hello"}, "must be a tensor of token ids .*, and is a str"),
    "none": ({"input_ids": None}, "must be a tensor of token ids .*, and is a NoneType"),
    "array": ({"input_ids": IDS.numpy()}, "must be a tensor of token ids .*, and is a ndarray"),
    "one row": ({"input_ids": IDS[0]}, r"input_ids \(3,\) must be \[B, L\]"),
    "a number": ({"input_ids": IDS[0, 0]}, r"input_ids \(\) must be \[B, L\]"),
    "three dimensions": ({"input_ids": IDS[None]}, r"input_ids \(1, 2, 3\) must be \[B, L\]"),
    "no rows": ({"input_ids": IDS[:0]}, r"input_ids \(0, 3\) must be \[B, L\] with at least one row"),
    "no columns": ({"input_ids": IDS[:, :0]}, "empty prompt in row 0"),
    "too long": ({"input_ids": torch.ones(1, 57, dtype=torch.long)}, "57 tokens does not fit: context less gen_length"),
    "a mask of another shape": ({"attention_mask": ones()[:1]}, r"attention_mask \(1, 3\) must be \[B, L\] alike"),
    "a mask that is a list": ({"attention_mask": [[1, 1, 1]] * 2}, "attention_mask must be a tensor .*, and is a list"),
    "a mask of 2": ({"attention_mask": with_value(2, ones())}, "row 1: .* 0 or 1, and is 2.0 at position 2"),
    "a mask of -1": ({"attention_mask": with_value(-1, ones())}, "row 1: .* 0 or 1, and is -1.0 at position 2"),
    "a mask of 0.5": ({"attention_mask": with_value(0.5, ones())}, "row 1: .* 0 or 1, and is 0.5 at position 2"),
    "a mask of nan": ({"attention_mask": with_value(torch.nan, ones())}, "row 1: .* 0 or 1, and is nan at position 2"),
    "an additive mask": ({"attention_mask": with_value(-torch.inf, ones() * 0)}, "row 1: .* 0 or 1, and is -inf"),
    "an empty row": ({"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "empty prompt in row 1"),
    "padding on the right": ({"attention_mask": with_value(0, ones())}, "row 1: prompts must be padded on the left"),
    "padding inside": (
        {"attention_mask": torch.tensor([[1, 1, 1], [1, 0, 1]])},
        "row 1: prompts must be padded on the left",
    ),
    "EOS outside": ({"eos_token_id": 40}, "eos_token_id=40 must be a token id of the model's vocabulary, 0 to 39"),
    "negative EOS": ({"eos_token_id": -1}, "eos_token_id=-1 must be a token id"),
    "EOS as a float": ({"eos_token_id": 1.0}, "eos_token_id=1.0 must be a token id"),
    "EOS as a list": ({"eos_token_id": [1, 2]}, r"eos_token_id=\[1, 2\] must be a token id"),
    "EOS as a boolean": ({"eos_token_id": True}, "eos_token_id=True must be a token id"),
    "end of turn outside": ({"eot_token_id": 99}, "eot_token_id=99 must be a token id"),
}
BLOCKS = {"gen_length": 8, "steps": 8, "block_length": 8}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_prompt_is_named_before_the_first_forward(case):
    model, (changes, message) = tiny_model(n_layers=1), BAD[case]
    model.forward = None  # not to be called
    with pytest.raises(ValueError, match=message):
        llada.generate(model, **({"input_ids": IDS} | changes), **BLOCKS)


@pytest.mark.parametrize("case", [case for case in BAD if case not in ("no columns", "too long")])
def test_a_bad_text_to_fill_in_is_named_too(case):
    changes, message = BAD[case]
    model, texts = tiny_model(n_layers=1), {"input_ids": torch.full_like(IDS, MASK)} | changes
    model.forward = None
    with pytest.raises(ValueError, match=message):
        infill(model, **texts, steps=2, block_length=2)


def test_the_row_with_a_mask_token_and_the_one_without_are_named():
    with pytest.raises(ValueError, match=r"row 1: a prompt holds the mask token \(id 39\)"):
        llada.generate(tiny_model(n_layers=1), with_value(MASK), **BLOCKS)
    with pytest.raises(ValueError, match=r"row 0 has no mask token \(id 39\) to fill"):
        infill(tiny_model(n_layers=1), with_value(MASK), steps=2, block_length=2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_attention_masks_of_any_type_give_the_same(dtype):
    model, mask = tiny_model(n_layers=1), torch.tensor([[0, 1, 1], [1, 1, 1]])
    expected = llada.generate(model, IDS, mask, **BLOCKS)
    assert torch.equal(llada.generate(model, IDS, mask.to(dtype), **BLOCKS), expected)
