"""Iterative VRPO: rounds of sampling answers, judging them, and training on the best and the worst answer to a prompt.

    vrpo iterate --config recipes/tiny_iterate.yaml --prompts FILE.jsonl --reward FILE.py:function

Each round samples answers of the current model to all prompts, at temperature 1 by default. `reward` is any
`function(row, answer) -> number`; `judge` is a class with the interface of TRL's pairwise judges, which prefers one of
two answers. The round then trains the model with VRPO on its pairs, as `vrpo align` does; the reference is the model
at the round's start. The directory `round-K` of output_dir holds `answers.jsonl` (answers and their rewards),
`pairs.jsonl`, checkpoints and the trained model, from which the next round starts; the model of the last round is the
result. `rounds.jsonl` has a line for each finished round. A run that was killed goes on with `--resume true`, and more
`--rounds` continue one that is finished.
"""

import contextlib
import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from trl import ModelConfig

import vrpo
from llada.checks import NOT_EMPTY, PositiveInt, Range
from llada.cli.arguments import IMPORTING, CompletionArguments, SamplerOptions, saying
from llada.cli.recipe import RecipeArguments, RecipeParser, parse, short_help
from llada.errors import RecipeError
from llada.files import delete_left, replace_file
from llada.output import lock, writing
from vrpo.rollouts import DIVERSE, Scorer, best_and_worst, load_judge, load_reward
from vrpo.training.options import VRPOOptions

ANSWERS, PAIRS, ROUNDS = "answers.jsonl", "pairs.jsonl", "rounds.jsonl"


@dataclass
class Arguments(RecipeArguments):
    prompts: Annotated[str, NOT_EMPTY] = field(
        default="", metadata={"help": "Local file or hub dataset with a 'prompt' column, answered in each round."}
    )
    reward: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "FILE.py:function, which gets the whole row and an answer; larger is better."}
    )
    judge: Annotated[str, NOT_EMPTY] | None = field(
        default=None,
        metadata={"help": "In place of reward: FILE.py:Class, with the interface of TRL's BasePairwiseJudge."},
    )
    rounds: PositiveInt = field(default=2, metadata={"help": "Rounds of sampling, judging and training."})
    samples: Annotated[int, Range(at_least=2)] = field(default=2, metadata={"help": "Answers to each prompt."})
    batch_size: PositiveInt = field(default=16, metadata={"help": "Number of prompts sampled together."})


def parser() -> RecipeParser:
    """The parser of all options, those of transformers included, for which it imports torch."""
    return RecipeParser((Arguments, ModelConfig, vrpo.VRPOConfig, SamplerOptions), __doc__)


def options(argv: Sequence[str], **changes) -> tuple[Any, ...]:
    """The options of the command line: of the recipe, the model, training and sampling; `changes` override them."""
    words = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    return parse((Arguments, ModelConfig, vrpo.VRPOConfig, SamplerOptions), [*argv, *words], __doc__)


