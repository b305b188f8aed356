"""Speed of `generate`: each mode against a plain loop with the same weights, interleaved in one run, in CPU time.

python benchmarks/sampling.py [--quick] [--rounds 3] [--json PATH]

The model has 31.5M random parameters (width 512, 8 layers, vocabulary 4,096); the prompt has 64 tokens, and 128 new
ones come in blocks of 32, on one thread. The plain loop forwards the whole window for every token with all logits and
has little overhead (fp32 softmax, no Gumbel noise): its time is printed over forwards x one bare forward. The threshold
is the same in every mode, set so that the dual cache commits two tokens a forward. "model" is the ratio that the number
of query tokens predicts. Ratios are plain over mode, with the range over rounds. The last lines split a step by part.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import llada
from llada import LLaDAConfig, LLaDAModelLM, SamplerSettings
from llada.sampling.selection import TokenProposal, select_top_k

PROMPT, NEW, BLOCK, VOCABULARY = 64, 128, 32, 4096
MASK = VOCABULARY - 1
BASE = SamplerSettings(steps=NEW, gen_length=NEW, block_length=BLOCK, stop_at_eos=False)


def build(layers: int = 8, width: int = 512) -> LLaDAModelLM:
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=width, n_layers=layers, n_heads=8, mlp_hidden_size=3 * width, vocab_size=VOCABULARY, rope_theta=1e4,
        max_sequence_length=256, mask_token_id=MASK, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LLaDAModelLM(config).eval()


@torch.no_grad()
def plain(model: LLaDAModelLM, prompt_1P: Tensor) -> tuple[Tensor, int]:
    """Commit the most confident token of the block in each step; forward the whole window with all logits."""
    canvas = torch.cat([prompt_1P, prompt_1P.new_full((1, NEW), MASK)], -1)
    for start in range(PROMPT, PROMPT + NEW, BLOCK):
        block = slice(start, start + BLOCK)
        for _ in range(BLOCK):
            logits = model(canvas).logits[0]
            logits[:, MASK] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            confidence[canvas[0] != MASK] = -1
            best = start + confidence[block].argmax()
            canvas[0, best] = token[best]
    return canvas, NEW


def timed(work) -> tuple[float, object]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def two_tokens_a_forward(model: LLaDAModelLM, prompt_1P: Tensor) -> float:
    """The threshold at which the dual cache commits two tokens a forward on average, by bisection."""
    low, high, best, distance = 0.0, 1.0, 0.0, float("inf")
    for _ in range(14):
        middle = (low + high) / 2
        _, stats = llada.generate(model, prompt_1P, None, BASE, cache="dual", threshold=middle, return_stats=True)
        if abs(stats.forwards - NEW / 2) < distance:
            best, distance = middle, abs(stats.forwards - NEW / 2)
        low, high = (middle, high) if stats.forwards < NEW / 2 else (low, middle)
    return best


def parts_of_a_forward(model: LLaDAModelLM, prompt_1P: Tensor, repeats: int) -> dict[str, float]:
    """Seconds in embedding, attention (norms and projections included), MLP and head of a forward over a whole canvas.

    "rule" is what follows in a step: choosing the tokens at one block's candidates, and those to commit.
    """
    canvas, spent, marks = torch.cat([prompt_1P, prompt_1P.new_full((1, NEW), MASK)], -1), {}, {}

    def watch(name: str, first: torch.nn.Module, last: torch.nn.Module) -> list:
        """Add up the time from the start of one module to the end of another."""

        def before(*_):
            marks[name] = time.process_time()

        def after(*_):
            spent[name] = spent.get(name, 0.0) + time.process_time() - marks[name]

        return [first.register_forward_pre_hook(before), last.register_forward_hook(after)]

    body = model.model.transformer
    hooks = watch("embedding", body.wte, body.wte) + watch("head", body.ff_out, body.ff_out)
    for block in body.blocks:
        hooks += watch("blocks", block, block) + watch("MLP", block.ff_norm, block.ff_out)
    with torch.no_grad():
        for _ in range(repeats):
            model(canvas)
    for hook in hooks:
        hook.remove()
    spent["attention"] = spent.pop("blocks") - spent["MLP"]
    rule, logits_NV = TokenProposal("low_confidence", 0.0, [MASK], [], [], None), torch.randn(BLOCK, VOCABULARY)
    at_1L, one_1 = (torch.arange(PROMPT + NEW) >= PROMPT + NEW - BLOCK)[None], torch.ones(1)
    start = time.process_time()
    for _ in range(repeats):
        select_top_k(at_1L, rule(logits_NV)[1], one_1)
    spent["rule"] = time.process_time() - start
    return {name: seconds / repeats for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a model of 2 layers and width 64, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write rows {name, value, unit, low, high} here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = build(2, 64) if args.quick else build()
    rounds = 1 if args.quick else args.rounds
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(1, MASK, (1, PROMPT), generator=generator)
    tau = two_tokens_a_forward(model, prompt)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, threshold {tau:.3g}, {rounds} rounds")
    modes: dict[str, dict] = {
        "exact": {}, "prefix": {"cache": "prefix"}, "dual": {"cache": "dual"}, "threshold": {"threshold": tau},
        "prefix, threshold": {"cache": "prefix", "threshold": tau},
        "dual, threshold": {"cache": "dual", "threshold": tau},
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", "bare forward", *modes)}
    costs, canvas = {}, torch.cat([prompt, prompt.new_full((1, NEW), MASK)], -1)
    for _ in range(rounds):
        used, (expected, forwards) = timed(lambda: plain(model, prompt))
        seconds["plain"].append(used)
        with torch.no_grad():
            used, _ = timed(lambda: [model(canvas) for _ in range(8)])
        seconds["bare forward"].append(used / 8)
        for name, changes in modes.items():
            used, found = timed(lambda c=changes: llada.generate(model, prompt, None, BASE, return_stats=True, **c))
            seconds[name].append(used)
            output, costs[name] = found  # type: ignore[misc]
            if name == "exact" and not torch.equal(output, expected):
                raise RuntimeError("the exact mode differs from the plain loop")
    rows = []

    def note(name: str, ratios: list[float], unit: str = "ratio") -> str:
        value = median(ratios)
        rows.append({"name": name, "value": value, "unit": unit, "low": min(ratios), "high": max(ratios)})
        return f"{value:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"

    bare = [p / (forwards * b) for p, b in zip(seconds["plain"], seconds["bare forward"], strict=True)]
    print(f"plain: {forwards} forwards in {min(seconds['plain']):.2f} s; over forwards x one bare forward:",
          note("plain over forwards x a bare forward", bare))  # fmt: skip
    for name in modes:
        cost, ratios = costs[name], [p / m for p, m in zip(seconds["plain"], seconds[name], strict=True)]
        model_ratio = forwards * (PROMPT + NEW) / cost.query_tokens
        print(
            f"{name:18} {min(seconds[name]):7.2f} s {cost.forwards:4} forwards {cost.query_tokens:6} query tokens "
            f"{NEW / min(seconds[name]):6.1f} tokens/s  plain over it {note(name, ratios)}  model {model_ratio:.2f}"
        )
    prompts = [torch.randint(1, MASK, (1, n), generator=generator) for n in range(PROMPT - 28, PROMPT + 1, 4)]
    ids = torch.cat([torch.cat([p.new_zeros(1, PROMPT - p.shape[1]), p], -1) for p in prompts])
    mask = torch.cat([(torch.arange(PROMPT) >= PROMPT - p.shape[1]).long()[None] for p in prompts])
    ratios = []
    for _ in range(rounds):
        alone, _ = timed(lambda: [llada.generate(model, p, None, BASE, cache="dual") for p in prompts])
        together, _ = timed(lambda: llada.generate(model, ids, mask, BASE, cache="dual"))
        ratios.append(alone / together)
    print(f"{len(prompts)} prompts of {prompts[0].shape[1]} to {PROMPT} tokens, dual: a batch over one by one",
          note("batch of 8 over one by one, dual", ratios))  # fmt: skip
    for name, value in parts_of_a_forward(model, prompt, 2 if args.quick else 8).items():
        print(f"a step on the whole canvas, {name:10} {1000 * value:8.2f} ms")
        rows.append({"name": f"forward, {name}", "value": 1000 * value, "unit": "ms", "low": None, "high": None})
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
