"""Numbers of a run while it runs, logged with each line: what is trained in a second, peak memory, where time goes.

They are of the time since the last log line, or since the run or its continuation asked for its first batch.
"""

import re
import resource
import sys

import torch
from accelerate import Accelerator
from torch import Tensor

from llada.models.common.flops import MatrixSizes, work
from llada.training.stopwatch import PHASES, REFERENCE, HostClock, Stopwatch, clock_of

MEASURED = ("throughput/", "memory/", "time/")  # how the names begin whose values differ between two runs of a command

# Multiplications and additions in a second in bfloat16 or float16, dense, by what the name of a device has; from the
# data sheets. Names with more words come before those with fewer.
PEAKS = {
    r"H100.*PCIe": 756e12, r"H[12]00.*NVL": 835e12, r"H100|H200|GH200": 989e12, r"B200": 2250e12, r"A100": 312e12,
    r"A10": 125e12, r"L40S": 362e12, r"L4": 121e12, r"RTX 4090$": 165e12, r"MI300X": 1307e12,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Operations in a second that a device can do in half precision; None where that is not known."""
    if device.type != "cuda" or "MIG" in (name := torch.cuda.get_device_name(device)):  # a part of a device
        return None
    return next((peak for pattern, peak in PEAKS.items() if re.search(rf"\b({pattern})\b", name)), None)


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has used since it began: of the GPU, or resident; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (resident if sys.platform == "darwin" else 1024 * resident) if device.type == "cpu" else 0


class Throughput:
    """Counts of this process since the last log line, and the numbers over all processes that a line has.

    throughput/tokens_per_second: tokens of the rows as `MetricSums` counts them: prompts included, padding not, once
        however many draws there are.
    throughput/pairs_per_second (or rows_per_second).
    throughput/mfu: the operations that the rows need (`llada.models.common.flops`) over those that the devices could
        do. Not there if the device's peak or the model's matrices are not known, or the run computes in full precision.
    memory/peak_gib: of the process that has used most since it began.
    time/...: shares of the time, means over processes, which add up to 1.

    Example: 8 pairs with 3,000 tokens in 4 s on two processes are 2 pairs and 750 tokens in a second. If they need
    4 x 10^12 operations and each device can do 10^12 in a second, mfu is 4 / (2 x 4) = 0.5.

    Args:
        unit: what a weighted row is, "pairs" or "rows".
        sizes: of the model's matrices; peak: operations in a second of a device. None of either leaves mfu out.
    """

    def __init__(
        self,
        unit: str,
        device: torch.device,
        sizes: MatrixSizes | None,
        peak: float | None,
        clock: HostClock | None = None,
    ):
        self.unit, self.device, self.sizes, self.peak = unit, device, sizes, peak
        self.stopwatch = Stopwatch(clock or clock_of(device))
        self.phase = self.stopwatch.phase
        self.restart()

    @classmethod
    def of(cls, trainer) -> "Throughput":
        """For a run of a trainer (`DiffusionTrainerBase`), from its beginning."""
        args, model = trainer.args, trainer.model
        half = args.bf16 or args.fp16 or next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        peak = peak_flops(args.device) if half else None
        return cls(trainer.unit, args.device, None if peak is None else MatrixSizes.of(model), peak)

    def restart(self) -> None:
        """Count from zero."""
        self.rows: Tensor | float = 0.0
        self.tokens: Tensor | float = 0.0
        self.policy = self.reference = torch.zeros(3, dtype=torch.float64)  # see `work`

    def count(self, attention_BL: Tensor, row_weight: Tensor) -> None:
        """Count a micro-batch, whose rows are the weighted rows, or twice these (pairs)."""
        weight_B = row_weight.double().repeat(len(attention_BL) // len(row_weight))
        self.rows = self.rows + row_weight.sum()
        self.tokens = self.tokens + (attention_BL.sum(-1) * weight_B).sum()

    def count_work(
        self,
        inputs: dict[str, Tensor],
        policy_SBL: Tensor,
        reference_SBL: Tensor | None = None,
        attention_BL: Tensor | None = None,
    ) -> None:
        """Count what a micro-batch needs: forward and backward of the policy, forward of the reference if there is one.

        Args:
            policy_SBL, reference_SBL: the masks. attention_BL: the batch's by default.
        """
        if self.sizes is None:
            return
        attention_BL = inputs["attention_mask"] if attention_BL is None else attention_BL
        weight_B = inputs["row_weight"].repeat(len(attention_BL) // len(inputs["row_weight"]))
        found = work(attention_BL, policy_SBL, weight_B, inputs.get("segment_ids"))
        self.policy = self.policy.to(found) + found
        if reference_SBL is not None:
            found = work(attention_BL, reference_SBL, weight_B)
            self.reference = self.reference.to(found) + found

    def line(self, accelerator: Accelerator) -> dict[str, float]:
        """The numbers since the last line; empty if nothing was trained since. All processes must call this."""
        seconds = self.stopwatch.lap()
        operations = 0.0
        if self.sizes is not None:
            policy, reference = self.sizes.forward(self.policy), self.sizes.forward(self.reference, reference=True)
            operations = policy + self.sizes.backward(self.policy) + reference
        mine = [float(self.rows), float(self.tokens), operations, peak_bytes(self.device)]
        mine += [seconds[phase] for phase in PHASES]
        found_PN = accelerator.gather(torch.tensor([mine], dtype=torch.float64, device=accelerator.device))
        self.restart()
        rows, tokens, operations, _, *phases = found_PN.sum(0).tolist()
        if not rows:
            return {}
        together, processes = sum(phases), len(found_PN)  # seconds of all processes
        logs = {
            "throughput/tokens_per_second": tokens * processes / together,
            f"throughput/{self.unit}_per_second": rows * processes / together,
        }
        if operations and self.peak is not None:
            logs["throughput/mfu"] = operations / (together * self.peak)
        if used := float(found_PN[:, 3].max()):
            logs["memory/peak_gib"] = used / 2**30
        shares = zip(PHASES, phases, strict=True)
        return logs | {f"time/{phase}": value / together for phase, value in shares if value or phase != REFERENCE}
