"""Tables and pictures: the arms and the course of a run, and the variance of a checkpoint's scores."""

from pathlib import Path
from typing import Any

ARMS = {"sft": "SFT", "control": "SFT continued on chosen", "vrpo": "VRPO"}


def print_report(results: dict[str, Any]) -> None:
    """The arms with their accuracies and 95% intervals, as a table on the terminal.

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
    """Four panels: SFT loss, VRPO margin and score variance by step, and the accuracies with intervals.

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


def print_variance(results: dict[str, Any]) -> None:
    """The variance table (`vrpo.variance.measure`) on the terminal, and below it what the draws are made of."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Variance over redrawn masks [95% interval]")
    for heading in ("design", "n_t", "n_y", "coupled", "Var score", "Var loss", "Var gradient", "loss bias", "|s| > 6"):
        table.add_column(heading, justify="left" if heading == "design" else "right")
    for row in results["rows"]:
        cells = [bounded(row[key]) for key in ("score", "loss", "gradient", "bias")]
        coupled = "yes" if row["coupled"] else "no"
        saturated = f"{row['saturated']['value']:.0%}"
        table.add_row(row["name"], str(row["n_t"]), str(row["n_y"]), coupled, *cells, saturated)
    console = Console(width=160)
    console.print(table)
    console.print(
        f"1 - correlation of policy and reference ELBOs over coupled draws, n = 4: {bounded(results['decoupled'])}"
    )
    for form, parts in (results["sources"] or {}).items():
        shares = ", ".join(f"{name} {bounded(cell)}" for name, cell in parts.items() if name != "variance")
        console.print(f"One coupled draw, {form} form: Var score {bounded(parts['variance'])}; share of {shares}")
    for row in results["doubled"]:
        shares = ", ".join(f"{key} x{bounded(row[key])}" for key in ("score", "loss", "gradient") if row[key])
        console.print(f"Twice the forward passes of {row['name']}, {row['n']} -> {2 * row['n']}: variance of {shares}")


def bounded(cell: dict[str, float] | None) -> str:
    """A value with its interval, where it has one."""
    if cell is None:
        return ""
    ends = "" if cell["low"] is None else f" [{cell['low']:.2g}, {cell['high']:.2g}]"
    return f"{cell['value']:.2g}{ends}"


def is_plotted(row: dict[str, Any], name: str) -> bool:
    """Rows of a budget curve: coupled, one mask at each timestep."""
    return row["name"] == name and row["coupled"] and row["n_y"] == 1


def draw_variance(results: dict[str, Any], path: Path) -> None:
    """Variance of score, loss and gradient against forward passes, with the 1/n line of the paper's design."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = [key for key in ("score", "loss", "gradient") if results["rows"][0][key] is not None]
    figure, axes = pyplot.subplots(1, len(keys), figsize=(5 * len(keys), 4), constrained_layout=True, squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        for name in ("vrpo", "cpl"):
            rows = sorted((row for row in results["rows"] if is_plotted(row, name)), key=lambda row: row["n"])
            n, value = [row["n"] for row in rows], [row[key]["value"] for row in rows]
            ends = [(row[key]["low"], row[key]["high"]) for row in rows]
            bars = [[abs(v - end[side] if end[side] is not None else 0) for v, end in zip(value, ends, strict=True)]
                    for side in (0, 1)]  # fmt: skip
            axis.errorbar(n, value, yerr=bars, marker="o", capsize=3, label=name)
            if name == "vrpo":
                axis.plot(n, [value[0] * n[0] / m for m in n], "k--", linewidth=0.8, label="1/n")
        axis.set(title=f"variance of the {key}", xlabel="forward passes of each response", xscale="log", yscale="log")
        axis.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
