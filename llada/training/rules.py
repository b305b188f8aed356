"""What log lines say of a run: rules that judge them in turn, while it trains or from what it has written down.

Importing it imports neither torch nor transformers, so that a report can judge a run without them.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Line = Mapping[str, float]  # a log line: names of metrics and their values

LOWEST_ADAPTER_RATE = 1e-6
LOGS, RISE = 10, 1.5  # see `RisingLoss`


@dataclass(frozen=True)
class Settings:
    """What rules need to know of a run. None stands for what is not known of a run that is read from its files.

    Args:
        warmup_steps: optimizer steps of it. adapters: whether adapters are trained (LoRA). beta: of a preference loss.
        pairs: in a log line, over all processes.
    """

    learning_rate: float | None = None
    max_grad_norm: float | None = None
    warmup_steps: int = 0
    adapters: bool = False
    beta: float | None = None
    pairs: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What a rule says: a title, what has happened, as of which optimizer step, and what to do about it ("": nothing).

    what and advice are sentences without the full stop at their end.
    """

    title: str
    step: int
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what}. {self.advice}" if self.advice else self.what


class Rule:
    """Judges log lines in turn. `verdict` is what it says of the lines so far; None if there is nothing to say.

    Args:
        history: the log lines before the first one that is judged, of a run that goes on.
    """

    def __init__(self, settings: Settings, history: Iterable[Line] = ()):
        self.settings = settings
        self.verdict: Verdict | None = None

    def see(self, line: Line, step: int) -> None:
        """Judge one more line, which was logged after that optimizer step."""


def now(value: float | None) -> str:
    """The value that an option has, in words, if it is known."""
    return "" if value is None else f" (now {value:g})"


class LowAdapterRate(Rule):
    """A learning rate with which adapters do not move; said before the first line.

    Published rates of about 5e-7 are for training all parameters. One of LoRA's two factors starts at 0, so that the
    change of a weight is of second order in the rate: adapters need one that is 10 to 1000 times as large.
    """

    def __init__(self, settings: Settings, history: Iterable[Line] = ()):
        super().__init__(settings, history)
        rate = settings.learning_rate
        if settings.adapters and rate is not None and rate < LOWEST_ADAPTER_RATE:
            self.verdict = Verdict(
                "The learning rate is too low for adapters",
                0,
                f"learning_rate={rate:g} is for training all parameters: with adapters (LoRA) it trains next to "
                "nothing",
                "Set 1e-5 to 1e-3",
            )


class RisingLoss(Rule):
    """Each of the last `LOGS` (10) log lines has a loss above `RISE` (1.5) times the first one.

    The losses of single masks scatter: of ten lines with a coefficient of variation of one half, some lie below a level
    that has not changed. A run that is resumed is compared with its own first line.
    """

    def __init__(self, settings: Settings, history: Iterable[Line] = ()):
        super().__init__(settings, history)
        self.first = next((line["loss"] for line in history if "loss" in line), None)
        self.last: deque[float] = deque(maxlen=LOGS)

    def see(self, line: Line, step: int) -> None:
        if "loss" not in line:
            return
        if self.first is None:
            self.first = line["loss"]
            return
        self.last.append(line["loss"])
        if len(self.last) < LOGS or min(self.last) <= RISE * self.first:
            self.verdict = None
            return
        self.verdict = Verdict(
            "The loss has risen",
            step,
            f"the loss has risen: it was {min(self.last):.3g} to {max(self.last):.3g} in the last {LOGS} log lines, up "
            f"to step {step}, after {self.first:.3g} in the first",
            f"Lower learning_rate{now(self.settings.learning_rate)}, warm up for longer (warmup_steps), or clip "
            f"gradients more: max_grad_norm{now(self.settings.max_grad_norm)}",
        )
