"""The quickstart's second half: what it says of good and bad numbers, its costs, and how its pairs are labelled."""

import math
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from vrpo import VRPOConfig


@pytest.fixture(scope="module")
def scripts():
    """The modules of the example, which import each other by their names."""
    sys.path.insert(0, str(ROOT / "examples"))
    import poems
    import quickstart_poems
    import quickstart_poems_report
    import verses

    yield SimpleNamespace(poems=poems, example=quickstart_poems, report=quickstart_poems_report, verses=verses)
    sys.path.remove(str(ROOT / "examples"))


def measured(reward, kl=2.0, efficiency=0.7, well_formed=0.6):
    return {
        "reward": reward, "reward_error": 0.003, "kl": kl, "kl_error": 0.03, "efficiency": efficiency,
        "best_reward": 0.3, "well_formed": well_formed,
    }  # fmt: skip


RESULTS = {
    "base": {"reward": 0.0, "reward_error": 0.001, "well_formed": 0.62, "samples": 16_096},
    "chosen": {"reward": 0.061, "reward_error": 0.003, "well_formed": 0.63},
    "control": measured(0.058, kl=0.1), "vrpo": measured(0.25), "samples": 2000, "seed": 3, "pairs": 2040,
    "seconds": {"total": 400.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "in 62% of its own: good enough"),
        ({"base": RESULTS["base"] | {"well_formed": 0.3}}, "in 30% of its own: bad, it needs more steps"),
        ({}, "reward of 0.058, as much as the chosen poems' mean of 0.061"),
        ({"control": measured(0.03)}, "reward of 0.030, below the chosen poems' mean"),
        ({"control": measured(0.1)}, "which imitation should not reach: do not trust it"),
        ({}, "a reward 0.192 above SFT's from the same pairs at equal cost, and above what imitation can give: good"),
        ({"vrpo": measured(0.06), "control": measured(0.03)}, "but not above the chosen poems' mean"),
        ({"vrpo": measured(0.06)}, "cannot tell from SFT's: bad"),
        ({"vrpo": measured(0.02)}, "a reward 0.038 below SFT's from the same pairs at equal cost: bad"),
        ({}, "best policy at that distance has a reward of 0.300"),
        ({}, "at 70% of the distance (KL efficiency): good"),
        ({"vrpo": measured(0.25, efficiency=0.2)}, "at 20% of the distance (KL efficiency): bad"),
        ({"vrpo": measured(-0.1)}, "gained nothing: bad"),
        (
            {"vrpo": measured(0.25, kl=9.0, efficiency=0.2) | {"best_reward": None}},
            "moved 9.00 nats away from the base model (KL). VRPO's reward could be had at 20% of the distance",
        ),
        ({"vrpo": measured(0.8) | {"efficiency": None}}, "16096 samples of the base model do not show"),
        ({"vrpo": measured(0.0, kl=-0.001) | {"efficiency": None}}, "moved -0.00 nats"),
        ({}, "went from 62% to 60%: good, they were kept"),
        ({"vrpo": measured(0.25, well_formed=0.45)}, "went from 62% to 45%: some were lost"),
        ({"vrpo": measured(0.25, well_formed=0.1)}, "went from 62% to 10%: bad, rules were lost"),
    ],
)
def test_the_report_judges_its_numbers(scripts, changes, said):
    assert said in " ".join(scripts.report.in_words(RESULTS | changes))


def test_the_table_has_dashes_where_nothing_is_known(scripts, capsys):
    scripts.report.print_report(RESULTS | {"vrpo": measured(0.8) | {"efficiency": None, "best_reward": None}})
    row = next(line for line in capsys.readouterr().out.splitlines() if "VRPO " in line and "│" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "VRPO", "0.800 ± 0.006", "2.00 ± 0.06", "-", "-", "60%",
    ]  # fmt: skip


