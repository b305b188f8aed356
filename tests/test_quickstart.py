"""What the quickstart says, the threads it takes, and the task of its short run."""

import random
import sys

import pytest
import torch
from conftest import ROOT

from llada.sampling.settings import SamplerSettings


@pytest.fixture(scope="module")
def scripts():
    """The modules of the quickstart, which import each other by their names."""
    sys.path.insert(0, str(ROOT / "examples"))
    import addition
    import quickstart
    import quickstart_report
    import quickstart_settings

    yield addition, quickstart, quickstart_report, quickstart_settings
    sys.path.remove(str(ROOT / "examples"))


def difference(mean, half):
    return {"mean": mean, "ci95": [mean - half, mean + half]}


RESULTS = {
    "sft": {"accuracy": 0.5}, "right_demonstrations": 0.6, "improvement": difference(0.2, 0.05),
    "improvement_of_control": difference(0.25, 0.05), "vrpo_over_control": difference(-0.05, 0.06), "margin": 0.7,
    "score_variance": 0.25, "sft_moved_in_last_fifth": 0.001, "pairs": 87, "seconds": {"total": 100.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "VRPO gained 20.0 points over SFT: good"),
        ({"improvement": difference(-0.1, 0.05)}, "VRPO lost 10.0 points against SFT: bad"),
        ({"improvement": difference(0.02, 0.05)}, "cannot tell from no change"),
        ({}, "moved by +25.0 points over SFT, as much as VRPO within the interval"),
        ({"vrpo_over_control": difference(-0.2, 0.05)}, "more than VRPO by 20.0 points"),
        ({"vrpo_over_control": difference(0.2, 0.05)}, "less than VRPO by 20.0 points"),
        ({}, "it had settled"),
        ({"sft_moved_in_last_fifth": -0.1}, "it had not settled"),
        ({"margin": -0.1}, "went from 0 to -0.10: bad"),
        ({}, "Masks alone move the score of a pair by 0.50"),
    ],
)
def test_the_report_judges_its_numbers(scripts, changes, said):
    assert said in " ".join(scripts[2].in_words(RESULTS | changes))


def test_answers_before_and_after_are_judged(scripts, capsys):
    addition, _, report, _ = scripts
    right = addition.right_answer("385+947?")
    report.compare_answers({"385+947?": {"sft": addition.work(385, 947, careful=False), "vrpo": right}})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[-4:-1]] == ["1332", "wrong", "right"]


def test_the_short_run_says_that_it_is_one_and_has_its_own_prompts(scripts, capsys):
    addition, _, report, settings = scripts
    for size in (settings.FULL, settings.SHORT):
        report.introduce(size, 1)
        said = capsys.readouterr().out
        assert ("a demonstration" in said) == size.short
        asked = addition.prompts(size.held_out, random.Random(0), True, size.figures)
        assert len(asked) == size.held_out
        assert size.figures is None or set("".join(asked)) <= {*size.figures, "+", "?"}
    example = said.split("carries:")[1].split("->")
    assert addition.right_answer(example[0].strip()) == example[1].split("\n")[0].strip()


def test_examples_are_of_every_number_of_carries(scripts):
    addition, quickstart, _, settings = scripts
    asked = addition.prompts(100, random.Random(0), True, settings.SHORT.figures)
    assert [addition.carries(prompt) for prompt in quickstart.examples_of(asked)] == [2, 2, 1, 0]
    assert addition.carries("385+947?") == 2


@pytest.mark.parametrize(
    ("busy", "cores", "threads"), [(0.1, 2, 2), (1.2, 2, 1), (2.0, 2, 1), (0.0, 64, 4), (61.0, 64, 3)]
)
def test_threads_are_the_free_cores(scripts, monkeypatch, busy, cores, threads):
    found = []
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [100 * busy / cores] * cores)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    scripts[3].set_threads()
    assert found == [threads]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    scripts[3].set_threads()
    assert found == [threads]


def test_the_saved_sampler_settings_fit_the_model(scripts, tmp_path):
    """Context 64: the prompt has 8 characters, the answer 31 and an EOS."""
    _, quickstart, _, _ = scripts
    quickstart.GREEDY.save(tmp_path)
    saved = SamplerSettings.load(tmp_path)
    saved.check_blocks()
    assert len("385+947?") + saved.gen_length <= 64
