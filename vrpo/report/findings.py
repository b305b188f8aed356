"""What a run shows, in words: what its rules say, what evaluations and noise say, and the good news."""

import math

import numpy as np

from llada.training.rules import LOGS, now
from vrpo.analysis.advice import RELIABLE
from vrpo.report.judging import (
    GOOD,
    LEVELS,
    NOTE,
    WARNING,
    Finding,
    judged,
    last_lines,
    pairs_per_line,
    settings_of,
)
from vrpo.report.reading import Run, Series
from vrpo.training.rules import NEGLIGIBLE, mean_and_error, within_noise

CALM, GONE_WELL = "Nothing to warn of", "What has gone well"
NOISY = 0.5  # reliability below which noise is a warning and no note: our choice
LINES = 20  # log lines that an estimate of the reliability needs
SATURATED_SHARE = 0.5  # share of pairs without a gradient above which a warning is due: our choice
FALLEN = {"The chosen answers fall", "The policy is far from its reference"}  # titles of rules that say more
BY_LOSS = (None, "loss", "eval_loss")  # metric_for_best_model with which the kept checkpoint has the lowest loss
WORSE = 0.02  # by which a held-out loss may exceed its best, as a share of it: our choice


def findings_of(run: Run) -> list[Finding]:
    """All findings of a run: warnings, notes, then the good news; at least one."""
    found = judged(run)
    if run.is_preference:
        fallen_far = {each.title for each in found if each.level == WARNING} & FALLEN
        for look in (held_out_margin, noisy_scores, saturated, *(() if fallen_far else (falling_chosen,))):
            found += look(run)
    found += not_finite(run) + worse_evaluation(run) + ending(run)
    said = " ".join(good_news(run))
    lines = judged_lines(run)
    if any(each.level == WARNING for each in found) or lines < LOGS:
        found += [Finding(GOOD, GONE_WELL, said)] if said else []
    else:
        none = f"None of the rules found a sign of divergence or of a standstill in {lines:,} log lines."
        found.append(Finding(GOOD, CALM, said or none))
    return sorted(found, key=lambda each: LEVELS.index(each.level))


def judged_lines(run: Run) -> int:
    """How many log lines the rules of training have judged: those after warm-up whose loss is a finite number."""
    return int((run.series("loss").finite.steps > settings_of(run).warmup_steps).sum())


def held_out_margin(run: Run) -> list[Finding]:
    """A margin on held-out pairs that cannot be told from 0 at the end, or that is below it."""
    margin = run.series("eval_rewards/margins").finite
    if not len(margin) or not margin.steps[-1]:
        return []
    value, half = float(margin.values[-1]), float(margin.half_widths[-1])
    if math.isnan(half):
        return []
    where = f"the evaluation at step {margin.steps[-1]}"
    if abs(value) <= half:
        return [
            Finding(
                WARNING,
                "The held-out margin is within its noise of 0",
                f"On held-out pairs the margin is {value:.2g} ± {half:.2g} (95%): it does not show that the policy "
                "prefers the chosen answers of pairs that it has not seen.",
                where,
                f"Train for longer or with a larger learning_rate{now(settings_of(run).learning_rate)}, or hold out "
                "more pairs: with four times as many the interval is half as wide.",
            )
        ]
    if abs(value) <= NEGLIGIBLE:
        what = f"On held-out pairs the margin is {value:.2g} ± {half:.2g} (95%): not 0, but negligible."
        advice = f"Train for longer or with a larger learning_rate{now(settings_of(run).learning_rate)}."
        return [Finding(WARNING, "The held-out margin is negligible", what, where, advice)]
    if value < 0:
        what = f"On held-out pairs the margin is {value:.2g} ± {half:.2g} (95%): the policy prefers rejected answers."
        advice = "Check which column of the data is which, and whether training margins grow: then it is overfitting."
        return [Finding(WARNING, "The held-out margin is below 0", what, where, advice)]
    return []


def reliability_of_lines(margins: np.ndarray, variance: float, pairs: int) -> float:
    """An estimate of the scores' reliability S / (S + V) from the mean margins of log lines.

    A line's margin is a mean over `pairs` drawn scores, so that its variance between lines is a `pairs`-th of that of
    one drawn score, which has the mean square S + V. The variance between lines is half of the mean squared difference
    of neighbours, which a slow trend does not change. With N lines its relative standard error is about sqrt(3 / N).

    Args:
        variance: V, of a score over masks (`score/variance`).
    """
    drawn = pairs * float(np.mean(np.diff(margins) ** 2)) / 2 + float(margins.mean()) ** 2
    return max(0.0, 1 - variance / drawn) if drawn > 0 else 1.0


