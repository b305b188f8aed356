"""Scoring of answers: enumerated masks, unbiased groups of draws, the published draw, and questions that end early."""

import json
import math

import pytest
import torch
from conftest import FIXTURES, reference_model, tiny_model
from test_likelihood import Table
from test_masking import standard_errors

from llada.denoiser import as_denoiser
from llada.diffusion import scoring
from llada.diffusion.causal import causal_log_likelihood
from llada.diffusion.likelihood import exact_elbo
from llada.diffusion.random_streams import generator_for
from llada.diffusion.scoring import DESIGNS, Answer, Estimate, Scorer, ScoreSettings
from llada.sampling.guidance import GuidedDenoiser

UNBIASED = [name for name in DESIGNS if name != "published"]


def exact(model, answer: Answer) -> float:
    tokens = torch.tensor(answer.context + answer.tokens)
    scored = torch.arange(len(tokens)) >= len(answer.context)
    return exact_elbo(as_denoiser(model), tokens, scored).item()


@pytest.mark.parametrize("design", UNBIASED)
def test_short_answers_are_exact_and_longer_ones_unbiased(design):
    """2^3 - 1 = 7 masks of three tokens are enumerated with 16 draws; six tokens, of 63 masks, get 16 draws."""
    model, short, long = Table(6), Answer((0, 1, 2), (3, 4, 5), 1), Answer((), tuple(range(6)), 2)
    scorer = Scorer(model, ScoreSettings(design=design, draws=16, group=4))
    ((one, two),) = scorer.score([[short, long]])
    assert one.value == pytest.approx(exact(model, short), abs=1e-12)
    assert (one.exact, one.rows, one.standard_error) == (True, 7, 0.0)
    assert (two.exact, two.rows, len(two.groups), scorer.rows) == (False, 16, 4, 23)
    questions = [[Answer((), tuple(range(6)), key)] for key in range(1000)]
    found = Scorer(model, ScoreSettings(design=design, draws=8, group=4, batch_size=512)).score(questions)
    samples = [estimate.value for (estimate,) in found]
    assert standard_errors(torch.tensor(samples), exact(model, long)) < 4


@pytest.mark.parametrize("design", UNBIASED)
def test_the_standard_error_is_that_of_the_value(design):
    """The mean squared standard error of 400 streams is the variance of the values, within 4 of its own errors."""
    model = Table(6)
    settings = ScoreSettings(design=design, draws=16, group=4, batch_size=512)
    questions = [[Answer((), tuple(range(6)), key)] for key in range(400)]
    found = [each for (each,) in Scorer(model, settings).score(questions)]
    values = torch.tensor([each.value for each in found])
    squares = torch.tensor([each.standard_error**2 for each in found])
    squared_error = (values - exact(model, Answer((), tuple(range(6)), 0))).square()
    assert standard_errors(squared_error - squares, 0.0) < 4


def test_the_published_draw_gives_the_reference_s_values(monkeypatch):
    """Fixture: 8 draws in groups of 4 after torch.manual_seed(17), plain and guided by 1."""
    golden = json.loads((FIXTURES / "generate.json").read_text())["loglik"]
    model = reference_model(golden["model"])
    model.config.mask_token_id = 159
    answer = Answer(tuple(golden["prompt"]), tuple(golden["answer"]), 0)
    settings = ScoreSettings("published", draws=8, group=4)
    for guide, key in ((None, ""), (lambda denoiser, given: GuidedDenoiser(denoiser, given, 1.0), "_cfg1")):
        seeded = torch.Generator().manual_seed(17)
        monkeypatch.setattr(scoring, "generator_for", lambda *key, seeded=seeded: seeded)
        value = Scorer(as_denoiser(model), settings, guide=guide).score([[answer]])[0][0].value
        assert value == pytest.approx(golden[f"get_log_likelihood_seed17_mc8_bs4{key}"], rel=2e-6)


def test_confidence_is_the_sum_where_all_is_masked():
    model = Table(6)
    (found,) = Scorer(model, ScoreSettings("confidence")).score([[Answer((0, 1), (2, 3, 4, 5), 0)]])
    assert found[0].value == pytest.approx(model.log_p[0b111100, 2:].sum().item(), abs=1e-12)
    assert (found[0].rows, found[0].standard_error) == (1, 0.0)


def test_an_autoregressive_model_has_exact_likelihoods_from_one_row_each():
    model = tiny_model(causal=True)
    answers = [Answer((5, 6, 7), (8, 9, 10, 11), 0), Answer((5,), (12, 13), 1)]
    (found,) = Scorer(as_denoiser(model), ScoreSettings(batch_size=2)).score([answers])
    for answer, estimate in zip(answers, found, strict=True):
        tokens = torch.tensor([answer.context + answer.tokens])
        scored = torch.arange(tokens.shape[1])[None] >= len(answer.context)
        assert estimate.value == pytest.approx(causal_log_likelihood(model, tokens, scored).item(), abs=1e-10)
        assert (estimate.rows, estimate.standard_error) == (1, 0.0)


