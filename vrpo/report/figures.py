"""How all plots of the page look, and their way into it.

A plot has no background and no colours of its own for text and grid: the page's style sheet gives them, so that they
follow the reader's choice of light or dark.
"""

from typing import Any

import numpy as np
import plotly.graph_objects as go

# Told apart with any kind of colour vision (Okabe and Ito's hues), and at least 3:1 against white and against black.
PALETTE = ("#2a7de1", "#d55e00", "#009e73", "#b0619c", "#a67c00", "#5b6ee1", "#c0392b", "#4f8a10")
DASHES = ("solid", "dash", "dot", "dashdot")
# Less than at first, as much, more: for maps of a change.
DIVERGING = [[0, "#2a7de1"], [0.25, "#93bdf0"], [0.5, "#eceff1"], [0.75, "#eda06b"], [1, "#d55e00"]]
CLEAR = "rgba(0,0,0,0)"
FAINT = 0.3
HEIGHT = 280  # pixels


def figure(x: str, y: str, height: int = HEIGHT, **layout: Any) -> go.Figure:
    """An empty plot. x, y: titles of the axes."""
    axis = dict(zeroline=False, automargin=True, ticks="", title_standoff=8, exponentformat="e")
    pointer = dict(
        unifiedhovertitle=dict(text=f"{x} %{{x}}"), spikecolor="#8a929b", spikethickness=1, spikedash="solid"
    )  # fmt: skip
    found = go.Figure(
        layout=dict(
            height=height, margin=dict(l=8, r=8, t=8, b=8), paper_bgcolor=CLEAR, plot_bgcolor=CLEAR,
            font=dict(family="inherit", size=12), hovermode="x unified", showlegend=False,
            legend=dict(orientation="h", x=0, y=1.02, xanchor="left", yanchor="bottom", bgcolor=CLEAR),
            xaxis=axis | pointer | dict(title=dict(text=x), showgrid=False), yaxis=axis | dict(title=dict(text=y)),
        )
    )  # fmt: skip
    found.layout.template = None  # plotly's default is longer than the plot
    return found.update_layout(**layout)


def faded(color: str, opacity: float) -> str:
    """A colour of the palette with an opacity."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def line(plot: go.Figure, x, y, name: str, color: str, dash: str = "solid", **more: Any) -> None:
    """A line through points; nan is a gap in it."""
    plot.add_trace(
        go.Scatter(
            x=x, y=single(y), name=name, mode="lines", line=dict(color=color, width=2.2, dash=dash),
            hovertemplate="%{y:.4g}", **more,
        )
    )  # fmt: skip


def faint(plot: go.Figure, x, y, color: str) -> None:
    """Points that stand behind a line, without an entry in the legend."""
    plot.add_trace(
        go.Scatter(
            x=x, y=single(y), mode="markers", marker=dict(color=color, size=4), opacity=FAINT, hoverinfo="skip",
            showlegend=False,
        )
    )  # fmt: skip


def band(plot: go.Figure, x, middle, half_widths, color: str) -> None:
    """The area of an interval around a line."""
    kept = np.isfinite(middle) & np.isfinite(half_widths)
    x, low, high = np.asarray(x)[kept], (middle - half_widths)[kept], (middle + half_widths)[kept]
    plot.add_trace(
        go.Scatter(
            x=np.concatenate([x, x[::-1]]), y=single(np.concatenate([high, low[::-1]])), fill="toself", mode="lines",
            line=dict(width=0), fillcolor=faded(color, 0.18), hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip


def markers(plot: go.Figure, x, y, half_widths, name: str, color: str, symbol: str = "diamond", **more: Any) -> None:
    """Points with 95% intervals, joined by a thin line."""
    bars = None
    if np.isfinite(half_widths).any():
        bars = dict(type="data", array=single(np.nan_to_num(half_widths)), color=color, thickness=1.4, width=4)
    plot.add_trace(
        go.Scatter(
            x=x, y=single(y), name=name, mode="lines+markers", line=dict(color=faded(color, 0.5), width=1),
            marker=dict(color=color, size=8, symbol=symbol), error_y=bars, hovertemplate="%{y:.4g}", **more,
        )
    )  # fmt: skip


def single(values) -> np.ndarray:
    """Values with the precision of a picture, which takes half of the space."""
    return np.asarray(values, dtype=np.float32)


def as_json(plot: go.Figure) -> str:
    """The plot for a <script> element: no "<" of a name in it can end that."""
    return plot.to_json().replace("<", "\\u003c")
