"""What the quickstart's second half prints and draws: its task, poems before and after, a table in words, a curve."""

import math
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor
from verses import SHARPNESS, as_poem, mood

from vrpo.analysis.frontier import MIN_EFFECTIVE, best_of, tilt

ARMS = {"control": "SFT on chosen", "vrpo": "VRPO"}
ENOUGH = 0.4  # share of well-formed poems from which we say that the base model knows the rules
EFFICIENT = 0.5  # KL efficiency from which we call it good
SHOWN = 3  # topics of which poems are printed


def introduce(threads: int) -> None:
    """Say what the task is and what is run, before anything is computed."""
    share = 1 / (1 + math.exp(-SHARPNESS * 0.2))
    print("Task     poems of three lines on a topic; the reward is their mood, from -1 (gloomy) to 1 (cheerful)")
    print(f"Pairs    a coin chooses one of two samples: in {share:.0%} the better one, if it is 0.2 better")
    print("Plan     SFT imitates the chosen poems; VRPO learns from both, and how far it could get is known")
    print(f"Threads  {threads} (OMP_NUM_THREADS sets another number)\n", flush=True)


def print_poems(shown: dict[str, tuple[str, str]]) -> None:
    """Print the base model's poem beside that of VRPO. shown: {topic: (before, after)}."""
    print("\nThe same topics before and after VRPO (not picked):")
    for topic, (before, after) in list(shown.items())[:SHOWN]:
        print(f"  {topic}")
        columns = [[*as_poem(poem).split("\n"), f"(mood {mood(poem):+.2f})"] for poem in (before, after)]
        for left, right in zip_longest(*columns, fillvalue=""):
            print(f"    {left:42}{right}".rstrip())
    print()