def test_poems_stand_beside_each_other_with_their_moods(scripts, capsys):
    poem = "cold gulls wander plainly plain waves fade badly clear boats play softly"
    scripts.report.print_poems({"sea": (poem, "golden boats")})
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:6] == [
        f"  {'sea'}",
        f"    {'cold gulls wander plainly':42}golden boats",
        f"    {'plain waves fade badly':42}(mood +0.10)",
        "    clear boats play softly",
    ]


def test_a_mood_is_the_reward(scripts):
    rows = scripts.verses.demonstrations(50, random.Random(0))
    ids = [scripts.verses.TOKENIZER(row["completion"], add_special_tokens=False)["input_ids"] for row in rows]
    expected = scripts.verses.rewards(torch.tensor(ids)).tolist()
    assert [scripts.verses.mood(row["completion"]) for row in rows] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("changes", [{}, {"draws": 2}, {"vrpo_steps": 11, "batch": 7, "draws": 5}])
def test_the_control_costs_as_many_forward_passes_as_vrpo(scripts, changes):
    """Counted by hand: policy, reference and twice for the gradient; to the steps that the control can take."""
    size = scripts.example.Settings(**changes)
    responses = 2 * size.vrpo_steps * size.batch * size.draws
    assert size.units == responses + responses + 2 * responses
    control = size.control_steps * size.batch * (1 + 2)
    assert 0 <= size.units - control < 3 * size.batch


def test_the_settings_can_be_trained_with(scripts, tmp_path):
    """A response has as many draws as are counted; batches are whole, and a twentieth of the pairs may be equal."""
    size = scripts.example.Settings()
    assert VRPOConfig(str(tmp_path), use_cpu=True, report_to="none", n_t=size.draws).design().n == size.draws
    assert 0.95 * size.pairs >= size.batch


def test_labels_are_tossed_with_the_stated_probability(scripts):
    """Of 4,000 pairs of two fixed poems; within 4 standard errors."""
    rest = "gulls wander slowly plain waves fade badly clear boats play softly"
    better, worse = f"warm {rest}", f"sour {rest}"  # moods of 7/15 and -9/15, and eight that are the same
    prompts = scripts.poems.twice(["sea"] * 4000)
    ids = scripts.verses.TOKENIZER([better, worse], add_special_tokens=False)["input_ids"]
    poems_BL = torch.tensor(ids * 4000)
    rows = scripts.poems.labelled(prompts, poems_BL, random.Random(0))
    assert len(rows) == 4000
    assert {row["prompt"] for row in rows} == {"sea"}
    assert {row["chosen"] for row in rows} == {f" {better}", f" {worse}"}
    expected = 1 / (1 + math.exp(-8 * (16 / 15) / 9))
    share = sum(row["chosen"] == f" {better}" for row in rows) / len(rows)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(rows)) ** 0.5


def test_equal_poems_make_no_pair(scripts):
    ids = scripts.verses.TOKENIZER(["cold gulls", "cold gulls"], add_special_tokens=False)["input_ids"]
    assert scripts.poems.labelled(["sea", "sea"], torch.tensor(ids), random.Random(0)) == []


def test_all_stages_run_with_tiny_settings(scripts, tmp_path, capsys):
    """Their numbers mean nothing; what is saved can be loaded, and the report can be written from it."""
    from llada import LLaDAModelLM
    from llada.sampling.settings import SamplerSettings

    size = scripts.example.Settings(
        demonstrations=64, sft_steps=2, sft_batch=8, pairs=16, curve=200, batch=4, vrpo_steps=2, samples=8
    )
    results, reward_N, shown = scripts.example.run(tmp_path, 0, size)
    assert reward_N.shape == (2 * 16 + 200,)
    assert results["control"]["kl"] != results["vrpo"]["kl"]
    assert set(shown) == set(scripts.verses.TOPICS)
    scripts.report.print_report(results)
    scripts.report.draw_report(results, reward_N, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 1000
    assert LLaDAModelLM.from_pretrained(tmp_path / "model").config.vocab_size == len(scripts.verses.TOKENIZER)
    assert SamplerSettings.load(tmp_path / "model") == scripts.poems.SAMPLER
