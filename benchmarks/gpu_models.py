"""Build, forward and train (LoRA) LLaDA-8B and LLaDA-MoE-7B with random bf16 weights on a GPU.

python benchmarks/gpu_models.py [--quick] [--json PATH]

It prints tokens/s of forwards and of a LoRA step (rank 16, gradient checkpointing, head at masked positions) on 4 rows
of 1,024 tokens, and peak memory. Without a GPU it prints "not run"; --quick runs tiny models, on a CPU too.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModel

from llada import LLaDAConfig, LLaDAMoEConfig
from llada.denoiser import NOT_SCORED
from llada.models.common.lora import wrap_with_adapters

FULL = {"LLaDA-8B": LLaDAConfig(mlp_hidden_size=12288), "LLaDA-MoE-7B-A1B": LLaDAMoEConfig()}
TINY = {
    "tiny LLaDA": LLaDAConfig(d_model=64, n_layers=2, n_heads=4, vocab_size=300),
    "tiny LLaDA-MoE": LLaDAMoEConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_experts=4, num_experts_per_tok=2,
        expert_intermediate_size=32, vocab_size=300,
    ),
}  # fmt: skip


def seconds(work, repeats: int, device: str) -> float:
    """Mean time of `work` in seconds, after one warm-up call."""
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure(name: str, config, device: str, shape: tuple[int, int], repeats: int) -> list[dict]:
    """Print and return the rows of one model."""
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.device(device):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    built = time.perf_counter() - start
    tokens = torch.randint(config.vocab_size, shape, device=device)
    targets = tokens.masked_fill(torch.rand(shape, device=device) < 0.5, NOT_SCORED)
    model.eval()
    with torch.no_grad():
        forward = seconds(lambda: model(tokens, target_ids=targets), repeats, device)
    model.gradient_checkpointing_enable()
    wrapped = wrap_with_adapters(model, LoraConfig(r=16)).train()
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        (-wrapped(input_ids=tokens, target_ids=targets).log_probs.mean()).backward()
        optimizer.step()

    trained = seconds(step, repeats, device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    rows = [("built", built, "s"), ("forward", tokens.numel() / forward, "tokens/s")]
    rows += [("LoRA step", tokens.numel() / trained, "tokens/s"), ("peak memory", peak, "GiB")]
    for what, value, unit in rows:
        print(f"{name:18} {what:12} {value:12,.1f} {unit}")
    return [{"name": f"{name}, {what}", "value": v, "unit": unit, "low": None, "high": None} for what, v, unit in rows]


def arguments(description: str) -> argparse.Namespace | None:
    """The options of a benchmark that needs a GPU, with its `device`; prints "not run" and returns None without one."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, on a CPU too")
    parser.add_argument("--json", help="write rows {name, value, unit, low, high} here")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device == "cpu" and not args.quick:
        print("not run: this needs a GPU with 80 GB")
        return None
    return args


def main() -> None:
    args = arguments(__doc__)
    if args is None:
        return
    device = args.device
    rows = []
    for name, config in (TINY if args.quick else FULL).items():
        rows += measure(name, config, device, (2, 64) if args.quick else (4, 1024), 2 if args.quick else 10)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
