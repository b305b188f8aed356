"""Answers to many prompts: batched, on several processes, and resumable after an interruption.

Batches and random seeds are fixed for the run: completions depend neither on the process count nor on interruptions.
"""

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from llada.checks import PositiveInt, check, check_fields
from llada.cli.arguments import CompletionArguments, SamplerOptions, fit_context, note, sampler_settings
from llada.cli.checkpoint import load_config, load_model
from llada.cli.fingerprint import fingerprint
from llada.cli.parts import PartFiles
from llada.data.encoding import encode_prompt
from llada.data.loading import column_names, load_rows
from llada.data.turns import speaks_in_turns
from llada.denoiser import DenoiserSpec
from llada.diffusion.random_streams import generator_for
from llada.errors import PairError, RecipeError
from llada.output import probe
from llada.sampling.block_cache import SamplerStats
from llada.sampling.text import answers
from llada.training.signals import REQUEUE


def check_completion_options(args: CompletionArguments, samples: int) -> None:
    """Raise ValueError if an option is missing or invalid, or if the output exists or cannot be written."""
    check_fields(args)
    check("samples", samples, PositiveInt)
    check_output(Path(args.output), args.overwrite)
    if Path(args.output).resolve() == Path(args.prompts).resolve():
        raise RecipeError(f"output={args.output} is the file of the prompts")


def check_output(output: Path, overwrite: bool) -> None:
    """Raise RecipeError if a file exists and is not to be overwritten, or cannot be written."""
    if output.is_dir():
        raise RecipeError(f"output={output} is a directory: name a file")
    if output.exists() and not overwrite:
        raise RecipeError(f"output={output} exists: set overwrite to replace it")
    if reason := probe(output.absolute().parent):
        raise RecipeError(f"output={output} cannot be written: {reason}")


def load_prompts(args: CompletionArguments) -> list[dict[str, Any]]:
    """The rows whose prompts are to be answered.

    Raises:
        ValueError: the file has no rows, or no column 'prompt'.
    """
    rows = load_rows(args.prompts)
    if not len(rows):
        raise ValueError(f"{args.prompts} has no rows")
    if "prompt" not in column_names(rows):
        raise ValueError(f"{args.prompts}: columns are {sorted(column_names(rows))}; needed is 'prompt'")
    return list(rows.select(range(min(args.limit or len(rows), len(rows)))))


class Stopped(BaseException):
    """A signal that asks this process to end."""

    def __init__(self, number: signal.Signals):
        super().__init__(number)
        self.signal = number