def check_options(recipe: Arguments, model_args: ModelConfig) -> None:
    """Raise RecipeError for options that are missing, exclude each other, or have no meaning for rounds."""
    if model_args.model_name_or_path is None:
        raise RecipeError("model_name_or_path is missing: the model that the first round starts from")
    if (recipe.reward is None) == (recipe.judge is None):
        raise RecipeError("give either reward (FILE.py:function) or judge (FILE.py:Class)")
    for name in ("dataset_name", "dataset_streaming", "architecture", "tokenizer"):
        if getattr(recipe, name):
            raise RecipeError(
                f"{name} has no meaning here: rows are made from prompts, and model and tokenizer are saved ones"
            )
    if recipe.resume and recipe.overwrite:
        raise RecipeError("resume and overwrite are both set: choose one")
    if any(os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true" for engine in ("DEEPSPEED", "FSDP")):
        raise RecipeError(
            "each process samples with the whole model: launch with recipes/accelerate/ddp.yaml, or run "
            "`vrpo make-pairs` and `vrpo align` by turns, which may shard the model in training"
        )


def folder_of(output_dir: str, number: int) -> Path:
    """The directory of a round, counted from 1."""
    return Path(output_dir, f"round-{number}")


def rounds_begun(output_dir: str) -> list[int]:
    """The numbers of the rounds that have a directory."""
    numbers = (path.name.removeprefix("round-") for path in Path(output_dir).glob("round-*") if path.is_dir())
    return sorted(int(number) for number in numbers if number.isdecimal())


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file that this recipe has written."""
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    except ValueError as error:
        raise RecipeError(f"{file} is damaged ({error}): restore it, or set overwrite to begin again") from error


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file, which appears when it is whole; what killed runs have left of it is deleted."""
    with writing(file, "What is there is kept: set resume to go on from it"):
        delete_left(file)
        replace_file(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def finished_rounds(recipe: Arguments, output_dir: str) -> list[dict[str, Any]]:
    """The lines of `rounds.jsonl` for the rounds whose models are there; none if the run starts.

    Raises:
        RecipeError: the directory holds a run that is not to be resumed or replaced, or lacks a round in the middle.
    """
    begun = rounds_begun(output_dir)
    if recipe.overwrite or not begun:
        return []
    if not recipe.resume:
        raise RecipeError(
            f"output_dir={output_dir} already holds a run: set resume to continue it, overwrite to replace it, or "
            "another output_dir"
        )
    from llada.training.checkpoints import state_of

    file = Path(output_dir, ROUNDS)
    lines = rows_of(file) if file.exists() else []
    done = list(takewhile(lambda line: state_of(folder_of(output_dir, line["round"])), lines))
    if begun[-1] > len(done) + 1:
        raise RecipeError(
            f"{folder_of(output_dir, begun[-1])} is there, but round {len(done) + 1} is not finished: delete the "
            "rounds after it, which started from another model"
        )
    return done


def delete_rounds(output_dir: str) -> None:
    """Delete the rounds of a run, and nothing else in its directory."""
    Path(output_dir, ROUNDS).unlink(missing_ok=True)
    for number in reversed(rounds_begun(output_dir)):
        shutil.rmtree(folder_of(output_dir, number))


def write_pairs(run: Any, found: list[list[str]], score: Scorer, number: int) -> None:
    """Judge the answers of a round, and write its pairs and then its answers, by which it is known to be judged.

    Args:
        run: the `llada.cli.completions.Completions` that have sampled them. found: the answers to each prompt.

    Raises:
        RecipeError: all rewards of each prompt are equal, so that there is no pair.
    """
    rewards = score(run.rows, found)
    judged = list(zip(run.rows, found, rewards, strict=True))
    pairs = [pair for pair in (best_and_worst(*each) for each in judged) if pair is not None]
    if not pairs:
        raise RecipeError(
            f"round {number}: no pairs, since the answers to each of the {len(judged)} prompts have equal rewards, or "
            "are empty. Set more samples, a higher temperature, other prompts, or a reward with finer grades, and "
            "resume: the answers are kept, and only judged again unless an option of sampling has changed"
        )
    write_rows(run.files.output.with_name(PAIRS), pairs)
    run.files.finish({"prompt": row["prompt"], "answers": texts, "rewards": numbers} for row, texts, numbers in judged)


def is_judged(folder: Path) -> bool:
    """Whether the answers of a round are there. Parts beside them, of a run that was killed there, are deleted."""
    from llada.cli.parts import PartFiles

    found = (folder / ANSWERS).exists()
    if found:
        PartFiles(folder / ANSWERS, {}).remove_parts()
    return found


def start_of(folder: Path) -> tuple[bool, bool]:
    """`resume` and `overwrite` with which the training of a round continues what a killed run has left of it."""
    from llada.training.checkpoints import begun_only, checkpoints_in, state_of

    checkpoints = checkpoints_in(folder)
    unknown = not state_of(folder) and all(map(begun_only, checkpoints))  # how far it was trained
    overwrite = unknown and any(folder.glob("*.safetensors"))
    return not overwrite and (bool(checkpoints) or not unknown), overwrite


def line_of(folder: Path, number: int, seed: int, graded: bool, seconds: float) -> dict[str, Any]:
    """What `rounds.jsonl` says of a finished round.

    The reward is the mean over all its samples, which are those of the model before its training; a judge gives none.
    Margin and accuracy are those of pairs that were held out, or else of the last log line of training. The time is
    that of the last start.
    """
    from llada.training.checkpoints import state_of

    rewards = [reward for row in rows_of(folder / ANSWERS) for reward in row["rewards"]]
    history = state_of(folder)["log_history"]
    last = {name: value for line in history for name, value in line.items()}
    margin, accuracy = (
        last.get(f"eval_{name}", last.get(name)) for name in ("rewards/margins", "rewards/accuracies")
    )  # fmt: skip
    return {
        "round": number, "seed": seed, "reward": sum(rewards) / len(rewards) if graded else None,
        "pairs": len(rows_of(folder / PAIRS)), "margin": margin, "accuracy": accuracy, "seconds": round(seconds, 1),
    }  # fmt: skip


def make_round(
    argv: Sequence[str], number: int, args: Any, model: str, score: Scorer, done: list[dict[str, Any]]
) -> str | None:
    """Sample, judge, train and record one round, from where a killed run has left it.

    Args:
        args: the `VRPOConfig` of the whole run. model: what the round starts from. done: the lines of finished rounds,
            to which that of this one is added.

    Returns what to run next with the model; None if training had been finished before.
    """
    from llada.cli import train
    from llada.cli.completions import Completions
    from llada.diffusion.random_streams import ROUND, generator_for
    from llada.training.distributed import free_wrapper, on_first_process
    from vrpo.report import write_page

    begin, output_dir, folder = time.perf_counter(), args.output_dir, folder_of(args.output_dir, number)
    seed = generator_for(args.seed, ROUND, number).initial_seed() % 2**32
    recipe, model_args, args, sampling = options(
        argv, output_dir=folder, seed=seed, model_name_or_path=model, dataset_name=folder / PAIRS
    )
    replaced = recipe.overwrite and number == 1
    if replaced or not on_first_process(partial(is_judged, folder)):
        run = Completions(
            CompletionArguments(
                model, recipe.prompts, str(folder / ANSWERS), batch_size=recipe.batch_size, seed=seed,
                allow_special_tokens=args.allow_special_tokens, overwrite=True,  # of answers by other settings
            ),
            sampling, recipe.samples, **DIVERSE,
        )  # fmt: skip
        if replaced:
            on_first_process(partial(delete_rounds, output_dir))
        found = run.make()
        on_first_process(partial(write_pairs, run, found or [], score, number))
        del run  # its model, before another one is loaded
    recipe.resume, recipe.overwrite = on_first_process(partial(start_of, folder))
    trainer, commands = train.launch(
        vrpo.VRPOTrainer, [("prompt", "chosen", "rejected")], recipe, model_args, args, write_page
    )
    if trainer.is_world_process_zero():
        done.append(line_of(folder, number, seed, recipe.reward is not None, time.perf_counter() - begin))
        write_rows(Path(output_dir, ROUNDS), done)
        print(f"round {number} of {recipe.rounds}: {json.dumps(done[-1])}")
    free_wrapper(trainer)
    return commands


def main(argv: list[str] | None = None) -> None:
    """Run the command: all rounds, each from where a killed run has left it."""
    short_help(VRPOOptions, __doc__, argv, (Arguments, SamplerOptions))
    argv = sys.argv[1:] if argv is None else argv
    with saying(IMPORTING):
        from accelerate import PartialState

        from llada.cli.old_run import refuse_to_delete
        from llada.training.distributed import check_processes, on_first_process

    recipe, model_args, args, _ = options(argv)
    check_options(recipe, model_args)
    load, name = (load_judge, recipe.judge) if recipe.reward is None else (load_reward, recipe.reward)
    score = load(name, recipe.prompts)
    check_processes(args, recipe.expected_processes)
    first, output_dir, commands = args.process_index == 0, args.output_dir, None
    with lock(output_dir) if first else contextlib.nullcontext():
        done = on_first_process(partial(finished_rounds, recipe, output_dir))
        if recipe.overwrite:
            refuse_to_delete(model_args.model_name_or_path, output_dir)
        begun = len(done)
        for number in range(begun + 1, recipe.rounds + 1):
            model = model_args.model_name_or_path if number == 1 else str(folder_of(output_dir, number - 1))
            commands = make_round(argv, number, args, model, score, done)
            gc.collect()  # the trainer's model, before another one is loaded
        if first and begun >= recipe.rounds:
            print(
                f"the run in {output_dir} is finished: all of its {begun} rounds are done, and nothing was changed. "
                f"More rounds continue it. The model is {folder_of(output_dir, begun)}"
            )
        elif first:
            print(f"The model of {recipe.rounds} rounds is {folder_of(output_dir, recipe.rounds)}")
            if commands is not None:
                print(commands)
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
