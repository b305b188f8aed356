"""The base of all trainers' configurations: `TrainingArguments` with checks and defaults by device."""

from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import Annotated, Any, get_type_hints

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import is_torch_bf16_gpu_available

from llada.checks import (
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveInt,
    Range,
    Steps,
    as_mapping,
    check_fields,
    own_fields,
)
from llada.training.trl_options import REFUSED, check_refused

Beta = Annotated[float, Range(at_least=0, below=1)]


def names_of(choices: type[Enum]) -> Any:
    """The type of an option that takes the values of an enumeration."""
    return Annotated[str, OneOf([choice.value for choice in choices])]


# Options of `TrainingArguments` that transformers takes without a check: all numbers, all that are True or False, and
# the names whose error there does not say which option it is. nan, a negative number, or text where True or False
# belongs would run, and train something else than was meant.
INHERITED: dict[str, Any] = {
    **{name: kind for name, kind in get_type_hints(TrainingArguments).items() if kind in (bool, bool | None)},
    "bf16": bool | None,  # `DiffusionOptions`
    "per_device_train_batch_size": PositiveInt,
    "per_device_eval_batch_size": PositiveInt,
    "gradient_accumulation_steps": PositiveInt,
    "num_train_epochs": NonNegativeFloat,
    "max_steps": Annotated[int, Range(at_least=-1)],
    "learning_rate": NonNegativeFloat,
    "warmup_steps": Steps,
    "weight_decay": NonNegativeFloat,
    "adam_beta1": Beta,
    "adam_beta2": Beta,
    "adam_epsilon": NonNegativeFloat,
    "max_grad_norm": NonNegativeFloat | None,
    "logging_steps": Steps,
    "eval_steps": Steps | None,
    "save_steps": Steps,
    "eval_delay": NonNegativeFloat,
    "eval_accumulation_steps": PositiveInt | None,
    "save_total_limit": NonNegativeInt | None,
    "torch_empty_cache_steps": PositiveInt | None,
    "seed": Annotated[int, Range(at_least=0, below=2**32)],
    "data_seed": Annotated[int, Range(at_least=0, below=2**63)] | None,
    "dataloader_num_workers": NonNegativeInt,
    "dataloader_prefetch_factor": PositiveInt | None,
    "ddp_bucket_cap_mb": PositiveInt | None,
    "ddp_timeout": PositiveInt,
    "lr_scheduler_type": names_of(SchedulerType),
    "optim": names_of(OptimizerNames),
    "logging_strategy": names_of(IntervalStrategy),
    "eval_strategy": names_of(IntervalStrategy),
    "save_strategy": names_of(SaveStrategy),
}


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
        self.model_init_kwargs = as_mapping("model_init_kwargs", self.model_init_kwargs) or None
        if not isinstance(self.eos_tail, bool):
            self.eos_tail = str(self.eos_tail)  # a YAML file gives an integer
        check_fields(self, own_fields(type(self), TrainingArguments) | INHERITED)
        if self.save_strategy == "steps" and not self.save_steps:
            raise ValueError("save_steps=0 saves nothing: set save_strategy='no', or a number of steps")
        if self.deepspeed and find_spec("deepspeed") is None:
            raise ValueError('deepspeed needs a package that is not installed: pip install "llada-vrpo[deepspeed]"')
        self.pad_to_multiple_of = multiple(self.pad_to_multiple_of)
        on_accelerator = is_torch_bf16_gpu_available() and not self.use_cpu
        self.bf16 = (on_accelerator and not self.fp16) if self.bf16 is None else self.bf16
        if self.activation_checkpointing is None:  # TRL's scripts use the older name of the option
            older = self.gradient_checkpointing
            self.activation_checkpointing = on_accelerator if older is None else older
        # Each process collates its own rows of a stream: accelerate's default would join batches of different widths.
        self.accelerator_config = self.accelerator_config or {"dispatch_batches": False}
        super().__post_init__()
        if self.fsdp and self.world_size == 1:
            raise ValueError("fsdp shards a model over several processes, and there is one: use `accelerate launch`")
        if self.activation_offloading and self.device.type == "cpu":
            raise ValueError("activation_offloading=True needs an accelerator: on a CPU, activations are in its memory")


def multiple(value: int | str | None) -> int | None:
    """TRL's `pad_to_multiple_of`: "auto" and None pad to the longest row of a batch.

    Raises:
        ValueError: it is neither of them nor a positive number.
    """
    if value is None or str(value).lower() in ("auto", "none", "null"):
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"pad_to_multiple_of={value!r} must be 'auto', None or a positive number")
    return int(value)
