"""The base of all trainers' configurations: `TrainingArguments` with checks and defaults by device."""

import json
from dataclasses import dataclass

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from llada.training.trl_options import REFUSED, check_refused


@dataclass
class DiffusionArguments(TrainingArguments):
    """`TrainingArguments` that check `DiffusionOptions`; a subclass lists its options class before this one.

    `bf16` and `activation_checkpointing` are on by default where there is an accelerator that computes in bfloat16, as
    in TRL, and off on a CPU, where bfloat16 is slower and memory is rarely short.

    Raises:
        ValueError: an option is out of range, or asks for something of TRL that has no meaning here (`refused`).
    """

    refused = REFUSED  # no annotation: an attribute of the class, not an option

    def __post_init__(self):
        check_refused(self, self.refused)
        on_accelerator = is_torch_bf16_gpu_available() and not self.use_cpu
        self.bf16 = (on_accelerator and not self.fp16) if self.bf16 is None else self.bf16
        if self.activation_checkpointing is None:  # TRL's scripts use the older name of the option
            older = self.gradient_checkpointing
            self.activation_checkpointing = on_accelerator if older is None else older
        if isinstance(self.model_init_kwargs, str):
            self.model_init_kwargs = json.loads(self.model_init_kwargs)
        # Each process collates its own rows of a stream: accelerate's default would join batches of different widths.
        self.accelerator_config = self.accelerator_config or {"dispatch_batches": False}
        super().__post_init__()
        self.eos_tail = str(self.eos_tail)
        if self.eos_tail != "batch" and not self.eos_tail.isdigit():
            raise ValueError(f"eos_tail={self.eos_tail!r} must be a number of tokens or 'batch'")
        if self.eval_draws < 1:
            raise ValueError(f"eval_draws={self.eval_draws} must be at least 1")
        if self.activation_offloading and self.device.type == "cpu":
            raise ValueError("activation_offloading=True needs an accelerator: on a CPU, activations are in its memory")
        self.pad_to_multiple_of = multiple(self.pad_to_multiple_of)


def multiple(value: int | str | None) -> int | None:
    """TRL's `pad_to_multiple_of`: "auto" and None pad to the longest row of a batch.

    Raises:
        ValueError: it is neither of them nor a positive number.
    """
    if value is None or str(value).lower() in ("auto", "none", "null"):
        return None
    if not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"pad_to_multiple_of={value!r} must be 'auto', None or a positive number")
    return int(value)
