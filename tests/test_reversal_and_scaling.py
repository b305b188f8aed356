"""The examples of the autoregressive baseline: what is taught and asked, how names are scored, and what is counted."""

import math
import random
import sys

import pytest
import torch
from conftest import ROOT

from llada import exact_elbo

sys.path.insert(0, str(ROOT / "examples"))
import reversal
import scaling

sys.path.remove(str(ROOT / "examples"))


def test_tested_facts_are_taught_in_one_order_only():
    names, descriptions = reversal.made_up(2 * reversal.FACTS, random.Random(0))
    for parts in (names, descriptions):
        assert len(set(map(tuple, parts.tolist()))) == 2 * reversal.FACTS
    assert not set(names.flatten().tolist()) & set(descriptions.flatten().tolist())
    taught = {tuple(row) for row in reversal.lessons(names, descriptions)}
    assert len(taught) == 3 * reversal.FACTS
    assert {tuple(row) for row in reversal.sentence(names, descriptions).tolist()} <= taught
    turned = [tuple(row) for row in reversal.sentence(descriptions, names).tolist()]
    assert not taught & set(turned[: reversal.FACTS])
    assert set(turned[reversal.FACTS :]) <= taught


@pytest.mark.parametrize("in_place", [True, False])
def test_llada_ranks_names_by_their_exact_bound(in_place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = reversal.trained([[reversal.BOS, 1, 2]], causal=False, seed=0, steps=0).double()
    names, descriptions = reversal.made_up(4, random.Random(0))
    tokens = reversal.sentence(*((names, descriptions) if in_place else (descriptions, names)))
    at = slice(1, 3) if in_place else slice(5, 7)
    mask = torch.zeros(tokens.shape[1], dtype=torch.bool)
    mask[at] = True
    expected = [exact_elbo(model, row, mask).item() for row in tokens]
    assert reversal.scores(model, tokens, at, whole=in_place).tolist() == pytest.approx(expected, abs=1e-10)


def test_an_autoregressive_model_learns_forward_and_not_turned(tmp_path, monkeypatch):
    """8 facts of each kind and 150 steps: all right forward, and in place by rank; turned, no more than guesses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reversal, "FACTS", 8)
    names, descriptions = reversal.made_up(16, random.Random(1))
    model = reversal.trained(reversal.lessons(names, descriptions), causal=True, seed=1, steps=150)
    found = {name: sum(right) for name, right in reversal.asked(model, names[:8], descriptions[:8]).items()}
    assert found["forward, written"] == found["in place, ranked"] == 8
    assert found["turned, written"] <= 2
    assert found["in place, written"] <= 1


def test_windows_hold_every_byte_and_both_kinds_have_the_same(monkeypatch):
    monkeypatch.setattr(scaling, "STEPS", 2)
    text = scaling.poems()[:20_000] + "ä\n"
    rows = scaling.windows(text)
    assert len(rows) == len(text.encode()) // scaling.WINDOW
    assert scaling.TOKENIZER.decode([token for row in rows for token in row[1:]]) == text[: len(rows) * scaling.WINDOW]
    train, held_out = scaling.divided(text, 3)
    assert (train, held_out) == scaling.divided(text, 3)
    assert not {tuple(row) for row in train} & {tuple(row) for row in held_out}
    with pytest.raises(ValueError, match="--data has 15 windows of 64 bytes; needed are 36"):
        scaling.divided(text[:1000], 0)


def test_parameters_are_those_of_the_blocks():
    """Width 32: per block 4 x 32^2 + 3 x 32 x 80 of matrices and 2 x 32 of norms."""
    model = scaling.new_model("XS", causal=True)
    assert scaling.parameters(model) == 2 * (4 * 32**2 + 3 * 32 * 80 + 2 * 32)
    causal, masked = (scaling.new_model("M", kind) for kind in (True, False))
    assert scaling.parameters(causal) == scaling.parameters(masked)


def test_slopes_of_an_exact_power_law():
    """loss = 3 C^-0.05 for one kind and 4 C^-0.03 for the other, in each seed times a factor: slopes are exact."""
    rows = [
        {"kind": kind, "size": size, "seed": seed, "flops": 10.0**power, "loss": (1 + seed) * a * 10.0 ** (power * b)}
        for power, size in enumerate(scaling.SIZES) for seed in (1, 0)
        for kind, a, b in (("autoregressive", 3, -0.05), ("LLaDA", 4, -0.03))
    ]  # fmt: skip
    assert scaling.slopes(rows, "autoregressive").tolist() == pytest.approx([-0.05, -0.05])
    assert scaling.slopes(rows, "LLaDA").tolist() == pytest.approx([-0.03, -0.03])


def test_a_run_reports_its_held_out_loss(tmp_path, monkeypatch):
    """Near that of equal probabilities at a rate of 0, for both kinds; its cost is counted beside it."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("STEPS", 2), ("HELD_OUT", 8), ("RATE", 0.0)):
        monkeypatch.setattr(scaling, name, value)
    text = scaling.poems()[:20_000]
    for kind in scaling.KINDS:
        row = scaling.run(text, kind, "XS", seed=0)
        assert row["loss"] == pytest.approx(math.log(262), abs=1)
        assert row["flops"] == 6 * row["parameters"] * 2 * scaling.BATCH * scaling.WINDOW


def test_runs_that_are_there_are_not_run_again(tmp_path, monkeypatch, capsys):
    """The report says which loss is a bound, and the picture is drawn."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--seeds", "0", "1"])
    ran = []

    def run(text, kind, size, seed):
        ran.append((kind, size, seed))
        number = 10 ** (1 + list(scaling.SIZES).index(size))
        cost = {"parameters": number, "tokens": 10, "flops": 60 * number, "cpu_seconds": 1}
        return cost | {"loss": 2 + seed / 10 + (kind == "LLaDA")}

    monkeypatch.setattr(scaling, "run", run)
    scaling.main()
    file = tmp_path / "runs/scaling/rows.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == len(ran) == 2 * len(scaling.SIZES) * 2
    file.write_text("\n".join(lines[:13]) + "\n")
    scaling.main()
    assert file.read_text().splitlines() == lines
    assert len(ran) == 16 + 3
    assert "LLaDA's loss is a bound, the other is exact" in capsys.readouterr().out
    assert (tmp_path / "runs/scaling/scaling.png").stat().st_size > 0
