import json

import pytest
import torch
from conftest import FIXTURES, reference_model, tiny_model

import llada
from llada.denoiser import DenoiserSpec, Request, as_denoiser
from llada.sampling.guidance import GuidedDenoiser
from llada.sampling.selection import (
    TokenProposal,
    answer_complete,
    select_by_factor,
    select_by_threshold,
    select_top_k,
    tokens_per_step,
)

GOLDEN = json.loads((FIXTURES / "generate.json").read_text())
GOLDEN_FACTOR = json.loads((FIXTURES / "factor.json").read_text())
MODELS = {name: reference_model(name) for name in ("dense_mha", "dense_gqa")}


def deterministic(run: dict) -> bool:
    return not run["settings"].get("temperature") and run["settings"].get("remasking") != "random"


def replay(run: dict, model, **changes):
    mask = None if run["attention_mask"] is None else torch.tensor(run["attention_mask"])
    ids = {"eos_token_id": run.get("eos"), "eot_token_id": run.get("eot", GOLDEN["ids"]["eot"])}
    settings = {key: value for key, value in run["settings"].items() if key != "torch_manual_seed"}
    return llada.generate(
        model, torch.tensor(run["prompt"]), mask, **(settings | ids | {"stop_at_eos": False} | changes)
    )


GREEDY = [run for run in GOLDEN["official"] + GOLDEN["flags"] if deterministic(run)]


@pytest.mark.parametrize("run", GREEDY, ids=lambda run: str(run["settings"]))
def test_greedy_output_of_the_official_sampler_token_for_token(run):
    output, stats = replay(run, MODELS[run["model"]], return_stats=True)
    assert output.tolist() == run["output"]
    assert stats.forwards == run.get("nfe", run["settings"]["steps"])


@pytest.mark.parametrize("run", GOLDEN["mask_predicted"], ids=lambda run: str(run["settings"]))
def test_mask_is_emitted_only_by_the_parity_switch(run):
    """The fixture's weights make MASK the most probable token: the official sampler then leaves it in its output."""
    model = reference_model(run["model"])
    head = model.get_output_embeddings().weight.data
    head[159] = 1.02 * head[17]
    assert replay(run, model, allow_mask=True).tolist() == run["output"]
    assert not (replay(run, model) == 159).any()


