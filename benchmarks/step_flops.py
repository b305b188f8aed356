"""FLOPs that a VRPO step executes, over those that it needs, counted by operation: the figure holds on any machine.

python benchmarks/step_flops.py [--shape tiny|8b] [--draws 1 8] [--json PATH]

Needed are, for each response and draw, on its real tokens alone: the reference's forward pass, the policy's forward and
backward pass, with checkpointing one more forward pass of the blocks, and the head at masked positions once. A step can
execute less, because the last block skips positions that the head does not read. What it executes is counted where
torch dispatches matrix products and attention. The 8B shape is LLaDA-8B's with an eighth of its width, vocabulary,
adapter rank and tokens: every product has 1/512 of its FLOPs, so that ratios are the same. There, products return
zeros.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = {  # width, feed-forward, blocks, heads, vocabulary, adapter rank
    "tiny": (256, 688, 12, 4, 4000, 32),
    "8b": (4096 // 8, 12288 // 8, 32, 32, 126464 // 8, 32 // 8),
}
BATCHES = {  # (prompt, chosen, rejected) tokens of each pair; those of 8b are eight times as long
    "tiny": [(64, 192, 120), (40, 301, 61)],
    "8b": [(104 // 8, 896 // 8, 400 // 8), (64 // 8, 104 // 8, 248 // 8)],
}
ops = torch.ops.aten


class Counter(TorchDispatchMode):
    """Counts the FLOPs of matrix products and attention; with `fake`, products return zeros."""

    def __init__(self, fake: bool):
        super().__init__()
        self.fake, self.flops = fake, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        adds = function in (ops.addmm.default, ops.addmm.out)
        if adds or function in (ops.mm.default, ops.bmm.default):
            a, b = args[1:3] if adds else args[:2]
            shape = (*a.shape[:-1], b.shape[-1])
            self.flops += 2 * a.shape[-1] * torch.Size(shape).numel()
            if self.fake:
                return kwargs["out"] if function is ops.addmm.out else a.new_zeros(()).expand(shape).clone()
        if function is ops._scaled_dot_product_flash_attention_for_cpu.default:
            self.flops += 4 * args[0].shape[-1] * args[0].shape[:-1].numel() * args[1].shape[-2]
        if function is ops._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.flops += 10 * args[1].shape[-1] * args[1].shape[:-1].numel() * args[2].shape[-2]
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


def needed(case: Case, lengths: list[int], masked: list[int]) -> float:
    """The FLOPs that a step needs.

    Args:
        lengths: tokens of prompt and response, of each response. masked: its masked positions, summed over draws.
    """
    width, inner, blocks, _, vocabulary, rank = SHAPES[case.shape]
    linear = 4 * width * width + 3 * width * inner
    adapters = rank * (4 * 2 * width + 3 * (width + inner)) if case.lora else 0
    total = 0.0
    for length, positions in zip(lengths, masked, strict=True):
        attention = 4 * length * length * width * blocks
        base, low_rank = 2 * linear * length * blocks, 2 * adapters * length * blocks
        head = 2 * width * vocabulary * positions
        forward = base + low_rank + attention
        backward = base * (1 if case.lora else 2) + 2 * low_rank + 2.5 * attention
        again = forward if case.checkpointing else 0
        total += case.draws * (base + attention + forward + backward + again) + head * (1 + 1 + (1 if case.lora else 2))
    return total


def executed(case: Case) -> tuple[float, list[int], list[int], str]:
    """The FLOPs that a step executes, tokens and masked positions of each response, and how its gradient was got."""
    from datasets import Dataset
    from peft import LoraConfig

    from llada import LLaDAConfig, LLaDAModelLM
    from llada.data.tokenizer import byte_tokenizer
    from vrpo import VRPOConfig, VRPOTrainer

    width, inner, blocks, heads, vocabulary, rank = SHAPES[case.shape]
    config = LLaDAConfig(
        d_model=width, n_layers=blocks, n_heads=heads, mlp_hidden_size=inner, vocab_size=vocabulary,
        max_sequence_length=4096, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261,
    )  # fmt: skip
    rows = [
        {"prompt": "q" * (p - 1), "chosen": "a" * (c - 1), "rejected": "b" * (r - 1)}  # a BOS, an EOS of the tail
        for p, c, r in BATCHES[case.shape]
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = VRPOConfig(
            output_dir=folder, use_cpu=True, report_to="none", per_device_train_batch_size=len(rows), n_t=case.draws,
            gradient_accumulation_steps=1, disable_tqdm=True, gradient_checkpointing=case.checkpointing,
            variance_steps=0, log_level="error", eos_tail="1",
        )  # fmt: skip
        model = LLaDAModelLM(config)
        lora = LoraConfig(r=rank) if case.lora else None
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
        with Counter(fake=case.shape == "8b") as counter:
            trainer.training_step(trainer.model, batch)
        kept = trainer.plan.kept_draws(case.draws, batch["input_ids"].numel())
    plan = "unit gradients" if trainer.plan.unit_gradients and kept < case.draws else f"{kept} graphs"
    return counter.flops, batch["attention_mask"].sum(-1).tolist(), draws.masked_SBL.sum((0, 2)).tolist(), plan


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
                    flops, lengths, masked, plan = executed(case)
                    need = needed(case, lengths, masked)
                    print(f"{case!s:58} {flops:10.3e} {need:10.3e} {flops / need:6.3f}  {plan}", flush=True)
                    rows.append({"name": str(case), "value": flops / need, "unit": "ratio", "low": None, "high": None})
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
