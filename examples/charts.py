"""What the examples draw with: lines named at their ends, small multiples, bars; each for light and for dark pages.

A picture for `page.svg` is drawn twice, `page.svg` and `page-dark.svg`, both on nothing: a document shows the one that
fits. Any other suffix gets one picture on white. Needs matplotlib (extra `demo`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIGHT = {"ink": "#1c2430", "faint": "#c3cad4", "first": "#0b6bcb", "second": "#c2410c", "third": "#0f766e"}
DARK = {"ink": "#e4e8ee", "faint": "#555d69", "first": "#6cb0f5", "second": "#f4a070", "third": "#5fc9bd"}
WIDTH = 7.2  # inches
MOST_LINES = 6  # in one chart: more can't be told apart


@dataclass
class Line:
    """What is drawn from point to point, and the name at its end."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "first"
    dashes: str = "-"
    marker: str = ""


@dataclass
class Panel:
    """Bars of one kind: what they are, a value for each row, and how it is written."""

    title: str
    values: Sequence[float]
    form: str = "{:g}"


Drawing = Callable[[Mapping[str, str]], "Figure"]


def save(draw: Drawing, path: Path) -> None:
    """Draw for a light page, and beside it for a dark one where the picture is an SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    both = {path: LIGHT} | ({path.with_name(f"{path.stem}-dark.svg"): DARK} if path.suffix == ".svg" else {})
    for file, colours in both.items():
        with mpl_style(colours):
            figure = draw(colours)
            if path.suffix == ".svg":
                figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
                file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")
            else:
                figure.savefig(file, dpi=144, facecolor="white", metadata={"Software": None})


def mpl_style(colours: Mapping[str, str]) -> Any:
    """What matplotlib draws with meanwhile."""
    import matplotlib as mpl

    ink, faint = colours["ink"], colours["faint"]
    style: Any = {
        "text.color": ink, "axes.labelcolor": ink, "xtick.labelcolor": ink, "ytick.labelcolor": ink,
        "axes.edgecolor": faint, "xtick.color": faint, "ytick.color": faint, "grid.color": faint,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 10,
        "font.size": 9, "font.family": "sans-serif", "svg.hashsalt": "modelopt_rs",
        "svg.fonttype": "none",  # text stays text: it is found, copied and read aloud
    }  # fmt: skip
    return mpl.rc_context(style)


def _figure(height: float, *cut: int, **options: Any) -> "tuple[Figure, Any]":
    # Not pyplot: it asks for a display, and keeps every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(*cut, squeeze=False, **options)


def lines(given: Sequence[Line], title: str, x: str, y: str, form: str = "{:g}", x_ticks: Any = None) -> Drawing:
    """Draw a few lines, each named at its end with the number that it ends at; x is logarithmic."""
    if len(given) > MOST_LINES:
        raise ValueError(f"lines: given must be at most {MOST_LINES} lines, got {len(given)}; use multiples")

    def draw(colours: Mapping[str, str]) -> "Figure":
        figure, [[axes]] = _figure(3.8, 1, 1)
        for line in given:
            axes.plot(line.x, line.y, line.dashes, marker=line.marker, color=colours[line.colour], linewidth=1.8,
                      markersize=4.5)  # fmt: skip
        axes.set_xscale("log")
        if x_ticks is not None:
            axes.set_xticks(list(x_ticks), list(x_ticks.values()))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: form.format(value))
        axes.grid(visible=True, axis="y", alpha=0.6, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title, pad=12)
        _name_ends(axes, given, form, colours)
        return figure

    return draw


def _name_ends(axes: "Axes", given: Sequence[Line], form: str, colours: Mapping[str, str]) -> None:
    """Names in a column beside the chart, as high as the lines end, or as near to it as they have room."""
    axes.figure.draw_without_rendering()
    right = max(line.x[-1] for line in given)
    ends = [float(axes.transData.transform((line.x[-1], line.y[-1]))[1]) for line in given]
    room, at = 13 / 72 * axes.figure.dpi, list(ends)
    order = sorted(range(len(given)), key=ends.__getitem__)
    for _ in range(100):  # two that lie on each other give way by halves
        for low, high in pairwise(order):
            over = room - (at[high] - at[low])
            if over > 0:
                at[low], at[high] = at[low] - over / 2, at[high] + over / 2
    for line, end, y in zip(given, ends, at, strict=True):
        colour, shift = colours[line.colour], (y - end) * 72 / axes.figure.dpi
        axes.plot([line.x[-1], right], [line.y[-1]] * 2, color=colour, linewidth=0.6, alpha=0.5)
        axes.annotate(f"{line.name}, {form.format(line.y[-1])}", (right, line.y[-1]), xytext=(9, shift), color=colour,
                      va="center", textcoords="offset points", annotation_clip=False)  # fmt: skip


def multiples(
    given: Mapping[str, Sequence[float]], said: Mapping[str, str], beside: str, title: str, columns: int = 4
) -> Drawing:
    """Draw a small chart for each, with what is `said` of it, and the line of `beside` in all; y is logarithmic."""

    def draw(colours: Mapping[str, str]) -> "Figure":
        rows = -(-len(given) // columns)
        figure, grid = _figure(1.45 * rows + 0.7, rows, columns, sharex=True, sharey=True)
        epochs = np.arange(1, len(given[beside]) + 1)
        for axes, name in zip(grid.flat, given, strict=False):
            axes.semilogy(epochs, given[beside], color=colours["faint"], linewidth=1.6)
            axes.semilogy(epochs, given[name], color=colours["first"], linewidth=1.6)
            axes.set_title(name, fontsize=8.5, pad=3)
            axes.text(0.98, 0.95, said[name], transform=axes.transAxes, ha="right", va="top", fontsize=8.5)
            axes.minorticks_off()
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_ylim(min(given[beside]) / 20, 2 * max(given[beside]))
            axes.grid(visible=True, alpha=0.35, linewidth=0.5)
        for axes in grid.flat[len(given) :]:
            axes.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return figure

    return draw


def bars(rows: Sequence[str], panels: Sequence[Panel], title: str, marked: Sequence[str] = ()) -> Drawing:
    """Draw rows of bars in panels side by side, the number at the end of each; rows that are `marked` stand out."""

    def draw(colours: Mapping[str, str]) -> "Figure":
        figure, [grid] = _figure(0.9 + 0.27 * len(rows), 1, len(panels), sharey=True)
        for axes, panel in zip(grid, panels, strict=True):
            fills = [colours["first" if row in marked else "faint"] for row in rows]
            axes.barh(range(len(rows)), panel.values, color=fills, height=0.68)
            for i, value in enumerate(panel.values):
                axes.annotate(panel.form.format(value), (value, i), xytext=(3, 0), textcoords="offset points",
                              va="center", fontsize=8)  # fmt: skip
            axes.set_title(panel.title, fontsize=9)
            axes.margins(x=0.3)
            axes.xaxis.set_visible(False)
            axes.spines["bottom"].set_visible(False)
            axes.tick_params(left=False)
        grid[0].set_yticks(range(len(rows)), rows)
        grid[0].invert_yaxis()
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return figure

    return draw
