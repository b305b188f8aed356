"""Speed of the experts: the plain loop over experts against each implementation, interleaved in one run.

python benchmarks/moe.py [--quick] [--json PATH]

One layer with 64 experts, 8 for each token, runs forward and backward in fp32 on a CPU (one thread) or bf16 on a GPU.
The loop looks up the tokens of every expert in turn, as the published code does; `eager` is this project's
`experts_by_slices`, `grouped_mm` is that of transformers. Ratios are median times of the loop over those of the
implementation, with the 95% interval of a bootstrap over rounds. Outputs and gradients are compared first.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llada.models.llada_moe import Experts, LLaDAMoEConfig

SHAPES = {"cpu": dict(hidden_size=512, expert_intermediate_size=256), "cuda": dict()}  # cuda: LLaDA-MoE-7B-A1B's
TOKENS = {"cpu": 256, "cuda": 4096}


def plain_loop(experts: Experts, h_ND: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """Weighted sum of the chosen experts' outputs, [N, D], one expert after another."""
    out_ND = torch.zeros_like(h_ND)
    # Iterating unbinds the stacked weights once: indexing would make a gradient of full size for every expert.
    for expert, (gate_up, down) in enumerate(zip(experts.gate_up_proj, experts.down_proj, strict=True)):
        token, rank = (chosen_NK == expert).nonzero(as_tuple=True)
        gate, up = F.linear(h_ND[token], gate_up).chunk(2, -1)
        value = F.linear(F.silu(gate) * up, down)
        out_ND = out_ND.index_add(0, token, value * weight_NK[token, rank, None])
    return out_ND


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 20")
    parser.add_argument("--json", help="write rows {name, value, unit, low, high} here")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config, n = LLaDAMoEConfig(num_hidden_layers=1, **SHAPES[device]), TOKENS[device]
    experts = Experts(config).to(device, dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, 0.0, parameter.shape[-1] ** -0.5)
    h_ND = torch.randn(n, config.hidden_size, device=device, dtype=dtype, requires_grad=True)
    weight_NK, chosen_NK = torch.randn(n, config.num_experts, device=device).softmax(-1).topk(8, -1)
    inputs = (h_ND, chosen_NK, weight_NK.to(dtype))

    def run(name: str) -> list[Tensor]:
        config._experts_implementation_internal = "eager" if name == "loop" else name
        out = plain_loop(experts, *inputs) if name == "loop" else experts(*inputs)
        return [out, *torch.autograd.grad(out.float().square().mean(), [h_ND, *experts.parameters()])]

    names = ["loop", "eager", "grouped_mm"]
    expected, times = run("loop"), {name: [] for name in names}
    for name in names[1:]:
        errors = [
            float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in zip(run(name), expected, strict=True)
        ]
        print(f"{name}: largest difference from the loop, output and gradients: {max(errors):.1e} of the largest value")
    for _ in range(5 if args.quick else 20):
        for name in names:
            start = time.perf_counter()
            run(name)
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    rounds = torch.tensor([times[name] for name in names])
    drawn = torch.randint(rounds.shape[1], (2000, rounds.shape[1]), generator=torch.Generator().manual_seed(0))
    medians = rounds[:, drawn].median(-1).values  # the same rounds for all, which keeps the interleaving
    rows = []
    print(f"{n} tokens, width {config.hidden_size}, 64 experts of {config.expert_intermediate_size}, top 8, {device}")
    for index, name in enumerate(names):
        low, high = (medians[0] / medians[index]).quantile(torch.tensor([0.025, 0.975])).tolist()
        value = float(rounds[0].median() / rounds[index].median())
        milliseconds = 1000 * float(rounds[index].median())
        print(f"{name:12} {milliseconds:8.1f} ms   loop over it {value:.2f} [{low:.2f}, {high:.2f}]")
        rows.append({"name": f"loop over {name}", "value": value, "unit": "ratio", "low": low, "high": high})
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
