"""The table of the papers' evaluations against the papers' own, typed again, and against the harness's index."""

import pytest

from llada.errors import RecipeError
from llada.harness.published import SUITES, preset
from llada.harness.suites import FILES_OF, choose
from llada.sampling.presets import PRESETS
from llada.sampling.settings import SamplerSettings

# Published numbers by suite, in the papers' order of columns.
NUMBERS = {
    "llada-base": """mmlu 65.9 bbh 49.7 arc_challenge 45.9 hellaswag 70.5 truthfulqa 46.1 winogrande 74.8 piqa 73.6
        gsm8k 70.3 math 31.4 gpqa 25.2 humaneval 35.4 humaneval_fim 73.8 mbpp 40.0 cmmlu 69.9 ceval 70.5""",
    "llada-base-guided": """arc_challenge 47.9 hellaswag 72.5 truthfulqa 46.4 winogrande 74.8 gpqa 26.1 piqa 74.4""",
    "llada-instruct": """mmlu 65.5 mmlu_pro 37.0 hellaswag 74.6 arc_challenge 88.5 gsm8k 69.4 math 31.9 gpqa 33.3
        humaneval 49.4 mbpp 41.0 poem_forward 51.8 poem_reversal 45.6""",
    "llada-instruct-blocks": "gsm8k 78.6 math 42.2 ifeval 62.2 arena_hard 10.0 alignbench 5.4 mt_bench 7.2",
    "llada-1.5": """gsm8k 83.3 math 42.6 gpqa 36.9 humaneval 52.4 mbpp 42.8 ifeval 66.2 arena_hard 14.3 alignbench 5.9
        mt_bench 7.3""",
    "llada-moe-base": "mmlu 64.59 bbh 52.71 gsm8k 66.41 math 36.10 humaneval 45.73 mbpp 52.40",
    "llada-moe-instruct": """mmlu 67.18 mmlu_pro 44.64 gpqa 31.09 cmmlu 64.30 ceval 63.93 squad_v2 86.81 drop 79.77
        korbench 38.40 cruxeval_o 42.38 mbpp 70.02 multipl_e 52.53 humaneval 61.59 livecodebench_v6 13.27
        bigcodebench_full 20.44 gsm8k 82.41 math 58.68 olympiadbench 21.04 bfcl_live 63.09 ifeval 59.33""",
    "tiny": "",
}
# Shots, draws and guidance of the likelihoods of the evaluation page.
LIKELIHOODS = """
mmlu 5 1 -    cmmlu 5 1 -        ceval 5 1 -         arc_challenge 0 128 .5    hellaswag 0 128 .5
truthfulqa 0 128 2   winogrande 5 128 0    piqa 0 128 .5     gpqa 5 128 .5
"""


@pytest.mark.parametrize("name", SUITES)
def test_published_numbers_are_the_papers(name):
    words = NUMBERS[name].split()
    expected = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    assert {each.name: each.published for each in SUITES[name].values() if each.published is not None} == expected


def test_likelihoods_have_the_published_draws_and_guidance():
    for name, shots, draws, scale in zip(*[iter(LIKELIHOODS.split())] * 4, strict=True):
        plain = preset(f"llada-base/{name}")
        assert (plain.shots, plain.draws, plain.cfg_scale, plain.sampler) == (int(shots), int(draws), 0, None)
        if scale != "-":
            guided = preset(f"llada-base-guided/{name}")
            assert guided.cfg_scale == float(scale)
            assert (guided.shots, guided.draws, guided.task) == (plain.shots, plain.draws, plain.task)


def test_sampler_settings_have_one_home_and_all_of_them_are_in_the_table():
    for suite, settings in PRESETS.items():
        for name, expected in settings.items():
            assert preset(f"{suite}/{name}").sampler is expected
    assert preset("llada-1.5/gsm8k").sampler == SamplerSettings(256, 256, 16, confidence_eos_eot_inf=True)
    assert preset("llada-moe-instruct/gsm8k").sampler is None  # not published


def test_each_number_has_a_source_and_what_cannot_be_run_a_reason():
    for each in (benchmark for suite in SUITES.values() for benchmark in suite.values()):
        assert bool(each.source) == (each.suite != "tiny")
        assert each.task is not None or each.remark
        assert each.metric is None or each.metric.count(",") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8k", r"preset='gsm8k' must be SUITE/BENCHMARK with a suite of \['llada-1.5', 'llada-base'"),
        ("llada-1.5/mmlu", r"'llada-1.5/mmlu' is unknown: of llada-1.5 there are \['alignbench', 'arena_hard'"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(name, message):
    with pytest.raises(ValueError, match=message):
        preset(name)


def test_what_cannot_be_run_is_left_out_with_its_reason_or_refused_by_name():
    chosen, left_out = choose("llada-instruct", None, {})
    assert left_out == {
        "hellaswag": "the harness has no such task with sampled answers",
        "poem_forward": "its data is a local file: give poem_file",
        "poem_reversal": "its data is a local file: give poem_file",
    }
    assert [each.name for each in chosen] == [name for name in SUITES["llada-instruct"] if name not in left_out]
    with pytest.raises(RecipeError, match="^hellaswag cannot be run: the harness has no such task"):
        choose("llada-instruct", ["gsm8k", "hellaswag"], {})
    with pytest.raises(RecipeError, match=r"^tasks: gsm, mmlu unknown: of llada-1.5 there are \['alignbench'"):
        choose("llada-1.5", ["gsm", "mmlu"], {})
    with pytest.raises(RecipeError, match=r"^suite='llada-2' is unknown: it must be one of \['llada-1.5'"):
        choose("llada-2", None, {})


def test_a_local_file_takes_the_place_of_the_hub_s_and_examples_need_one_too():
    both = {"gsm8k_file": "a.jsonl", "gsm8k_fewshot_file": "b.jsonl"}
    assert choose("llada-1.5", ["gsm8k"], {})[0][0].task == "gsm8k"
    assert choose("llada-1.5", ["gsm8k"], both)[0][0].task == "gsm8k_local"
    with pytest.raises(RecipeError, match="llada-base/gsm8k shows 4 examples before each question: give gsm8k_fewsh"):
        choose("llada-base", ["gsm8k"], {"gsm8k_file": "a.jsonl"})
    (found,), _ = choose("llada-base", ["gsm8k"], {"gsm8k_file": "a.jsonl"}, shots=0)
    assert (found.task, found.shots) == ("gsm8k_local", 0)


@pytest.mark.slow
def test_the_harness_has_the_tasks_and_their_figures():
    """Its index is built from a thousand files, in ten seconds; no data is loaded."""
    from lm_eval.tasks import TaskManager

    from llada.harness.local_tasks import FOLDER

    index = TaskManager(include_path=str(FOLDER)).task_index
    for each in (benchmark for suite in SUITES.values() for benchmark in suite.values() if benchmark.task):
        config = index[each.task].cfg
        figures = config.get("metric_list") or config["aggregate_metric_list"]
        if each.metric is None:
            assert each.task.startswith(("humaneval", "mbpp")) or each.remark
            continue
        metric, _, filtered = each.metric.partition(",")
        assert metric in {figure["metric"] for figure in figures}, each
        filters = {rule["name"] for rule in config.get("filter_list", ())}
        filters |= {figure["filter_list"] for figure in figures if "filter_list" in figure}
        assert filtered in (filters or {"none"}), each
    assert set(FILES_OF) <= set(index)
