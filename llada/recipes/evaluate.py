"""Evaluate a model as the papers did, with lm-evaluation-harness, and print its figures beside the published ones.

    llada evaluate --suite llada-1.5 --model PATH --output runs/evaluation
    llada evaluate --suite llada-base --tasks gsm8k mmlu --model PATH --output runs/evaluation --limit 100

Suites and what is known of each benchmark stand in `llada/harness/published.py`; docs/evaluation.md explains the table
and the options. `evaluation.json` in the output directory has all figures with their 95% intervals, settings, versions
and the model's hashes, `samples/` what the model answered. The same command goes on where a killed run stopped; results
of another model or of other settings are refused. What can be refused is refused before the model is loaded.
"""

import contextlib
import importlib.util
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from llada.checks import NOT_EMPTY, Matches, NonNegativeInt, OneOf, PositiveFloat, PositiveInt, Range, check_fields
from llada.cli.arguments import IMPORTING, SamplerOptions, override, saying
from llada.cli.recipe import RecipeParser, parse
from llada.errors import RecipeError
from llada.harness import suites
from llada.harness.local_tasks import FILES
from llada.harness.published import SUITES, Benchmark
from llada.harness.record import Record, flat
from llada.intervals import proportion
from llada.sampling.settings import SamplerSettings

OF_MODEL = ("batch_size", "seed", "dtype", "device", "truncate")  # options that are the harness model's
PUBLISHED_GROUP = 8  # draws that depend on each other: the batch of the published evaluation's likelihoods
PACKAGES = ("lm_eval", "torch", "transformers", "datasets")
COST = ("scored_rows", "sampler_forwards", "mean_standard_error")  # what the harness's model says of itself


