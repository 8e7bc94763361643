"""Style of the figures, and rendering to SVG and PNG without a display.

Only matplotlib's object-oriented API is used: pyplot would need a backend and keeps global state. A
figure is a list of panels. The page shows each panel separately, so that they stack on a narrow
screen; the files contain all of them. Colours are distinguishable by colour-blind readers, have a
counterpart for dark pages, and are always combined with markers or line styles.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from w2s_jax.report.results import Entry, number, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE, WEAK = "#1f2328", "#c9d1d9", "#c25400"
SERIES = ("#0068a3", "#a8457f", "#00805e", "#8f6a00", "#5b5fc7", "#6d6f73")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "^", "v", "P", "X", "h")
#: CSS variable -> colour on light and on dark pages.
THEME = {
    "ink": (INK, "#e6e9ec"),
    "rule": (RULE, "#3d4650"),
    "weak": (WEAK, "#f0914a"),
    "s0": (SERIES[0], "#62b8f0"),
    "s1": (SERIES[1], "#e79ac6"),
    "s2": (SERIES[2], "#3cc79a"),
    "s3": (SERIES[3], "#e3b341"),
    "s4": (SERIES[4], "#a5a8ff"),
    "s5": (SERIES[5], "#b4b8be"),
}
#: A sweep can have hundreds of panels; drawing them all would make the page slow.
MAX_PANELS = 12
#: Default width of a panel in inches.
WIDTH = 4.5
#: Distance in inches from the axes to their legend: the height of the ticks and the axis label.
LEGEND_OFFSET = 0.42
#: Height in inches of a line of a title or a legend.
LINE = 0.17


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: its title.
        alt_text: a description of its content for screen readers.
        draw: a function that draws on the axes.
        height: its height in inches.
        width: its width in inches.
    """

    title: str
    alt_text: str
    draw: Callable[["Axes"], None]
    height: float = 3.3
    width: float = WIDTH


def colour(index: int) -> str:
    """Return the colour of a series; six colours repeat."""
    return SERIES[index % len(SERIES)]


def role_style(role: str, index: int) -> tuple[str, str, str]:
    """Return colour, marker and line style of a role; `index` is a student's among all labels."""
    if role == "student":
        return colour(index), MARKERS[index % len(MARKERS)], LINES[index % len(LINES)]
    return (WEAK, "s", "-") if role == "weak" else (INK, "D", "-")


