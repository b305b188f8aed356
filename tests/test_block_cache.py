"""Caches, parallel rules, rows at their own pace, growing canvases and infilling."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import FIXTURES, reference_model, tiny_model, tiny_moe

import llada
from llada.denoiser import Request, as_denoiser
from llada.kv_cache import KeyValueCache
from llada.sampling.block_cache import CachedDenoiser
from llada.sampling.loop import infill
from llada.sampling.settings import SamplerSettings

RUNS = json.loads((FIXTURES / "cached.json").read_text())
CACHE = {"generate": None, "generate_with_prefix_cache": "prefix", "generate_with_dual_cache": "dual"}
MODELS = {name: reference_model(name) for name in ("dense_mha", "dense_gqa")}
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16], [17]]
BUILD = {"dense": tiny_model, "moe": tiny_moe}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['model']} {run['fn']} {run['settings']}")
def test_the_reference_s_cached_and_parallel_samplers_token_for_token(run):
    """Forwards are the reference's, less those that come after a block is complete (it tests that too late)."""
    output, stats = llada.generate(
        MODELS[run["model"]], torch.tensor(run["prompt"]), **run["settings"], cache=CACHE[run["fn"]],
        stop_at_eos=False, return_stats=True,
    )  # fmt: skip
    assert output.tolist() == run["output"]
    assert stats.forwards <= run["nfe"]
    if run["fn"] == "generate" or "threshold" not in run["settings"]:
        assert stats.forwards == run["nfe"]
        assert stats.query_tokens == sum(run["fwd_lengths"])


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    return ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


RULES = [{}, {"threshold": 0.3}, {"factor": 1.0}, {"confidence_eos_eot_inf": True}]
EXTRAS = [{}, {"cfg_scale": 1.0}, {"grow": True}, {"refresh_every": 3}]


def sharp(kind: str):
    """A model with weights so large that it is sure of some tokens, and answers of different lengths."""
    model = BUILD[kind](dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4 if ("ff_out.weight" in name and "blocks" not in name) or "lm_head" in name else 1.5)
    return model


@pytest.mark.parametrize(
    ("kind", "cache"),
    [
        *(("dense", cache) for cache in (None, "prefix", "dual")), ("moe", "dual"),
        *(pytest.param("moe", cache, marks=pytest.mark.slow) for cache in (None, "prefix")),
    ],
)  # fmt: skip
def test_a_left_padded_batch_equals_each_prompt_alone(kind, cache, monkeypatch):
    """By every rule, guided, growing and refreshed; most often rows are in different blocks and leave one by one."""
    model, (ids, mask), seen = sharp(kind), left_padded(PROMPTS), {"apart": 0, "left": 0, "uneven": 0}
    forward, keep = CachedDenoiser.forward, KeyValueCache.keep

    def counting_forward(self, step, rows, spans):
        seen["apart"] += len(rows) < len(step.row_ids)
        return forward(self, step, rows, spans)

    def counting_keep(self, rows):
        seen["left"] += 1
        keep(self, rows)

    monkeypatch.setattr(CachedDenoiser, "forward", counting_forward)
    monkeypatch.setattr(KeyValueCache, "keep", counting_keep)
    cases = [(rule, extra) for rule in RULES for extra in EXTRAS if cache or "refresh_every" not in extra]
    for rule, extra in cases:
        for eos in (20, 11, 3):
            settings = dict(gen_length=12, block_length=4, steps=9, cache=cache, eos_token_id=eos) | rule | extra
            together = llada.generate(model, ids, mask, **settings)
            forwards = set()
            for index, prompt in enumerate(PROMPTS):
                alone, stats = llada.generate(model, torch.tensor([prompt]), return_stats=True, **settings)
                assert together[index, ids.shape[1] :].tolist() == alone[0, len(prompt) :].tolist(), (settings, index)
                forwards.add(stats.forwards)
            seen["uneven"] += len(forwards) > 1
    print(seen, len(cases))
    assert seen["uneven"] > len(cases)
    if cache:
        assert min(seen.values()) > len(cases)


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("extra", [{}, {"threshold": 0.3}, {"cfg_scale": 1.0}, {"grow": True}], ids=str)
def test_a_cache_refreshed_at_every_step_is_no_cache(kind, cache, extra):
    model, (ids, mask) = sharp(kind), left_padded(PROMPTS)
    settings = dict(gen_length=16, block_length=8, steps=16, eos_token_id=20, return_stats=True) | extra
    plain, cost = llada.generate(model, ids, mask, **settings)
    cached, stats = llada.generate(model, ids, mask, cache=cache, refresh_every=1, **settings)
    assert torch.equal(plain, cached)
    assert (stats.forwards, stats.query_tokens) == (cost.forwards, cost.query_tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_logits_are_exact_where_nothing_else_changed(attention):
    """One forward with every position in the cache, and one of a part of them: the same logits, padding included."""
    model, (ids, mask) = tiny_model(), left_padded(PROMPTS)
    model.set_attn_implementation(attention)
    cache = KeyValueCache()
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, kv_cache=cache).logits
        cache.positions_RQ = torch.tensor([[3, 5], [4, 5], [2, 3], [5, 5]])
        part = model(ids.gather(1, cache.positions_RQ), attention_mask=mask, kv_cache=cache).logits
        cache.rows = torch.tensor([2, 0])
        cache.positions_RQ = cache.positions_RQ[cache.rows]
        some = model(
            ids[cache.rows].gather(1, cache.positions_RQ), attention_mask=mask[cache.rows], kv_cache=cache
        ).logits
    expected = whole.gather(1, torch.tensor([[3, 5], [4, 5], [2, 3], [5, 5]])[..., None].expand(-1, -1, 40))
    assert (part - expected).abs().max() < 1e-12
    assert (some - expected[[2, 0]]).abs().max() < 1e-12


