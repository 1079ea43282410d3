"""Plots as inline SVG whose colours are the page's, so that they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

INK, MUTED, LINE, HIGH, LOW, THIRD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
"""Stand-ins that are replaced by the page's custom properties."""

_PROPERTIES = {INK: "--ink", MUTED: "--muted", LINE: "--line", HIGH: "--high", LOW: "--low", THIRD: "--third"}

SMALL = (5.2, 2.5)
WIDE = (10.6, 3.1)
"""Sizes in inches; text is legible when a small plot fills a phone's width."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spikeexport",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


class Plot:
    """A figure that is being drawn, and afterwards its SVG.

    Attributes:
        axes: The matplotlib axes to draw on.
        svg: The finished SVG; empty while it is drawn.
    """

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.svg = Markup()


@contextmanager
def drawing(size: tuple[float, float] = SMALL) -> Iterator[Plot]:
    """Yields a plot to draw on; its `svg` is there when the block ends. No window system is touched."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        plot = Plot(axes)
        yield plot
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    plot.svg = Markup(_themed(buffer.getvalue()))


def max_and_median(
    layers: Sequence[int],
    high: Sequence[float],
    low: Sequence[float],
    label: str,
    size: tuple[float, float] = SMALL,
) -> Markup:
    """Draws maxima and medians by layer on a logarithmic axis, the gap between them shaded."""
    with drawing(size) as plot:
        axes = plot.axes
        axes.set_yscale("log")
        axes.fill_between(layers, low, high, color=HIGH, alpha=0.08, linewidth=0)
        axes.plot(layers, high, color=HIGH, marker="o", label="max")
        axes.plot(layers, low, color=LOW, marker="o", label="median")
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
        axes.minorticks_off()
        axes.xaxis.get_major_locator().set_params(integer=True)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top * (top / bottom) ** 0.12)
        axes.legend(loc="upper right", ncols=2, borderaxespad=0)
    return plot.svg


@dataclass(frozen=True)
class Series:
    """Points that are drawn in one way.

    Attributes:
        label: Its name in the legend.
        x: Horizontal positions.
        y: Values.
        colour: One of this module's stand-ins.
        marker: matplotlib marker; "" draws a line only.
        line: Whether the points are joined.
        width: Of the line, in points.
        alpha: Opacity.
        dashes: Whether the line is dashed.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    marker: str = "o"
    line: bool = True
    width: float = 1.6
    alpha: float = 1.0
    dashes: bool = False


def series_plot(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    log_x: bool = False,
    size: tuple[float, float] = WIDE,
) -> Markup:
    """Draws series over one horizontal axis; with `log_x` positions from 1 are spread so that the first ones show."""
    with drawing(size) as plot:
        axes = plot.axes
        if log:
            axes.set_yscale("log")
        if log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for one in series:
            style = ("--" if one.dashes else "-") if one.line else ""
            axes.plot(
                one.x,
                one.y,
                color=one.colour,
                marker=one.marker,
                ls=style,
                lw=one.width,
                alpha=one.alpha,
                label=one.label,
            )
        if log:
            _plain_log_ticks(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.02)
        columns = len(series) if size == WIDE else 2
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)
    return plot.svg


def _plain_log_ticks(axes: Any) -> None:
    """Labels a logarithmic axis with plain numbers, and more of them where it spans less than two decades."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_ylim()
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=6))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _themed(svg: str) -> str:
    """Returns the <svg> element with the page's colours, sized by its viewBox, without ids that repeat on a page."""
    element = svg[svg.index("<svg") :]
    for colour, name in _PROPERTIES.items():
        element = element.replace(colour, f"var({name})")
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r' id="[A-Za-z]+[\w.]*_\d+"', "", element)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # Text takes the page's font, so matplotlib's own families must not stay in the style attributes.
    element = re.sub(r"font-family: [^;\"]+;? ?", "", element)
    element = re.sub(r"font: ?(?:[\w.]+ )*([\d.]+)px [^;\"]+", r"font-size: \1px", element)
    return element.replace("<svg ", '<svg role="img" ', 1)
