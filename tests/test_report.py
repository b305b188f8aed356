"""The page of a run, but for what only a browser can see: files, curves, findings, groups, answers."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import report_runs
from conftest import ROOT
from plotly.offline import get_plotlyjs

from vrpo.report import write_page
from vrpo.report.__main__ import main
from vrpo.report.curves import band_of, smooth, thinned, window_of
from vrpo.report.estimator import measured, share_at
from vrpo.report.findings import findings_of
from vrpo.report.groups import group_runs
from vrpo.report.page import all_findings, contents, render, title_of
from vrpo.report.panels import panels_of, series_of
from vrpo.report.reading import Run, Series, read_run
from vrpo.report.timesteps import change_map, table

NAN = math.nan


def series(values, steps=None) -> Series:
    steps = np.arange(len(values)) if steps is None else np.array(steps)
    return Series(steps, np.array(values, dtype=float), np.full(len(values), NAN))


def run_of(tmp_path, log, steps=40, **files) -> Run:
    return read_run(report_runs.write(tmp_path / "run", log, steps, **files))


# Reading


def test_values_that_are_not_finite_are_gaps(tmp_path):
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": NAN}, {"step": 3, "loss": -math.inf}, {"step": 4, "loss": 1.0}]
    found = run_of(tmp_path, log).series("loss")
    assert found.steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(found.values, [2.0, NAN, NAN, 1.0])
    assert found.finite.values.tolist() == [2.0, 1.0]
    render([run_of(tmp_path, log)])


def test_the_newest_whole_checkpoint_is_read_if_it_has_come_further(tmp_path):
    report_runs.preference_run(tmp_path, steps=40, done=16)
    report_runs.preference_run(tmp_path, steps=40, done=8)
    torn = tmp_path / "checkpoint-24"
    torn.mkdir()
    (torn / "manifest.json").write_text('{"unfinished": true}')
    (torn / "trainer_state.json").write_text('{"global_step": 24, "log_')
    run = read_run(tmp_path)
    assert (run.step, run.finished, run.max_steps) == (16, False, 40)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 40, "max_steps": 40, "log_history": []}')
    assert read_run(tmp_path).finished


def test_what_cannot_be_read_is_said_in_one_message(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no directory: name the output_dir of a run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no run: there is no trainer_state.json, no whole"):
        read_run(tmp_path)
    for name in ("run.json", "samples.json", "trainer_state.json"):
        folder = report_runs.preference_run(tmp_path / name, steps=20)
        (folder / name).write_text((folder / name).read_text()[:-20])
        with pytest.raises(ValueError, match=rf"{name} is damaged or was cut off \(.*\): delete it, or restore it"):
            read_run(folder)
        (folder / name).write_text("[1]")
        with pytest.raises(ValueError, match=f"{name} must hold a JSON object, but holds a list"):
            read_run(folder)


def test_the_command_says_an_error_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vrpo.report", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("FileNotFoundError: ")
    assert done.stderr.count("\n") == 1


# Curves


def test_a_smooth_curve_is_the_mean_of_its_neighbours_and_keeps_gaps():
    found = smooth(series([1.0, 2.0, 6.0, NAN, 4.0]), 3).values
    np.testing.assert_allclose(found, [1.5, 3.0, 4.0, NAN, 4.0])
    assert smooth(series([1.0, 5.0]), 1).values.tolist() == [1.0, 5.0]
    assert [window_of(points) for points in (14, 15, 200, 1000)] == [1, 3, 15, 67]


def test_a_long_log_is_thinned_to_means():
    found = thinned(series([1.0, 3.0, NAN, 7.0, 9.0]), 2)
    assert found.steps.tolist() == [1, 3, 4]
    np.testing.assert_allclose(found.values, [2.0, 7.0, 9.0])


def test_a_band_is_student_s_interval_over_runs():
    """1, 2 and 3 have mean 2 and standard deviation 1; Student's quantile of two degrees of freedom is 4.3027."""
    found = band_of([series([1.0, 5.0], [0, 10]), series([2.0, 6.0, 9.0], [0, 10, 20]), series([3.0, 7.0], [0, 10])])
    assert found.steps.tolist() == [0, 10]
    np.testing.assert_allclose(found.mean, [2.0, 6.0])
    np.testing.assert_allclose(found.half_widths, 4.302653 / math.sqrt(3), rtol=1e-6)


PREFERENCE_PANELS = (
    "loss margin accuracy rewards log-ratios score-variance loss-bias saturated noise-split noise-share masked rate "
    "gradient speed tokens memory"
)
LIKELIHOOD_PANELS = "loss bits perplexity rate gradient speed memory"


