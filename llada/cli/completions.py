"""Answers to many prompts: batched, on several processes, and resumable after an interruption.

Batches and random seeds are fixed for the run: completions depend neither on the process count nor on interruptions.
"""

import glob
import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import PreTrainedConfig

from llada.cli.adapters import base_of
from llada.cli.arguments import CompletionArguments, SamplerOptions, fit_context, note, sampler_settings
from llada.cli.checkpoint import load_config, load_model
from llada.data.encoding import encode_prompt
from llada.data.loading import column_names, load_rows
from llada.data.turns import speaks_in_turns
from llada.denoiser import DenoiserSpec
from llada.diffusion.random_streams import generator_for
from llada.errors import PairError
from llada.sampling.block_cache import SamplerStats
from llada.sampling.text import answers


class PartFiles:
    """Intermediate results: each process writes a JSONL file (a part) of its own until the whole output is complete.

    The first line of a part holds the run's settings, each other line is {"index": ..., "completion": ...}. An
    incomplete last line, which a killed process may leave, is dropped.
    """

    def __init__(self, output: str | Path, run: dict[str, Any]):
        self.output, self.run = Path(output), run

    def parts(self) -> list[Path]:
        found = self.output.parent.glob(f"{glob.escape(self.output.name)}.part*")
        return sorted(path for path in found if path.name.rpartition(".part")[2].isdigit())

    def done(self) -> dict[int, str]:
        """Completions of all parts, by index.

        Raises:
            ValueError: a part belongs to a run with other settings; the message names the file and the setting.
        """
        found: dict[int, str] = {}
        for part in self.parts():
            text = part.read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.split("\n")[:-1]]
            before = lines[0] if lines else self.run
            for name, value in self.run.items():
                if before.get(name) != value:
                    raise ValueError(
                        f"{part} was made with {name}={before.get(name)!r}, and this run has {value!r}: go on with the "
                        "same settings, or set overwrite to start again"
                    )
            found |= {row["index"]: row["completion"] for row in lines[1:]}
        return found

    def append(self, process: int, found: dict[int, str]) -> None:
        """Add completions, by index, to the part of a process."""
        part = self.output.with_name(f"{self.output.name}.part{process}")
        text = part.read_bytes() if part.exists() else b""
        if not text.endswith(b"\n"):  # drop the incomplete line of a killed process
            text = text[: text.rfind(b"\n") + 1]
            part.write_bytes(text)
        rows = [{"index": index, "completion": completion} for index, completion in found.items()]
        with open(part, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in (rows if text else [self.run, *rows]))

    def finish(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write the output atomically and remove the parts."""
        whole = self.output.with_name(self.output.name + ".tmp")
        with open(whole, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        whole.replace(self.output)
        self.remove_parts()

    def remove_parts(self) -> None:
        for part in self.parts():
            part.unlink()


def weight_files(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


def fingerprint(name: str, config: PreTrainedConfig) -> str | None:
    """Identify a model's weights: a hash of the files' names, sizes, starts and ends; for a hub model, its commit.

    Of an adapter directory, the base's files count too.
    """
    files = [file for folder in dict.fromkeys((name, base_of(name))) for file in weight_files(folder)]
    if not files:
        return getattr(config, "_commit_hash", None)
    found = hashlib.blake2b(digest_size=8)
    for path in files:
        with open(path, "rb") as file:
            found.update(f"{path.name} {path.stat().st_size}".encode() + file.read(65536))
            file.seek(-min(65536, path.stat().st_size), 2)
            found.update(file.read())
    return found.hexdigest()


def check_completion_options(args: CompletionArguments, samples: int) -> None:
    """Raise ValueError if an option is missing or invalid, or if the output exists."""
    for name in ("model", "prompts", "output"):
        if not getattr(args, name):
            raise ValueError(f"{name} is missing")
    numbers = {"batch_size": args.batch_size, "samples": samples, "limit": args.limit}
    if wrong := {name: number for name, number in numbers.items() if number is not None and number < 1}:
        raise ValueError(f"{wrong}: must be at least 1")
    if Path(args.output).exists() and not args.overwrite:
        raise ValueError(f"output={args.output} exists: set overwrite to replace it")
    if Path(args.output).resolve() == Path(args.prompts).resolve():
        raise ValueError(f"output={args.output} is the file of the prompts")


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
        self.files = PartFiles(args.output, run | {"weights": fingerprint(args.model, config)})
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
        """Sample all answers: a list of answers for each prompt on the main process, None on the others."""
        state = self.state
        if state.is_main_process:
            self.files.output.parent.mkdir(parents=True, exist_ok=True)
            if self.args.overwrite:  # the old output stays until there is a new one
                self.files.remove_parts()
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
        if empty := [index // self.samples for index in range(total) if not done[index].strip()]:
            rows = ", ".join(map(str, dict.fromkeys(empty[:10]))) + ", ..." * (len(empty) > 10)
            print(f"{len(empty)} of {total} answers are empty, EOS alone: rows {rows} (counted from 0)")
        return [[done[row * self.samples + i] for i in range(self.samples)] for row in range(len(self.rows))]

    def work(self, batches: list[range]) -> None:
        """Sample this process's share of the batches."""
        state, stats, start = self.state, SamplerStats(), time.perf_counter()
        name = f"answers, process {state.process_index + 1} of {state.num_processes}"
        bar = tqdm(total=sum(map(len, batches)), desc=name, disable=not state.is_local_main_process)
        for batch in batches:
            seed = generator_for(self.args.seed, batch[0]).initial_seed()
            generator = torch.Generator(state.device).manual_seed(seed)
            prompts = (self.rows[index // self.samples]["prompt"] for index in batch)
            found = answers(
                self.model, self.tokenizer, prompts, self.settings, len(batch), generator, stats,
                self.args.allow_special_tokens,
            )  # fmt: skip
            self.files.append(state.process_index, dict(zip(batch, found, strict=True)))
            bar.update(len(batch))
            rate = stats.tokens / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:.0f} tokens/s, {stats.tokens / stats.forwards:.2f} tokens a forward")
