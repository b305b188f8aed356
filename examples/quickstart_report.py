"""The quickstart's table and picture: accuracy of each arm, and curves of the run."""

from pathlib import Path
from typing import Any

ARMS = {"sft": "SFT", "control": "SFT continued on chosen", "vrpo": "VRPO"}


def print_report(results: dict[str, Any]) -> None:
    """Print a table of the arms with their accuracies and 95% intervals.

    results: per arm of `ARMS` "accuracy" and "ci95", and differences as {"mean", "ci95"} (see the quickstart).
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{results['prompts']} held-out prompts, seed {results['seed']}")
    for heading in ("arm", "accuracy", "95% interval", "over SFT", "95% interval"):
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
    console = Console()
    console.print(table)
    over = results["vrpo_over_control"]
    bounds = interval(over["ci95"], "{:+.1f}", 100)
    console.print(f"VRPO over the control: {100 * over['mean']:+.1f} points, {bounds}")
    console.print(
        f"SFT moved {100 * results['sft_moved_in_last_fifth']:+.1f} points in its last fifth; "
        f"{results['pairs']} pairs; "
        f"margin {results['margin']:.2f}; score variance {results['score_variance']:.3f}; "
        f"{results['seconds']['total']:.0f} s"
    )


def interval(bounds: list[float], form: str = "{:.1%}", scale: float = 1.0) -> str:
    return " to ".join(form.format(scale * bound) for bound in bounds)


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
