"""The variance table of a checkpoint's scores, on the terminal and as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrpo.analysis.advice import advise, bounded, bounded_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL = 1e-4  # nats; a smaller bias of the loss is printed as 0


def print_variance(results: dict[str, Any]) -> None:
    """Print the table of `vrpo.analysis.table.measure`, then correlation, sources, doubling ratios and advice.

    The column "masks' share" is the estimator's share of the noise of the gradient of one pair that is drawn at random.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = "Variance over redrawn masks [95% interval]"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in (
        "design",
        "n_t",
        "n_y",
        "shared\nmasks",
        "Var score",
        "Var loss",
        "Var gradient",
        "masks' share",
        "loss bias",
        "|s| > 6",
        "wrong\nsign",
        "relia-\nbility",
    ):
        table.add_column(heading, justify="left" if heading == "design" else "right")
    for row in results["rows"]:
        cells = [bounded(row[key]) for key in ("score", "loss", "gradient")]
        share = bounded_share(row["estimator_share"]) if "estimator_share" in row else ""
        shared = "yes" if row["shared_masks"] else "no"
        parts = [f"{row[key]['value']:.0%}" if row[key] else "" for key in ("saturated", "flipped", "reliability")]
        bias = bounded({key: 0.0 if end and abs(end) < SMALL else end for key, end in row["bias"].items()})
        table.add_row(row["name"], str(row["n_t"]), str(row["n_y"]), shared, *cells, share, bias, *parts)
    console = Console(width=160)
    console.print(table)
    apart = bounded(results["one_minus_correlation"])
    console.print(f"1 - correlation of policy and reference ELBOs over shared masks, n = 4: {apart}")
    for form, parts in (results["sources"] or {}).items():
        shares = ", ".join(f"{name} {bounded(cell)}" for name, cell in parts.items() if name != "variance")
        console.print(
            f"One draw with shared masks, {form} form: Var score {bounded(parts['variance'])}; shares: {shares}"
        )
    for name in dict.fromkeys(row["name"] for row in results["doubling_ratios"]):
        rows = [row for row in results["doubling_ratios"] if row["name"] == name]
        keys = [key for key in ("score", "gradient") if rows[0][key]]
        factors = (" and ".join(f"{row[key]['value']:.2g}" for key in keys) for row in rows)
        each = ", ".join(f"{row['n']} -> {2 * row['n']} by {text}" for row, text in zip(rows, factors, strict=True))
        console.print(f"Doubling n of {name} multiplies the variance of the {' and the '.join(keys)}: {each}")
    console.print()
    for sentence in advise(results):
        console.print(sentence, markup=False, highlight=False)


def is_plotted(row: dict[str, Any], name: str) -> bool:
    """Whether a row is on its design's budget curve: masks are shared, one at each timestep."""
    return row["name"] == name and row["shared_masks"] and row["n_y"] == 1


def draw_variance(results: dict[str, Any], path: Path) -> None:
    """Save `variance_figure` as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = variance_figure(results)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def variance_figure(results: dict[str, Any]) -> "Figure":
    """Those variances of score, loss and gradient that are not 0, against forward passes, with the paper's 1/n line."""
    from matplotlib import pyplot

    shown = [row for row in results["rows"] if is_plotted(row, row["name"])]
    # On log axes: at policy = reference, neither score nor loss varies with shared masks.
    keys = [key for key in ("score", "loss", "gradient") if any(row[key] and row[key]["value"] > 0 for row in shown)]
    keys = keys or ["score"]
    figure, axes = pyplot.subplots(1, len(keys), figsize=(5 * len(keys), 4), constrained_layout=True, squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        for name in dict.fromkeys(row["name"] for row in results["rows"]):
            rows = sorted((row for row in results["rows"] if is_plotted(row, name)), key=lambda row: row["n"])
            n, value = [row["n"] for row in rows], [row[key]["value"] for row in rows]
            ends = [(row[key]["low"], row[key]["high"]) for row in rows]
            bars = [[abs(v - end[side] if end[side] is not None else 0) for v, end in zip(value, ends, strict=True)]
                    for side in (0, 1)]  # fmt: skip
            axis.errorbar(n, value, yerr=bars, marker="o", capsize=3, label=name)
            if name == "vrpo":
                axis.plot(n, [value[0] * n[0] / m for m in n], "k--", linewidth=0.8, label="1/n")
        scale = "log" if any(row[key] and row[key]["value"] > 0 for row in shown) else "linear"  # of no value above 0
        axis.set(title=f"variance of the {key}", xlabel="forward passes of each response", xscale="log", yscale=scale)
        label_ticks(axis, sorted({row["n"] for row in results["rows"]}))
        axis.legend()
    return figure


def label_ticks(axis: "Axes", n: list[int]) -> None:
    """Label log axes without collisions: x at values of n at least 1.5 times apart, y at 1, 2 and 5 or at decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    shown = n[:1]
    for value in n:
        if value >= 1.5 * shown[-1]:
            shown.append(value)
    axis.set_xticks(shown, [str(value) for value in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    if axis.get_yscale() == "linear":  # there is no value above 0
        return
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
