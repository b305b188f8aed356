"""Answers on the page of a run: what changed, how sure the model was, what stands after an answer's end."""

import json

import pytest
import report_runs

from vrpo.report.groups import group_runs
from vrpo.report.page import render
from vrpo.report.reading import read_run
from vrpo.report.samples import animation, cases_of, changed_characters, columns_of


def test_changed_words_are_marked_whole_and_nearly_new_answers_not_at_all():
    marks, rewritten = changed_characters("she has 13 rolls", "she has 12 rolls")
    assert "".join("x" if mark else "." for mark in marks) == "........xx......"
    assert not rewritten
    assert changed_characters("one two", "three four five six seven") == ([False] * 7, True)
    assert changed_characters("same", "same") == ([False] * 4, False)
    assert changed_characters("", "") == ([], False)


def test_what_stands_after_the_end_of_an_answer_is_neither_compared_nor_shaded():
    def row(*texts, length):
        tokens = [{"text": text, "confidence": 0.5, "order": index} for index, text in enumerate(texts)]
        return {"prompt": "p", "answer": "", "length": length, "tokens": tokens}

    before, after = row("one", " two", "<end>", " two", length=2), row("one", " six", "<end>", " six", length=2)
    (case,) = cases_of([("before", [before]), ("after", [after])])
    for answer in case.answers:
        assert [piece.changed for piece in answer.pieces] == [False, True, False, False]
        assert [piece.doubt for piece in answer.pieces] == [0.5, 0.5, None, None]
        assert [piece.after for piece in answer.pieces] == [False, False, True, True]


def test_answers_stand_beside_each_other_with_doubt_and_tail(tmp_path):
    run = read_run(report_runs.preference_run(tmp_path, steps=40))
    columns = columns_of(group_runs([run]))
    first, _ = cases_of(columns)
    assert [answer.label for answer in first.answers] == ["Step 0", "Step 40"]
    words = report_runs.CASES[0][4].split(" ")
    assert len(first.answers[1].pieces) == len(words)
    assert (first.answers[1].end, first.answers[1].repeats) == (report_runs.EOS, 48 - len(words))
    confidence = run.samples["samples"][1]["answers"][0]["tokens"][0]["confidence"]
    assert first.answers[1].pieces[0].doubt == pytest.approx(1 - confidence, abs=0.005)
    assert first.given.endswith("A: 18")
    moving = json.loads(animation(columns))
    assert moving["columns"] == ["Step 0", "Step 40"]
    assert {order for _, _, order in moving["cases"][0]["answers"][0]["tokens"]} == set(range(24))


def test_no_text_of_a_run_becomes_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    folder = report_runs.preference_run(tmp_path / "evil", steps=20, run_name=evil, estimator=evil)
    samples = json.loads((folder / "samples.json").read_text())
    for step in samples["samples"]:
        step["answers"][0] |= {"prompt": evil, "given": evil, "answer": evil}
        step["answers"][0]["tokens"][0]["text"] = evil
    (folder / "samples.json").write_text(json.dumps(samples))
    other = report_runs.preference_run(tmp_path / "other", steps=20)
    for runs in ([folder], [folder, other]):
        page = render([read_run(each) for each in runs])
        assert evil not in page
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "&lt;img src=x" in page


def test_answers_stand_under_their_prompt_whatever_their_order(tmp_path):
    runs = [read_run(report_runs.preference_run(tmp_path / name, steps=20, n_t=n)) for name, n in (("a", 1), ("b", 2))]
    for entry in runs[1].samples["samples"]:
        entry["answers"].reverse()
    columns = columns_of(group_runs(runs))
    assert len(columns) == 3
    expected = [case[0] for case in report_runs.CASES]
    assert all([each["prompt"] for each in answers] == expected for _, answers in columns)
