"""The pictures of a report: sizes, and how weights are spread. Needs matplotlib (extra `report`)."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelopt_rs.report.distribution import Distribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Part", "decimal_size", "draw_distribution", "draw_sizes", "picture", "png", "svg"]

Part = tuple[str, int] | tuple[str, int, int]

# By what each stands for on a page, which has others in the dark: a colour in a picture is a variable there.
COLOURS = {"ink": "#1c2430", "faint": "#b9c2cf", "before": "#8c97a8", "after": "#0b6bcb", "level": "#c2410c"}
STYLE: Any = {
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["faint"],
    "axes.labelcolor": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text: it is read aloud, found and copied
    "svg.hashsalt": "modelopt_rs",  # the same picture has the same bytes
    "text.parse_math": False,  # a name with dollar signs is a name
}
UNNAMED: Any = {"Software": None}  # a picture does not say what drew it
WIDTH = 3.6  # inches: narrower than a telephone draws it, so that letters become larger there, not smaller
LEGEND = 0.25  # inches
NAMED = 44  # characters of a name that are shown


def draw_sizes(parts: Sequence[Part], *, legend: bool = False) -> "Figure":
    """Draw how many bytes each part of a model has, before and after.

    Parameters
    ----------
    parts : sequence of (name, bytes, ...)
        The bytes before and after, or only those that there are.
    legend : bool
        Whether the picture says which is which: it stands alone.

    Returns
    -------
    Figure
    """
    figure, axes = _figure(0.3 + 0.56 * len(parts) + LEGEND * legend)
    for i, (part, *sizes) in enumerate(parts):
        beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "color": COLOURS["ink"]}
        # A name stands above its bars: beside them it would take the width that they need.
        axes.annotate(_short(part), (0, i - 0.3), **beside)
        for offset, size, colour in zip((0.02, 0.3), sizes, ("before", "after"), strict=False):
            axes.barh(i + offset, size, height=0.26, color=COLOURS[colour])
            axes.annotate(decimal_size(size), (size, i + offset), fontsize=8, **beside)
    axes.set_yticks([])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.2)
    if legend and any(len(sizes) > 1 for _, *sizes in parts):
        _say(figure, {"before": "before", "after": "after"})
    return figure


def _say(figure: "Figure", words: Mapping[str, str]) -> None:
    """Say above a picture what its colours stand for."""
    from matplotlib.patches import Patch

    keys = [Patch(color=COLOURS[colour], label=label) for colour, label in words.items()]
    figure.legend(handles=keys, loc="outside upper left", ncols=len(keys), frameon=False, fontsize=8, handlelength=1)


def draw_distribution(given: Distribution, *, legend: bool = False) -> "Figure":
    """Draw how the weights of one tensor are spread, and where its codes stand.

    Parameters
    ----------
    given : Distribution
    legend : bool
        As of `draw_sizes`.

    Returns
    -------
    Figure
    """
    figure, axes = _figure(2.0 + LEGEND * legend)
    middle = (given.edges[:-1] + given.edges[1:]) / 2
    largest = max(int(given.before.max(initial=0)), 1)
    axes.fill_between(middle, given.before / largest, step="mid", color=COLOURS["before"], alpha=0.55, linewidth=0)
    # What has few levels stands in few bins, far above the old ones: cut off, or the old ones would be a line.
    axes.step(middle, np.minimum(given.after / largest, 1.25), where="mid", color=COLOURS["after"], linewidth=1.1)
    axes.vlines(given.levels, -0.14, -0.03, color=COLOURS["level"], linewidth=1.0)
    axes.set_ylim(-0.18, 1.3)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_title(_short(given.name), loc="left", fontsize=9, color=COLOURS["ink"])
    if legend:
        codes = {"level": "levels"} if len(given.levels) else {}
        _say(figure, {"before": "weights before", "after": "weights after", **codes})
    return figure


def picture(parts: Sequence[Part], distributions: Sequence[Distribution]) -> bytes:
    """Draw the sizes, and the first distribution, as one PNG.

    Parameters
    ----------
    parts : sequence of (name, bytes, ...)
    distributions : sequence of Distribution

    Returns
    -------
    bytes
    """
    import matplotlib.image

    drawn = [png(draw_sizes(parts, legend=True))]
    drawn += [png(draw_distribution(each, legend=True)) for each in distributions[:1]]
    images = [matplotlib.image.imread(io.BytesIO(each)) for each in drawn]
    width = max(image.shape[1] for image in images)
    padded = [np.pad(i, ((0, 0), (0, width - i.shape[1]), (0, 0)), constant_values=1.0) for i in images]
    file = io.BytesIO()
    matplotlib.image.imsave(file, np.concatenate(padded), metadata=UNNAMED)
    return file.getvalue()


def svg(figure: "Figure") -> str:
    """Return a picture as an element of a page, its colours as the page's."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    # As wide as the page lets it be.
    head, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest


def png(figure: "Figure") -> bytes:
    """Return a picture as a PNG of 2 pixels for a point."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=144, facecolor="white", metadata=UNNAMED)
    return file.getvalue()


def _figure(height: float) -> "tuple[Figure, Axes]":
    # Not pyplot: it asks for a display, and keeps every figure.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.subplots()


def decimal_size(nbytes: int) -> str:
    """Return a number of bytes as files are sold: '4.1 MB' are 4,100,000."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if nbytes >= 10**power:
            return f"{nbytes / 10**power:.3g} {unit}"
    return f"{nbytes} bytes"


def _short(name: str) -> str:
    """Cut a long name: names of tensors tell by their end, words by their beginning."""
    if len(name) <= NAMED:
        return name
    return name[: NAMED - 1] + "…" if " " in name else "…" + name[1 - NAMED :]
