"""Warnings of a preference run whose logged metrics mean nothing yet, or say that it diverges. Each is given once."""

import logging
import math
from collections import deque
from typing import ClassVar

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

# Of a reward margin, in nats. It moves the modelled probability of a preference, sigmoid(margin), by 0.00025, and noise
# that policy and reference share cancels: so small a margin can have the same sign on all pairs.
NEGLIGIBLE = 1e-3
SURE = 0.9  # an accuracy that a reader takes for success
LOGS = 10
COLLAPSED = 0.25  # share of its best value to which a margin may fall
# Of rewards/chosen. sigmoid(-3) = 0.05: by the loss's model of preferences, 95% prefer what the reference would write.
LOWEST_REWARD = -3.0
FAR = 0.5  # nats lost on the chosen answers, as a share of the reference's
LESS = "Lower learning_rate (now %g), raise beta (now %g), or raise the weight of 'sft' in loss_type and loss_weights"


def within_noise(margin: float, standard_error: float) -> bool:
    """Whether a mean margin cannot be told from 0: it is within two standard errors of it, or negligible."""
    return abs(margin) <= max(2 * standard_error, NEGLIGIBLE)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean of some log lines, and its standard error as their scatter estimates it.

    The scatter holds the noise of the scores and of the choice of pairs.
    """
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


class LastLines(TrainerCallback):
    """Judges the last `LOGS` (10) log lines of training, and warns once in a run.

    Warm-up does not count: a log line of a step in it is left out. A run that logs fewer lines is not judged.
    """

    names: ClassVar[tuple[str, ...]] = ("rewards/margins",)  # of the metrics that are judged

    def __init__(self) -> None:
        self.lines: deque[dict[str, float]] = deque(maxlen=LOGS)
        self.warned = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.lines.clear()
        self.warned = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.warned or state.global_step <= args.get_warmup_steps(state.max_steps):
            return
        if not all(name in logs for name in self.names):
            return
        self.lines.append(logs)
        message = self.judge(args, state.global_step) if len(self.lines) == LOGS else None
        self.warned = message is not None
        if message is not None and state.is_world_process_zero:
            logger.warning(*message)

    def mean(self, name: str) -> tuple[float, float]:
        """The mean of a metric over these lines, and its standard error."""
        return mean_and_error([line[name] for line in self.lines])

    def judge(self, args, step: int) -> tuple | None:
        """A message and its values, or None. step: the optimizer step of the last line."""
        raise NotImplementedError


class UnmovedMargin(LastLines):
    """Warn if the mean of `rewards/margins` has stayed within its noise of 0."""

    def judge(self, args, step):
        mean, error = self.mean("rewards/margins")
        if not within_noise(mean, error):
            return None
        return (
            "rewards/margins has not moved: its mean over the last %d log lines, up to step %d, is %.2g, within "
            "noise of 0. Raise learning_rate (now %g), or n_t and the batch, which make the scores less noisy",
            LOGS, step, mean, args.learning_rate,
        )  # fmt: skip


class CollapsingMargin(LastLines):
    """Warn if the mean of `rewards/margins` has fallen to a quarter of its best, by three standard errors or more."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.best, self.error = 0.0, 0.0

    def judge(self, args, step):
        mean, error = self.mean("rewards/margins")
        if mean > self.best and not within_noise(mean, error):
            self.best, self.error = mean, error
        if mean >= COLLAPSED * self.best or self.best - mean < 3 * math.hypot(error, self.error):
            return None
        return (
            "rewards/margins has collapsed: its mean over the last %d log lines, up to step %d, is %.2g, after %.2g "
            f"at its best. {LESS}; an earlier checkpoint may be better",
            LOGS, step, mean, self.best, args.learning_rate, args.beta,
        )  # fmt: skip


class FallingChosen(LastLines):
    """Warn if the mean of `rewards/chosen` is below `LOWEST_REWARD` (-3): the chosen answers have become less likely.

    A margin can grow all the same, when the rejected ones fall faster.
    """

    names = ("rewards/chosen",)

    def judge(self, args, step):
        reward, _ = self.mean("rewards/chosen")
        if reward >= LOWEST_REWARD:
            return None
        return (
            "rewards/chosen is far below 0: its mean over the last %d log lines, up to step %d, is %.2g, so that the "
            f"chosen answers have become less likely, by %.3g nats each (rewards/chosen / beta). {LESS}",
            LOGS, step, reward, -reward / args.beta, args.learning_rate, args.beta,
        )  # fmt: skip


class FarFromReference(LastLines):
    """Warn if the policy's likelihood bound of the chosen answers is below the reference's by half of that or more.

    What is lost, -(rewards/chosen) / beta in nats, is the mean of log p_ref - log p_policy over the given answers. It
    would be KL(reference || policy) if these were the reference's own samples; the KL of the policy's answers is not
    measured. The reference's bound follows from `logps/chosen`, that of the policy. The rule has no units, and so
    holds for answers of any length; `FallingChosen` depends on beta.
    """

    names = ("rewards/chosen", "logps/chosen")

    def judge(self, args, step):
        lost = -self.mean("rewards/chosen")[0] / args.beta
        reference = self.mean("logps/chosen")[0] + lost
        if lost < FAR * abs(reference):
            return None
        return (
            "the policy is far from its reference: over the last %d log lines, up to step %d, the chosen answers have "
            f"lost %.3g nats each (-rewards/chosen / beta) of a bound that was %.3g with the reference. {LESS}",
            LOGS, step, lost, reference, args.learning_rate, args.beta,
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


WARNINGS = (UnmovedMargin, MeaninglessAccuracy, CollapsingMargin, FallingChosen, FarFromReference)
