"""Warnings of settings with which a run would train nothing, and of a loss that rises."""

import logging
from collections import deque

import torch
from transformers import Trainer, TrainerCallback

logger = logging.getLogger(__name__)

LOWEST_ADAPTER_RATE = 1e-6
LOGS, RISE = 10, 1.5  # see `RisingLoss`


class LowAdapterRate(TrainerCallback):
    """Warn, when training begins, of a learning rate with which adapters do not move.

    Published rates of about 5e-7 are for training all parameters. One of LoRA's two factors starts at 0, so that the
    change of a weight is of second order in the rate: adapters need one that is 10 to 1000 times as large.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if (
            not hasattr(model, "peft_config")
            or args.learning_rate >= LOWEST_ADAPTER_RATE
            or not state.is_world_process_zero
        ):
            return
        logger.warning(
            "learning_rate=%g is for training all parameters: with adapters (LoRA) it trains next to nothing. Set 1e-5 "
            "to 1e-3",
            args.learning_rate,
        )


class RisingLoss(TrainerCallback):
    """Warn, once in a run, if each of the last `LOGS` (10) log lines has a loss above `RISE` (1.5) times the first one.

    The losses of single masks scatter: of ten lines with a coefficient of variation of one half, some lie below a level
    that has not changed. A run that is resumed is compared with its own first line.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.last: deque[float] = deque(maxlen=LOGS)
        self.warned = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = next((line["loss"] for line in state.log_history if "loss" in line), None)
        self.last.clear()
        self.warned = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.warned or "loss" not in logs:
            return
        if self.first is None:
            self.first = logs["loss"]
            return
        self.last.append(logs["loss"])
        self.warned = len(self.last) == LOGS and min(self.last) > RISE * self.first
        if self.warned and state.is_world_process_zero:
            logger.warning(
                "the loss has risen: it was %.3g to %.3g in the last %d log lines, up to step %d, after %.3g in the "
                "first. Lower learning_rate (now %g), warm up for longer (warmup_steps), or clip gradients more "
                "(max_grad_norm, now %g)",
                min(self.last), max(self.last), LOGS, state.global_step, self.first, args.learning_rate,
                args.max_grad_norm,
            )  # fmt: skip


def warn_of_half_precision(trainer: Trainer) -> None:
    """Warn on half-precision weights: updates of 2.5e-5 to a weight of 0.02 are below half bfloat16's spacing."""
    half = {p.dtype for p in trainer.model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if half and not trainer.is_deepspeed_enabled:  # DeepSpeed keeps fp32 master weights
        logger.warning(
            "the trained weights are %s: small updates round away. Load the model with dtype float32 and set "
            "bf16=True, which computes in bfloat16 and keeps float32 weights",
            half.pop(),
        )
