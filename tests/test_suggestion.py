"""The design and n that follow from the split of a gradient's noise, and the advice in words, by hand."""

from test_variance import a_row

from vrpo.analysis.advice import advise
from vrpo.analysis.suggestion import epochs_for, share_over_epochs, with_fixed_pairs, with_pairs_to_spare


def split_rows(between: float, measured: dict[str, dict[int, float]]) -> list[dict]:
    return [
        a_row(name, n, 1.0, 1.0) | {
            "estimator_variance": {"value": estimator, "low": estimator / 2, "high": 2 * estimator},
            "estimator_share": {"value": estimator / (estimator + between), "low": 0.0, "high": 0.5},
            "noise_scale": {"value": 310.0, "low": 150.0, "high": None},
        }
        for name, at in measured.items() for n, estimator in at.items()
    ]  # fmt: skip


MEASURED = {"vrpo": {1: 3270.0, 2: 1800.0, 4: 913.0, 8: 435.0}, "cpl": {2: 978.0, 4: 540.0, 8: 115.0}}
SUMMARY = {"pairs": 32, "redraws": 4, "pair_cost": 0.0, "epochs": 1, "noise_share": 0.25}
SUMMARY |= {"between_variance": {"value": 1300.0, "low": 1000.0, "high": 1700.0}}


def test_suggestions_by_hand():
    """With b = 1300. Free pairs: n (b + e) is 4570 for `vrpo` n = 1, 13880 for n = 8, and 4556 for `cpl` n = 2.

    Pairs of 4 draws each: (4 + n)(b + e) is 13668 for `cpl` n = 2, 14720 for n = 4, and 17704 at best for `vrpo`.
    A share of at most 1/4 is e / E <= b / 3 = 433.3: `vrpo` n = 8 (435) just misses it, E = 2 allows 867, E = 8 3467.
    """
    rows = split_rows(1300.0, MEASURED)
    for pair_cost, name, n in ((0.0, "cpl", 2), (4.0, "cpl", 2), (40.0, "cpl", 8)):
        best = with_pairs_to_spare(rows, pair_cost)
        assert (best["name"], best["n"]) == (name, n)
    paper = [row for row in rows if row["name"] == "vrpo"]
    assert [with_pairs_to_spare(paper, cost)["n"] for cost in (0.0, 4.0, 40.0)] == [1, 4, 8]
    for epochs, wanted, name, n in ((1, 0.25, "cpl", 8), (2, 0.25, "cpl", 4), (8, 0.25, "vrpo", 1), (1, 0.5, "cpl", 2)):
        best = with_fixed_pairs(rows, epochs, wanted)
        assert (best["name"], best["n"]) == (name, n)
    assert with_fixed_pairs(paper, 1, 0.25) is None
    assert share_over_epochs(0.75, 3) == 0.5
    assert [epochs_for(0.75, 0.25), epochs_for(435 / 1735, 0.25), epochs_for(0.1, 0.25)] == [9, 2, 1]


def test_the_advice_of_the_split():
    rows = split_rows(1300.0, MEASURED)
    text = "\n".join(advise({"rows": rows, "split": SUMMARY}))
    assert "varies by 1.3e+03 [1e+03, 1.7e+03] between pairs and by 4.4e+02 [2.2e+02, 8.7e+02] over masks" in text
    assert "25% [0%, 50%] of its noise. A batch of 3.1e+02 [1.5e+02, no bound] pairs" in text
    assert "With pairs to spare: `--estimator cpl --n_t 2`. For the same compute its gradient has 33% of the" in text
    assert "With a fixed set of pairs and 1 epoch: `--estimator cpl --n_t 8`, the fewest draws" in text
    assert "at most 25% of the noise: 8% [0%, 50%]" in text
    assert "Recommended" not in text
    other = advise({"rows": rows, "split": SUMMARY | {"pair_cost": 40.0, "epochs": 2}})
    assert any(
        line.startswith("With pairs to spare that cost 40 draws each: `--estimator cpl --n_t 8`") for line in other
    )
    assert any("pairs and 2 epochs: `--estimator cpl --n_t 4`" in line and "17% [0%, 33%]" in line for line in other)
    paper = [row for row in rows if row["name"] == "vrpo"]
    assert "`--estimator vrpo --n_t 8` comes closest, with 25% [0%, 50%], and reaches it in 2 epochs" in "\n".join(
        advise({"rows": paper, "split": SUMMARY})
    )
    lost = SUMMARY | {"between_variance": {"value": -1.0, "low": -5.0, "high": 3.0}}
    assert "32 pairs do not show" in advise({"rows": rows, "split": lost})[2]
    unknown = [row | {"noise_scale": {"value": None, "low": 40.0, "high": None}} for row in rows]
    assert "noise scale is above 40 pairs" in "\n".join(advise({"rows": unknown, "split": SUMMARY}))
    same = [row | {"score": {"value": 0.0, "low": 0.0, "high": 0.0}} for row in rows]
    text = advise({"rows": same, "split": SUMMARY})
    assert "no noise in scores to reduce" in text[0]
    assert "With pairs to spare" in text[2]