@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
def test_infilling_masks_at_the_end_is_generating(cache):
    model, prompt = tiny_model(dtype=torch.float32), [5, 6, 7]
    settings = dict(block_length=4, steps=8, cache=cache)
    generated = llada.generate(model, torch.tensor([prompt]), gen_length=8, stop_at_eos=False, **settings)
    assert torch.equal(infill(model, torch.tensor([prompt + [39] * 8]), **settings), generated)


@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
def test_infilling_keeps_what_is_given_and_fills_the_rest(cache):
    """Blocks that do not divide the text, rows whose first MASK differs: each as alone."""
    model = tiny_model(dtype=torch.float32)
    texts = [[5, 39, 7, 39, 39, 8, 9, 39, 3], [5, 6, 7, 8, 39, 39, 39, 8, 3]]
    settings = dict(block_length=4, steps=8, cache=cache)
    filled = infill(model, torch.tensor(texts), **settings)
    given = torch.tensor(texts) != 39
    assert torch.equal(filled[given], torch.tensor(texts)[given])
    assert not (filled == 39).any()
    for text, row in zip(texts, filled, strict=True):
        assert infill(model, torch.tensor([text]), **settings)[0].tolist() == row.tolist()


@pytest.mark.parametrize("extra", [{}, {"grow": True}, {"confidence_eos_eot_inf": True, "grow": True}], ids=str)
@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
def test_masks_in_the_padding_are_padding(cache, extra):
    """Rows padded with the mask token: filled as each alone, and the padding kept."""
    model = sharp("dense")
    texts = [[5, 39, 7, 39, 39, 8, 9, 39, 3], [5, 6, 7, 8, 39, 39]]
    ids = torch.tensor([texts[0], [39] * 3 + texts[1]])
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    settings = dict(block_length=4, steps=8, cache=cache, **extra)
    filled = infill(model, ids, mask, **settings)
    for row, text in enumerate(texts):
        assert infill(model, torch.tensor([text]), **settings)[0].tolist() == filled[row, -len(text) :].tolist()
    assert filled[1, :3].tolist() == [39] * 3
    prompts, asked = (
        torch.tensor([[39, 39, 39, 5, 6, 7], [8, 9, 10, 11, 12, 13]]),
        torch.tensor([[0] * 3 + [1] * 3, [1] * 6]),
    )
    settings |= dict(gen_length=8, eos_token_id=20)
    together = llada.generate(model, prompts, asked, **settings)
    assert together[0, 6:].tolist() == llada.generate(model, prompts[:1, 3:], **settings)[0, 3:].tolist()
    assert together[0, :3].tolist() == [39] * 3


def test_infilling_shares_its_steps_among_blocks_that_have_a_mask():
    """8 MASKs in one block of 6 take all 8 steps, though five blocks of given text follow."""
    text = [5, 6] + [39] * 8 + list(range(3, 38)) + list(range(3, 8))
    _, stats = infill(tiny_model(), torch.tensor([text]), block_length=8, steps=8, return_stats=True)
    assert stats.forwards == 8


def test_a_growing_canvas_never_shows_a_later_block():
    """The first block of three comes out as if it were the only one."""
    model, prompt = tiny_model(dtype=torch.float32), torch.tensor([[5, 6, 7]])
    settings = dict(block_length=4, grow=True, stop_at_eos=False)
    long = llada.generate(model, prompt, gen_length=12, steps=12, **settings)
    short = llada.generate(model, prompt, gen_length=4, steps=4, **settings)
    assert torch.equal(long[:, :7], short)
    fixed = llada.generate(model, prompt, gen_length=12, steps=12, block_length=4, stop_at_eos=False)
    assert not torch.equal(long, fixed)


