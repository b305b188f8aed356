"""Warnings of a preference run whose logged metrics do not yet mean anything. Each is given once for a run."""

import logging
import math
from collections import deque

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

# Of a reward margin, in nats. It moves the modelled probability of a preference, sigmoid(margin), by 0.00025, and noise
# that policy and reference share cancels: so small a margin can have the same sign on all pairs.
NEGLIGIBLE = 1e-3
SURE = 0.9  # an accuracy that a reader takes for success
LOGS = 10


def within_noise(margin: float, standard_error: float) -> bool:
    """Whether a mean margin cannot be told from 0: it is within two standard errors of it, or negligible."""
    return abs(margin) <= max(2 * standard_error, NEGLIGIBLE)


class UnmovedMargin(TrainerCallback):
    """Warn if `rewards/margins` of the last `LOGS` (10) log lines has stayed within its noise of 0.

    The standard error of their mean is estimated from their scatter, which holds the noise of the scores and of the
    choice of pairs. Warm-up does not count: a log line of a step in it is left out. A run that logs fewer lines is not
    judged.
    """

    def __init__(self) -> None:
        self.margins: deque[float] = deque(maxlen=LOGS)
        self.warned = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.margins.clear()
        self.warned = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.warned or "rewards/margins" not in logs or state.global_step <= args.get_warmup_steps(state.max_steps):
            return
        self.margins.append(logs["rewards/margins"])
        if len(self.margins) < LOGS:
            return
        mean = math.fsum(self.margins) / LOGS
        variance = math.fsum((margin - mean) ** 2 for margin in self.margins) / (LOGS - 1)
        self.warned = within_noise(mean, math.sqrt(variance / LOGS))
        if self.warned and state.is_world_process_zero:
            logger.warning(
                "rewards/margins has not moved: its mean over the last %d log lines, up to step %d, is %.2g, within "
                "noise of 0. Raise learning_rate (now %g), or n_t and the batch, which make the scores less noisy",
                LOGS, state.global_step, mean, args.learning_rate,
            )  # fmt: skip


class MeaninglessAccuracy(TrainerCallback):
    """Warn where `rewards/accuracies` is at least 0.9 and `rewards/margins` is within its noise of 0.

    In training, the standard error is that of the scores: `score/variance` over the number of pairs in a log line,
    where the run measures it. In evaluation it is that over pairs, from `eval_rewards/margins_ci95`.
    """

    def __init__(self) -> None:
        self.warned = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.warned = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        prefix = next((name.removesuffix("rewards/margins") for name in logs if name.endswith("rewards/margins")), None)
        if self.warned or prefix is None:
            return
        accuracy, margin = logs[f"{prefix}rewards/accuracies"], logs[f"{prefix}rewards/margins"]
        if prefix:
            error = logs[f"{prefix}rewards/margins_ci95"] / 1.96
        else:
            pairs = args.train_batch_size * args.world_size * args.gradient_accumulation_steps * state.logging_steps
            error = math.sqrt(logs.get("score/variance", 0.0) / pairs)
        self.warned = accuracy >= SURE and within_noise(margin, error)
        if self.warned and state.is_world_process_zero:
            logger.warning(
                "%srewards/accuracies is %.2f at step %d and means nothing yet: it counts signs, and %srewards/margins "
                "is %.2g, within noise of 0",
                prefix, accuracy, state.global_step, prefix, margin,
            )  # fmt: skip
