"""The evaluation recipe: figures and intervals of known answers, going on where it stopped, and all that it refuses."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import option_rows
import pytest
import torch
from conftest import ROOT, tiny_model
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from test_sft import IDS, TOKENIZER

from llada.checks import own_fields
from llada.errors import RecipeError
from llada.harness import suites
from llada.harness.local_tasks import FOLDER
from llada.harness.published import preset
from llada.intervals import proportion
from llada.recipes import evaluate
from vrpo.recipes import winrate

GROUP = """
group: {name}
task: {tasks}
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
metadata:
  version: 1
"""


class Known(LM):
    """Adds rightly if the first number is even, and finds the larger of the options the likelier one."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def generate_until(self, requests, **others):
        self.asked += [request.args for request in requests]
        found = (re.findall(r"What is (\d+) \+ (\d+)\?", request.args[0])[-1] for request in requests)
        return [f"#### {int(a) + int(b) + int(a) % 2}" for a, b in found]

    def loglikelihood(self, requests, **others):
        self.asked += [request.args for request in requests]
        return [(float(request.args[1]), False) for request in requests]

    def loglikelihood_rolling(self, requests, **others):
        raise NotImplementedError

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return "<chat>" + "".join(turn["content"] for turn in chat_history)

    @property
    def tokenizer_name(self):
        return "known"


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, for seconds
    tiny_model(dtype=torch.float32, max_sequence_length=2048, **IDS).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.fixture
def known(monkeypatch):
    model = Known()
    monkeypatch.setattr(evaluate, "load_harness_model", lambda args, benchmark, before: model)
    return model


def run(saved, *words, suite: str = "tiny") -> dict:
    evaluate.main(["--suite", suite, "--model", str(saved / "model"), "--output", str(saved / "out"), *words])
    return json.loads((saved / "out" / "evaluation.json").read_text())


@pytest.mark.parametrize(
    ("options", "rows"),
    [(evaluate.Arguments, option_rows.EVALUATION), (winrate.Arguments, option_rows.WIN_RATE)],
)
def test_every_option_has_a_range_and_a_bad_value_is_named(options, rows):
    assert set(rows) == set(own_fields(options))
    needed = {name: "a" for name in ("suite", "model", "output", "completions", "baseline") if name in rows}
    for name, (good, bad) in rows.items():
        for value in good:
            options(**(needed | {name: value}))
        for value in bad:
            with pytest.raises(ValueError, match=rf"^{name}\b"):
                options(**(needed | {name: value}))


def sums() -> list[dict]:
    from llada.harness.local_tasks import tiny

    return list(tiny()["test"])


def test_figures_and_intervals_of_known_answers(saved, known, capsys):
    found = run(saved)["benchmarks"]
    right = [int(re.search(r"\d+", row["question"])[0]) % 2 == 0 for row in sums()]
    largest = [max(map(int, row["choices"])) == int(row["choices"][row["gold"]]) for row in sums()]
    for name, metric, expected in (
        ("tiny/sums", "exact_match,flexible-extract", proportion(right)),
        ("tiny/choice", "acc,none", proportion(largest)),
    ):
        assert found[name]["figures"] == [
            {"name": metric, "value": expected.value, "low": expected.low, "high": expected.high, "documents": 16}
        ]
    printed = capsys.readouterr().out
    share = f"{100 * proportion(right).value:.1f}"
    assert re.search(rf"tiny/sums +exact_match,flexible-extract +16 +{share} +[\d.]+ to [\d.]+$", printed, re.M)
    answers = [json.loads(line) for line in (saved / "out" / "samples" / "tiny-sums.jsonl").read_text().splitlines()]
    assert [row["exact_match"] == 1 for row in answers if row["filter"] == "flexible-extract"] == right
    assert not (saved / "out" / "cache").exists()


def test_prompts_are_put_into_the_chat_template_if_wanted(saved, known):
    run(saved, "--limit", "2", "--chat", "true")
    assert all(prompt.startswith("<chat>") for prompt, *_ in known.asked)
    known.asked.clear()
    run(saved, "--limit", "2", "--chat", "false", "--overwrite", "true")
    assert not any(prompt.startswith("<chat>") for prompt, *_ in known.asked)


