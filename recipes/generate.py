"""Prompts in, completions out: on one process or several, and a run that was killed goes on where it stopped.

    accelerate launch recipes/generate.py --model runs/tiny_sft --prompts FILE.jsonl --output completions.jsonl

FILE has a `prompt` column (text or messages). Rows keep their columns and get `completion`. Settings of the sampler are
those of `llada.SamplerSettings`; without any, those that were saved with the model are taken, if it has some.
"""

import time
from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import llada  # noqa: F401  (registers the model)
from llada.cache import SamplerStats
from llada.completions import PartFiles, answers, settings_of
from llada.data import column_names, load_rows
from llada.inputs import RecipeError
from llada.launch import parse
from llada.masking import keyed_generator
from llada.sampler_settings import SamplerSettings
from llada.tokenizer import load_tokenizer


@dataclass
class Arguments(SamplerSettings):
    model: str = field(default="", metadata={"help": "A saved model, or a hub name."})
    prompts: str = field(default="", metadata={"help": "Local file or hub dataset with a 'prompt' column."})
    output: str = field(default="", metadata={"help": "JSONL to write."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first prompts."})
    batch_size: int = 16
    seed: int = 0
    overwrite: bool = field(default=False, metadata={"help": "Replace the output and what a killed run left."})


def main(argv: list[str] | None = None) -> None:
    (args,) = parse((Arguments,), argv)
    for name in ("model", "prompts", "output"):
        if not getattr(args, name):
            raise RecipeError(f"{name} is missing")
    files, state = PartFiles(args.output), PartialState(cpu=not torch.cuda.is_available())
    if args.overwrite and state.is_main_process:
        for file in (files.output, *files.parts()):
            file.unlink(missing_ok=True)
    state.wait_for_everyone()
    if files.output.exists():
        raise RecipeError(f"output={args.output} exists: set overwrite to replace it")
    rows = load_rows(args.prompts)
    if "prompt" not in column_names(rows):
        raise RecipeError(f"{args.prompts}: columns are {sorted(column_names(rows))}; needed is 'prompt'")
    rows = list(rows.select(range(min(args.limit or len(rows), len(rows)))))
    tokenizer = load_tokenizer(args.model)
    settings = settings_of(args, SamplerSettings)
    if settings == SamplerSettings():
        settings = SamplerSettings.load(args.model)
    settings.check_blocks()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").eval().to(state.device)
    state.wait_for_everyone()
    done = files.done()
    left = [index for index in range(len(rows)) if index not in done]
    mine = left[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # all have read what was done before anyone adds to it
    stats, start = SamplerStats(), time.perf_counter()
    bar = tqdm(total=len(mine), desc="completions", disable=not state.is_local_main_process)
    for first in range(0, len(mine), args.batch_size):
        batch = mine[first : first + args.batch_size]
        seed = keyed_generator(args.seed, batch[0]).initial_seed()
        generator = torch.Generator(state.device).manual_seed(seed)
        prompts = (rows[index]["prompt"] for index in batch)
        found = answers(model, tokenizer, prompts, settings, args.batch_size, generator, stats)
        new = [rows[index] | {"completion": text, "index": index} for index, text in zip(batch, found, strict=True)]
        files.append(state.process_index, new)
        bar.update(len(batch))
        made = (first + len(batch)) * settings.gen_length / (time.perf_counter() - start)
        bar.set_postfix_str(f"{made:.0f} tokens/s, {stats.forwards} forwards")
    state.wait_for_everyone()
    if state.is_main_process:
        files.join()
        print(f"{len(rows)} completions in {args.output}")


if __name__ == "__main__":
    main()