def test_narrowed_positions_and_places_move_as_tensors_do():
    """accelerate calls `to(device)` on what blocks are given where a model lies on several devices."""
    from llada.models.common.attention import QuerySubset

    narrow = QuerySubset.at(torch.tensor([[False, True, True], [True, False, False]]))
    moved = narrow.to("meta")
    assert moved.index_BQ.device.type == moved.wanted_BQ.device.type == "meta"
    x = torch.arange(6.0).view(2, 3, 1)
    assert narrow.pick(x)[narrow.wanted_BQ].flatten().tolist() == [1.0, 2.0, 3.0]


def test_every_step_shows_its_canvas():
    seen: list[tuple[int, int]] = []

    def watch(canvas, confidence):
        assert torch.equal(confidence > 0, (canvas != 39) & (torch.arange(10) >= 2))
        seen.append((int((canvas == 39).sum()), int((confidence > 0).sum())))

    settings = dict(gen_length=8, steps=4, block_length=4, stop_at_eos=False)
    llada.generate(tiny_model(), torch.tensor([[5, 6]]), **settings, on_step=watch)
    assert seen == [(6, 2), (4, 4), (2, 6), (0, 8)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": "both"}, "cache='both' is unknown"),
        ({"threshold": 0.9, "factor": 1.0}, "two rules"),
        ({"threshold": 0.0}, "threshold=0.0 must be above 0"),
        ({"refresh_every": 2}, "refresh_every=2 needs a cache"),
        ({"factor": -1.0}, "factor=-1.0 must be positive"),
        ({"factor": 1.0, "allow_mask": True}, "allow_mask needs the share of steps"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        llada.generate(tiny_model(), torch.tensor([[5]]), gen_length=4, steps=4, block_length=4, **changes)
    with pytest.raises(ValueError, match="row 0 has no mask token"):
        infill(tiny_model(), torch.tensor([[5]]))


def test_settings_travel_with_a_model(tmp_path):
    SamplerSettings(steps=8, gen_length=8, block_length=4, cache="dual").save(tmp_path)
    assert SamplerSettings.load(tmp_path).cache == "dual"
    assert SamplerSettings.load(tmp_path / "nothing") == SamplerSettings()
    (tmp_path / "sampler.json").write_text('{"stepz": 3}')
    with pytest.raises(ValueError, match=r"sampler.json: unknown settings \['stepz'\]"):
        SamplerSettings.load(tmp_path)
    (tmp_path / "sampler.json").write_text('{"steps": 0}')
    with pytest.raises(ValueError, match=r"sampler.json: steps=0 must be at least 1"):
        SamplerSettings.load(tmp_path)


WHOLE = Request(torch.tensor([[5, 39, 39]]), torch.ones(1, 3).bool(), torch.tensor([[False, True, True]]))
KNOWN = replace(WHOLE, row_ids=(0,), block_starts=(1,), block_ends=(3,), enters_block=(True,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "both"}, r"kind='both' of a cache must be one of \('prefix', 'dual'\)"),
        ({"kind": None}, "kind=None of a cache must be one of"),
        ({"refresh_every": 0}, "refresh_every=0 must be at least 1"),
        ({"refresh_every": 1.5}, "refresh_every=1.5 must be an integer, at least 1 or None"),
        ({"refresh_every": float("nan")}, "refresh_every=nan must be an integer"),
        ({"refresh_every": True}, "refresh_every=True must be an integer"),
    ],
)
def test_a_cache_of_an_unknown_kind_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CachedDenoiser(**({"denoiser": as_denoiser(tiny_model(n_layers=1)), "kind": "dual"} | changes))


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"row_ids": ()}, r"a cached request of 1 rows needs row_ids of each; it has \(\)"),
        ({"block_starts": ()}, "needs block_starts of each"),
        ({"block_ends": (3, 3)}, "needs block_ends of each"),
        ({"enters_block": ()}, "needs enters_block of each"),
        ({"row_ids": (1,)}, r"rows \[1\] are not in the cache, which holds \(0,\)"),
    ],
)
def test_a_request_that_does_not_fit_the_cache_is_refused(later, message):
    cached = CachedDenoiser(as_denoiser(tiny_model(n_layers=1)), "dual")
    cached.logits(KNOWN)
    with pytest.raises(ValueError, match=message):
        cached.logits(replace(KNOWN, **later))


def test_a_cache_must_be_filled_before_it_is_used():
    cached = CachedDenoiser(as_denoiser(tiny_model(n_layers=1)), "dual")
    with pytest.raises(ValueError, match=r"rows \[0\] are not in the cache, which holds \(\)"):
        cached.logits(replace(KNOWN, enters_block=(False,)))
    cache = KeyValueCache()
    cache.positions_RQ = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="the first forward pass with a key-value cache must be of all rows"):
        tiny_model(n_layers=1)(torch.tensor([[5, 6]]), kv_cache=cache, attention_mask=torch.ones(1, 3))
