"""What the quickstart prints and draws: its task, answers before and after, the table in words, and curves."""

from pathlib import Path
from typing import Any

from addition import operands, right_answer, work
from quickstart_settings import Size

ARMS = {"sft": "SFT", "control": "SFT continued on chosen", "vrpo": "VRPO"}
SETTLED = 0.02  # change of SFT's accuracy in its last fifth below which we call it settled
# docs/results.md, "The quickstart over five seeds": what the full run gives.
FULL_RUN = "over five seeds 76% for SFT, 90% for VRPO and 97% for SFT continued on the chosen answers"


def introduce(size: Size, threads: int) -> None:
    """Say what the task is and what is run, before anything is computed."""
    example = "385+947?" if size.figures is None else "486+628?"
    print(f"Task     column addition with written carries:  {example} -> {right_answer(example)}")
    print(f"Noise    demonstrations often forget to carry:  {example} -> {work(*operands(example), careful=False)}")
    print("Plan     SFT imitates them; VRPO then prefers the model's own right answers over its own wrong ones")
    if size.short:
        print(
            f"Short    only the figures {', '.join(size.figures or '')}, and numbers that are a demonstration; "
            f"the full run,\n         12 minutes without --short, gave {FULL_RUN}"
        )
    print(f"Threads  {threads} (OMP_NUM_THREADS sets another number)\n", flush=True)


def compare_answers(shown: dict[str, dict[str, str]]) -> None:
    """Print the right answer to each prompt and those of the arms. shown: {prompt: {arm: answer}}."""
    print("\nThe same held-out prompts before and after:")
    for prompt, answers in shown.items():
        right = right_answer(prompt)
        print(f"  {prompt}  {'right answer':12}  {right}")
        for arm, name in (("sft", "before (SFT)"), ("vrpo", "after (VRPO)")):
            verdict = "right" if answers[arm].strip() == right else "wrong"
            print(f"            {name:12}  {answers[arm]:{len(right)}}  {verdict}")
    print()


def print_report(results: dict[str, Any]) -> None:
    """Print a table of the arms with their accuracies and 95% intervals, then what each number means.

    results: per arm of `ARMS` "accuracy" and "ci95", and differences as {"mean", "ci95"} (see the quickstart).
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Right answers to {results['prompts']} held-out prompts, seed {results['seed']}")
    for heading in ("arm", "right", "95% interval", "over SFT", "95% interval"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    gains = {"control": results["improvement_of_control"], "vrpo": results["improvement"]}
    for arm, name in ARMS.items():
        gain = gains.get(arm)
        table.add_row(
            name,
            f"{results[arm]['accuracy']:.1%}",
            interval(results[arm]["ci95"]),
            "" if gain is None else f"{100 * gain['mean']:+.1f}",
            "" if gain is None else interval(gain["ci95"], "{:+.1f}", 100),
        )
    Console().print(table)
    for sentence in in_words(results):
        print(f"- {sentence}")
    if results["short"]:
        print(f"- These are a demonstration's numbers: the full run gave {FULL_RUN}.")


def interval(bounds: list[float], form: str = "{:.1%}", scale: float = 1.0) -> str:
    return " to ".join(form.format(scale * bound) for bound in bounds)


def points(difference: dict[str, Any]) -> str:
    """The size of a difference of accuracies."""
    return f"{abs(100 * difference['mean']):.1f} points"


def sign(difference: dict[str, Any]) -> int:
    """1 if the whole interval of a difference is above 0, -1 if below, 0 if it contains 0."""
    low, high = difference["ci95"]
    return 1 if low > 0 else -1 if high < 0 else 0


def in_words(results: dict[str, Any]) -> list[str]:
    """Whether each number of the report is good, and what it means."""
    gain, control, over = (results[key] for key in ("improvement", "improvement_of_control", "vrpo_over_control"))
    moved = results["sft_moved_in_last_fifth"]
    if abs(moved) <= SETTLED:
        settled = "so it had settled, and a later gain is not that of unfinished SFT"
    else:
        settled = "so it had not settled, and a part of any later gain may be that of more training"
    gained = {
        1: f"VRPO gained {points(gain)} over SFT: good, that is what preferences are for.",
        0: f"VRPO moved by {100 * gain['mean']:+.1f} points over SFT, which these prompts cannot tell from no change.",
        -1: f"VRPO lost {points(gain)} against SFT: bad, a lower learning rate would be the first thing to try.",
    }[sign(gain)]
    compared = {
        1: f"less than VRPO by {points(over)}",
        0: "as much as VRPO within the interval",
        -1: f"more than VRPO by {points(over)}",
    }[sign(over)]
    margin, deviation = results["margin"], results["score_variance"] ** 0.5
    return [
        f"SFT is right on {results['sft']['accuracy']:.0%} of the prompts: it imitates demonstrations of which "
        f"{results['right_demonstrations']:.0%} are right.",
        f"SFT moved by {100 * moved:+.1f} points in its last fifth, {settled}.",
        gained,
        f"The control, SFT continued on the chosen answers at equal cost, moved by {100 * control['mean']:+.1f} points "
        f"over SFT, {compared}. A strong control is expected here: the chosen answers are right ones to imitate.",
        f"The margin, by which VRPO scores right answers over wrong ones, went from 0 to {margin:+.2f}: "
        f"{'good, it prefers them' if margin > 0 else 'bad, it should be above 0'}. Masks alone move the score "
        f"of a pair by {deviation:.2f} (standard deviation).",
        f"{results['pairs']} pairs of right and wrong answers; {results['seconds']['total']:.0f} s in all.",
    ]


def draw_report(
    results: dict[str, Any], sft_log: list[dict[str, float]], steps: list[dict[str, float]], path: Path
) -> None:
    """Draw four panels: SFT loss, VRPO margin and score variance by step, and the accuracies with intervals.

    sft_log, steps: logged rows with "step"; `steps` with "loss", "rewards/margins" and "score/variance".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.4), constrained_layout=True)
    losses = [row for row in sft_log if "loss" in row]
    axes[0].plot([row["step"] for row in losses], [row["loss"] for row in losses], linewidth=0.8)
    axes[0].set(title="SFT loss (nats per token)", xlabel="step", yscale="log")
    for axis, key, title in (
        (axes[1], "rewards/margins", "VRPO margin (beta x nats)"),
        (axes[2], "score/variance", "variance of the score"),
    ):
        axis.plot([row["step"] for row in steps], [row[key] for row in steps])
        axis.set(title=title, xlabel="step")
    for place, (arm, name) in enumerate(ARMS.items()):
        value, (low, high) = results[arm]["accuracy"], results[arm]["ci95"]
        axes[3].bar(place, value, yerr=[[value - low], [high - value]], capsize=4, label=name)
        axes[3].text(place, 0.02, f"{value:.1%}", ha="center", color="white")
    axes[3].set(title=f"accuracy on {results['prompts']} held-out prompts", ylim=(0, 1), xticks=range(len(ARMS)))
    axes[3].set_xticklabels(["SFT", "control", "VRPO"])
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
