"""One plot as inline SVG: it takes the page's text colour and width, and needs no outside font or file."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (5.4, 3.3)  # inches; 389 x 238 units, about a phone's width
INK = "#010203"  # placeholder for the page's text colour
# Distinct for colour-blind readers, and on light as on dark ground.
COLOURS = ("#3b86cf", "#e0862b", "#2f9e73", "#cf5b7a", "#8d74d6", "#9a7b4f", "#4fb3c4", "#8a8f98")
STYLE = {
    "text.parse_math": False,  # a name may hold a $
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "font.family": "sans-serif",
    "font.size": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Plot:
    """A figure of the page."""

    title: str
    svg: str
    note: str = ""


def require_matplotlib() -> None:
    """Raise `UserError` when matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install -e '.[report]'") from error


def plot(title: str, paint: Callable[["Axes"], None], note: str = "") -> Plot:
    """Return what `paint` draws on the axes it is given."""
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    # ids are hashes of content and salt: a plot has the same bits every time, and ids of a page's plots differ
    settings: Any = STYLE | {"axes.prop_cycle": cycler(color=COLOURS), "svg.hashsalt": title}
    with mpl.rc_context(settings):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.18, color=INK, linewidth=0.6)
        axes.set_axisbelow(True)
        paint(axes)
        entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
        columns = 5 if sum(len(label) for _, label in entries) <= 40 else 4
        # matplotlib fills a legend column by column; it is read row by row
        entries = [entry for column in range(columns) for entry in entries[column::columns]]
        if entries:
            handles, labels = zip(*entries, strict=True)
            figure.legend(
                handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2, handlelength=1.3
            )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(title, _inline(buffer.getvalue(), title), note)


def whole_numbers(axes: "Axes") -> None:
    """Mark whole rounds on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")


def per_cent(axes: "Axes") -> None:
    """Show shares in [0, 1] as per cent on the vertical axis."""
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def marker(points: int) -> str:
    """Return the marker of a line: a dot for few points; many dots would hide the line."""
    return "o" if points <= 30 else ""


def _inline(document: str, title: str) -> str:
    """Return the svg element alone, with the width of its container and the page's text colour."""
    _, _, content = document[document.index("<svg") :].partition(">")
    width, height = (72 * side for side in SIZE)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(title)}">'
        + content.replace(INK, "currentColor")
    )
