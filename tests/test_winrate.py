"""Win rates by a reward and by a judge against counts by hand, and the errors."""

import json

import pytest

from llada.errors import RecipeError
from llada.intervals import proportion
from vrpo.recipes import winrate

# By length, ours against theirs: won, lost, tied, won, and two pairs with empty answers: lost, tied.
OURS = ["aaa", "a", "ab", "abcd", "", ""]
THEIRS = ["b", "bb", "cd", "e", "f", " "]
CODE = '''
def length(row, answer):
    assert set(row) == {"prompt", "topic"}, row
    return len(answer.strip())

class Longer:
    """Prefers the longer answer, and the first one where both are as long."""
    def judge(self, prompts, completions, shuffle_order=True):
        assert not shuffle_order and all(prompt.startswith("q") for prompt in prompts)
        assert all(text.strip() for pair in completions for text in pair)
        return [0 if len(first) >= len(second) else 1 for first, second in completions]

class First:
    def judge(self, prompts, completions, shuffle_order=True):
        return [0] * len(prompts)

class Unsure:
    def judge(self, prompts, completions, shuffle_order=True):
        return [-1] * len(prompts)

class Sometimes:
    """Prefers the answer with an "a", but cannot tell where it is the second one."""
    def judge(self, prompts, completions, shuffle_order=True):
        return [0 if "a" in first else -1 for first, _ in completions]
'''


@pytest.fixture
def folder(tmp_path):
    for name, answers in (("ours", OURS), ("theirs", THEIRS)):
        rows = [{"prompt": f"q{i}", "topic": "t", "completion": text} for i, text in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path


def compared(folder, *words) -> dict:
    command = ["--completions", str(folder / "ours.jsonl"), "--baseline", str(folder / "theirs.jsonl")]
    winrate.main([*command, "--output", str(folder / "out.json"), *words])
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize(
    ("option", "name", "wins"),
    [
        ("--reward", "length", [1, 0, 0.5, 1, 0, 0.5]),
        ("--judge", "Longer", [1, 0, 0.5, 1, 0, 0.5]),  # of equal lengths it prefers the first place, in both orders
        ("--judge", "First", [0.5, 0.5, 0.5, 0.5, 0, 0.5]),
        ("--judge", "Sometimes", [0.5, 0.5, 0.5, 0.5, 0, 0.5]),
        ("--judge", "Unsure", [0.5, 0.5, 0.5, 0.5, 0, 0.5]),
    ],
)
def test_wins_ties_and_losses(folder, capsys, option, name, wins):
    found = compared(folder, option, f"{folder / 'code.py'}:{name}")
    assert found["wins"] == wins
    assert found["win_rate"] == pytest.approx(sum(wins) / 6)
    assert 0 < found["low"] < found["win_rate"] < found["high"] < 1
    tally = f"{wins.count(1)} won, {wins.count(0.5)} tied, {wins.count(0)} lost of 6 prompts"
    assert tally in capsys.readouterr().out


def test_a_half_in_an_interval_counts_as_half_a_success():
    """Wilson's for 10 of 20, (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), by hand."""
    expected = (pytest.approx(0.2992980, abs=1e-6), pytest.approx(0.7007020, abs=1e-6))
    for scores in ([1] * 10 + [0] * 10, [0.5] * 20, [1] * 5 + [0.5] * 10 + [0] * 5):
        found = proportion(scores)
        assert (found.value, found.low, found.high) == (0.5, *expected)


def test_files_that_cannot_be_compared_are_named(folder):
    reward = ("--reward", f"{folder / 'code.py'}:length")
    with pytest.raises(RecipeError, match="give either reward .* or judge"):
        compared(folder)
    with pytest.raises(RecipeError, match="reward='code.py' must be FILE.py:function"):
        compared(folder, "--reward", "code.py")
    (folder / "theirs.jsonl").write_text(json.dumps({"prompt": "q0", "completion": "a"}) + "\n")
    with pytest.raises(RecipeError, match="ours.jsonl has 6 rows and .*theirs.jsonl has 1"):
        compared(folder, *reward)
    rows = [{"prompt": f"p{i}", "completion": "a"} for i in range(6)]
    (folder / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecipeError, match=r"row 0 \(counted from 0\) of .* have different prompts: 'q0' and 'p0'"):
        compared(folder, *reward)
    (folder / "theirs.jsonl").write_text(json.dumps({"prompt": "q0", "answer": "a"}) + "\n")
    with pytest.raises(RecipeError, match=r"baseline=.*: columns are \['answer', 'prompt'\]; missing: completion"):
        compared(folder, *reward)