def test_only_panels_with_data_are_there(tmp_path):
    preference = read_run(report_runs.preference_run(tmp_path / "a", steps=40))
    likelihood = read_run(report_runs.likelihood_run(tmp_path / "b", steps=40))
    assert [panel.key for panel in panels_of([preference])] == PREFERENCE_PANELS.split()
    assert [panel.key for panel in panels_of([likelihood])] == LIKELIHOOD_PANELS.split()
    unknown = Run(preference.folder, preference.state)
    assert "log-ratios" not in [panel.key for panel in panels_of([unknown])]
    log = [{"step": 1, "loss": 1.0, "kl": 0.1}, {"step": 2, "eval_loss": 1.0, "eval_gsm8k/exact_match": 0.3}]
    other = run_of(tmp_path, [row | {"rewards/margins": 0.1} for row in log])
    assert {"kl", "benchmarks"} <= {panel.key for panel in panels_of([other])}


def test_log_ratios_are_rewards_over_beta_with_their_intervals(tmp_path):
    log = [{"step": 4, "eval_rewards/chosen": 0.3, "eval_rewards/chosen_ci95": 0.1, "eval_rewards/margins": 1.0}]
    run = run_of(tmp_path, log, run=report_runs.record(tmp_path, "VRPOTrainer"))
    found = series_of(run, "eval_log_ratio/chosen")
    assert found.values == pytest.approx([1.5])
    assert found.half_widths == pytest.approx([0.5])


def test_the_loss_by_masking_level_is_read_in_the_order_of_levels(tmp_path):
    log = [{"step": step, "eval_timestep/0.95": 3.0 - step, "eval_timestep/0.05": 1.0} for step in (0, 1)] + [
        {"step": 2, "eval_timestep/0.05": 1.0}
    ]
    run = run_of(tmp_path, log)
    steps, levels, losses = table(run, "")
    assert (steps.tolist(), levels.tolist()) == ([0, 1, 2], [0.05, 0.95])
    np.testing.assert_array_equal(losses, [[1.0, 3.0], [1.0, 2.0], [1.0, NAN]])
    plot, _ = change_map(run)
    np.testing.assert_allclose(plot.data[0].z, np.array([[0, 0, 0], [0, -1, NAN]], dtype=np.float32))


def test_sides_with_different_bins_are_compared_where_both_have_one(tmp_path):
    log = [
        {"step": step, "eval_timestep_chosen/0.05": 1.0, "eval_timestep_chosen/0.15": 2.0,
         "eval_timestep_rejected/0.15": 3.0 + step}
        for step in range(3)
    ]  # fmt: skip
    plot, _ = change_map(run_of(tmp_path, log))
    assert plot.data[0].y.tolist() == [0.15]
    np.testing.assert_allclose(plot.data[0].z, [[0.0, 1.0, 2.0]])


# Groups


def test_runs_that_differ_only_in_their_seed_are_one_group(tmp_path):
    runs = [read_run(folder) for folder in report_runs.comparison_runs(tmp_path, steps=40)]
    groups = group_runs(runs)
    assert [len(group.runs) for group in groups] == [3, 3, 3]
    assert [group.label for group in groups] == [
        f"estimator={name}" for name in ("vrpo", "naive_dpo", "loo_complementary")
    ]
    shown = contents(groups)["comparison"]
    assert shown["options"] == ["estimator"]
    ends = [run.series("eval_rewards/margins").values[-1] for run in runs[:3]]
    half = 4.302653 * np.std(ends, ddof=1) / 3**0.5
    value, width = shown["rows"][0]["cells"][1]
    assert float(value) == pytest.approx(np.mean(ends), abs=0.005)
    assert float(width) == pytest.approx(half, abs=0.005)


def test_runs_without_options_are_groups_of_their_own(tmp_path):
    runs = [Run(tmp_path / name, {}) for name in ("one", "two")]
    assert [group.label for group in group_runs(runs)] == ["one", "two"]


def test_runs_of_other_models_data_or_processes_are_no_seeds_of_each_other(tmp_path):
    runs = [read_run(report_runs.preference_run(tmp_path / name, steps=20)) for name in "abcd"]
    runs[1].record["model"]["base"] = "other"
    runs[2].record["data"]["train"] = "other.jsonl"
    runs[3].record["starts"][-1]["processes"] = 8
    groups = group_runs(runs)
    assert len(groups) == 4
    assert list(groups[0].differing) == ["data.train", "model.base", "processes"]
    assert groups[3].differing["processes"] == 8


# Noise


def test_the_share_of_masks_at_another_n():
    """A share of 1/2 at n = 2 is e = b; at n = 4 half of e remains, which is a third; at n = 1 two thirds."""
    assert [share_at(0.5, 2, n) for n in (1, 2, 4)] == pytest.approx([2 / 3, 1 / 2, 1 / 3])


