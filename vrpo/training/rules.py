"""Rules of a preference run: logged metrics that mean nothing yet, or say that it diverges.

Importing it imports neither torch nor transformers.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from llada.training.rules import LOGS, Line, LowAdapterRate, Rule, Settings, Verdict, now

# Of a reward margin, in nats. It moves the modelled probability of a preference, sigmoid(margin), by 0.00025, and noise
# that policy and reference share cancels: so small a margin can have the same sign on all pairs.
NEGLIGIBLE = 1e-3
SURE = 0.9  # an accuracy that a reader takes for success
COLLAPSED = 0.25  # share of its best value to which a margin may fall
# Of rewards/chosen. sigmoid(-3) = 0.05: by the loss's model of preferences, 95% prefer what the reference would write.
LOWEST_REWARD = -3.0
FAR = 0.5  # nats lost on the chosen answers, as a share of the reference's


def less(settings: Settings) -> str:
    """What keeps a policy nearer to its reference."""
    return (
        f"Lower learning_rate{now(settings.learning_rate)}, raise beta{now(settings.beta)}, or raise the weight of "
        "'sft' in loss_type and loss_weights"
    )


def within_noise(margin: float, standard_error: float) -> bool:
    """Whether a mean margin cannot be told from 0: it is within two standard errors of it, or negligible."""
    return abs(margin) <= max(2 * standard_error, NEGLIGIBLE)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean of some log lines, and its standard error as their scatter estimates it.

    The scatter holds the noise of the scores and of the choice of pairs.
    """
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


class LastLines(Rule):
    """Judges the last `LOGS` (10) log lines of training.

    Warm-up does not count: a log line of a step in it is left out. A run that logs fewer lines is not judged.
    """

    names: ClassVar[tuple[str, ...]] = ("rewards/margins",)  # of the metrics that are judged

    def __init__(self, settings: Settings, history: Iterable[Line] = ()):
        super().__init__(settings, history)
        self.lines: deque[Line] = deque(maxlen=LOGS)

    def see(self, line: Line, step: int) -> None:
        if step <= self.settings.warmup_steps or not all(name in line for name in self.names):
            return
        self.lines.append(line)
        self.verdict = self.judge(step) if len(self.lines) == LOGS else None

    def mean(self, name: str) -> tuple[float, float]:
        """The mean of a metric over these lines, and its standard error."""
        return mean_and_error([line[name] for line in self.lines])

    def judge(self, step: int) -> Verdict | None:
        """What the last lines say. step: the optimizer step of the last one."""
        raise NotImplementedError


class UnmovedMargin(LastLines):
    """The mean of `rewards/margins` has stayed within its noise of 0."""

    def judge(self, step):
        mean, error = self.mean("rewards/margins")
        if not within_noise(mean, error):
            return None
        return Verdict(
            "Nothing is learned yet",
            step,
            f"rewards/margins has not moved: its mean over the last {LOGS} log lines, up to step {step}, is "
            f"{mean:.2g}, within noise of 0",
            f"Raise learning_rate{now(self.settings.learning_rate)}, or n_t and the batch, which make the scores less "
            "noisy",
        )


class CollapsingMargin(LastLines):
    """The mean of `rewards/margins` has fallen to a quarter of its best, by three standard errors or more."""

    best = error = 0.0

    def judge(self, step):
        mean, error = self.mean("rewards/margins")
        if mean > self.best and not within_noise(mean, error):
            self.best, self.error = mean, error
        if mean >= COLLAPSED * self.best or self.best - mean < 3 * math.hypot(error, self.error):
            return None
        return Verdict(
            "The margin has collapsed",
            step,
            f"rewards/margins has collapsed: its mean over the last {LOGS} log lines, up to step {step}, is "
            f"{mean:.2g}, after {self.best:.2g} at its best",
            f"{less(self.settings)}; an earlier checkpoint may be better",
        )


class FallingChosen(LastLines):
    """The mean of `rewards/chosen` is below `LOWEST_REWARD` (-3): the chosen answers have become less likely.

    A margin can grow all the same, when the rejected ones fall faster.
    """

    names = ("rewards/chosen",)

    def judge(self, step):
        reward, _ = self.mean("rewards/chosen")
        if reward >= LOWEST_REWARD:
            return None
        beta = self.settings.beta
        nats = "" if beta is None else f", by {-reward / beta:.3g} nats each (rewards/chosen / beta)"
        return Verdict(
            "The chosen answers fall",
            step,
            f"rewards/chosen is far below 0: its mean over the last {LOGS} log lines, up to step {step}, is "
            f"{reward:.2g}, so that the chosen answers have become less likely{nats}",
            less(self.settings),
        )


class FarFromReference(LastLines):
    """The policy's likelihood bound of the chosen answers is below the reference's by half of that or more.

    What is lost, -(rewards/chosen) / beta in nats, is the mean of log p_ref - log p_policy over the given answers. It
    would be KL(reference || policy) if these were the reference's own samples; the KL of the policy's answers is not
    measured. The reference's bound follows from `logps/chosen`, that of the policy. The rule has no units, and so
    holds for answers of any length; `FallingChosen` depends on beta. Without a known beta it says nothing.
    """

    names = ("rewards/chosen", "logps/chosen")

    def judge(self, step):
        if self.settings.beta is None:
            return None
        lost = -self.mean("rewards/chosen")[0] / self.settings.beta
        reference = self.mean("logps/chosen")[0] + lost
        if lost < FAR * abs(reference):
            return None
        return Verdict(
            "The policy is far from its reference",
            step,
            f"the policy is far from its reference: over the last {LOGS} log lines, up to step {step}, the chosen "
            f"answers have lost {lost:.3g} nats each (-rewards/chosen / beta) of a bound that was {reference:.3g} "
            "with the reference",
            less(self.settings),
        )


class MeaninglessAccuracy(Rule):
    """`rewards/accuracies` is at least 0.9 and `rewards/margins` is within its noise of 0.

    In training, the standard error is that of the scores: `score/variance` over the number of pairs in a log line,
    where the run measures it. In evaluation it is that over pairs, from `eval_rewards/margins_ci95`.
    """

    def see(self, line, step):
        prefix = next((name.removesuffix("rewards/margins") for name in line if name.endswith("rewards/margins")), None)
        if prefix is None:
            return
        accuracy, margin = line[f"{prefix}rewards/accuracies"], line[f"{prefix}rewards/margins"]
        if prefix:
            error = line[f"{prefix}rewards/margins_ci95"] / 1.96
        else:
            error = math.sqrt(line.get("score/variance", 0.0) / (self.settings.pairs or 1))
        if accuracy < SURE or not within_noise(margin, error):
            self.verdict = None
            return
        self.verdict = Verdict(
            "The accuracy means nothing yet",
            step,
            f"{prefix}rewards/accuracies is {accuracy:.2f} at step {step} and means nothing yet: it counts signs, and "
            f"{prefix}rewards/margins is {margin:.2g}, within noise of 0",
        )


RULES = (LowAdapterRate, UnmovedMargin, MeaninglessAccuracy, CollapsingMargin, FallingChosen, FarFromReference)