@pytest.mark.parametrize("settings", [{}, {"block_length": 4}, {"cfg_scale": 1.0}, {"confidence_eos_eot_inf": True}])
def test_a_left_padded_batch_equals_each_prompt_alone(settings):
    model = tiny_model(dtype=torch.float32)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]
    padded = torch.tensor([[0] * (6 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (6 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"gen_length": 12, "steps": 6, "block_length": 12} | settings
    together = llada.generate(model, padded, mask, **settings)
    for row, prompt in enumerate(prompts):
        alone = llada.generate(model, torch.tensor([prompt]), **settings)
        assert together[row, 6:].tolist() == alone[0, len(prompt) :].tolist()


def test_stopping_at_eos_keeps_the_text_and_saves_forwards():
    """With a frequent token as EOS: up to the first EOS the two outputs agree, after its block there is only EOS."""
    model = tiny_model(seed=3, dtype=torch.float32)
    eos = 12
    settings = {"gen_length": 32, "steps": 32, "block_length": 4, "return_stats": True, "eos_token_id": eos}
    prompts = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
    full, cost = llada.generate(model, prompts, **settings, stop_at_eos=False)
    short, short_cost = llada.generate(model, prompts, **settings)
    first_eos = [row.tolist().index(eos, 4) for row in full]  # every row has one: the test is void otherwise
    for row, position in enumerate(first_eos):
        assert short[row, : position + 1].tolist() == full[row, : position + 1].tolist()
        assert set(short[row, position // 4 * 4 + 4 :].tolist()) <= {eos}
    assert short_cost.forwards < cost.forwards == 32


def test_a_row_with_a_mask_before_its_eos_has_not_ended():
    answers = torch.tensor([[5, 1, 39, 39], [5, 39, 1, 1], [5, 6, 7, 8]])
    assert [answer_complete(answer, mask_id=39, eos_id=1) for answer in answers] == [True, False, False]


def test_quotas_share_the_masks_evenly_the_first_steps_taking_the_rest():
    assert [tokens_per_step(masks, 3) for masks in (8, 5, 2)] == [[3, 3, 2], [2, 2, 1], [1, 1, 0]]


def test_a_step_that_commits_nothing_costs_nothing():
    _, stats = llada.generate(
        tiny_model(), torch.tensor([[5]]), gen_length=4, steps=16, block_length=4, return_stats=True
    )
    assert stats.forwards == 4


def test_top_k_takes_the_most_confident_and_the_leftmost_of_equals():
    at, confidence = torch.tensor([[False, True, True, True, True]]), torch.tensor([0.2, 0.5, 0.5, 0.5])
    assert select_top_k(at, confidence, torch.tensor([2])).tolist() == [[False, False, True, True, False]]


def test_the_threshold_takes_all_that_are_sure_and_always_one():
    at, sure = torch.tensor([[True, False, True, True], [True, True, False, False]]), torch.tensor([0.9, 0.95, 0.3])
    confidence = torch.cat([sure, torch.tensor([0.1, 0.2])])
    expected = [[True, False, True, False], [False, True, False, False]]
    assert select_by_threshold(at, confidence, 0.9).tolist() == expected


@pytest.mark.parametrize("case", GOLDEN_FACTOR, ids=lambda case: f"{case['factor']:.3f}")
def test_the_factor_rule_of_the_reference(case):
    logits, at = torch.tensor(case["logits"]), torch.tensor(case["mask"])
    confidence = logits.softmax(-1).amax(-1)[at]
    assert select_by_factor(at, confidence, case["factor"]).tolist() == case["transfer"]


def choice(**changes) -> TokenProposal:
    settings = dict(
        remasking="low_confidence", temperature=0.0, forbidden=[], removed=[], unconfident=[], generator=None
    )
    return TokenProposal(**(settings | changes))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tempered_tokens_follow_the_softmax_of_logits_over_temperature(temperature):
    """20,000 Gumbel-max draws against the exact law, in standard errors."""
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    tokens, _ = choice(temperature=temperature, generator=torch.Generator().manual_seed(0))(logits.repeat(20_000, 1))
    exact = (logits / temperature).softmax(-1)
    frequency = torch.bincount(tokens, minlength=4) / 20_000
    assert ((frequency - exact).abs() / (exact * (1 - exact) / 20_000).sqrt()).max() < 4


def test_top_probability_keeps_the_diversity_that_low_confidence_draws_away():
    """Four positions with an unlikely token (p = 0.3): one is committed a step; the other three are drawn again.

    Ordered by what was drawn, a step commits the unlikely token only if all open positions drew it; ordered by the most
    probable token, the committed tokens are draws of the model, 0.3 of them unlikely.
    """
    logits = torch.tensor([0.7, 0.3]).log().repeat(4, 1)
    generator = torch.Generator().manual_seed(0)
    shares = {}
    for remasking in ("low_confidence", "top_probability"):
        choose, unlikely = choice(remasking=remasking, temperature=1.0, generator=generator), 0
        for _ in range(2000):
            for left in (4, 3, 2, 1):
                tokens, confidence = choose(logits[:left])
                unlikely += tokens[confidence.argmax()].item()
        shares[remasking] = unlikely / 8000
    assert abs(shares["top_probability"] - 0.3) < 4 * (0.3 * 0.7 / 8000) ** 0.5
    expected = (0.3**4 + 0.3**3 + 0.3**2 + 0.3) / 4
    assert abs(shares["low_confidence"] - expected) < 4 * (expected * (1 - expected) / 8000) ** 0.5


def test_random_remasking_commits_every_position_equally_often():
    model = tiny_model(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.tensor([[5, 6]]).repeat(400, 1)
    settings = dict(gen_length=4, block_length=4, remasking="random", generator=generator, stop_at_eos=False)
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    llada.generate(model, prompts, steps=4, **settings)
    hits = (seen[1][:, 2:] != 39).float()  # after the first step, one of four is committed
    assert torch.equal(hits.sum(-1), torch.ones(400))
    assert ((hits.mean(0) - 0.25).abs() / (0.25 * 0.75 / 400) ** 0.5).max() < 4


def test_confidence_is_the_untempered_probability_and_eos_options_hold_at_any_temperature():
    logits = torch.tensor([[1.0, 5.0, 2.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    tokens, confidence = choice(temperature=0.7, generator=generator)(logits)
    assert confidence.item() == pytest.approx(logits.softmax(-1)[0, tokens].item())
    for temperature in (0.0, 0.01):
        tokens, confidence = choice(temperature=temperature, unconfident=[1], generator=generator)(logits)
        assert tokens.item() == 1
        assert confidence.item() == 0
        tokens, _ = choice(temperature=temperature, removed=[1], generator=generator)(logits)
        assert tokens.item() == 2


def test_guidance_extrapolates_from_the_masked_prompt():
    """logits = u + (w + 1)(c - u); by hand with c = 3, u = 1, w = 0.5: 1 + 1.5 * 2 = 4."""
    canvas, given = torch.tensor([[5, 39]]), torch.tensor([[True, False]])

    class TwoRows:
        spec = DenoiserSpec(mask_id=39, context=2, vocabulary=40)

        def logits(self, request):
            assert request.tokens_BQ.tolist() == [[5, 39], [39, 39]]
            assert request.attention_BL.shape == request.at_BQ.shape == (2, 2)
            return torch.tensor([[3.0], [1.0]])

    request = Request(canvas, torch.ones(1, 2), torch.tensor([[False, True]]))
    assert GuidedDenoiser(TwoRows(), given, 0.5).logits(request).tolist() == [[4.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gen_length": 10}, "gen_length=10 must be a multiple of block_length=4, such as 8 or 12"),
        ({"steps": 3}, "steps=3 must be a multiple of the number of blocks, gen_length / block_length=2"),
        ({"remasking": "entropy"}, "remasking='entropy' is unknown"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"steps": 0}, "steps=0"),
        ({"gen_length": 64, "steps": 64}, "a text of 2 tokens does not fit: context less gen_length is 0"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "empty prompt in row 0"),
        ({"attention_mask": torch.tensor([[0, 0]])}, "empty prompt in row 0"),
        ({"attention_mask": torch.tensor([[1, 0]])}, "padded on the left"),
        ({"attention_mask": torch.tensor([[True, False]])}, "padded on the left"),
        ({"input_ids": torch.tensor([[5, 39]])}, "holds the mask token"),
    ],
)
def test_bad_input_is_refused_before_the_first_forward(changes, message):
    settings = {"input_ids": torch.tensor([[5, 6]]), "gen_length": 8, "steps": 4, "block_length": 4}
    with pytest.raises(ValueError, match=message):
        llada.generate(tiny_model(), **(settings | changes))


def test_missing_ids_are_named():
    model = tiny_model(eos_token_id=None, eot_token_id=None)
    with pytest.raises(ValueError, match="no eos_token_id"):
        llada.generate(model, torch.tensor([[5]]), gen_length=4, steps=4, block_length=4)
    with pytest.raises(ValueError, match="needs eot_token_id"):
        llada.generate(
            model,
            torch.tensor([[5]]),
            gen_length=4,
            steps=4,
            block_length=4,
            eos_token_id=1,
            confidence_eos_eot_inf=True,
        )


class Spoilt:
    """A denoiser that gives `value` as the logit of token 7 at one position of a row, in the third forward pass."""

    def __init__(self, value: float, row: int, position: int, token: int | slice = 7):
        self.model, self.calls = as_denoiser(tiny_model(n_layers=1)), 0
        self.spec, self.log_probs = self.model.spec, self.model.log_probs
        self.value, self.where, self.token = value, (row, position), token

    def logits(self, request):
        self.calls += 1
        logits_NV = self.model.logits(request)
        if self.calls >= 3:
            for number, (row, position) in enumerate(request.at_BQ.nonzero().tolist()):
                if (row, position) == self.where:
                    logits_NV[number, self.token] = self.value
        return logits_NV


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "remasking": "top_probability"},
        {"remasking": "random"},
        {"threshold": 0.9},
        {"factor": 1.0},
        {"confidence_eos_eot_inf": True},
        {"cfg_scale": 1.0},
    ],
    ids=str,
)
def test_logits_that_are_no_numbers_stop_the_sampler_where_they_are(value, settings):
    """In row 1 and the second half of the block, which is not committed yet: the first step that sees them stops."""
    model = Spoilt(value, row=1, position=9)
    frames = []
    message = (
        r"^row 1: the model's logits at position 9, 7 tokens after the first that is filled, are nan or infinity "
        r"\(forward pass 3, block of positions 2 to 9\)"
    )
    begun = {"steps": 8, "gen_length": 8, "block_length": 8, "eot_token_id": 2, "stop_at_eos": False} | settings
    torch.manual_seed(4)
    with pytest.raises(FloatingPointError, match=message):
        llada.generate(
            model, torch.tensor([[5, 6], [7, 8]]), on_step=lambda ids, sure: frames.append(ids.clone()), **begun
        )
    assert len(frames) == 2  # the third step has written nothing


@pytest.mark.parametrize("token", [1, 2])
def test_an_end_whose_logit_is_nan_is_found_where_ends_have_no_confidence(token):
    """EOS and end of turn are left out of the confidence then, and the choice of the token finds them."""
    model = Spoilt(torch.nan, row=0, position=9, token=token)
    with pytest.raises(FloatingPointError, match="position 9"):
        llada.generate(
            model, torch.tensor([[5, 6]]), steps=8, gen_length=8, block_length=8, confidence_eos_eot_inf=True
        )


def test_logits_of_minus_infinity_are_allowed_unless_they_all_are():
    """Some models rule tokens out so; a position at which every token is ruled out has no prediction."""
    settings = {"steps": 8, "gen_length": 8, "block_length": 8}
    llada.generate(Spoilt(-torch.inf, 0, 9), torch.tensor([[5, 6]]), **settings)
    with pytest.raises(FloatingPointError, match="position 9"):
        llada.generate(Spoilt(-torch.inf, 0, 9, slice(None)), torch.tensor([[5, 6]]), **settings)
