"""Peak memory of a VRPO step against the number of draws n, as ratios to n = 1; each case has its own process.

python benchmarks/vrpo_memory.py [--quick] [--json PATH]

Memory is the process's peak resident size above its resident size before the first step (model, optimizer and data are
loaded by then), so it is what the step itself needs. The form "one graph" holds one graph over all draws.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch

# Freed blocks return to the system at once, so that the peak counts live tensors and not the allocator's slack.
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
CASES = [("replay", 1), ("replay", 4), ("replay", 16), ("one graph", 1), ("one graph", 4), ("one graph", 16)]


def resident(field: str) -> float:
    """Resident size of this process, MiB: VmRSS now, VmHWM its peak since `forget_peak`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 2**10


def forget_peak() -> None:
    """Reset VmHWM, so that peaks of the set-up do not hide the step's (Linux only)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_of_step(form: str, n: int, length: int) -> float:
    """Peak memory of one step above the size before it, MiB."""
    from datasets import Dataset

    from llada import LLaDAConfig, LLaDAModelLM
    from llada.data.tokenizer import byte_tokenizer
    from vrpo import VRPOConfig, VRPOTrainer

    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    config = LLaDAConfig(
        d_model=256, n_layers=6, n_heads=4, mlp_hidden_size=688, vocab_size=262, max_sequence_length=2 * length,
        rope_theta=1e4, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261,
    )  # fmt: skip
    rows = [
        {"prompt": "q" * 32, "chosen": f"{i}a" * (length // 2), "rejected": f"{i}b" * (length // 2)} for i in range(4)
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = VRPOConfig(
            output_dir=folder, use_cpu=True, report_to="none", per_device_train_batch_size=4, n_t=n,
            gradient_accumulation_steps=1, disable_tqdm=True,
        )  # fmt: skip
        trainer = VRPOTrainer(
            LLaDAModelLM(config), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.current_gradient_accumulation_steps = 1
        for parameter in trainer.model.parameters():  # gradients are part of a run's constant size
            parameter.grad = torch.zeros_like(parameter)
        forget_peak()
        before = resident("VmRSS")
        if form == "replay":
            trainer.training_step(trainer.model, batch)
        else:
            trainer.compute_loss(trainer.model, batch).backward()
        return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="responses of 64 tokens instead of 256")
    parser.add_argument("--json", help="write rows {name, value, unit, low, high} here")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    length = 64 if args.quick else 256
    if args.case:
        print(peak_of_step(args.case[0], int(args.case[1]), length))
        return
    rows, first = [], {}
    print(f"{'form':10} {'n':>3} {'peak MiB':>9} {'ratio to n = 1':>15}")
    for form, n in CASES:
        command = [sys.executable, __file__, "--case", form, str(n), *(["--quick"] if args.quick else [])]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout
        peak = float(output.split()[-1])
        first.setdefault(form, peak)
        print(f"{form:10} {n:3d} {peak:9.1f} {peak / first[form]:15.3f}", flush=True)
        rows.append({"name": f"{form}, n = {n}", "value": peak, "unit": "MiB", "low": None, "high": None})
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