def escape_mathtext(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as the start of a formula."""
    return text.replace("$", r"\$")


def wrap(text: str, width: int) -> str:
    """Break `text` into at most four lines of `width` characters, escaped for matplotlib."""
    import textwrap

    lines = textwrap.wrap(text, width, break_on_hyphens=False, max_lines=4, placeholder=" …")
    return escape_mathtext("\n".join(lines))


def _shorten(name: str, limit: int = 56) -> str:
    """Cut the middle out of a name that is too long for a legend."""
    return name if len(name) <= limit else f"{name[: limit - 16]}…{name[-15:]}"


def width_for(labels: Iterable[str]) -> float:
    """Return the width in inches of a panel with these labels on its left."""
    return WIDTH + 0.07 * max(0, max(map(len, labels)) - 14)


def count_documents(entries: Iterable[Entry]) -> str:
    """Format the number of test documents: `400 documents`, `317 to 400 documents`, `documents`."""
    sizes = sorted({int(n) for n in (number(e.get("n")) for e in entries) if n is not None})
    if not sizes:
        return "documents"
    if len(sizes) == 1:
        return plural(sizes[0], "document")
    return f"{sizes[0]} to {sizes[-1]} documents"


def seeds_per_point(counts: Iterable[int]) -> str:
    """Format the number of seeds: `3 seeds per point`, `1 to 3 seeds per point`."""
    distinct = sorted(set(counts))
    if len(distinct) == 1:
        return f"{plural(distinct[0], 'seed')} per point"
    return f"{distinct[0]} to {distinct[-1]} seeds per point"


def error_bars(points: Sequence[tuple[float, float, int]]) -> list[list[float]]:
    """Return the lengths below and above shares with errors, cut at 0 and 1."""
    low = [min(error, value) for value, error, _ in points]
    return [low, [min(error, 1 - value) for value, error, _ in points]]


def style(ax: "Axes", grid: bool = True) -> None:
    """Apply the common style: two spines, small ticks, a light grid below the data."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(RULE)
    ax.tick_params(which="both", colors=INK, labelsize=9, length=3)
    ax.xaxis.label.set(color=INK, fontsize=9.5)
    ax.yaxis.label.set(color=INK, fontsize=9.5)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(color=RULE, lw=0.5, alpha=0.7)


def legend(ax: "Axes") -> None:
    """Add a legend below the axes, if it has entries."""
    from matplotlib.transforms import ScaledTranslation

    handles, names = ax.get_legend_handles_labels()
    if not handles:
        return
    columns = _legend_columns(names)
    # In inches: a fraction of the axes' height would move the legend when they are laid out.
    shift = ScaledTranslation(0, -LEGEND_OFFSET, ax.figure.dpi_scale_trans)
    ax.legend(
        handles, list(map(_shorten, names)), loc="upper center", bbox_to_anchor=(0.5, 0),
        ncols=columns, bbox_transform=ax.transAxes + shift, frameon=False, fontsize=8.5,
        labelcolor=INK, handlelength=2.4,
    )  # fmt: skip


def _legend_columns(names: Sequence[str]) -> int:
    return 1 if max(map(len, names)) > 26 else 2


def _legend_lines(ax: "Axes") -> int:
    """Return the number of lines of the legend below the axes."""
    found = ax.get_legend()
    if found is None:
        return 0
    names = [text.get_text() for text in found.get_texts()]
    return math.ceil(len(names) / _legend_columns(names))


def sizes_axis(ax: "Axes", sizes: Sequence[float]) -> None:
    """Make the x axis a logarithmic axis of parameter counts, labelled like `28.5k`."""
    from matplotlib.ticker import NullFormatter, NullLocator

    distinct = sorted(set(sizes))
    ax.set_xscale("log")
    low, high = distinct[0], distinct[-1]
    ax.set_xlim(low / (high / low) ** 0.08 / 1.15, high * (high / low) ** 0.08 * 1.15)
    ticks: list[float] = []
    spacing = (math.log(high / low) or 1.0) / 7
    for size in distinct:
        # Skip ticks whose labels would overlap.
        if not ticks or math.log(size / ticks[-1]) > spacing:
            ticks.append(size)
    ax.set_xticks(ticks, [_format_count(t) for t in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())


def _format_count(value: float) -> str:
    """Format a count with three significant digits: `28.5k`, `1.4B`."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f}"


def figure_of(panels: Sequence[Panel], titled: bool = True) -> "Figure":
    """Draw all panels in one figure of up to three columns."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 1 if len(panels) == 1 else 2 if len(panels) < 7 else 3)
    lines = math.ceil(len(panels) / columns)
    width = max(p.width for p in panels)
    figure = Figure(layout="constrained")
    # A title begins at the left of its part, not at that of the axes, which may have long labels.
    parts = figure.subfigures(lines, columns, squeeze=False).ravel()
    height = 0.0
    for part, panel in zip(parts, panels, strict=False):
        ax = part.subplots()
        panel.draw(ax)
        own = panel.height + LINE * max(0, _legend_lines(ax) - 2)
        if titled:
            title = wrap(panel.title, int(13 * width))
            part.suptitle(title, x=0.02, ha="left", fontsize=9.5, color=INK)
            own += 0.1 + LINE * (title.count("\n") + 1)
        height = max(height, own)
    figure.set_size_inches(width * columns, height * lines)
    # Lay out only once: each layout takes as long as drawing, and a figure is saved twice.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


def png(figure: "Figure") -> bytes:
    """Render as PNG on a white background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: "Figure", salt: str) -> str:
    """Render as SVG on a transparent background, with text as text elements."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib repeats all texts in comments.
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Matplotlib's font may not be installed where the page is read.
    return re.sub(
        r"(font:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1'DejaVu Sans', Verdana, sans-serif", svg
    )


def svg_file(figure: "Figure", name: str) -> bytes:
    """Render as an SVG file that also has colours for viewers with a dark background."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in THEME.values()
        for kind in ("fill", "stroke")
    )
    sheet = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    svg = _svg(figure, name)
    end = svg.index(">", svg.index("<svg")) + 1
    return (svg[:end] + sheet + svg[end:]).encode()


def svg_inline(figure: "Figure", prefix: str, alt_text: str) -> str:
    """Render as SVG for the page, with colours from the page's style sheet.

    Args:
        figure: the figure.
        prefix: put before each id, which must be unique within the page.
        alt_text: the description for screen readers.
    """
    from markupsafe import escape

    svg = _svg(figure, prefix)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    for name, (light, _) in THEME.items():
        svg = svg.replace(light, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt_text)}"', 1)