@dataclass
class Arguments:
    suite: Annotated[str, NOT_EMPTY] = field(
        default="", metadata={"help": f"Which published evaluation: {', '.join(SUITES)}."}
    )
    model: Annotated[str, NOT_EMPTY] = field(default="", metadata={"help": "Model or adapter directory, or hub name."})
    output: Annotated[str, NOT_EMPTY] = field(default="", metadata={"help": "Directory of evaluation.json."})
    tasks: list[str] | None = field(
        default=None, metadata={"help": "Benchmarks of the suite; default: all that can be run here."}
    )
    limit: PositiveInt | None = field(
        default=None, metadata={"help": "Only the first so many documents of a task, and of each task of a group."}
    )
    num_fewshot: NonNegativeInt | None = field(
        default=None, metadata={"help": "Examples before each question, in place of the published number."}
    )
    draws: PositiveInt | None = field(
        default=None, metadata={"help": "Monte Carlo draws of a log-likelihood, in place of the published number."}
    )
    design: Annotated[str, OneOf(("published", "systematic", "loo_complementary", "confidence"))] = field(
        default="published", metadata={"help": "How masks of a log-likelihood are drawn (docs/evaluation.md)."}
    )
    lead: PositiveFloat | None = field(
        default=None, metadata={"help": "End a question once its best option leads by so many standard errors."}
    )
    truncate: bool = field(
        default=False,
        metadata={"help": "Cut the beginning of prompts that are too long, instead of stopping."},
    )
    chat: bool | None = field(
        default=None, metadata={"help": "Put prompts into the chat template; default: as published, or as trained."}
    )
    dtype: Annotated[str, OneOf(("auto", "float32", "bfloat16"))] = field(
        default="auto", metadata={"help": "Of the weights; auto: as saved."}
    )
    device: Annotated[str, Matches("auto|cpu|cuda(:[0-9]+)?", "auto, cpu, cuda or such as cuda:1")] = field(
        default="auto", metadata={"help": "cpu, cuda, or auto."}
    )
    batch_size: PositiveInt = field(default=8, metadata={"help": "Rows of a forward pass, prompts sampled together."})
    seed: Annotated[int, Range(at_least=0, at_most=2**32 - 1)] = field(
        default=1234, metadata={"help": "Seed of masks, samples and the choice of examples."}
    )
    gsm8k_file: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "GSM8K's test set as a local file (question, answer) in place of the hub's."}
    )
    gsm8k_fewshot_file: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "The file whose rows are shown as examples with gsm8k_file."}
    )
    poem_file: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "poem_data.json of the LLaDA repository (first, second)."}
    )
    confirm_run_unsafe_code: bool = field(
        default=False, metadata={"help": "Allow tasks that run the code that the model has written."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace results of another model or of other settings."})

    def __post_init__(self):
        check_fields(self)

    @property
    def files(self) -> dict[str, str]:
        """The local data files that are given, by option."""
        return {name: path for name in FILES if (path := getattr(self, name)) is not None}


def check_lengths(benchmarks: dict[str, Benchmark], context: int) -> None:
    """Raise RecipeError for answers that leave no room for a prompt in the model's context [tokens]."""
    for name, each in benchmarks.items():
        if each.sampler is not None and each.sampler.gen_length >= context:
            raise RecipeError(
                f"{name} has gen_length={each.sampler.gen_length}, which leaves no room for a prompt in the model's "
                f"context of {context} tokens: give a smaller gen_length"
            )


def with_options(benchmark: Benchmark, args: Arguments, options: SamplerOptions) -> Benchmark:
    """The benchmark with the options in place of what is published.

    Raises:
        RecipeError: a sampler setting is out of range, or lengths and steps do not divide.
    """
    unknown = benchmark.sampler is None and benchmark.draws is None and options.gen_length is not None
    base = SamplerSettings() if unknown else benchmark.sampler
    try:
        sampler = None if base is None else override(base, options)
        if sampler is not None:
            sampler.check_blocks()
    except ValueError as error:
        raise RecipeError(f"{benchmark.suite}/{benchmark.name}: {error}") from error
    scale = benchmark.cfg_scale if sampler is not None or options.cfg_scale is None else options.cfg_scale
    chat = benchmark.chat if args.chat is None else args.chat
    draws = (args.draws or benchmark.draws) if suites.is_scored(benchmark) else None
    return replace(benchmark, sampler=sampler, cfg_scale=scale, chat=chat, draws=draws)


def settings_of(benchmark: Benchmark, args: Arguments) -> dict[str, Any]:
    """All that decides the figures of a benchmark, but for the model."""
    from llada.files import digest

    kept = ("task", "shots", "draws", "cfg_scale", "sampler", "chat")
    settings = {name: value for name, value in asdict(benchmark).items() if name in kept}
    settings |= {name: getattr(args, name) for name in ("limit", "batch_size", "seed", "dtype", "truncate")}
    if suites.is_scored(benchmark):
        settings |= {"design": args.design, "lead": args.lead}
    of_task = [name for name in suites.FILES_OF.get(str(benchmark.task), ()) if name in args.files]
    return settings | {"data": {name: digest(args.files[name]) for name in of_task}, "lm_eval": version("lm_eval")}


def changed(benchmark: Benchmark, args: Arguments) -> list[str]:
    """What is not as published in a benchmark that was run, for its line of the table."""
    before, now = (flat(asdict(each)) for each in (SUITES[benchmark.suite][benchmark.name], benchmark))
    of_scores = {"design": "published", "lead": None} if suites.is_scored(benchmark) else {}
    plain = {"limit": None, "truncate": False} | of_scores
    found = [f"{name}={value}" for name, usual in plain.items() if (value := getattr(args, name)) != usual]
    for name, value in now.items():
        known = before.get(name)
        if name == "task" or value == known or (name == "chat" and known is None):
            continue
        found.append(f"{name.removeprefix('sampler.')}={value}" + (f", published {known}" if known is not None else ""))
    return found


def interval(figure: suites.Figure) -> tuple[float | None, float | None]:
    """The 95% interval of a figure: Wilson's of a share of right documents, else the harness's standard error's.

    (None, None) if the harness has none. A group's figure may weight its tasks equally; then it is no share of all its
    documents, and the standard error is used.
    """
    scores = figure.scores
    if scores and set(scores) <= {0.0, 1.0} and math.isclose(sum(scores) / len(scores), figure.value, abs_tol=1e-9):
        found = proportion([score == 1 for score in scores])
        return found.low, found.high
    if figure.standard_error is None:
        return None, None
    return figure.value - 1.96 * figure.standard_error, figure.value + 1.96 * figure.standard_error


def entry_of(benchmark: Benchmark, args: Arguments, results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What `evaluation.json` keeps of a benchmark; figures are shares of 1."""
    counts = results["n-samples"]
    found = [
        {"name": each.name, "value": each.value, "low": (ends := interval(each))[0], "high": ends[1],
         "documents": len(each.scores) if each.scores else sum(row["effective"] for row in counts.values())}
        for each in suites.figures(benchmark, results)
    ]  # fmt: skip
    # nan, of a single group, does not equal itself
    cost = {name: value for name in COST if (value := results["config"].get(name)) == value}
    return {
        "settings": settings_of(benchmark, args), "changed": changed(benchmark, args), "figures": found,
        "published": benchmark.published, "source": benchmark.source, "remark": benchmark.remark,
        "shots": results["n-shot"], "task_versions": results["versions"],
        "versions": {name: version(name) for name in PACKAGES}, "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1), "cost": cost,
    }  # fmt: skip


def write_samples(folder: Path, name: str, results: dict[str, Any]) -> None:
    """What the model answered to each document, a JSON line each."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = ("doc_id", "target", "resps", "filtered_resps", "filter")
    with open(folder / f"{name.replace('/', '-')}.jsonl", "w", encoding="utf-8") as file:
        for task, rows in results["samples"].items():
            for row in rows:
                scores = {metric: row[metric] for metric in row["metrics"]}
                line = {"task": task} | {key: row[key] for key in kept} | scores
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


def table(entries: dict[str, dict[str, Any]]) -> str:
    """The figures in percent, a line each, beside the published ones."""
    lines = [("benchmark", "figure", "documents", "ours", "95% interval", "published", "source; remarks")]
    for name, entry in entries.items():
        remarks = "; ".join(filter(None, (entry["source"], entry["remark"], *entry["changed"])))
        published = "" if entry["published"] is None else f"{entry['published']:g}"
        for each in entry["figures"]:
            ends = "" if each["low"] is None else f"{100 * each['low']:.1f} to {100 * each['high']:.1f}"
            ours = f"{100 * each['value']:.1f}"
            lines.append((name, each["name"], str(each["documents"]), ours, ends, published, remarks))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in rows)


def load_harness_model(args: Arguments, benchmark: Benchmark, before: Any) -> Any:
    """The model under test as the harness's `LM`, with the settings of one benchmark.

    Args:
        before: that of another benchmark, whose weights it takes; None if there is none.
    """
    from llada.harness.model import HarnessModel
    from llada.harness.settings import HarnessSettings

    options: dict[str, Any] = {name: getattr(args, name) for name in OF_MODEL} | {"pretrained": args.model}
    if before is not None:
        options |= {"pretrained": before.model, "tokenizer": before.tokenizer, "files": before.files}
    if suites.is_scored(benchmark):
        draws = benchmark.draws or HarnessSettings.draws
        group = math.gcd(draws, PUBLISHED_GROUP)
        options |= {"design": args.design, "lead": args.lead, "draws": draws, "group": group}
    sampler = benchmark.sampler or SamplerSettings(cfg_scale=benchmark.cfg_scale)
    return HarnessModel(exact_sampler=sampler, **options)


def parser() -> RecipeParser:
    """The parser of all options."""
    return RecipeParser((Arguments, SamplerOptions), __doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command: evaluate each benchmark and print the table."""
    args, options = parse((Arguments, SamplerOptions), argv, __doc__)
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError("evaluation needs lm-evaluation-harness: pip install 'llada-vrpo[eval]'")
    for name, path in args.files.items():
        if not Path(path).is_file():
            raise FileNotFoundError(f"{name}: no such data file: {path}")
    published, left_out = suites.choose(args.suite, args.tasks, args.files, args.num_fewshot)
    chosen = {f"{each.suite}/{each.name}": with_options(each, args, options) for each in published}
    with saying(IMPORTING):  # after parsing: they load torch
        import torch
        from accelerate import PartialState

        from llada.cli.checkpoint import load_config
        from llada.cli.fingerprint import fingerprint, hash_of
        from llada.data.turns import speaks_in_turns
        from llada.output import lock
        from llada.training.distributed import check_launcher

    check_launcher()
    tokenizer, config = load_config(args.model)
    check_lengths(chosen, config.denoiser_spec.context)
    turns = speaks_in_turns(tokenizer)
    chosen = {name: replace(each, chat=turns if each.chat is None else each.chat) for name, each in chosen.items()}
    settings = {name: settings_of(each, args) for name, each in chosen.items()}
    with saying(f"hashing the weights of {args.model}"):
        hashes = fingerprint(args.model, config, tokenizer)
    state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available())
    cache, model = Path(args.output, "cache"), None
    with lock(args.output) if state.is_main_process else contextlib.nullcontext():
        record = Record(args.output, args.model, hashes, args.overwrite)
        done = {name: record.finished(name, settings[name]) for name in chosen}
        left = {name: each for name, each in chosen.items() if done[name] is None}
        manager, tasks = suites.load(left, args.files, args.confirm_run_unsafe_code)
        for name, each in left.items():
            start, model = time.perf_counter(), load_harness_model(args, each, model)
            results = suites.run(
                model, each, manager, tasks[name], limit=args.limit, seed=args.seed,
                run_code=args.confirm_run_unsafe_code, cache=str(cache / hash_of([hashes, settings[name]])),
            )  # fmt: skip
            if state.is_main_process:
                done[name] = entry = entry_of(each, args, results, time.perf_counter() - start)
                write_samples(Path(args.output, "samples"), name, results)
                record.add(name, entry)
        state.wait_for_everyone()
        if state.is_main_process:
            shutil.rmtree(cache, ignore_errors=True)
            entries = {name: entry for name, entry in done.items() if entry is not None}
            print(table(entries), *(f"not run: {name} ({reason})" for name, reason in left_out.items()), sep="\n")
    state.destroy_process_group()