def test_the_noise_of_a_run_leads_to_an_n_and_to_the_command_that_measures_more(tmp_path):
    found = measured(read_run(report_runs.preference_run(tmp_path, steps=200)))
    assert "49% comes from masks and 51% from the choice of pairs" in found.sentences[0]
    assert "a step of this run has 64" in found.sentences[0]
    # e / b = 3.1 / 3.2 at n = 8; over 3 epochs masks add e / 3: 24% at n = 8, and 39% at n = 4
    assert "3 epochs, n = 8 is the smallest at which masks add at most 25% of the noise (24%)" in found.sentences[1]
    assert found.command.startswith(f"vrpo variance --model {tmp_path} --ref_model GSAI-ML/LLaDA-8B-Instruct")


def test_a_measurement_says_more_than_the_log(tmp_path):
    folder = report_runs.preference_run(tmp_path, steps=40, noise=1.6)
    (folder / "variance").mkdir()
    (folder / "variance" / "variance.json").write_text(json.dumps(report_runs.variance_table()))
    run = read_run(folder)
    found = measured(run)
    assert not found.command
    assert [title for title, _, _ in found.plots[-2:]] == ["Score variance by design", "Sources of a draw's variance"]
    curves = {trace.name: trace.y.tolist() for trace in found.plots[-2][2].data}
    assert curves["loo_complementary"] == pytest.approx([0.4, 0.2, 0.1, 0.05])
    assert any("larger by a factor of 4.2 (n = 1) and 1.4 (n = 8)" in each for each in found.sentences)
    noisy = next(each for each in findings_of(run) if each.title == "Noise in the scores acts like a larger beta")
    assert "about 71% is signal (measured by python -m vrpo.variance)" in noisy.what  # 1 / 1.4
    old = Run(run.folder, run.state, run.record, None, {"rows": []})
    assert "of another version" in measured(old).sentences[-1]


# The page


def test_a_page_is_small_quick_and_whole(tmp_path):
    folder = report_runs.preference_run(tmp_path / "run", steps=2000)
    (folder / "report.html").write_text("an older page")
    before = time.process_time()
    path = write_page(folder)
    assert time.process_time() - before < 5
    assert path == folder / "report.html"
    page = path.read_text()
    assert len(page) < len(get_plotlyjs()) + 1_000_000
    assert page.endswith("</html>")
    assert "Each point is the mean of 2 of the 2,000 log lines." in page
    assert not list(folder.glob(".report*"))


def test_a_log_of_100_000_lines(tmp_path):
    log = [{"step": step, "loss": 1 + 1 / step} for step in range(1, 100_001)]
    page = render([run_of(tmp_path, log, 100_000)])
    assert "Each point is the mean of 100 of the 100,000 log lines." in page
    assert len(page) < len(get_plotlyjs()) + 200_000


def test_a_run_without_other_files_and_one_without_a_log_have_a_page(tmp_path):
    state = report_runs.write(tmp_path / "state", report_runs.likelihood_log(np.random.default_rng(0), 20), 20)
    assert "There is no run.json" in write_page(state).read_text()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "run.json").write_text(json.dumps(report_runs.record(begun, "VRPOTrainer")))
    assert "The run has written no log line to the disk" in write_page(begun).read_text()


def test_the_command_writes_one_page_for_several_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [report_runs.preference_run(tmp_path / name, seed, steps=20) for seed, name in enumerate("ab")]
    main([str(folders[0])])
    assert capsys.readouterr().out == f"Written: {folders[0] / 'report.html'}\n"
    main([str(folder) for folder in folders])
    assert (tmp_path / "report.html").exists()
    main([*map(str, folders), "--output", str(tmp_path / "both.html")])
    assert "2 runs" in (tmp_path / "both.html").read_text()


def test_a_finding_of_several_seeds_is_said_once(tmp_path):
    """Three seeds of one setting and one of another; the title is the option in which they differ."""
    runs = []
    for name, changes in (("a", {"seed": 0}), ("b", {"seed": 1}), ("c", {"seed": 2})):
        runs.append(report_runs.preference_run(tmp_path / name, steps=60, **changes))
    runs.append(report_runs.preference_run(tmp_path / "d", steps=60, seed=0, estimator="naive_dpo"))
    groups = group_runs([read_run(folder) for folder in runs])
    assert title_of(groups) == "estimator: vrpo, naive_dpo"
    for each in all_findings(groups):
        labels = [label for label, _ in each["cases"]]
        assert len(labels) == len(set(labels)) <= 2
        assert all(label == "estimator=naive_dpo" or "of 3 runs, such as" in label for label in labels)
    assert title_of(groups[:1]) == "3 runs"
