"""The best reward for each KL, and KL efficiency, against a small space that is enumerated."""

import itertools
import math

import pytest
import torch
from conftest import load_script

from vrpo.analysis.frontier import best_of, kl_efficiency, tilt, tilt_at, tilt_to

BASE = torch.tensor([8, 4, 2, 1, 1], dtype=torch.float64) / 16  # probabilities of five answers
REWARD = torch.tensor([0.0, 1.0, -1.0, 3.0, 0.5], dtype=torch.float64)
SAMPLES = REWARD.repeat_interleave(torch.tensor([8, 4, 2, 1, 1]) * 100)  # their empirical distribution is BASE


def kl(policy: torch.Tensor) -> float:
    return float((policy * (policy / BASE).log()).sum())


@pytest.mark.parametrize("strength", [-2.0, 0.0, 0.5, 3.0])
def test_a_tilt_has_the_reward_and_the_kl_of_the_enumerated_policy(strength):
    policy = BASE * (strength * REWARD).exp()
    policy = policy / policy.sum()
    found = tilt(SAMPLES, strength)
    assert found.reward == pytest.approx(float(policy @ REWARD), abs=1e-12)
    assert found.kl == pytest.approx(kl(policy), abs=1e-12)


def test_no_policy_with_its_reward_is_nearer_to_the_base():
    """Steps within the simplex that keep the sum and the reward: each increases the KL."""
    found = tilt_to(SAMPLES, 1.2)
    assert found is not None
    policy = BASE * (found.strength * REWARD).exp()
    policy = policy / policy.sum()
    assert float(policy @ REWARD) == pytest.approx(1.2, abs=1e-9)
    kept = torch.linalg.svd(torch.stack([torch.ones(5, dtype=torch.float64), REWARD])).Vh[2:]  # directions
    for direction, size in itertools.product(kept, (-1e-3, 1e-3)):
        assert kl(policy + size * direction) > found.kl


def test_a_tilt_has_efficiency_one_and_what_samples_do_not_show_has_none():
    found = tilt(SAMPLES, 0.7)
    assert kl_efficiency(SAMPLES, found.reward, found.kl) == pytest.approx(1.0, abs=1e-9)
    assert kl_efficiency(SAMPLES, found.reward, 4 * found.kl) == pytest.approx(0.25, abs=1e-9)
    assert tilt_to(SAMPLES[:-150], 2.99) is None  # a tilt that samples almost only the answer of reward 3
    assert tilt_to(SAMPLES, 3.5) is None
    with pytest.raises(ValueError, match="kl=0.0 must be positive"):
        kl_efficiency(SAMPLES, 1.0, 0.0)


@pytest.mark.parametrize("strength", [0.1, 0.7, 2.0])
def test_the_best_policy_at_a_kl_is_the_tilt_that_has_it(strength):
    expected = tilt(SAMPLES, strength)
    found = tilt_at(SAMPLES, expected.kl)
    assert found is not None
    assert found.reward == pytest.approx(expected.reward, abs=1e-9)
    assert found.strength == pytest.approx(strength, abs=1e-6)


def test_a_kl_that_no_tilt_has_or_that_samples_do_not_show_has_none():
    """A sixteenth of the samples has the best reward: no tilt is further than log 16."""
    assert tilt_at(SAMPLES, math.log(16) - 1e-3) is not None
    assert tilt_at(SAMPLES, math.log(16)) is None
    assert tilt_at(SAMPLES[::16], math.log(16) - 1e-3) is None  # 6 samples of the best reward
    assert tilt_at(torch.ones(1000), 0.1) is None
    assert tilt_at(SAMPLES, 0.0).reward == pytest.approx(float(SAMPLES.mean()), abs=1e-9)
    with pytest.raises(ValueError, match="kl=-0.1 must not be negative"):
        tilt_at(SAMPLES, -0.1)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_best_of_k_has_the_enumerated_reward(k):
    expected = sum(
        float(BASE[list(each)].prod() * REWARD[list(each)].max()) for each in itertools.product(range(5), repeat=k)
    )
    assert best_of(SAMPLES, k).reward == pytest.approx(expected, abs=1e-12)
    assert best_of(SAMPLES, k).kl == pytest.approx(math.log(k) - (k - 1) / k, abs=1e-15)


def test_dpo_with_tossed_labels_has_its_minimum_at_the_tilt():
    """The expected loss over all pairs of two samples, labelled with sigmoid(g (r1 - r2)): its slope is 0 there."""
    g, beta = 2.0, 0.4
    logit = BASE.log() + g / beta * REWARD
    ratio = (logit.log_softmax(0) - BASE.log()).requires_grad_()
    chosen = torch.sigmoid(g * (REWARD[:, None] - REWARD)) * BASE[:, None] * BASE
    loss = -(2 * chosen * torch.nn.functional.logsigmoid(beta * (ratio[:, None] - ratio))).sum()
    assert torch.autograd.grad(loss, ratio)[0].abs().max() < 1e-12


def test_the_poems_keep_their_own_rules_and_a_broken_rule_is_seen():
    verses = load_script("examples/verses")
    rows = verses.demonstrations(300, verses.random.Random(0))
    assert all(verses.is_well_formed(row["prompt"], row["completion"]) for row in rows)
    poem = "cold gulls wander slowly plain waves fade badly clear boats play softly"
    ids = torch.tensor([verses.TOKENIZER(poem, add_special_tokens=False)["input_ids"]])
    moods = [-7, 3, -3, -1, -5, -9, 5, 7, 3]  # fifteenths
    assert float(verses.rewards(ids)) == pytest.approx(sum(moods) / 15 / 9, abs=1e-6)
    assert not verses.is_well_formed("sea", poem)  # slowly and softly do not rhyme
    rhymed = poem.replace("slowly", "plainly")
    assert verses.is_well_formed("sea", rhymed)
    for old, new in (("gulls", "boats"), ("boats", "trams"), ("plain", "cold"), ("plain", "")):
        assert not verses.is_well_formed("sea", rhymed.replace(f" {old}", f" {new}", 1)), new
