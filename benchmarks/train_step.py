"""Time and memory of a VRPO step beside a plain form of it, with every saving switched on in turn.

python benchmarks/train_step.py [--lengths fixed gsm8k] [--trained full lora] [--draws 1 8] [--checkpointing]
                                [--forms NAME ...] [--only time|memory] [--rounds 5] [--quick] [--json PATH]

The forms are those of `step_forms.py`: a width of 256, 6 layers, a vocabulary of 32,000; 2 pairs with a prompt of 64
and responses of 192 and 120 tokens ("fixed"), or 8 pairs with lengths of GSM8K. It runs on a GPU where there is one (in
bfloat16 autocast, the trainer's default), otherwise on one thread of the CPU. Each line of the output is a JSON row
{name, value, unit, low, high}.

All forms must compute one gradient: to 1e-10 in float64 with a tiny model, and up to rounding in the case itself, in a
round before the first that is timed.

Time: the forms run one after another in each round. Seconds are medians over rounds (CPU time on a CPU); a ratio is the
median over rounds of plain time over the form's, with the 95% interval of a bootstrap over rounds.

Memory: each case has its own process, in which a small step comes first. The figure is the peak of the step above the
size before it, when model, reference, gradients and data are there: resident size on a CPU, allocated on a GPU.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from step_forms import FORMS, LENGTHS, Case, Step, rows_of, trainer_and_batch

# Freed blocks return to the system at once, so that the peak counts live tensors and not the allocator's slack.
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
ON_GPU = torch.cuda.is_available()
EXACT = 1e-10  # relative difference of gradients in float64
# In single precision, where a likelihood of -2,000 nats is rounded to 1e-4, and in bfloat16.
ROUNDED = 5e-2 if ON_GPU else 1e-4


def row(name: str, value: float, unit: str, interval: tuple[float, float] | None = None) -> dict:
    low, high = interval or (None, None)
    return {"name": name, "value": value, "unit": unit, "low": low, "high": high}


def seconds_of(step: Step) -> float:
    """Time of one step: of the processor on a CPU, which runs one thread, and of the clock with a GPU."""
    step.trainer.model.zero_grad()
    if not ON_GPU:
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def gradient_of(step: Step) -> torch.Tensor:
    step.trainer.model.zero_grad()
    step()
    found = [parameter.grad.flatten() for parameter in step.trainer.model.parameters() if parameter.grad is not None]
    return torch.cat(found).double()


def check(steps: dict[str, Step], tolerance: float, what: str) -> None:
    """Stop unless the gradients of all forms agree."""
    first, reference = next(iter(steps)), gradient_of(next(iter(steps.values())))
    for form, step in steps.items():
        if form == first:
            continue
        error = float((gradient_of(step) - reference).norm() / reference.norm())
        print(f"{what}: the gradients of {form} and {first} differ by {error:.1e}", file=sys.stderr, flush=True)
        if not error < tolerance:
            raise SystemExit(f"this must be below {tolerance:g}")


def check_in_float64(case: Case, forms: list[str]) -> None:
    case = dataclasses.replace(case, quick=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer, batch = trainer_and_batch(case, folder)
        for model in trainer.evaluated_models():
            model.double()
        check({form: Step(trainer, batch, form) for form in forms}, EXACT, f"{case}, float64")


def bootstrap(values: list[float], resamples: int = 2000) -> tuple[float, float]:
    """The 95% interval of a median, by resampling with replacement."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]


def times(case: Case, forms: list[str], rounds: int):
    """Rows of the time of each form, and of its ratio to the plain form's."""
    check_in_float64(case, forms)
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = trainer_and_batch(case, folder)
        steps = {form: Step(trainer, batch, form) for form in forms}
        with contextlib.redirect_stdout(sys.stderr):  # the trainer says which plan it has chosen
            check(steps, ROUNDED, str(case))
        found = [[seconds_of(step) for step in steps.values()] for _ in range(rounds)]
    for index, form in enumerate(forms):
        yield row(f"{case}: {form}, time", statistics.median(taken[index] for taken in found), "s")
        ratios = [taken[0] / taken[index] for taken in found]
        yield row(f"{case}: {form}, speed", statistics.median(ratios), f"times {forms[0]}", bootstrap(ratios))


def resident(field: str) -> float:
    """Resident size of this process, MiB: VmRSS now, VmHWM its peak since `forget_peak`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 2**10


def forget_peak() -> None:
    """Reset VmHWM, so that peaks of the set-up do not hide the step's (Linux only)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_of_step(case: Case, form: str) -> float:
    """Peak memory of one step above the size before it, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = trainer_and_batch(case, folder)
        small = trainer.data_collator(rows_of(dataclasses.replace(case, quick=True, lengths="fixed")))
        Step(trainer, small, form)()  # loads what a process loads once
        step = Step(trainer, batch, form)
        for parameter in trainer.model.parameters():  # gradients are part of a run's constant size
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        if ON_GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        forget_peak()
        before = resident("VmRSS")
        step()
        return resident("VmHWM") - before


def peaks(case: Case, forms: list[str]):
    """Rows of the peak memory of each form, and of the plain form's over it."""
    first = None
    for form in forms:
        command = [sys.executable, __file__, "--case", json.dumps(vars(case)), form]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT).stdout
        peak = float(output.split()[-1])
        first = peak if first is None else first
        yield row(f"{case}: {form}, memory", peak, "MiB")
        yield row(f"{case}: {forms[0]} over {form}, memory", first / peak, "ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", choices=LENGTHS, nargs="+", default=["fixed"])
    parser.add_argument("--trained", choices=["full", "lora"], nargs="+", default=["full", "lora"])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 8], help="draws n for each response")
    parser.add_argument("--checkpointing", action="store_true", help="with activation checkpointing")
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=list(FORMS))
    parser.add_argument("--only", choices=["time", "memory"], help="measure one of the two; default: both")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the time")
    parser.add_argument("--quick", action="store_true", help="a tiny model, a quarter of the lengths, 2 rounds")
    parser.add_argument("--json", help="write the rows here, too")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.case:
        with contextlib.redirect_stdout(sys.stderr):
            peak = peak_of_step(Case(**json.loads(args.case[0])), args.case[1])
        print(peak)
        return
    rows = []
    for lengths in args.lengths:
        for trained in args.trained:
            for draws in args.draws:
                case = Case(lengths, trained, draws, args.checkpointing, args.quick)
                forms = case.forms(args.forms)
                measured = [] if args.only == "memory" else [times(case, forms, 2 if args.quick else args.rounds)]
                measured += [] if args.only == "time" else [peaks(case, forms)]
                for each in measured:
                    rows += [show(found) for found in each]
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


def show(found: dict) -> dict:
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
