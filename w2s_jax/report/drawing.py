"""How figures look, and how they become SVG and PNG, without a display.

Only matplotlib's object-oriented API is used (no pyplot, so no backend and no global state). A
figure is a list of panels: the page shows each by itself, so that a narrow screen stacks them, and
the files hold all of them. Colours can be told apart by colour-blind readers, have a counterpart
for dark pages, and never stand alone: markers or line styles differ as well.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE, WEAK = "#1f2328", "#c9d1d9", "#c25400"
SERIES = ("#0068a3", "#a8457f", "#00805e", "#8f6a00", "#5b5fc7", "#6d6f73")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "^", "v", "P", "X", "h")
#: name of the style sheet's variable -> colour on light and on dark pages.
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
# A sweep can have hundreds of panels: beyond this many nobody looks, and the page is slow.
MAX_PANELS = 12
WIDTH = 4.5


@dataclass(frozen=True)
class Panel:
    """One set of axes: its title, what it shows in words, how it is drawn, its size in inches."""

    title: str
    words: str
    draw: Callable[["Axes"], None]
    height: float = 3.3
    width: float = WIDTH


def colour(index: int) -> str:
    """The colour of the series `index`; they repeat after six."""
    return SERIES[index % len(SERIES)]


def plain(text: str) -> str:
    """`text` for matplotlib: a dollar sign in a name would otherwise start a formula."""
    return text.replace("$", r"\$")


def wrap(text: str, width: int) -> str:
    """`text` over several lines."""
    import textwrap

    return plain("\n".join(textwrap.wrap(text, width, break_on_hyphens=False)))


def style(ax: "Axes", grid: bool = True) -> None:
    """Quiet axes: two spines, small ticks, a light grid below the data."""
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


def legend(ax: "Axes", columns: int = 2, below: float = 0.17) -> None:
    """A legend below the axes (by a share of their height), if anything is named."""
    handles, names = ax.get_legend_handles_labels()
    if not handles:
        return
    columns = 1 if max(map(len, names)) > 26 else columns
    ax.legend(
        handles, names, loc="upper center", bbox_to_anchor=(0.5, -below), ncols=columns,
        frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.4,
    )  # fmt: skip


def sizes_axis(ax: "Axes", sizes: Sequence[float]) -> None:
    """A logarithmic axis of parameter counts that are written as people say them."""
    from matplotlib.ticker import NullFormatter, NullLocator

    distinct = sorted(set(sizes))
    ax.set_xscale("log")
    low, high = distinct[0], distinct[-1]
    ax.set_xlim(low / (high / low) ** 0.08 / 1.15, high * (high / low) ** 0.08 * 1.15)
    ticks: list[float] = []
    room = (math.log(high / low) or 1.0) / 7
    for size in distinct:
        # Neighbours whose names would overlap share a tick.
        if not ticks or math.log(size / ticks[-1]) > room:
            ticks.append(size)
    ax.set_xticks(ticks, [count(t) for t in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())


def count(value: float) -> str:
    """`28.5k`, `1.4B`."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f}"


def figure_of(panels: Sequence[Panel], titled: bool = True) -> "Figure":
    """All panels in one figure, in up to three columns."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 1 if len(panels) == 1 else 2 if len(panels) < 7 else 3)
    lines = math.ceil(len(panels) / columns)
    height = max(p.height for p in panels) + (0.25 if titled else 0.0)
    width = max(p.width for p in panels)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        panel.draw(ax)
        if titled:
            ax.set_title(wrap(panel.title, 58), fontsize=9.5, color=INK, loc="left")
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    # Once is enough, and each layout takes as long as drawing: the axes stay where they are now.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


def png(figure: "Figure") -> bytes:
    """The figure on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: "Figure", salt: str) -> str:
    """The figure as SVG with a transparent ground and its text as text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib repeats the figure's texts in comments.
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Where the font is not there another sans serif does.
    return re.sub(
        r"(font:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1'DejaVu Sans', Verdana, sans-serif", svg
    )


def svg_file(figure: "Figure", name: str) -> bytes:
    """SVG that stands alone: drawn for light grounds, with colours for viewers that are dark."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in THEME.values()
        for kind in ("fill", "stroke")
    )
    sheet = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    svg = _svg(figure, name)
    end = svg.index(">", svg.index("<svg")) + 1
    return (svg[:end] + sheet + svg[end:]).encode()


def svg_inline(figure: "Figure", prefix: str, words: str) -> str:
    """SVG for the page, whose colours follow the page's style sheet.

    `prefix` is put before each id, since several figures share the page's ids; `words` say what
    there is to see.
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
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)