class Completions:
    """Sample `samples` answers to each prompt of a file, distributed over the launcher's processes.

    Args:
        changes: sampler settings in place of those saved with the model or the preset's; `options` override them.

    Raises:
        ValueError, FileNotFoundError: an option is missing or invalid, the output exists, a part belongs to another
            run, or a prompt is invalid (see `check_rows`). Nothing has been written or removed then.
    """

    def __init__(self, args: CompletionArguments, options: SamplerOptions, samples: int = 1, **changes):
        check_completion_options(args, samples)
        settings = sampler_settings(args, options, **changes)
        self.rows = load_prompts(args)
        self.tokenizer, config = load_config(args.model)
        self.settings = settings = fit_context(settings, args, options, config.denoiser_spec.context)
        self.args, self.samples = args, samples
        self.check_rows(config.denoiser_spec)
        content = json.dumps([row["prompt"] for row in self.rows]).encode()
        run = {name: getattr(args, name) for name in ("model", "batch_size", "seed")} | asdict(settings)
        run |= {"samples": samples, "prompts": hashlib.blake2b(content, digest_size=8).hexdigest()}
        self.files = PartFiles(args.output, run | fingerprint(args.model, config, self.tokenizer))
        if not args.overwrite:
            self.files.done()
        self.state = PartialState(cpu=not torch.cuda.is_available())
        self.model = load_model(args.model, config).to(self.state.device)

    def check_rows(self, spec: DenoiserSpec) -> None:
        """Raise ValueError if a prompt is empty, too long or contains MASK, or if a row is no valid JSON."""
        if not speaks_in_turns(self.tokenizer) and any(isinstance(row["prompt"], list) for row in self.rows):
            note(f"{self.args.model} was trained on plain text: it has not seen the chat template of these messages")
        room = spec.context - self.settings.gen_length
        for index, row in enumerate(self.rows):
            where = f"{self.args.prompts}: row {index} (counted from 0)"
            try:
                ids = encode_prompt(self.tokenizer, row["prompt"], spec.mask_id, self.args.allow_special_tokens)
            except PairError as error:
                raise ValueError(f"{where} {error.of_row}") from error
            if not 0 < len(ids) <= room:
                raise ValueError(
                    f"{where} has a prompt of {len(ids)} tokens; allowed are 1 to {room}, the model's context less "
                    f"gen_length={self.settings.gen_length}"
                )
            try:
                json.dumps(row)
            except TypeError as error:
                raise ValueError(f"{where} cannot be written as JSON, which the output is: {error}") from error

    def make(self) -> list[list[str]] | None:
        """Sample all answers: a list of answers for each prompt on the main process, None on the others.

        Raises:
            OutputError: a part cannot be written, or another run writes the same output.
            FloatingPointError: the model's logits are nan or infinite.
            SystemExit: after SIGTERM, SIGUSR1 or Ctrl-C, with one line that says what is kept.
        """
        state = self.state
        with self.stopping(), self.files.lock() if state.is_main_process else contextlib.nullcontext():
            if state.is_main_process and self.args.overwrite:  # the old output stays until there is a new one
                self.files.drop_others()
            state.wait_for_everyone()
            done, total, size = self.files.done(), len(self.rows) * self.samples, self.args.batch_size
            batches = [range(first, min(first + size, total)) for first in range(0, total, size)]
            left = [batch for batch in batches if not all(index in done for index in batch)]
            state.wait_for_everyone()  # no process may write before all have read
            self.work(left[state.process_index :: state.num_processes])
            state.wait_for_everyone()
        if not state.is_main_process:
            return None
        done = self.files.done()
        if lost := total - len(done.keys() & range(total)):
            raise RecipeError(f"{lost} of {total} answers are gone from {self.files.output}.part*: run this again")
        if empty := [index // self.samples for index in range(total) if not done[index].strip()]:
            rows = ", ".join(map(str, dict.fromkeys(empty[:10]))) + ", ..." * (len(empty) > 10)
            print(f"{len(empty)} of {total} answers are empty, nothing before their end: rows {rows} (counted from 0)")
        return [[done[row * self.samples + i] for i in range(self.samples)] for row in range(len(self.rows))]

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """End on SIGTERM, SIGUSR1 or Ctrl-C with one line; each batch is written when it is sampled."""

        def stop(number: int, frame: Any) -> None:
            raise Stopped(signal.Signals(number))

        former = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    former[number] = signal.signal(number, stop)
        try:
            yield
        except Stopped as stopped:
            kept, total = len(self.files.done()), len(self.rows) * self.samples
            note(
                f"\nstopped by {stopped.signal.name}: {kept} of {total} answers are kept in {self.files.output}.part*, "
                "and the same command goes on from them"
            )
            raise SystemExit(130 if stopped.signal == signal.SIGINT else REQUEUE) from None
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def work(self, batches: list[range]) -> None:
        """Sample this process's share of the batches."""
        state, stats, start = self.state, SamplerStats(), time.perf_counter()
        name = f"answers, process {state.process_index + 1} of {state.num_processes}"
        with tqdm(total=sum(map(len, batches)), desc=name, disable=not state.is_local_main_process) as bar:
            for batch in batches:
                self.files.append(state.process_index, dict(zip(batch, self.sample(batch, stats), strict=True)))
                bar.update(len(batch))
                rate = stats.tokens / (time.perf_counter() - start)
                costs = f"{rate:.0f} tokens/s, {stats.tokens / stats.forwards:.2f} tokens a forward"
                bar.set_postfix_str(costs, refresh=False)  # a refresh would show the bar of short work too

    def sample(self, batch: range, stats: SamplerStats) -> list[str]:
        """The answers of a batch, with random numbers of its own; their cost is added to `stats`.

        Raises:
            FloatingPointError: the model's logits are nan or infinite; the message names the rows of the batch.
        """
        seed = generator_for(self.args.seed, batch[0]).initial_seed()
        generator = torch.Generator(self.state.device).manual_seed(seed)
        prompts = (self.rows[index // self.samples]["prompt"] for index in batch)
        try:
            found = answers(
                self.model, self.tokenizer, prompts, self.settings, len(batch), generator, stats,
                self.args.allow_special_tokens,
            )  # fmt: skip
            return list(found)
        except FloatingPointError as error:
            first, last = batch[0] // self.samples, batch[-1] // self.samples
            raise FloatingPointError(
                f"{self.args.prompts}: of the answers to rows {first} to {last} (counted from 0), sampled together, "
                f"{error}"
            ) from error
