"""Warnings of runs that cannot work or diverge: what rules say while a run trains, and half-precision weights."""

import logging
from collections.abc import Sequence

import torch
from transformers import IntervalStrategy, Trainer, TrainerCallback, TrainerState, TrainingArguments

from llada.training.rules import Rule, Settings

logger = logging.getLogger(__name__)


def settings_of(args: TrainingArguments, state: TrainerState, model) -> Settings:
    """What rules need to know of a run that begins."""
    pairs = args.train_batch_size * args.world_size * args.gradient_accumulation_steps * int(state.logging_steps)
    return Settings(
        learning_rate=args.learning_rate,
        max_grad_norm=args.max_grad_norm,
        warmup_steps=args.get_warmup_steps(state.max_steps),
        adapters=hasattr(model, "peft_config"),
        beta=getattr(args, "beta", None),
        pairs=pairs if args.logging_strategy == IntervalStrategy.STEPS else None,  # else logging_steps has no effect
    )


class RuleWarnings(TrainerCallback):
    """Warn of what rules say of the log lines, of each rule once in a run, or once more after it is resumed."""

    def __init__(self, rules: Sequence[type[Rule]]):
        self.rules = rules
        self.silent: list[Rule] = []  # those that have said nothing yet

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        settings = settings_of(args, state, model)
        self.silent = [rule(settings, state.log_history) for rule in self.rules]
        self.speak(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        for rule in self.silent:
            rule.see(logs, state.global_step)
        self.speak(state)

    def speak(self, state: TrainerState) -> None:
        for rule in self.silent:
            if rule.verdict is not None and state.is_world_process_zero:
                logger.warning("%s", rule.verdict)
        self.silent = [rule for rule in self.silent if rule.verdict is None]


def warn_of_half_precision(trainer: Trainer) -> None:
    """Warn on half-precision weights: updates of 2.5e-5 to a weight of 0.02 are below half bfloat16's spacing."""
    half = {p.dtype for p in trainer.model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if half and not trainer.is_deepspeed_enabled:  # DeepSpeed keeps fp32 master weights
        logger.warning(
            "the trained weights are %s: small updates round away. Load the model with dtype float32 and set "
            "bf16=True, which computes in bfloat16 and keeps float32 weights",
            half.pop(),
        )
