"""Sample answers from a model, check them, and write right and wrong ones as preference pairs.

    python recipes/make_pairs.py --model runs/tiny_sft --prompts FILE.jsonl --output pairs.jsonl

FILE has a `prompt` column (text or messages) and what the verifier needs: `same_as_answer` and `same_last_number`
compare with an `answer` column; `FILE.py:function` is any `function(row, answer) -> bool`.
"""

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import llada  # noqa: F401  (registers the model)
from llada.completions import answers, settings_of
from llada.data import column_names, load_rows
from llada.inputs import RecipeError
from llada.launch import parse
from llada.tokenizer import load_tokenizer
from vrpo.pairs import VERIFIERS, SamplingSettings, Verifier, pair_up


@dataclass
class Arguments(SamplingSettings):
    model: str = field(default="", metadata={"help": "A saved model, or a hub name."})
    prompts: str = field(default="", metadata={"help": "Local file or hub dataset with a 'prompt' column."})
    output: str = field(default="", metadata={"help": "JSONL to write."})
    verifier: str = field(default="same_as_answer", metadata={"help": f"{sorted(VERIFIERS)}, or FILE.py:function."})
    samples: int = field(default=4, metadata={"help": "Answers to each prompt."})
    pairs_per_prompt: int = field(default=1, metadata={"help": "At most this many pairs of one prompt."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first prompts."})
    batch_size: int = 32
    seed: int = 0
    overwrite: bool = False


def load_verifier(name: str) -> Verifier:
    """A verifier by name, or `FILE.py:function`."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    path, _, function = name.partition(":")
    if not function or not Path(path).is_file():
        raise RecipeError(f"verifier={name!r} must be one of {sorted(VERIFIERS)}, or FILE.py:function")
    spec = importlib.util.spec_from_file_location("verifier", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def main(argv: list[str] | None = None) -> None:
    (args,) = parse((Arguments,), argv)
    for name in ("model", "prompts", "output"):
        if not getattr(args, name):
            raise RecipeError(f"{name} is missing")
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise RecipeError(f"output={args.output} exists: set overwrite to replace it")
    verify = load_verifier(args.verifier)
    rows = load_rows(args.prompts)
    if "prompt" not in column_names(rows):
        raise RecipeError(f"{args.prompts}: columns are {sorted(column_names(rows))}; needed is 'prompt'")
    rows = list(rows.select(range(min(args.limit or len(rows), len(rows)))))
    tokenizer = load_tokenizer(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = settings_of(args, SamplingSettings)
    generator = torch.Generator(model.device).manual_seed(args.seed)
    prompts = (row["prompt"] for row in rows for _ in range(args.samples))
    sampled = answers(model, tokenizer, prompts, settings, args.batch_size, generator)
    sampled = iter(tqdm(sampled, total=len(rows) * args.samples, desc="answers"))
    pairs, right, mixed = [], 0, 0
    for row in rows:
        candidates = [next(sampled) for _ in range(args.samples)]
        right += sum(verify(row, text) for text in candidates)
        found = pair_up(row, candidates, verify, args.pairs_per_prompt)
        mixed += bool(found)
        pairs += found
    output.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    share = right / (len(rows) * args.samples)
    print(f"{len(pairs)} pairs from {mixed} of {len(rows)} prompts; {share:.1%} of answers right")


if __name__ == "__main__":
    main()
