"""Figures from results and training logs, drawn without a display.

Only matplotlib's object-oriented API is used (no pyplot, so no backend and no global state). The
colours are from the Okabe-Ito palette, which colour-blind readers can tell apart, and each role has
its own marker as well.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from w2s_jax.report.words import median, number, plural, roles, setting, show, show_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE = "#1f2328", "#c9d1d9"
COLOURS = {"weak": "#d55e00", "student": "#0072b2", "ceiling": "#009e73"}
MARKERS = {"weak": "s", "student": "o", "ceiling": "D"}
MAX_POINTS = 600


def _style(ax: "Axes") -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(RULE)
    ax.tick_params(colors=INK, labelsize=9, length=3)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)


def _wrap(text: str, width: int) -> str:
    import textwrap

    # A dollar sign in a name would otherwise start a formula.
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)).replace("$", r"\$")


def accuracy_figure(results: list[dict[str, Any]], groups: Sequence[str] | None = None) -> "Figure":
    """Test accuracies of the weak model, the students and the ceiling.

    Args:
        results: the contents of one or several result.json files.
        groups: a panel title for each result; results with equal titles share a panel. By default
            the task, the protocol and the models.

    Returns:
        A matplotlib Figure. A panel of one run shows each accuracy with a bar of one standard
        error; a panel of several shows each run lightly and their median boldly. Dashed lines
        continue the weak model's and the ceiling's accuracy.

    Raises:
        ValueError: no results, or as many `groups` as results not given.
    """
    from matplotlib.figure import Figure

    titles = list(groups) if groups is not None else [setting(r) for r in results]
    if not results or len(titles) != len(results):
        raise ValueError(f"{len(results)} results with {len(titles)} group titles")
    panels: dict[str, list[dict[str, Any]]] = {}
    for title, result in zip(titles, results, strict=True):
        panels.setdefault(title, []).append(result)
    rows_by_panel = [len(_panel_rows(members)) for members in panels.values()]
    columns = 1 if len(panels) == 1 else 2
    lines = math.ceil(len(panels) / columns)
    height = 1.75 + 0.42 * max(rows_by_panel)
    figure = Figure(figsize=(5.6 * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, (title, members) in zip(axes, panels.items(), strict=False):
        _accuracy_panel(ax, title, members)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    return figure


def _panel_rows(results: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The entries that have an accuracy, by (role, label): weak first, the ceiling last."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for wanted in ("weak", "student", "ceiling"):
        for result in results:
            for role, label, entry in roles(result):
                if role == wanted and number(entry.get("accuracy")) is not None:
                    rows.setdefault((role, label), []).append(entry)
    return rows


def _accuracy_panel(ax: "Axes", title: str, results: list[dict[str, Any]]) -> None:
    rows = _panel_rows(results)
    several = len(results) > 1
    low, high = 1.0, 0.0
    for y, ((role, _), entries) in enumerate(rows.items()):
        colour, marker = COLOURS[role], MARKERS[role]
        values = [float(e["accuracy"]) for e in entries]
        errors = [number(e.get("accuracy_se")) or 0.0 for e in entries]
        middle = median(values) or 0.0
        if several:
            ax.plot(values, [y] * len(values), marker, ms=5, color=colour, alpha=0.35, mew=0)
            reach = [0.0] * len(values)
        else:
            ax.errorbar(values, [y], xerr=errors, color=colour, capsize=4, lw=2, fmt="none")
            reach = errors
        ax.plot([middle], [y], marker, ms=9, color=colour, zorder=3)
        if role != "student":
            ax.axvline(middle, color=colour, ls="--", lw=1, zorder=0)
        words = f"{show(middle)} ({plural(len(values), 'run')})" if several else None
        ax.annotate(
            words or show_accuracy(entries[0]),
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=INK,
        )
        low = min(low, *(v - e for v, e in zip(values, reach, strict=True)))
        high = max(high, *(v + e for v, e in zip(values, reach, strict=True)))
    _accuracy_axes(ax, title, results, rows, (low, high))


def _accuracy_axes(
    ax: "Axes",
    title: str,
    results: list[dict[str, Any]],
    rows: dict[tuple[str, str], list[dict[str, Any]]],
    span: tuple[float, float],
) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = span if rows else (0.0, 1.0)
    pad = max(0.08 * (high - low), 0.01)
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if low - pad < 0.5 < high + pad:
        ax.axvline(0.5, color=INK, ls=":", lw=1, zorder=0)
        ax.annotate(
            "chance", (0.5, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8,
            color=INK,
        )  # fmt: skip
    names = ["weak model" if role == "weak" else label for role, label in rows]
    ax.set_yticks(range(len(rows)), [n.replace("$", r"\$") for n in names])
    sizes = {e.get("n") for entries in rows.values() for e in entries}
    n = sizes.pop() if len(sizes) == 1 else None
    share = f"fraction of {n} documents" if n else "fraction of documents"
    key = (
        "small points: single runs; large points: their medians"
        if len(results) > 1
        else "bars: ± 1 standard error"
    )
    ax.set_xlabel(f"test accuracy ({share})\n{key}", fontsize=9)
    ax.set_title(_wrap(title, 52), fontsize=10, color=INK, loc="left", x=0, pad=18)
    _style(ax)
    ax.grid(axis="x", color=RULE, lw=0.5, alpha=0.6)
    ax.set_axisbelow(True)


def training_figure(curves: dict[str, list[dict[str, Any]]], columns: int = 3) -> "Figure":
    """Training loss against the step, one small panel a phase.

    Args:
        curves: the rows of each phase's metrics.jsonl by panel title. Rows with `"split": "train"`
            need `step` and `loss`; rows with `"split": "validation"` may have `accuracy` and
            `agreement`, which go on a second axis. Rows without finite numbers are passed over;
            where a step occurs twice (after a resume) the later row counts.
        columns: panels a line.

    Returns:
        A matplotlib Figure: the logged losses lightly, an exponential moving average boldly. With
        no curves it says so in words.
    """
    from matplotlib.figure import Figure

    if not curves:
        figure = Figure(figsize=(5, 1.2))
        figure.text(0.5, 0.5, "No training curves were recorded.", ha="center", color=INK)
        return figure
    columns = min(columns, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, (title, rows) in zip(axes, curves.items(), strict=False):
        _training_panel(ax, title, rows)
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    return figure


def _series(rows: list[dict[str, Any]], split: str, field: str) -> tuple[list[float], list[float]]:
    """Steps and values of one field, in the order of the steps, without repetitions."""
    points: dict[float, float] = {}
    for row in rows:
        step, value = number(row.get("step")), number(row.get(field))
        if row.get("split") == split and step is not None and value is not None:
            points[step] = value
    steps = sorted(points)
    return steps, [points[s] for s in steps]


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average over about a thirtieth of the run, unbiased at its start."""
    keep = 1 - 1 / max(1.0, len(values) / 30)
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _training_panel(ax: "Axes", title: str, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    steps, losses = _series(rows, "train", "loss")
    smoothed = _smooth(losses)
    every = max(1, math.ceil(len(steps) / MAX_POINTS))
    colour = COLOURS["student"]
    # A one-point series has no line to see.
    marker = "o" if len(steps) < 3 else ""
    ax.plot(steps[::every], losses[::every], color=colour, alpha=0.3, lw=0.8)
    ax.plot(steps[::every], smoothed[::every], color=colour, lw=1.8, marker=marker, ms=4)
    if not steps:
        ax.text(0.5, 0.5, "no losses logged", transform=ax.transAxes, ha="center", color=INK)
    ax.set_xlabel("optimiser step", fontsize=9)
    ax.set_ylabel("training loss (nats)", fontsize=9)
    ax.set_title(_wrap(title, 44), fontsize=9.5, color=INK, loc="left")
    _style(ax)
    ax.grid(color=RULE, lw=0.5, alpha=0.6)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    evaluations = {f: _series(rows, "validation", f) for f in ("accuracy", "agreement")}
    evaluations = {f: xy for f, xy in evaluations.items() if xy[0]}
    if evaluations:
        _validation_axis(ax, evaluations)


def _validation_axis(ax: "Axes", series: dict[str, tuple[list[float], list[float]]]) -> None:
    right = ax.twinx()
    styles = {"accuracy": (COLOURS["ceiling"], "D"), "agreement": (COLOURS["weak"], "s")}
    names = {"accuracy": "accuracy", "agreement": "agreement with weak labels"}
    for field, (steps, values) in series.items():
        colour, marker = styles[field]
        right.plot(
            steps, values, color=colour, marker=marker, ms=4, lw=1, ls="--", label=names[field]
        )
    _style(right)
    right.spines["right"].set_visible(True)
    right.spines["right"].set_color(RULE)
    right.set_ylabel("validation (fraction)", fontsize=9, color=INK)
    right.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=8,
        labelcolor=INK,
    )  # fmt: skip
