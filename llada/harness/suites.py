"""Choosing, loading and running the benchmarks of a suite in lm-evaluation-harness, and reading its results."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llada.cli.arguments import saying
from llada.errors import RecipeError
from llada.harness.local_tasks import FOLDER
from llada.harness.published import SUITES, Benchmark

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

# The options that name the local files of a task: its data first, then what may be missing.
FILES_OF = {
    "gsm8k_local": ("gsm8k_file", "gsm8k_fewshot_file"),
    "poem_forward": ("poem_file",),
    "poem_reversal": ("poem_file",),
}


@dataclass(frozen=True)
class Figure:
    """One figure of a task: its name in the harness, as "exact_match,strict-match", and its value, a share of 1.

    scores: the value of each document; None if they are no numbers. standard_error: the harness's; None without one.
    """

    name: str
    value: float
    scores: list[float] | None
    standard_error: float | None


def choose(
    suite: str, names: list[str] | None, files: Mapping[str, str], shots: int | None = None
) -> tuple[list[Benchmark], dict[str, str]]:
    """The benchmarks of a suite that are to be run, and why the others are not, by name.

    Args:
        names: those that are wanted; None: all that can be run. files: paths of local files, by the option's name.
        shots: examples before each question in place of the published number.

    Raises:
        RecipeError: the suite or a name is unknown, a named benchmark has no task or lacks its file, none is left, or
            no benchmark reads a file.
    """
    if suite not in SUITES:
        raise RecipeError(f"suite={suite!r} is unknown: it must be one of {sorted(SUITES)}")
    known = SUITES[suite]
    if unknown := [name for name in names or () if name not in known]:
        raise RecipeError(f"tasks: {', '.join(unknown)} unknown: of {suite} there are {sorted(known)}")
    wanted = [known[name] for name in dict.fromkeys(names)] if names else list(known.values())
    left_out = {each.name: reason for each in wanted if (reason := flaw(each, files))}
    if left_out and (names or len(left_out) == len(wanted)):
        raise RecipeError("; ".join(f"{name} cannot be run: {reason}" for name, reason in left_out.items()))
    chosen = [each if shots is None else replace(each, shots=shots) for each in wanted if each.name not in left_out]
    found = [on_files(each, files) for each in chosen]
    used = {option for each in found for option in FILES_OF.get(str(each.task), ())}
    if unused := sorted(set(files) - used):
        raise RecipeError(f"{', '.join(unused)} would not be read: no benchmark that is run has its data there")
    return found, left_out


def is_scored(benchmark: Benchmark) -> bool:
    """Whether a benchmark has likelihoods, as far as its suite says: without sampler settings there, it may have.

    Options may have given it such settings, for the benchmarks of the suite that are sampled.
    """
    return SUITES[benchmark.suite][benchmark.name].sampler is None


def flaw(benchmark: Benchmark, files: Mapping[str, str]) -> str | None:
    """Why a benchmark cannot be run whatever the model; None if it can, as far as is seen without loading its data."""
    if benchmark.task is None:
        return benchmark.remark
    data = FILES_OF.get(benchmark.task, (None,))[0]
    return None if data is None or data in files else f"its data is a local file: give {data}"


def on_files(benchmark: Benchmark, files: Mapping[str, str]) -> Benchmark:
    """The benchmark, with the task on local files in place of the hub's where its file is given.

    Raises:
        RecipeError: its questions are preceded by examples, for which there is no file.
    """
    local = f"{benchmark.task}_local"
    if local not in FILES_OF or FILES_OF[local][0] not in files:
        return benchmark
    if benchmark.shots != 0 and (examples := FILES_OF[local][1]) not in files:
        shots = "the harness's number of" if benchmark.shots is None else str(benchmark.shots)
        raise RecipeError(
            f"{benchmark.suite}/{benchmark.name} shows {shots} examples before each question: give {examples}, a local "
            "file of them, or num_fewshot 0"
        )
    return replace(benchmark, task=local)


def load(
    benchmarks: Mapping[str, Benchmark], files: Mapping[str, str], run_code: bool
) -> "tuple[TaskManager, dict[str, Any]]":
    """The harness's manager, and the `Task` or `Group` of each benchmark, by its name, with the data.

    Args:
        run_code: whether code that a model has written may be run.

    Raises:
        RecipeError: tasks that the harness does not have, whose data cannot be reached, that lack a package, that run
            code without consent, or that sample answers with unknown settings; one message about all of them.
    """
    with saying("loading lm-evaluation-harness and its tasks"):
        from datasets import disable_progress_bars
        from lm_eval.tasks import TaskManager

        disable_progress_bars()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        local = {path.stem for path in FOLDER.glob("*.yaml")}
        # To list all tasks of the harness takes ten seconds.
        foreign = any(each.task not in local for each in benchmarks.values())
        manager = TaskManager(include_path=str(FOLDER), include_defaults=foreign, metadata=dict(files))
        found, problems = {}, []
        for name, each in benchmarks.items():
            try:
                found[name] = load_one(manager, each, run_code)
            except Exception as error:  # of many libraries: a hub that is not reached, a package, a file
                problems.append(f"{name}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
    if problems:
        reasons = "\n  ".join(problems)
        raise RecipeError(f"nothing was run, since these cannot be (name others with tasks):\n  {reasons}")
    return manager, found


def load_one(manager: "TaskManager", benchmark: Benchmark, run_code: bool) -> "Task | Group":
    """One task or group of the harness with its data.

    Raises:
        Exception: whatever keeps it from being run as it should be.
    """
    entry = manager.task_index.get(str(benchmark.task))
    if entry is None:
        raise RecipeError(f"this version of the harness has no task {benchmark.task!r}")
    if (entry.cfg or {}).get("unsafe_code") and not run_code:
        raise RecipeError("it runs code that the model has written: set confirm_run_unsafe_code to allow that")
    loaded = manager.load(str(benchmark.task))
    # The harness would ignore the number, and say so in its log alone.
    if benchmark.shots and any(task.get_config("num_fewshot") == 0 for task in loaded["tasks"].values()):
        raise RecipeError(f"the harness's task shows no examples, so that num_fewshot={benchmark.shots} has no effect")
    samples = any(task.OUTPUT_TYPE == "generate_until" for task in loaded["tasks"].values())
    if samples and benchmark.sampler is None:
        raise RecipeError("no sampler settings are published for it: give gen_length, and block_length and steps")
    return loaded["groups"][benchmark.task] if benchmark.task in loaded["groups"] else loaded["tasks"][benchmark.task]


def run(
    model: "LM", benchmark: Benchmark, manager: "TaskManager", task: "Task | Group", *, limit: int | None, seed: int,
    run_code: bool, cache: str | None,
) -> Any:  # fmt: skip
    """Run one benchmark; the harness's results, with the scores of each document.

    Args:
        task: what `load` has found for it. cache: where the harness keeps the answers to single requests, if anywhere.
    """
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model, tasks=[task], task_manager=manager, num_fewshot=benchmark.shots, limit=limit, use_cache=cache,
        apply_chat_template=bool(benchmark.chat), fewshot_as_multiturn=bool(benchmark.chat), bootstrap_iters=1000,
        confirm_run_unsafe_code=run_code, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
        fewshot_random_seed=seed,
    )  # fmt: skip


def figures(benchmark: Benchmark, results: Mapping[str, Any]) -> list[Figure]:
    """The figure that the published number is, or all figures of the task where that is not known.

    Raises:
        RecipeError: the harness has no such figure; the message lists those that it has.
    """
    of_task = results["results"][benchmark.task]
    names = [name for name in of_task if "," in name and not name.split(",")[0].endswith("_stderr")]
    if benchmark.metric is not None and benchmark.metric not in names:
        raise RecipeError(f"{benchmark.task} has no figure {benchmark.metric!r} in this harness, but {names}")
    rows = documents(results, str(benchmark.task))
    return [figure(name, of_task, rows) for name in names if benchmark.metric in (None, name)]


def figure(name: str, of_task: Mapping[str, Any], rows: list[dict[str, Any]]) -> Figure:
    """One figure of a task, with the scores of its documents."""
    metric, _, filtered = name.partition(",")
    scores = [row[metric] for row in rows if row["filter"] == filtered and metric in row]
    numbers = bool(scores) and all(isinstance(score, bool | int | float) for score in scores)
    error = of_task.get(f"{metric}_stderr,{filtered}")
    return Figure(
        name, float(of_task[name]), [float(score) for score in scores] if numbers else None,
        float(error) if isinstance(error, int | float) else None,
    )  # fmt: skip


def documents(results: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """The scored documents of a task, or of all tasks of a group."""
    return [row for leaf in leaves(results.get("group_subtasks", {}), task) for row in results["samples"][leaf]]


def leaves(subtasks: Mapping[str, list[str]], name: str) -> Iterator[str]:
    """The tasks below a group, at any depth; a task itself."""
    if name not in subtasks:
        yield name
    for child in subtasks.get(name, ()):
        yield from leaves(subtasks, child)