def test_a_finished_benchmark_is_not_run_again_and_a_killed_one_is(saved, known, monkeypatch, capsys):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(known, "loglikelihood", killed)
    with pytest.raises(KeyboardInterrupt):
        run(saved)
    assert list(json.loads((saved / "out" / "evaluation.json").read_text())["benchmarks"]) == ["tiny/sums"]
    monkeypatch.delattr(known, "loglikelihood")
    known.asked.clear()
    first = run(saved)
    assert len(known.asked) == 64  # the options of 16 questions, and no sum
    known.asked.clear()
    capsys.readouterr()
    assert run(saved) == first
    assert not known.asked
    assert capsys.readouterr().out.count("tiny/") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "3"), "has tiny/sums with limit=2 and not 3: choose another output, or set overwrite"),
        (("--limit", "2", "--seed", "1"), "has tiny/sums with seed=1234 and not 1"),
        (("--limit", "2", "--steps", "4"), "has tiny/sums with sampler.steps=8 and not 4"),
        (("--limit", "2", "--num_fewshot", "0"), "has tiny/sums with shots=1 and not 0"),
    ],
)
def test_results_of_other_settings_are_refused(saved, known, options, message):
    before = run(saved, "--tasks", "sums", "--limit", "2")
    known.asked.clear()
    with pytest.raises(RecipeError, match=message):
        run(saved, "--tasks", "sums", *options)
    assert json.loads((saved / "out" / "evaluation.json").read_text()) == before
    assert not known.asked
    assert run(saved, "--tasks", "sums", *options, "--overwrite", "true") != before


def test_results_of_another_model_are_refused(saved, known):
    run(saved, "--tasks", "sums", "--limit", "2")
    other = tiny_model(1, torch.float32, max_sequence_length=2048, **IDS)
    other.save_pretrained(saved / "model")
    with pytest.raises(RecipeError, match=r"is of another model, .*: weights differ from those of"):
        run(saved, "--tasks", "choice", "--limit", "2")
    assert list(run(saved, "--tasks", "choice", "--limit", "2", "--overwrite", "true")["benchmarks"]) == ["tiny/choice"]
    (saved / "out" / "evaluation.json").write_text("{")
    with pytest.raises(RecipeError, match="evaluation.json is damaged"):
        run(saved)


def test_what_is_not_as_published_stands_in_the_table(saved, known, capsys):
    run(saved, "--limit", "2", "--steps", "4", "--draws", "2", "--tasks", "sums", "choice")
    printed = capsys.readouterr().out
    assert re.search(r"tiny/sums .*limit=2; steps=4, published 8$", printed, re.M)
    assert re.search(r"tiny/choice .*limit=2; draws=2, published 4$", printed, re.M)


def test_an_unknown_length_of_answers_must_be_given(saved, known):
    (saved / "g.jsonl").write_text(json.dumps({"question": "What is 2 + 1?", "answer": "#### 3"}) + "\n")
    data = ("--gsm8k_file", str(saved / "g.jsonl"), "--num_fewshot", "0", "--tasks", "gsm8k")
    with pytest.raises(RecipeError, match="no sampler settings are published for it: give gen_length"):
        run(saved, *data, suite="llada-moe-instruct")
    (entry,) = run(saved, *data, "--gen_length", "16", suite="llada-moe-instruct")["benchmarks"].values()
    sampler = entry["settings"]["sampler"]
    assert (sampler["gen_length"], sampler["block_length"], sampler["steps"]) == (16, 16, 16)


