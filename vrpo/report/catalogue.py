"""Which metrics of a log stand in one plot of the page, and what to look for in it."""

from dataclasses import dataclass

LOG_RATIO = "log_ratio/"  # rewards over beta; not in the log
BOUND = "perplexity"  # exp of the loss; not in the log
LEARNED, NOISE, MACHINE = "What is learned", "Noise of scores and gradients", "Optimizer and machine"


@dataclass(frozen=True)
class Panel:
    """A plot of the metrics `curves` (name in the log: name in the legend). It is left out if none was logged.

    unit: of the y axis. says: what the plot shows, and what to look for. zero: a value with a line across. exact: the
    values do not scatter, and are not smoothed. part: the heading under which it stands.
    """

    key: str
    title: str
    unit: str
    curves: dict[str, str]
    says: str
    log: bool = False
    zero: float | None = None
    exact: bool = False
    part: str = LEARNED


PREFERENCES = (
    Panel(
        "loss",
        "Loss",
        "loss",
        {"loss": "loss"},
        "Of the preference loss, ln 2 = 0.69 (sigmoid alone) is no preference. It should fall slowly; a loss that"
        " rises for long diverges.",
    ),
    Panel(
        "margin",
        "Reward margin",
        "margin",
        {"rewards/margins": "margin"},
        "Chosen minus rejected reward, the score of a pair. It should leave 0 by more than the scatter of its "
        "points, on held-out pairs too.",
        zero=0.0,
    ),
    Panel(
        "accuracy",
        "Accuracy",
        "share of pairs",
        {"rewards/accuracies": "accuracy"},
        "Pairs whose margin is positive. It counts signs: near 0.5 nothing is learned, and while the margin is "
        "within its noise a high share means nothing.",
        zero=0.5,
    ),
    Panel(
        "rewards",
        "Rewards",
        "reward",
        {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
        "Beta times the log-ratio to the reference. Chosen should not sink far below 0: a margin can grow because"
        " rejected answers fall faster.",
        zero=0.0,
    ),
    Panel(
        "log-ratios",
        "Distance from the reference",
        "log-ratio, nats",
        {f"{LOG_RATIO}chosen": "chosen", f"{LOG_RATIO}rejected": "rejected"},
        "How far the policy has moved on the given answers, log p(policy) - log p(reference), which is reward / "
        "beta. The KL of the policy's own answers is not measured.",
        zero=0.0,
    ),
    Panel(
        "kl",
        "KL",
        "nats",
        {"kl": "kl", "objective/kl": "kl", "rewards/kl": "kl"},
        "The divergence from the reference that the run has logged.",
    ),
    Panel(
        "score-variance",
        "Score variance",
        "variance",
        {"score/variance": "variance"},
        "How much masks alone move a pair's score. Where its square root is near the margin, noise decides pairs "
        "and acts like a larger beta.",
        part=NOISE,
    ),
    Panel(
        "loss-bias",
        "Bias of the loss",
        "loss",
        {"loss/bias": "bias"},
        "What the noise of the scores adds to the loss, to second order. Next to the loss it should be small.",
        zero=0.0,
        part=NOISE,
    ),
    Panel(
        "saturated",
        "Saturated pairs",
        "share of pairs",
        {"score/saturated": "saturated"},
        "Pairs with a score beyond 6, which have almost no gradient left.",
        part=NOISE,
    ),
    Panel(
        "noise-split",
        "Noise of the gradient",
        "squared norm",
        {"noise/estimator": "masks", "noise/between": "pairs", "noise/signal": "signal"},
        "Of one pair's gradient, means of all measurements so far: variance from masks, variance between pairs, "
        "and the squared signal.",
        exact=True,
        part=NOISE,
    ),
    Panel(
        "noise-share",
        "Masks' share of the noise",
        "share",
        {"noise/estimator_share": "masks' share"},
        "More draws (n) reduce this share, a larger batch the whole noise.",
        exact=True,
        part=NOISE,
    ),
)
LIKELIHOODS = (
    Panel(
        "loss",
        "Loss",
        "nats per token",
        {"loss": "loss"},
        "A bound of the negative log-likelihood (exact for an autoregressive model). Losses of single masks "
        "scatter widely: read the line, not the points.",
    ),
    Panel(
        "bits",
        "Held-out bits",
        "bits",
        {"bits_per_byte": "per byte", "bits_per_token": "per token"},
        "Held-out rows under fixed masks, so that evaluations compare. Bits per byte compare between tokenizers too.",
    ),
    Panel(
        "perplexity",
        "Perplexity bound",
        "perplexity",
        {BOUND: "perplexity"},
        "exp of the held-out loss: an upper bound of the perplexity of a token.",
        log=True,
    ),
)
# What all trainers log; the curves of the benchmarks are those that a run has.
SHARED = (
    Panel(
        "benchmarks",
        "Benchmarks",
        "score",
        {},
        "Tasks of lm-evaluation-harness, answered while the run trained (eval_tasks).",
    ),
    Panel(
        "masked",
        "Masked share",
        "share of tokens",
        {"masked_fraction": "masked"},
        "How much of the answers is hidden in a forward pass: 0.5 on average for uniform levels.",
        part=MACHINE,
    ),
    Panel(
        "rate",
        "Learning rate",
        "rate",
        {"learning_rate": "rate"},
        "Warm-up and schedule.",
        exact=True,
        part=MACHINE,
    ),
    Panel(
        "gradient",
        "Gradient norm",
        "norm",
        {"grad_norm": "norm"},
        "Before clipping. A norm that grows for long precedes divergence.",
        part=MACHINE,
    ),
    Panel(
        "speed",
        "Rows in a second",
        "1/s",
        {"throughput/pairs_per_second": "pairs", "throughput/rows_per_second": "rows"},
        "Evaluations are left out.",
        part=MACHINE,
    ),
    Panel(
        "tokens",
        "Tokens in a second",
        "1/s",
        {"throughput/tokens_per_second": "tokens"},
        "Tokens of the rows, once however many draws there are.",
        part=MACHINE,
    ),
    Panel(
        "mfu",
        "Use of the device",
        "share",
        {"throughput/mfu": "mfu"},
        "Operations that the rows need over those that the device could do.",
        part=MACHINE,
    ),
    Panel(
        "memory",
        "Memory",
        "GiB",
        {"memory/peak_gib": "peak"},
        "Peak of the process that has used most since it began.",
        exact=True,
        part=MACHINE,
    ),
)
TIME = Panel(
    "time",
    "Where the time goes",
    "share",
    {"time/reference": "reference", "time/policy": "policy", "time/data": "data", "time/other": "other"},
    "Shares of the time between log lines. Much 'data' or 'other' is time in which the device waits.",
    part=MACHINE,
)
