"""LLaDA-8B with random bf16 weights on a GPU: milliseconds per forward against the roofline, tokens/s in each mode.

python benchmarks/gpu_sampling.py [--quick] [--json PATH]

The prompt has 512 tokens; 256 new tokens come in blocks of 32, in batches of 1 and 16. Random weights give low
confidence, so a threshold would commit one token a step; "4 a step" means 64 steps instead of 256. "roofline" is that
of an H200: the sum over forwards of the larger of the time to read the weights once (4.3 TB/s) and that of the products
(790 TFLOP/s in bf16). Without a GPU it prints "not run"; --quick runs a tiny model, on a CPU too.
"""

import json
from pathlib import Path

import torch
from gpu_models import FULL, TINY, arguments, seconds
from transformers import AutoModel

import llada
from llada import SamplerSettings

BYTES_PER_SECOND, FLOP_PER_SECOND = 4.3e12, 790e12
MODES: dict[str, dict] = {
    "exact": {}, "exact, 4 a step": {"steps": 64}, "prefix": {"cache": "prefix"}, "dual": {"cache": "dual"},
    "dual, 4 a step": {"cache": "dual", "steps": 64},
}  # fmt: skip
SETTINGS = SamplerSettings(steps=256, gen_length=256, block_length=32, stop_at_eos=False)


def roofline(model, queries: list[int], rows: int, length: int, candidates: int) -> float:
    """Least time of the forwards of a generation, seconds.

    Args:
        queries: query tokens of a row in each forward; length: tokens of the canvas; candidates: positions of the head.
    """
    embedding = model.get_input_embeddings().weight.numel()
    weights = sum(p.numel() for p in model.parameters()) - embedding
    head, body = embedding, weights - embedding  # the head is as large as the embedding, and not tied to it
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    spent = 0.0
    for query in queries:
        attention = 4 * query * length * width * layers
        products = rows * (2 * body * query + 2 * head * min(candidates, query) + attention)
        spent += max(2 * weights / BYTES_PER_SECOND, products / FLOP_PER_SECOND)
    return spent


def queries_of(settings: SamplerSettings, prompt: int) -> list[int]:
    """Query tokens of a row in every forward, if every step commits the same number of tokens."""
    length, block = prompt + settings.gen_length, settings.block_length
    blocks = settings.gen_length // block
    found = []
    for start in range(prompt, length, block):
        later = {None: length, "prefix": length - start, "dual": block}[settings.cache]
        found += [length] + [later] * (settings.steps // blocks - 1)
    return found


def main() -> None:
    args = arguments(__doc__)
    if args is None:
        return
    device = args.device
    config = TINY["tiny LLaDA"] if args.quick else FULL["LLaDA-8B"]
    config.mask_token_id = config.vocab_size - 1
    with torch.device(device):
        model = AutoModel.from_config(config, dtype=torch.bfloat16).eval()
    rows, prompt = [], 64 if args.quick else 512
    for batch in (1, 16):
        tokens = torch.randint(config.vocab_size - 1, (batch, prompt), device=device)
        for name, changes in MODES.items():
            settings = SamplerSettings(**(vars(SETTINGS) | changes))
            found = {}

            def work(settings=settings, tokens=tokens, found=found) -> None:
                found["stats"] = llada.generate(model, tokens, None, settings, return_stats=True)[1]

            spent, queries = seconds(work, 1, device), queries_of(settings, prompt)
            stats = found["stats"]
            if (stats.forwards, stats.query_tokens) != (len(queries), batch * sum(queries)):
                raise RuntimeError(f"{name}: {stats}, but the roofline counts {len(queries)} forwards")
            least = roofline(model, queries, batch, prompt + settings.gen_length, settings.block_length)
            rate = batch * settings.gen_length / spent
            print(
                f"batch {batch:2} {name:16} {stats.forwards:4} forwards {1000 * spent / stats.forwards:8.2f} ms each, "
                f"roofline {1000 * least / stats.forwards:7.2f} ms {rate:9.1f} tokens/s",
                flush=True,
            )
            for what, value, unit in (("forward", 1000 * spent / stats.forwards, "ms"), ("rate", rate, "tokens/s")):
                label = f"batch {batch}, {name}, {what}"
                rows.append({"name": label, "value": value, "unit": unit, "low": None, "high": None})
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