def test_options_of_likelihoods_count_where_answers_may_be_sampled(monkeypatch):
    """llada-moe-base has both kinds, and no published sampler settings: gen_length is given for the sampled ones."""
    monkeypatch.setattr("llada.harness.model.HarnessModel", lambda **options: options)
    args = evaluate.Arguments("llada-moe-base", "m", "o", draws=12, lead=2.0)
    benchmark = evaluate.with_options(preset("llada-moe-base/mmlu"), args, evaluate.SamplerOptions(gen_length=16))
    found = evaluate.load_harness_model(args, benchmark, None)
    assert [found.get(name) for name in ("design", "draws", "group", "lead")] == ["published", 12, 4, 2.0]
    settings = evaluate.settings_of(benchmark, args)
    assert [settings.get(name) for name in ("design", "draws", "lead")] == ["published", 12, 2.0]
    assert evaluate.changed(benchmark, args)[0] == "lead=2.0"
    sampled = evaluate.with_options(preset("llada-1.5/gsm8k"), args, evaluate.SamplerOptions())
    assert not {"design", "lead"} & set(evaluate.settings_of(sampled, args))
    assert not {"design", "draws", "lead"} & set(evaluate.load_harness_model(args, sampled, None))


def test_examples_that_the_harness_would_not_show_are_refused(saved, monkeypatch):
    """A task whose file says num_fewshot: 0 gets none, whatever is asked for."""
    monkeypatch.setattr(evaluate, "load_harness_model", None)
    with pytest.raises(RecipeError, match="tiny/choice: the harness's task shows no examples, so that num_fewshot=2"):
        run(saved, "--tasks", "choice", "--num_fewshot", "2")


