"""Packed rows: a segment is a run of equal ids, so that an id that comes again does not join two segments."""

from itertools import pairwise

import pytest
import torch
from conftest import tiny_model, tiny_moe

from llada.kv_cache import KeyValueCache

FAMILIES = {"dense": tiny_model, "moe": tiny_moe}
FLEX = pytest.param("flex_attention", marks=[pytest.mark.slow, pytest.mark.filterwarnings("default")])
TOKENS = torch.randint(3, 39, (2, 12), generator=torch.Generator().manual_seed(1))
REUSED = torch.tensor([[0] * 4 + [1] * 4 + [0] * 4, [7] * 2 + [-1] * 7 + [7] * 3])
ENDS = {0: (0, 4, 8, 12), 1: (0, 2, 9, 12)}


def largest_difference(model, packed, tokens, ends: dict[int, tuple[int, ...]]) -> float:
    """Between the logits of packed rows and those of each segment alone."""
    parts = [(row, start, end) for row, cuts in ends.items() for start, end in pairwise(cuts)]
    alone = (model(tokens[row : row + 1, start:end]).logits[0] - packed[row, start:end] for row, start, end in parts)
    return max(float(difference.abs().max()) for difference in alone)


@pytest.mark.parametrize("attention", ["eager", "sdpa", FLEX])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_id_that_is_used_again_is_another_segment(family, attention):
    """`[0]*4 + [1]*4 + [0]*4`: the first four tokens saw the last four, whose positions were their own too."""
    dtype, bound = (torch.float32, 1e-4) if attention == "flex_attention" else (torch.float64, 1e-12)
    model = FAMILIES[family](dtype=dtype)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        assert largest_difference(model, model(TOKENS, segment_ids=REUSED).logits, TOKENS, ENDS) < bound


@pytest.mark.parametrize("attention", ["eager", "sdpa", FLEX])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_beside_used_ids_changes_nothing_and_leaves_gradients_finite(family, attention):
    """The collator pads with segment id 0, the id of the first segment; positions without a key would be nan."""
    dtype, bound = (torch.float32, 1e-4) if attention == "flex_attention" else (torch.float64, 1e-12)
    model = FAMILIES[family](dtype=dtype)
    model.set_attn_implementation(attention)
    mask = torch.ones_like(TOKENS)
    mask[0, 10:], mask[1, 6:] = 0, 0
    segments = torch.where(mask.bool(), REUSED, 0)
    with torch.no_grad():
        packed = model(TOKENS, attention_mask=mask, segment_ids=segments).logits
        assert largest_difference(model, packed, TOKENS, {0: (0, 4, 8, 10), 1: (0, 2, 6)}) < bound
    assert packed.isfinite().all()
    if attention != "flex_attention":  # which has no backward pass on a CPU
        model(TOKENS, attention_mask=mask, segment_ids=segments, target_ids=TOKENS).log_probs.sum().backward()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


BAD = {
    "a row too few": (REUSED[:1], r"shape \(1, 12\): there must be one for each token, \(2, 12\)"),
    "a token too few": (REUSED[:, :11], r"shape \(2, 11\)"),
    "no rows": (REUSED[0], r"shape \(12,\)"),
    "a mask of pairs": (torch.zeros(2, 12, 12, dtype=torch.long), r"shape \(2, 12, 12\)"),
    "empty": (torch.zeros(0, 12, dtype=torch.long), r"shape \(0, 12\)"),
    "float": (REUSED.double(), "segment_ids are torch.float64: they must be integers"),
    "half": (REUSED.half(), r"segment_ids are torch.float16"),
    "bool": (REUSED.bool(), r"segment_ids are torch.bool"),
    "complex": (REUSED.to(torch.complex64), r"segment_ids are torch.complex64"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("family", FAMILIES)
def test_segment_ids_that_mark_no_segments_are_refused(family, case):
    segments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        FAMILIES[family]()(TOKENS, segment_ids=segments)


def test_segments_with_a_cache_are_refused():
    """The mask of a part of the positions is that of padding alone, so that segments would be ignored."""
    with pytest.raises(ValueError, match="segment_ids with a kv_cache are not supported"):
        tiny_model()(TOKENS, segment_ids=REUSED, kv_cache=KeyValueCache())
