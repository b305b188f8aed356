"""The papers' evaluations as one table: how each benchmark was run, and the number that was published for it.

    preset("llada-1.5/gsm8k")    ->  a `Benchmark`: task of lm-evaluation-harness, shots, sampler settings, 83.3

Sources: LLaDA (arXiv 2502.09992v3, Tables 1, 2, 4 and 6), its repository's evaluation page (settings), LLaDA 1.5 (arXiv
2505.19223v2, Table 1), LLaDA-MoE (arXiv 2509.24389v1, whose numbers are taken from summaries of it). What none of them
says is None, and `Benchmark` says what then holds. Lengths and blocks are those of `llada.sampling.presets`, which has
the same names.

The evaluation page of LLaDA-8B-Base runs the harness's own tasks. The other models were evaluated with prompts of the
authors' own, which are not published: for them `task` is the harness's nearest one by our choice, and a number of ours
beside a published one compares two prompts as well as two runs.
"""

from dataclasses import dataclass

from llada.sampling.presets import PRESETS, blocks, entry
from llada.sampling.settings import SamplerSettings


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of a suite.

    task: its name in the harness, or in `llada/harness/tasks`; None if neither has it, so that it cannot be run here.
    metric: the harness's figure that the published number is, as "exact_match,strict-match" (metric and filter). None:
        the source does not say which, and all figures of the task are shown.
    shots: examples before each question; None: as many as the harness's task has by itself.
    draws: Monte Carlo draws of each log-likelihood; None: answers are sampled, or the default of the model class holds.
    cfg_scale: guidance scale w of log-likelihoods; that of sampled answers is in `sampler`.
    sampler: settings for sampled answers. None: options must give `gen_length`, unless answers are not sampled.
    chat: whether prompts go through the chat template; None: if the model was trained on turns.
    published: the number of the paper, in percent, or points where a judge gives them (1 to 10).
    source: where it stands. remark: in what a run here differs from it, as far as is known.
    """

    suite: str
    name: str
    task: str | None
    metric: str | None = None
    shots: int | None = None
    draws: int | None = None
    cfg_scale: float = 0.0
    sampler: SamplerSettings | None = None
    chat: bool | None = None
    published: float | None = None
    source: str = ""
    remark: str = ""


NO_TASK = "the harness has no such task with sampled answers"
JUDGED = "needs a judge"
EXTRACTION = "strict or flexible extraction: not said"
NORMED = "acc or acc_norm: not said"
MATH_METRIC = "exact_match or math_verify: not said"


def suite(name: str, source: str, chat: bool | None, rows: dict[str, tuple], **common) -> dict[str, Benchmark]:
    """The benchmarks of a suite by name, with the sampler settings of the presets of that name.

    rows: task, published number, and a mapping with the other fields of `Benchmark`.
    """
    samplers = PRESETS.get(name, {})
    found = {}
    for benchmark, (task, published, *more) in rows.items():
        fields = {"sampler": samplers.get(benchmark), "source": source} | common | (more[0] if more else {})
        found[benchmark] = Benchmark(name, benchmark, task, chat=chat, published=published, **fields)
    return found


BASE = suite(
    "llada-base", "LLaDA, Table 1", False,
    {
        "mmlu": ("mmlu", 65.9, {"metric": "acc,none", "shots": 5, "draws": 1}),
        "cmmlu": ("cmmlu", 69.9, {"metric": "acc,none", "shots": 5, "draws": 1}),
        "ceval": ("ceval-valid", 70.5, {"metric": "acc,none", "shots": 5, "draws": 1}),
        "arc_challenge": ("arc_challenge", 45.9, {"shots": 0, "draws": 128, "remark": NORMED}),
        "hellaswag": ("hellaswag", 70.5, {"shots": 0, "draws": 128, "remark": NORMED}),
        "truthfulqa": ("truthfulqa_mc2", 46.1, {"metric": "acc,none", "shots": 0, "draws": 128}),
        "winogrande": ("winogrande", 74.8, {"metric": "acc,none", "shots": 5, "draws": 128}),
        "piqa": ("piqa", 73.6, {"shots": 0, "draws": 128, "remark": NORMED}),
        "gpqa": ("gpqa_main_n_shot", 25.2, {"shots": 5, "draws": 128, "remark": NORMED}),
        "bbh": ("bbh", 49.7, {"metric": "exact_match,get-answer", "shots": 3}),
        "gsm8k": ("gsm8k", 70.3, {"shots": 4, "remark": EXTRACTION}),
        "math": ("minerva_math", 31.4, {"shots": 4, "remark": MATH_METRIC}),
        "humaneval": ("humaneval", 35.4, {"shots": 0}),
        "humaneval_fim": (None, 73.8, {"shots": 2, "remark": "the harness does not show a model both sides of a gap"}),
        "mbpp": ("mbpp", 40.0, {"remark": "the paper has 4 shots, the harness's task has 3 and no more"}),
    },
)  # fmt: skip
GUIDED = suite(
    "llada-base-guided", "LLaDA, Table 6", False,
    {
        "arc_challenge": ("arc_challenge", 47.9, {"shots": 0, "cfg_scale": 0.5, "remark": NORMED}),
        "hellaswag": ("hellaswag", 72.5, {"shots": 0, "cfg_scale": 0.5, "remark": NORMED}),
        "truthfulqa": ("truthfulqa_mc2", 46.4, {"metric": "acc,none", "shots": 0, "cfg_scale": 2.0}),
        "winogrande": ("winogrande", 74.8, {"metric": "acc,none", "shots": 5, "cfg_scale": 0.0}),
        "gpqa": ("gpqa_main_n_shot", 26.1, {"shots": 5, "cfg_scale": 0.5, "remark": NORMED}),
        "piqa": ("piqa", 74.4, {"shots": 0, "cfg_scale": 0.5, "remark": NORMED}),
    },
    draws=128,
)  # fmt: skip
INSTRUCT = suite(
    "llada-instruct", "LLaDA, Table 2", None,
    {
        "mmlu": ("mmlu_generative", 65.5, {"metric": "exact_match,get_response"}),
        "mmlu_pro": ("mmlu_pro", 37.0, {"metric": "exact_match,custom-extract"}),
        "hellaswag": (None, 74.6, {"remark": NO_TASK}),
        "arc_challenge": ("arc_challenge_chat", 88.5, {"metric": "exact_match,remove_whitespace"}),
        "gsm8k": ("gsm8k", 69.4, {"remark": EXTRACTION}),
        "math": ("minerva_math", 31.9, {"remark": MATH_METRIC}),
        "gpqa": ("gpqa_main_generative_n_shot", 33.3, {"remark": EXTRACTION}),
        "humaneval": ("humaneval_instruct", 49.4),
        "mbpp": ("mbpp_instruct", 41.0),
        "poem_forward": ("poem_forward", 51.8, {"metric": "acc,none", "shots": 0, "source": "LLaDA, Table 4",
                                                "remark": "the paper has 496 pairs, its repository 469"}),
        "poem_reversal": ("poem_reversal", 45.6, {"metric": "acc,none", "shots": 0, "source": "LLaDA, Table 4",
                                                  "remark": "the paper has 496 pairs, its repository 469"}),
    },
)  # fmt: skip
# LLaDA-8B-Instruct in blocks: the first column of Table 1 of LLaDA 1.5, without the benchmarks that it takes over.
BLOCKS = suite(
    "llada-instruct-blocks", "LLaDA 1.5, Table 1", None,
    {
        "gsm8k": ("gsm8k", 78.6, {"remark": EXTRACTION}),
        "math": ("minerva_math", 42.2, {"remark": MATH_METRIC}),
        "ifeval": ("ifeval", 62.2, {"remark": "which of IFEval's four figures: not said"}),
        "arena_hard": (None, 10.0, {"remark": JUDGED}),
        "alignbench": (None, 5.4, {"remark": JUDGED}),
        "mt_bench": (None, 7.2, {"remark": JUDGED}),
    },
)  # fmt: skip
LLADA_1_5 = suite(
    "llada-1.5", "LLaDA 1.5, Table 1", None,
    {
        "gsm8k": ("gsm8k", 83.3, {"remark": EXTRACTION}),
        "math": ("minerva_math", 42.6, {"remark": MATH_METRIC}),
        "gpqa": ("gpqa_main_generative_n_shot", 36.9, {"remark": EXTRACTION}),
        "humaneval": ("humaneval_instruct", 52.4),
        "mbpp": ("mbpp_instruct", 42.8),
        "ifeval": ("ifeval", 66.2, {"remark": "which of IFEval's four figures: not said"}),
        "arena_hard": (None, 14.3, {"remark": JUDGED}),
        "alignbench": (None, 5.9, {"remark": JUDGED}),
        "mt_bench": (None, 7.3, {"remark": JUDGED}),
    },
)  # fmt: skip
MOE = "LLaDA-MoE, from a summary"
MOE_BASE = suite(
    "llada-moe-base", MOE, False,
    {
        "mmlu": ("mmlu", 64.59, {"metric": "acc,none"}),
        "mmlu_pro": ("mmlu_pro", None, {"metric": "exact_match,custom-extract", "remark": "the sources disagree"}),
        "bbh": ("bbh", 52.71, {"metric": "exact_match,get-answer"}),
        "gsm8k": ("gsm8k", 66.41, {"remark": EXTRACTION}),
        "math": ("minerva_math", 36.10, {"remark": MATH_METRIC}),
        "humaneval": ("humaneval", 45.73),
        "mbpp": ("mbpp", 52.40),
    },
)  # fmt: skip
MOE_INSTRUCT = suite(
    "llada-moe-instruct", MOE, None,
    {
        "mmlu": ("mmlu_generative", 67.18, {"metric": "exact_match,get_response"}),
        "mmlu_pro": ("mmlu_pro", 44.64, {"metric": "exact_match,custom-extract"}),
        "gpqa": ("gpqa_main_generative_n_shot", 31.09, {"remark": EXTRACTION}),
        "gsm8k": ("gsm8k", 82.41, {"remark": EXTRACTION}),
        "math": ("minerva_math", 58.68, {"remark": MATH_METRIC}),
        "humaneval": ("humaneval_instruct", 61.59),
        "mbpp": ("mbpp_instruct", 70.02),
        "ifeval": ("ifeval", 59.33, {"metric": "prompt_level_strict_acc,none"}),
        "drop": ("drop", 79.77, {"remark": "em or f1: not said"}),
        **{
            name: (None, number, {"remark": NO_TASK})
            for name, number in [
                ("cmmlu", 64.30), ("ceval", 63.93), ("squad_v2", 86.81), ("korbench", 38.40), ("cruxeval_o", 42.38),
                ("multipl_e", 52.53), ("livecodebench_v6", 13.27), ("bigcodebench_full", 20.44),
                ("olympiadbench", 21.04), ("bfcl_live", 63.09),
            ]
        },
    },
)  # fmt: skip
# No paper's: a check that evaluation works, on questions that come with this package.
TINY = suite(
    "tiny", "", None,
    {
        "sums": ("tiny_sums", None, {"metric": "exact_match,flexible-extract", "shots": 1, "sampler": blocks(8, 4)}),
        "choice": ("tiny_choice", None, {"metric": "acc,none", "shots": 0, "draws": 4}),
    },
)  # fmt: skip
SUITES: dict[str, dict[str, Benchmark]] = {
    "llada-base": BASE,
    "llada-base-guided": GUIDED,
    "llada-instruct": INSTRUCT,
    "llada-instruct-blocks": BLOCKS,
    "llada-1.5": LLADA_1_5,
    "llada-moe-base": MOE_BASE,
    "llada-moe-instruct": MOE_INSTRUCT,
    "tiny": TINY,
}


def preset(name: str) -> Benchmark:
    """The settings and the published number of "SUITE/BENCHMARK".

    Raises:
        ValueError: the name is unknown; the message lists the suites, or the suite's benchmarks.
    """
    return entry(SUITES, name, "suite")