def test_local_files_take_the_place_of_the_hub(saved, known, capsys):
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(4)]
    (saved / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--gsm8k_file", str(saved / "a.jsonl"), "--gsm8k_fewshot_file", str(saved / "a.jsonl"))
    found = run(saved, "--tasks", "gsm8k", *data, "--num_fewshot", "1", suite="llada-1.5")["benchmarks"]
    (entry,) = found.values()
    assert [(each["name"], each["value"]) for each in entry["figures"]] == [
        ("exact_match,strict-match", 0.5), ("exact_match,flexible-extract", 0.5),
    ]  # fmt: skip
    assert (entry["published"], entry["source"]) == (83.3, "LLaDA 1.5, Table 1")
    line = r"llada-1.5/gsm8k +exact_match,strict-match +4 +50.0 +15.0 to 85.0 +83.3 +LLaDA 1.5, Table 1; .*; shots=1$"
    assert re.search(line, capsys.readouterr().out, re.M)
    (saved / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(RecipeError, match="has llada-1.5/gsm8k with data.gsm8k_few"):
        run(saved, "--tasks", "gsm8k", *data, "--num_fewshot", "1", suite="llada-1.5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "sum"), r"tasks: sum unknown: of tiny there are \['choice', 'sums'\]"),
        (("--suite", "none"), "suite='none' is unknown"),
        (("--suite", "llada-1.5", "--tasks", "arena_hard"), "arena_hard cannot be run: needs a judge"),
        (("--suite", "llada-instruct", "--tasks", "poem_forward", "--poem_file", "no.json"),
         "poem_file: no such data file: no.json"),
        (("--suite", "llada-instruct", "--tasks", "poem_forward"), "its data is a local file: give poem_file"),
        (("--steps", "3"), "tiny/sums: steps=3 must be a multiple of the number of blocks"),
        (("--batch_size", "0"), "batch_size=0 must be"),
        (("--limit", "-1"), "limit=-1 must be"),
        (("--model", "./nowhere"), "nowhere does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(saved, monkeypatch, words, message):
    monkeypatch.setattr(evaluate, "load_harness_model", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(saved, *words)
    with pytest.raises(RecipeError, match="poem_file would not be read: no benchmark"):
        run(saved, "--poem_file", str(saved / "model" / "config.json"))
    with pytest.raises(
        RecipeError, match=r"(?s)^nothing was run.*\n  llada-instruct/poem_forward: poem_file=.*missing: "
    ):
        run(
            saved,
            "--tasks",
            "poem_forward",
            "--poem_file",
            str(saved / "model" / "config.json"),
            suite="llada-instruct",
        )
    assert not (saved / "out" / "evaluation.json").exists()


@pytest.mark.slow
def test_tasks_of_the_hub_and_code_are_refused_with_their_reasons(saved, monkeypatch):
    """Listing the harness's tasks takes ten seconds; nothing can be reached here (HF_HUB_OFFLINE)."""
    monkeypatch.setattr(evaluate, "load_harness_model", None)
    with pytest.raises(RecipeError) as caught:
        run(saved, suite="llada-1.5")
    lines = dict(line.strip().split(": ", 1) for line in str(caught.value).splitlines()[1:])
    assert set(lines) == {f"llada-1.5/{name}" for name in ("gsm8k", "math", "gpqa", "humaneval", "mbpp", "ifeval")}
    assert "set confirm_run_unsafe_code" in lines["llada-1.5/humaneval"]
    assert "openai/gsm8k" in lines["llada-1.5/gsm8k"]


def test_the_tiny_suite_runs_on_a_tiny_model(saved, monkeypatch):
    """From start to end with the real model, whose weights are read once; the exact sampler settings are used."""
    models = []
    load = evaluate.load_harness_model
    monkeypatch.setattr(evaluate, "load_harness_model", lambda *given: models.append(load(*given)) or models[-1])
    found = run(saved, "--device", "cpu", "--limit", "3")
    assert models[0].model is models[1].model
    assert [found["benchmarks"][f"tiny/{name}"]["cost"]["scored_rows"] for name in ("sums", "choice")] == [0, 3 * 4 * 4]
    assert "mean_standard_error" not in found["benchmarks"]["tiny/choice"]["cost"]  # it has one group of draws
    assert models[0].sampler == preset("tiny/sums").sampler
    scoring = models[1].options
    assert (scoring.draws, scoring.group, scoring.design, scoring.seed) == (4, 4, "published", 1234)
    assert {name: entry["figures"][0]["documents"] for name, entry in found["benchmarks"].items()} == {
        "tiny/sums": 3, "tiny/choice": 3,
    }  # fmt: skip
    assert set(found["fingerprint"]) == {"weights", "adapters", "config", "tokenizer", "chat_template"}
    again = run(saved, "--device", "cpu", "--limit", "3", "--overwrite", "true")
    figures = [[entry["figures"] for entry in each["benchmarks"].values()] for each in (found, again)]
    assert figures[0] == figures[1]
    with pytest.raises(RecipeError, match="tiny/sums has gen_length=2048, which leaves no room for a prompt"):
        run(saved, "--gen_length", "2048")


def test_a_benchmark_that_was_killed_goes_on_from_its_answers(saved, monkeypatch):
    """Ctrl-C after three answers of six: the other three are sampled, and the figures are those of a whole run."""
    import llada.harness.model

    counts, generated = [], llada.harness.model.generated

    def counted(model, tokenizer, asked, *others):
        counts.append(len(asked))
        for count, found in enumerate(generated(model, tokenizer, asked, *others)):
            if len(counts) == 1 and count == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(llada.harness.model, "generated", counted)
    words = ("--device", "cpu", "--tasks", "sums", "--limit", "6", "--batch_size", "1")
    with pytest.raises(KeyboardInterrupt):
        run(saved, *words)
    found = run(saved, *words)
    assert counts == [6, 3]
    first = samples_of(saved / "out")
    evaluate.main(["--suite", "tiny", "--model", str(saved / "model"), "--output", str(saved / "whole"), *words])
    whole = json.loads((saved / "whole" / "evaluation.json").read_text())
    assert whole["benchmarks"]["tiny/sums"]["figures"] == found["benchmarks"]["tiny/sums"]["figures"]
    assert samples_of(saved / "whole") == first
    assert counts == [6, 3, 6]


def test_a_second_benchmark_that_was_killed_goes_on_with_a_model_that_is_loaded_again(saved, monkeypatch):
    """The first run has it in memory, from the benchmark before; the second one reads it from its files."""
    from llada.harness.model import HarnessModel

    counts, scored = [], HarnessModel.scored

    def killed(self, encoded, *others, **named):
        counts.append(len(encoded))
        for count, found in enumerate(scored(self, encoded, *others, **named)):
            if len(counts) == 1 and count == 4:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(HarnessModel, "scored", killed)
    words = ("--device", "cpu", "--limit", "2")
    with pytest.raises(KeyboardInterrupt):
        run(saved, *words)
    assert list(run(saved, *words)["benchmarks"]) == ["tiny/sums", "tiny/choice"]
    assert counts == [8, 4]


@pytest.mark.slow
def test_the_script_does_not_take_the_place_of_the_package_evaluate(saved):
    """HumanEval's task imports it; its metric cannot be loaded here, which is as far as it comes."""
    command = [sys.executable, "recipes/evaluate.py", "--suite", "llada-1.5", "--tasks", "humaneval"]
    command += ["--confirm_run_unsafe_code", "true", "--model", str(saved / "model"), "--output", str(saved / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert re.search("llada-1.5/humaneval: .*code_eval", found.stderr)


@pytest.mark.slow
def test_two_processes_give_the_same_as_one(saved):
    """As `accelerate launch` starts them, on a CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/ddp_cpu.yaml"]
    command += ["recipes/evaluate.py", "--suite", "tiny", "--model", str(saved / "model"), "--device", "cpu"]
    command += ["--output", str(saved / "two"), "--limit", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("tiny/choice") == 1
    one, two = run(saved, "--device", "cpu", "--limit", "5"), json.loads((saved / "two/evaluation.json").read_text())
    for name, entry in one["benchmarks"].items():
        assert two["benchmarks"][name]["figures"] == entry["figures"]
    samples = [samples_of(saved / folder) for folder in ("out", "two")]
    assert samples[0] == samples[1]


def samples_of(folder) -> list[tuple]:
    """Document, filter and answer; an answer that a process gave twice, to keep up with the other, counts once."""
    rows = [json.loads(line) for line in (folder / "samples" / "tiny-sums.jsonl").read_text().splitlines()]
    return sorted((row["doc_id"], row["filter"], row["resps"][0][0]) for row in rows)


def test_a_group_s_figure_is_that_of_all_documents_below_it(tmp_path, known):
    """A group of a task and of a group with one task, which the harness runs; it weights tasks by their size."""
    (tmp_path / "inner.yaml").write_text(GROUP.format(name="inner", tasks="[tiny_copy]"))
    (tmp_path / "mmlu.yaml").write_text(GROUP.format(name="mmlu", tasks="[tiny_choice, inner]"))
    (tmp_path / "copy.yaml").write_text(f"include: {FOLDER}/tiny_choice.yaml\ntask: tiny_copy\n")
    manager = TaskManager(include_defaults=False, include_path=[str(FOLDER), str(tmp_path)])
    benchmark = replace(preset("llada-base/mmlu"), shots=0)
    group = suites.load_one(manager, benchmark, run_code=False)
    cache = str(tmp_path / "cache")
    results = suites.run(known, benchmark, manager, group, limit=5, seed=0, run_code=False, cache=cache)
    (found,) = suites.figures(benchmark, results)
    largest = [max(map(int, row["choices"])) == int(row["choices"][row["gold"]]) for row in sums()[:5]]
    assert (found.value, found.scores) == (pytest.approx(sum(largest) / 5), [*largest, *largest])
    wilson = proportion([*largest, *largest])
    assert evaluate.interval(found) == (wilson.low, wilson.high)
    with pytest.raises(RecipeError, match="mmlu has no figure 'f1,none' in this harness, but .*'acc,none'"):
        suites.figures(replace(benchmark, metric="f1,none"), results)


def test_a_figure_that_is_no_share_of_its_documents_has_the_harness_s_standard_error():
    equal_tasks = suites.Figure("acc,none", 0.75, [1.0, 0.0, 1.0], 0.1)
    assert evaluate.interval(equal_tasks) == (pytest.approx(0.75 - 0.196), pytest.approx(0.75 + 0.196))
    assert evaluate.interval(suites.Figure("f1,none", 0.75, [0.5, 1.0], 0.1))[0] == pytest.approx(0.75 - 0.196)
    assert evaluate.interval(suites.Figure("f1,none", 0.75, None, None)) == (None, None)
