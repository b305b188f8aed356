"""The short examples run with fewer steps, and what they claim holds."""

import pytest
import torch
from conftest import ROOT, load_script

import llada
from vrpo import DESIGNS, LOSSES, LossInputs, PairScores, PreferenceLoss
from vrpo.rollouts import load_reward

SHORT = ("infilling", "custom_loss", "custom_reward", "custom_design", "merge_and_push", "own_model")


@pytest.fixture(autouse=True)
def tables_restored():
    """Examples add a loss and a design under names that other tests of all names must not see."""
    losses, designs = dict(LOSSES), dict(DESIGNS)
    yield
    for table, before in ((LOSSES, losses), (DESIGNS, designs)):
        table.clear()
        table.update(before)


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short_and_shows_its_command_and_what_it_prints(name):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 100
    docstring = text.split('"""')[1]
    assert f"python examples/{name}.py" in docstring
    assert "rints" in docstring.split(f"python examples/{name}.py", 1)[1]
    assert docstring.rstrip().splitlines()[-1].startswith("    ")
    assert f"[{name}.py]({name}.py)" in (ROOT / "examples" / "README.md").read_text()


def test_gaps_at_any_place_are_filled_with_sentences_that_were_seen(capsys):
    infilling = load_script("examples/infilling")
    filled = infilling.main(steps=120)
    assert all(text.split() in infilling.SENTENCES for text in filled)
    for gap, text in zip(infilling.GAPS, filled, strict=True):
        given = [(a, b) for a, b in zip(gap.split(), text.split(), strict=True) if a != "____"]
        assert all(a == b for a, b in given)
    assert capsys.readouterr().out.count("one of the sentences") == len(filled)


def test_the_loss_of_ones_own_holds_the_score_where_dpo_pushes_on():
    """By hand: r_w - r_l = 3 at beta 0.2 is s = 0.6, loss 0.16."""
    example = load_script("examples/custom_loss")
    scores = example.main(steps=10)
    assert scores["sigmoid"] > 2
    assert 0.5 < scores["target_one"] < 1.5
    ratio = PairScores(torch.tensor([2.0]), torch.tensor([-1.0]))
    loss = PreferenceLoss(("target_one",), (1.0,), 0.2)(LossInputs(ratio, ratio, ratio))
    assert loss.item() == pytest.approx(0.16)


def test_the_reward_of_ones_own_rises_and_the_recipe_takes_it():
    example = load_script("examples/custom_reward")
    first, second = example.main(sft_steps=30, rounds=1, steps=6)
    assert second > first + 0.1
    score = load_reward(f"{ROOT / 'examples' / 'custom_reward.py'}:reward", "prompts.jsonl")
    assert score([{"prompt": "a:", "letter": "a"}], [["aabcd", "bbbbb"]]) == [[0.4, 0.0]]


def test_the_design_of_ones_own_is_unbiased_and_varies_less():
    """Against the enumeration; and each token's weight is 1 in expectation: L/l with probability l/L, for every l."""
    found = load_script("examples/custom_design").main(repeats=400)
    exact = found["exact"][0]
    for name in ("vrpo", "wheel"):
        mean, error, _ = found[name]
        assert abs(mean - exact) < 4 * error
    assert found["wheel"][2] < found["vrpo"][2]
    generators = [llada.generator_for(1, row) for row in range(2000)]
    draws = DESIGNS["wheel"].draw(torch.ones(2000, 3, dtype=torch.bool), generators)
    assert (draws.weight_SBL.mean((0, 1)) - 1).abs().max() < 0.05  # 5 standard errors


def test_the_model_of_ones_own_is_aligned(capsys):
    before, after = load_script("examples/own_model").main(sft_steps=50, steps=12)
    assert after > before + 0.2
    assert capsys.readouterr().out.count("log-likelihood of 'CAT'") == 2


def test_merged_adapters_are_the_same_model_and_nothing_is_pushed_unasked(monkeypatch, capsys):
    example = load_script("examples/merge_and_push")
    pushed = []

    class Hub:
        def create_repo(self, name, **options):
            pushed.append((name, options["private"]))

        def upload_folder(self, repo_id, folder_path, ignore_patterns):
            pushed.append(sorted(path.name for path in folder_path.iterdir() if path.name != ignore_patterns))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(example, "HfApi", Hub)
    merged = example.main([], steps=2)
    assert pushed == []
    base, adapters = merged.parent / "base", merged.parent / "adapters"
    assert example.largest_difference(base, adapters, merged) < 1e-4
    assert example.push(merged, "me/mine") == "https://hub/me/mine"
    assert pushed[0] == ("me/mine", True)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(pushed[1])
    assert "manifest.json" not in pushed[1]
    assert "to upload this folder" in capsys.readouterr().out
