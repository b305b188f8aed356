"""The harness tasks on local files: the prompts, the extraction, the scores, and the errors."""

import json
from importlib.resources import files

import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from llada.errors import DataError, RecipeError
from llada.harness.local_tasks import FOLDER, has_first, has_second

POEMS = [{"first": "窈窕淑女", "second": "君子好逑"}, {"first": "今我来思", "second": "雨雪霏霏"}]
QUESTIONS = [{"question": f"What is {i} + {i}?", "answer": f"It is twice {i}.\n#### {2 * i}"} for i in range(3)]


def task(name: str, **paths):
    """A task as the harness loads it, which is given paths as its metadata."""
    manager = TaskManager(include_defaults=False, include_path=str(FOLDER), metadata=paths)
    found = manager.load(name)["tasks"][name]
    found.set_fewshot_seed(1234)
    return found


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def scored(task, document: int, output: str) -> dict[str, dict[str, float]]:
    """The scores of an answer to one document, by filter."""
    doc = task.eval_docs[document]
    request = task.construct_requests(doc, "", metadata=(task.task_name, document, 1))
    assert isinstance(request, Instance)
    request.resps = [output]
    task._instances = [request]
    task.apply_filters()
    return {name: task.process_results(doc, [value]) for name, value in request.filtered_resps.items()}


@pytest.fixture
def gsm8k(tmp_path):
    paths = {"gsm8k_file": written(tmp_path / "test.jsonl", QUESTIONS)}
    return task("gsm8k_local", **paths, gsm8k_fewshot_file=written(tmp_path / "train.jsonl", QUESTIONS[:1]))


def test_gsm8k_is_that_of_the_harness_but_for_its_data():
    """Prompt, shots, stop strings, extraction and comparison: the harness's file, read as YAML."""
    theirs = yaml.safe_load((files("lm_eval") / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    ours = load_yaml(FOLDER / "gsm8k_local.yaml", resolve_func=False)
    for name in ("tag", "dataset_path", "dataset_name", "training_split", "task"):
        theirs.pop(name)
    assert {name: ours[name] for name in theirs} == theirs
    assert set(ours) - set(theirs) == {"task", "custom_dataset"}


def test_gsm8k_shows_examples_of_the_other_file_and_compares_numbers(gsm8k):
    assert gsm8k.fewshot_context(gsm8k.eval_docs[1], num_fewshot=1) == (
        "Question: What is 0 + 0?\nAnswer: It is twice 0.\n#### 0\n\nQuestion: What is 1 + 1?\nAnswer:"
    )
    right, wrong = {"exact_match": 1.0}, {"exact_match": 0.0}
    strict, flexible = "strict-match", "flexible-extract"
    assert scored(gsm8k, 1, " 1 + 1\n#### 2") == {strict: right, flexible: right}
    assert scored(gsm8k, 1, "it is 2") == {strict: wrong, flexible: right}
    assert scored(gsm8k, 1, "#### $2") == {strict: wrong, flexible: right}
    assert scored(gsm8k, 1, "#### 2, not 3") == {strict: right, flexible: wrong}
    assert scored(gsm8k, 1, "") == {strict: wrong, flexible: wrong}


def test_poems_are_asked_with_the_official_prompts_and_the_gold_line_is_looked_for(tmp_path):
    path = tmp_path / "poem_data.json"
    path.write_text(json.dumps(POEMS, ensure_ascii=False))
    forward, reversal = task("poem_forward", poem_file=str(path)), task("poem_reversal", poem_file=str(path))
    assert forward.fewshot_context(forward.eval_docs[0], 0) == "窈窕淑女的下一句是什么？ 直接输出句子即可。"
    assert reversal.fewshot_context(reversal.eval_docs[0], 0) == "君子好逑的上一句是什么？ 直接输出句子即可。"
    assert scored(forward, 0, "“君子好逑”。") == {"none": {"acc": 1.0}}
    assert scored(forward, 0, "窈窕淑女") == {"none": {"acc": 0.0}}
    assert scored(reversal, 1, "今我来思") == {"none": {"acc": 1.0}}
    assert has_second(POEMS[1], ["雨雪"])["acc"] == has_first(POEMS[1], ["今我 来思"])["acc"] == 0


def test_the_tiny_tasks_need_no_file_and_never_show_the_answer_that_is_asked_for():
    sums, choice = task("tiny_sums"), task("tiny_choice")
    for doc in sums.eval_docs:
        assert doc["answer"] not in sums.fewshot_context(doc, num_fewshot=4)
    assert len(sums.eval_docs) == len(choice.eval_docs) == 16
    for doc in choice.eval_docs:
        assert doc["answer"].endswith(f"#### {choice.doc_to_choice(doc)[choice.doc_to_target(doc)]}")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "1 + 1?", "target": "2"}],
            r"gsm8k_file=.*: columns are \['question', 'target'\]; missing: answer",
        ),
        ([{"question": "1 + 1?", "answer": "2"}], r"row 0 \(counted from 0\) has no '#### NUMBER' in 'answer'"),
        (
            [QUESTIONS[0], {"question": "", "answer": "#### 2"}],
            r"row 1 \(counted from 0\) has no text in 'question': ''",
        ),
        ([{"question": 1, "answer": "#### 2"}], r"row 0 .* has no text in 'question': 1"),
    ],
)
def test_rows_that_are_no_questions_are_named(tmp_path, rows, message):
    with pytest.raises(RecipeError, match=message):
        task("gsm8k_local", gsm8k_file=written(tmp_path / "a.jsonl", rows))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(
        RecipeError, match="^gsm8k_file is missing: a local file with the columns 'question' and 'answer'"
    ):
        task("gsm8k_local")
    with pytest.raises(RecipeError, match="^poem_file=owner/poems must be a local file"):
        task("poem_forward", poem_file="owner/poems")
    with pytest.raises(FileNotFoundError, match="no such data file: .*nowhere.jsonl"):
        task("gsm8k_local", gsm8k_file=str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(DataError, match="bad.jsonl"):
        task("gsm8k_local", gsm8k_file=str(tmp_path / "bad.jsonl"))


def test_the_shared_files_are_of_these_forms(shared):
    data = shared / "data"
    assert len(task("gsm8k_local", gsm8k_file=str(data / "gsm8k_test.jsonl")).eval_docs) == 1319
    assert len(task("poem_reversal", poem_file=str(data / "poem_data.json")).eval_docs) == 469
