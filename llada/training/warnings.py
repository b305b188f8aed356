"""Warnings of settings with which a run would train nothing."""

import logging

import torch
from transformers import Trainer, TrainerCallback

logger = logging.getLogger(__name__)

LOWEST_ADAPTER_RATE = 1e-6


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


def warn_of_half_precision(trainer: Trainer) -> None:
    """Warn on half-precision weights: updates of 2.5e-5 to a weight of 0.02 are below half bfloat16's spacing."""
    half = {p.dtype for p in trainer.model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if half and not trainer.is_deepspeed_enabled:  # DeepSpeed keeps fp32 master weights
        logger.warning(
            "the trained weights are %s: small updates round away. Load the model with dtype float32 and set "
            "bf16=True, which computes in bfloat16 and keeps float32 weights",
            half.pop(),
        )
