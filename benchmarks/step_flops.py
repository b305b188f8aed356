"""FLOPs that a VRPO step executes, over those that it needs, counted by operation: the figure holds on any machine.

python benchmarks/step_flops.py [--shape tiny|8b] [--draws 1 8] [--json PATH]

Needed are, for each response and draw, on its real tokens alone: the reference's forward pass, the policy's forward and
backward pass, with checkpointing one more forward pass of the blocks, and the head at masked positions once. A step can
execute less, because the last block skips positions that the head does not read. What it executes is counted where
torch dispatches matrix products and attention. For the 8B shape these return zeros without computing, the vocabulary is
an eighth and there are 2 and 3 blocks; counts are linear in both, and are given for 126,464 words and 32 blocks.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = {  # width, feed-forward, blocks, heads, vocabulary; blocks and vocabulary that are built
    "tiny": (256, 688, 12, 4, 4000, (12,), 4000),
    "8b": (4096, 12288, 32, 32, 126464, (2, 3), 126464 // 8),
}
BATCHES = {  # (prompt, chosen, rejected) tokens of each pair
    "tiny": [(64, 192, 120), (40, 301, 61)],
    "8b": [(100, 900, 400), (60, 100, 250)],
}
RANK = 32
HEAD, BODY = "head", "body"
ops = torch.ops.aten


class Counter(TorchDispatchMode):
    """Counts the FLOPs of matrix products and attention, apart for the head; with `fake` they return zeros.

    A product belongs to the head if one of its sides has the size of the vocabulary.
    """

    def __init__(self, vocabulary: int, fake: bool):
        super().__init__()
        self.vocabulary, self.fake = vocabulary, fake
        self.flops = {HEAD: 0, BODY: 0}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (ops.mm.default, ops.addmm.default, ops.bmm.default):
            a, b = args[-2:] if function is not ops.addmm.default else args[1:3]
            shape = (*a.shape[:-1], b.shape[-1])
            kind = HEAD if self.vocabulary in (*a.shape, *b.shape) else BODY
            self.flops[kind] += 2 * a.shape[-1] * torch.Size(shape).numel()
            return a.new_zeros(()).expand(shape).clone() if self.fake else function(*args, **kwargs)
        if function is ops._scaled_dot_product_flash_attention_for_cpu.default:
            self.flops[BODY] += 4 * args[0].shape[-1] * args[0].shape[:-1].numel() * args[1].shape[-2]
        if function is ops._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.flops[BODY] += 10 * args[1].shape[-1] * args[1].shape[:-1].numel() * args[2].shape[-2]
        return function(*args, **kwargs)


@dataclass(frozen=True)
class Case:
    shape: str
    lora: bool
    checkpointing: bool
    draws: int

    def __str__(self) -> str:
        weights = "LoRA" if self.lora else "all parameters"
        return f"{self.shape}, {weights}, checkpointing {'on' if self.checkpointing else 'off'}, n = {self.draws}"


def needed(case: Case, masked: list[float]) -> float:
    """The FLOPs that a step needs. masked: positions under a mask, summed over draws, of each response."""
    width, inner, blocks, _, vocabulary, _, _ = SHAPES[case.shape]
    linear = 4 * width * width + 3 * width * inner
    adapters = RANK * (4 * 2 * width + 3 * (width + inner)) if case.lora else 0
    total = 0.0
    pairs = BATCHES[case.shape]
    lengths = [p + c for p, c, _ in pairs] + [p + r for p, _, r in pairs]
    for length, positions in zip(lengths, masked, strict=True):
        attention = 4 * length * length * width * blocks
        base, low_rank = 2 * linear * length * blocks, 2 * adapters * length * blocks
        head = 2 * width * vocabulary * positions
        forward = base + low_rank + attention
        backward = base * (1 if case.lora else 2) + 2 * low_rank + 2.5 * attention
        again = forward if case.checkpointing else 0
        total += case.draws * (base + attention + forward + backward + again) + head * (1 + 1 + (1 if case.lora else 2))
    return total


def executed(case: Case) -> tuple[float, list[float], str]:
    """The FLOPs that a step executes, the masked positions of each response, and how the gradient was computed."""
    *_, blocks, _, vocabulary, built, built_vocabulary = SHAPES[case.shape]
    counts, masked, plan = [], [], ""
    for number in built:
        flops, masked, plan = step(case, number, built_vocabulary)
        counts.append(flops[BODY] + flops[HEAD] * vocabulary / built_vocabulary)
    if len(counts) == 1:
        return counts[0], masked, plan
    return counts[0] + (counts[1] - counts[0]) * (blocks - built[0]) / (built[1] - built[0]), masked, plan


def step(case: Case, blocks: int, vocabulary: int) -> tuple[dict[str, float], list[float], str]:
    from datasets import Dataset
    from peft import LoraConfig

    from llada import LLaDAConfig, LLaDAModelLM
    from llada.data.tokenizer import byte_tokenizer
    from vrpo import VRPOConfig, VRPOTrainer

    width, inner, _, heads, *_ = SHAPES[case.shape]
    config = LLaDAConfig(
        d_model=width, n_layers=blocks, n_heads=heads, mlp_hidden_size=inner, vocab_size=vocabulary,
        max_sequence_length=4096, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261,
    )  # fmt: skip
    rows = [
        {"prompt": "q" * (p - 1), "chosen": "a" * (c - 1), "rejected": "b" * (r - 1)}  # a BOS, an EOS of the tail
        for p, c, r in BATCHES[case.shape]
    ]
    with tempfile.TemporaryDirectory() as folder, torch.device("cpu"):
        args = VRPOConfig(
            output_dir=folder, use_cpu=True, report_to="none", per_device_train_batch_size=len(rows), n_t=case.draws,
            gradient_accumulation_steps=1, disable_tqdm=True, gradient_checkpointing=case.checkpointing,
            variance_steps=0, log_level="error", eos_tail="1",
        )  # fmt: skip
        torch.set_default_dtype(torch.bfloat16 if case.shape == "8b" else torch.float32)
        with torch.device("meta"):
            model = LLaDAModelLM(config)
        torch.set_default_dtype(torch.float32)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.zero_()
        lora = LoraConfig(r=RANK, lora_alpha=RANK) if case.lora else None
        trainer = VRPOTrainer(
            model, args=args, train_dataset=Dataset.from_list(rows), processing_class=byte_tokenizer(), peft_config=lora
        )
        batch = next(iter(trainer.get_train_dataloader()))
        draws, _ = trainer.masks(trainer.design, batch, 0)
        trainer.current_gradient_accumulation_steps = 1
        if args.gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # What the trainer chooses where memory allows: with checkpointing, a graph is only the blocks' inputs.
        trainer.plan.unit_gradients, trainer.plan.made = not case.checkpointing, True
        trainer.plan.kept_tokens = 10**9 if case.checkpointing else 0
        with Counter(vocabulary, fake=case.shape == "8b") as counter:
            trainer.training_step(trainer.model, batch)
        kept = trainer.plan.kept_draws(case.draws, batch["input_ids"].numel())
    plan = "unit gradients" if trainer.plan.unit_gradients and kept < case.draws else f"{kept} graphs"
    return counter.flops, draws.masked_SBL.sum((0, 2)).tolist(), plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["tiny", "8b"])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", help="write rows {name, value, unit, low, high} here")
    args = parser.parse_args()
    rows = []
    print(f"{'case':58} {'executed':>10} {'needed':>10} {'ratio':>6}  gradient")
    for shape in args.shape:
        for lora in (False, True):
            for checkpointing in (False, True):
                for draws in args.draws:
                    case = Case(shape, lora, checkpointing, draws)
                    flops, masked, plan = executed(case)
                    need = needed(case, masked)
                    print(f"{case!s:58} {flops:10.3e} {need:10.3e} {flops / need:6.3f}  {plan}", flush=True)
                    rows.append({"name": str(case), "value": flops / need, "unit": "ratio", "low": None, "high": None})
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