def test_batches_and_order_change_nothing():
    model, rng = as_denoiser(tiny_model()), torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 38, (length,), generator=rng).tolist())

    questions = [[Answer(tokens(4 + q), tokens(length), 10 * q + length) for length in (2, 9, 12)] for q in range(3)]
    values = []
    for size, order in ((1, [0, 1, 2]), (8, [2, 0, 1]), (7, [1, 2, 0])):
        found = Scorer(model, ScoreSettings(draws=32, batch_size=size)).score([questions[index] for index in order])
        values.append([[each.value for each in found[order.index(q)]] for q in range(3)])
    assert values[1] == [pytest.approx(each, abs=1e-9) for each in values[0]]
    assert values[2] == [pytest.approx(each, abs=1e-9) for each in values[0]]


def test_answers_of_one_key_share_their_draws():
    """Equal tokens under one key have equal values, so that the difference of two options has no noise from masks."""
    model = as_denoiser(tiny_model())
    context, tokens = (5, 6, 7), tuple(range(10, 20))
    (found,) = Scorer(model, ScoreSettings(draws=32)).score([[Answer(context, tokens, 1), Answer(context, tokens, 1)]])
    (apart,) = Scorer(model, ScoreSettings(draws=32)).score([[Answer(context, tokens, 1), Answer(context, tokens, 2)]])
    assert found[0].groups == found[1].groups
    assert apart[0].groups != apart[1].groups


class Known(Scorer):
    """A scorer whose groups have known means: the answer's first token plus noise of the given size."""

    noise = 1.0

    def forward(self, rows):
        self.rows += len(rows)
        rng = generator_for(0, self.rows)
        return [float(row[0].tokens[0] + self.noise * torch.randn((), generator=rng)) for row in rows]


def options(*values: int, size: float = 1.0) -> list[Answer]:
    return [Answer((), (value,) * 9, key, size) for key, value in enumerate(values)]


def test_a_question_ends_when_its_best_option_leads():
    """Noise 1 in a draw, 4 draws a group: options 30 nats apart end at the fewest groups, equal ones at the last."""
    scorer = Known(Table(2), ScoreSettings(draws=64, group=4, lead=3.0))
    clear, close, single = scorer.score([options(50, 20, 10), options(50, 50), options(50)])
    assert [len(each.groups) for each in clear] == [scoring.FEWEST_GROUPS] * 3
    assert [len(each.groups) for each in close] == [16, 16]
    assert len(single[0].groups) == 16  # nothing to decide: its value is what is wanted


def test_options_that_are_left_behind_get_no_more_draws():
    (found,) = Known(Table(2), ScoreSettings(draws=64, group=4, lead=3.0)).score([options(50, 50, 10)])
    assert [len(each.groups) for each in found] == [16, 16, scoring.FEWEST_GROUPS]


def test_both_orders_have_to_be_decided():
    """50 and 48 nats are clear as they are; divided by 5 and 4.8 both have 10."""
    one, two = options(50)[0], Answer((), (48,) * 9, 1, 4.8)
    (found,) = Known(Table(2), ScoreSettings(draws=64, group=16, lead=2.0)).score(
        [[Answer((), one.tokens, 0, 5.0), two]]
    )
    assert [len(each.groups) for each in found] == [4, 4]
    Known.noise = 0.1
    (found,) = Known(Table(2), ScoreSettings(draws=64, group=4, lead=2.0)).score(
        [[Answer((), one.tokens, 0, 5.0), two]]
    )
    assert len(found[0].groups) > scoring.FEWEST_GROUPS
    Known.noise = 1.0


def test_the_error_of_a_difference_is_that_of_paired_groups():
    scorer = Scorer(Table(2), ScoreSettings(lead=2.0))
    together = [Estimate([1.0, 5.0, 9.0]), Estimate([0.0, 4.0, 8.5])]
    assert scorer.leads(together, [1.0, 1.0], 0, 1)
    apart = [Estimate([1.0, 5.0, 9.0]), Estimate([8.5, 0.0, 4.0])]
    assert not scorer.leads(apart, [1.0, 1.0], 0, 1)
    assert math.isnan(Estimate([1.0]).standard_error)
    assert not scorer.leads([Estimate([3.0]), Estimate([0.0])], [1.0, 1.0], 0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": 100}, "draws=100 must be a multiple of group=16"),
        ({"design": "best"}, "design='best'"),
        ({"lead": 0.0}, "lead=0.0 must be positive"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ScoreSettings(**changes)


def test_an_empty_answer_is_refused():
    with pytest.raises(ValueError, match="an answer without tokens has no likelihood"):
        Scorer(Table(2), ScoreSettings()).score([[Answer((1,), (), 0)]])


@pytest.mark.parametrize("causal", [False, True])
def test_a_likelihood_that_is_nan_is_an_error(causal):
    model = tiny_model(causal=causal)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the likelihood of an answer is nan"):
        Scorer(as_denoiser(model), ScoreSettings()).score([[Answer((5, 6), (7, 8), 0)]])