def measured_reliability(run: Run) -> tuple[float, str] | None:
    """The reliability that `python -m vrpo.variance` has measured for the run's design and n, and how it is known."""
    rows = (run.variance or {}).get("rows") or []
    estimator = run.record.get("estimator") or {}
    for row in rows:
        fits = row.get("name") == estimator.get("design") and row.get("n") == estimator.get("n")
        if fits and row.get("shared_masks") and row.get("reliability"):
            return row["reliability"]["value"], "measured by python -m vrpo.variance"
    return None


def noisy_scores(run: Run) -> list[Finding]:
    """Scores with much noise, which with shared masks acts like a larger beta (docs/choosing-n.md)."""
    margins, pairs = run.series("rewards/margins").finite.values, pairs_per_line(run)
    lines = max(LINES, len(margins) // 2)
    variance, margin = last_lines(run, "score/variance", lines), last_lines(run, "rewards/margins", lines)
    if variance is None or margin is None or variance[0] <= 0 or within_noise(*margin):
        return []
    margins = margins[-lines:]
    known = measured_reliability(run)
    if known is None and pairs is not None and len(margins) >= LINES:
        known = reliability_of_lines(margins, variance[0], pairs), "a rough estimate from the scatter of these lines"
    if known is None or known[0] >= RELIABLE:
        return []
    reliability, how = known
    what = (
        f"In the last {len(margins)} log lines, masks alone move the score of a pair by {variance[0] ** 0.5:.2g} "
        f"(standard deviation), where the mean margin is {margin[0]:.2g}. Of the mean squared score, about "
        f"{reliability:.0%} is signal ({how})."
    )
    design = run.options.get("estimator")
    losses = (run.record.get("estimator") or {}).get("loss") or run.options.get("loss_type") or []
    larger_beta = design != "naive_dpo" and "sigmoid" in losses  # docs/choosing-n.md: true of shared masks only
    other = "" if design == "loo_complementary" else " or estimator=loo_complementary"
    more = f"take more draws (n_t){other}; docs/choosing-n.md says how many."
    if design == "naive_dpo":
        advice = f"Share masks between policy and reference (estimator=vrpo), or {more}"
    elif larger_beta and reliability > 0.05:
        what += f" In the sigmoid loss this acts like a beta that is {1 / reliability:.2g} times as large."
        advice = f"Divide beta{now(run.beta)} by that factor, or {more}"
    else:
        advice = f"Lower beta{now(run.beta)}, or {more}"
    level, title = NOTE, "Noise in the scores acts like a larger beta" if larger_beta else "The scores are noisy"
    if reliability < NOISY:
        level = WARNING
        title = "The scores are too noisy for beta" if larger_beta else "Most of the scores is noise"
    return [Finding(level, title, what, f"up to step {run.step}", advice)]


def saturated(run: Run) -> list[Finding]:
    """Pairs that give almost no gradient any more."""
    share = last_lines(run, "score/saturated")
    if share is None or share[0] <= SATURATED_SHARE:
        return []
    what = f"{share[0]:.0%} of the pairs have a score beyond 6, and with it almost no gradient."
    advice = f"Stop earlier, lower beta{now(run.beta)}, or train on new pairs."
    return [
        Finding(WARNING, "The rewards are saturated", what, f"the last {LOGS} log lines, to step {run.step}", advice)
    ]


def falling_chosen(run: Run) -> list[Finding]:
    """Chosen answers that have become less likely, not yet as far as a rule of training would warn of."""
    chosen, rejected = last_lines(run, "rewards/chosen"), last_lines(run, "rewards/rejected")
    if chosen is None or rejected is None or chosen[0] >= 0 or within_noise(*chosen):
        return []
    nats = "" if run.beta is None else f", {-chosen[0] / run.beta:.3g} nats each"
    what = f"The mean reward of chosen answers is {chosen[0]:.2g}: they have become less likely{nats}."
    if rejected[0] < chosen[0]:
        what += f" The margin grows because rejected answers fall faster ({rejected[0]:.2g})."
    advice = "This is common in preference training. If answers get worse, raise the weight of 'sft' in loss_weights."
    return [Finding(NOTE, "Chosen answers have become less likely", what, f"the last {LOGS} log lines", advice)]


def not_finite(run: Run) -> list[Finding]:
    """Losses that are no finite numbers, which no rule can judge."""
    loss = run.series("loss")
    bad = loss.steps[np.isnan(loss.values)]
    if not len(bad):
        return []
    what = f"The loss of {len(bad):,} of {len(loss):,} log lines is no finite number, first at step {bad[0]}."
    advice = f"Lower learning_rate{now(settings_of(run).learning_rate)}, or take a checkpoint from before that step."
    return [Finding(WARNING, "The loss is not finite", what, f"steps {bad[0]} to {bad[-1]}", advice)]


def worse_evaluation(run: Run) -> list[Finding]:
    """A held-out loss that is higher at the end than it was."""
    loss = run.series("eval_loss").finite
    if len(loss) < 2:
        return []
    best = int(loss.values.argmin())
    if best == len(loss) - 1 or loss.values[-1] - loss.values[best] <= WORSE * abs(loss.values[best]):
        return []
    what = (
        f"The held-out loss is {loss.values[-1]:.3g} at step {loss.steps[-1]}, after {loss.values[best]:.3g} at step "
        f"{loss.steps[best]}."
    )
    advice = (
        "load_best_model_at_end has kept the best checkpoint: nothing is lost."
        if run.options.get("load_best_model_at_end") and run.options.get("metric_for_best_model") in BY_LOSS
        else f"Take an earlier checkpoint (near step {loss.steps[best]}), train for fewer steps, or lower "
        f"learning_rate{now(settings_of(run).learning_rate)}; load_best_model_at_end keeps the best one."
    )
    return [Finding(WARNING, "Evaluation is worse than before", what, f"after step {loss.steps[best]}", advice)]


def ending(run: Run) -> list[Finding]:
    """That a run has not come to its end, and what is not known of it."""
    found, lines = [], judged_lines(run)
    if not run.rows:
        what = "The run has written no log line to the disk: that comes with its first checkpoint, or at its end."
        found.append(Finding(NOTE, "Nothing is logged yet", what))
    elif lines < LOGS:
        what = f"The run has logged {lines} lines after its warm-up, and the rules judge the last {LOGS}."
        found.append(Finding(NOTE, "Too few log lines to judge", what, advice="Lower logging_steps in the next run."))
    if not run.finished:
        of = f" of {run.max_steps}" if run.max_steps else ""
        what = f"The newest state on the disk is that of step {run.step}{of}. The page shows the run up to there."
        found.append(Finding(NOTE, "The run is not finished", what, advice="--resume true goes on (docs/running.md)."))
    if not run.record:
        what = "There is no run.json, so that options, beta and versions are not known. Recipes write it."
        found.append(Finding(NOTE, "What was run is not known", what))
    return found


def good_news(run: Run) -> list[str]:
    """What has gone well, a sentence each."""
    if not run.is_preference:
        return [text for name in ("eval_loss", "loss") if (text := fallen(run.series(name).finite, name))][:1]
    said = []
    margin, accuracy = run.series("eval_rewards/margins").finite, run.series("eval_rewards/accuracies").finite
    if len(margin) and margin.values[-1] > max(NEGLIGIBLE, margin.half_widths[-1]):
        text = f"On held-out pairs the margin is {margin.values[-1]:.2g} ± {margin.half_widths[-1]:.2g}"
        if len(accuracy):
            text += f", and {accuracy.values[-1]:.0%} of them are in the right order"
        said.append(f"{text} (step {margin.steps[-1]}).")
    elif not len(margin) and (mean := last_lines(run, "rewards/margins")) and not within_noise(*mean) and mean[0] > 0:
        said.append(f"The margin is {mean[0]:.2g} over the last {LOGS} log lines, above its noise.")
    chosen = last_lines(run, "rewards/chosen")
    if chosen is not None and chosen[0] > 0 and not within_noise(*chosen):
        nats = "" if run.beta is None else f", by {chosen[0] / run.beta:.2g} nats each"
        said.append(f"Chosen answers have become more likely{nats}.")
    return said


def fallen(series: Series, name: str) -> str:
    """A sentence about a loss that has fallen, or an empty one."""
    if name == "eval_loss":
        if len(series) < 2 or series.values[-1] >= series.values[0]:
            return ""
        last, step = series.values[-1], series.steps[-1]
        return f"The held-out loss fell from {series.values[0]:.3g} to {last:.3g} (step {step})."
    size = min(LOGS, len(series) // 2)
    if size < 2:
        return ""
    first, first_error = mean_and_error(series.values[:size].tolist())
    last, last_error = mean_and_error(series.values[-size:].tolist())
    if first - last <= 2 * math.hypot(first_error, last_error):
        return ""
    return f"The loss fell from {first:.3g} to {last:.3g} (means of the first and of the last {size} log lines)."