def print_report(results: dict[str, Any]) -> None:
    """Print a table of what was measured, then what each number means.

    results: "base" and "chosen" with "reward", "reward_error" and "well_formed", and the arms of `ARMS` also with "kl",
        "kl_error", "efficiency" and "best_reward" (None where the base model's samples do not show them).
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{results['samples']} fresh poems of SFT and VRPO, seed {results['seed']}; ± 95%")
    for heading in ("", "reward", "KL, nats", "best at\nthat KL", "KL effi-\nciency", "well\nformed"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, row in (("base model", results["base"]), ("chosen poems", results["chosen"])):
        table.add_row(name, with_error(row, "reward", "{:.3f}"), "", "", "", f"{row['well_formed']:.0%}")
    for arm, name in ARMS.items():
        row = results[arm]
        table.add_row(
            name,
            with_error(row, "reward", "{:.3f}"),
            with_error(row, "kl", "{:.2f}"),
            known(row["best_reward"], "{:.3f}"),
            known(row["efficiency"], "{:.2f}"),
            f"{row['well_formed']:.0%}",
        )
    Console().print(table)
    for sentence in in_words(results):
        print(f"- {sentence}")


def known(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def with_error(row: dict[str, Any], key: str, form: str) -> str:
    return f"{form} ± {form}".format(row[key], 1.96 * row[f"{key}_error"])


def apart(one: dict[str, Any], other: dict[str, Any]) -> int:
    """1 if the reward of one is above that of the other, -1 if below, 0 if the 95% interval of the difference has 0."""
    gap = one["reward"] - other["reward"]
    return (abs(gap) > 1.96 * (one["reward_error"] ** 2 + other["reward_error"] ** 2) ** 0.5) * (1 if gap > 0 else -1)


def in_words(results: dict[str, Any]) -> list[str]:
    """Whether each number of the report is good, and what it means."""
    base, chosen, control, vrpo = (results[name] for name in ("base", "chosen", "control", "vrpo"))
    written = base["well_formed"]
    imitated = {
        1: f"above the chosen poems' mean of {chosen['reward']:.3f}, which imitation should not reach: do not trust it",
        0: f"as much as the chosen poems' mean of {chosen['reward']:.3f}, which bounds what imitation can give",
        -1: f"below the chosen poems' mean of {chosen['reward']:.3f}, which bounds what imitation can give",
    }[apart(control, chosen)]
    gap = f"{abs(vrpo['reward'] - control['reward']):.3f}"
    gained = {
        1: f"VRPO has a reward {gap} above SFT's from the same pairs at equal cost",
        0: "VRPO has a reward that these samples cannot tell from SFT's: bad, as it has more to learn from",
        -1: f"VRPO has a reward {gap} below SFT's from the same pairs at equal cost: bad, try another learning rate",
    }[apart(vrpo, control)]
    if apart(vrpo, control) > 0:
        gained += (
            ", and above what imitation can give: good, that is what preferences are for"
            if apart(vrpo, chosen) > 0
            else ", but not above the chosen poems' mean: imitation could do as well"
        )
    return [
        f"The base model keeps all rules of the poems in {written:.0%} of its own: "
        + ("good enough to learn from." if written >= ENOUGH else "bad, it needs more steps of SFT."),
        f"SFT on the chosen poems has a reward of {control['reward']:.3f}, {imitated}.",
        f"{gained}.",
        possible(vrpo, base),
        kept(vrpo["well_formed"], written),
        f"{results['pairs']} pairs; {results['seconds']['total']:.0f} s in all.",
    ]


def possible(vrpo: dict[str, Any], base: dict[str, Any]) -> str:
    """What VRPO reached of what can be reached."""
    moved = f"VRPO moved {vrpo['kl']:.2f} nats away from the base model (KL)"
    if apart(vrpo, base) <= 0:
        return f"{moved} and gained nothing: bad."
    if vrpo["efficiency"] is None:
        return f"{moved}. How far its reward needs to move, {base['samples']} samples of the base model do not show."
    best, efficient = vrpo["best_reward"], vrpo["efficiency"] >= EFFICIENT
    return (
        f"{moved}. "
        + ("" if best is None else f"The best policy at that distance has a reward of {best:.3f}. ")
        + f"VRPO's reward could be had at {vrpo['efficiency']:.0%} of the distance (KL efficiency): "
        + ("good." if efficient else "bad, it changed much that has nothing to do with mood.")
    )


def kept(now: float, before: float) -> str:
    """What became of the rules, which the reward does not see."""
    judged = {
        2: "bad, rules were lost, and a larger beta or a lower rate would keep more",
        1: "some were lost, as the reward does not see the rules",
        0: "good, they were kept, though the reward does not see them",
    }[(now < before - 0.1) + (now < before - 0.25)]
    return f"Poems that keep all rules went from {before:.0%} to {now:.0%}: {judged}."


def draw_report(results: dict[str, Any], reward_N: Tensor, path: Path) -> None:
    """Draw reward against KL: what is possible, the best of k samples, and the arms.

    reward_N: rewards of the base model's poems.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.4), constrained_layout=True)
    tilts = [tilt(reward_N, step / 50 / float(reward_N.std())) for step in range(400)]
    tilts = [found for found in tilts if found.effective >= MIN_EFFECTIVE]
    axis.plot([found.kl for found in tilts], [found.reward for found in tilts], color="black", label="optimum")
    bests = [best_of(reward_N, k) for k in range(1, 65)]
    axis.plot([b.kl for b in bests], [b.reward for b in bests], ":", color="grey", label="best of k samples, 1 to 64")
    chosen = results["chosen"]["reward"]
    axis.axhline(chosen, linestyle="--", linewidth=0.8, color="grey", label=f"mean of the chosen poems, {chosen:.3f}")
    axis.plot(0, results["base"]["reward"], "s", color="black", label="base model")
    for arm, name in ARMS.items():
        row = results[arm]
        errors = {"xerr": 1.96 * row["kl_error"], "yerr": 1.96 * row["reward_error"]}
        axis.errorbar(row["kl"], row["reward"], **errors, fmt="o", capsize=3, label=f"{name}, {row['reward']:.3f}")
    axis.set(xlabel="KL from the base model, nats", ylabel="reward (mean mood of nine words)")
    axis.set_title(f"Reward against distance, seed {results['seed']}")
    axis.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
