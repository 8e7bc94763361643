"""Charts of results: the ladder, PGR against the gap, and accuracies by loss.

Each function returns the panels that have data. A point is a mean over seeds. Its error bar is one
standard error of this mean (`results.mean_and_error`), within [0, 1].
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from w2s_jax.report.drawing import (
    INK,
    LINES,
    MARKERS,
    RULE,
    WEAK,
    Panel,
    colour,
    count_documents,
    error_bars,
    escape_mathtext,
    legend,
    role_style,
    seeds_per_point,
    sizes_axis,
    style,
    width_for,
)
from w2s_jax.report.results import (
    MAX_STUDENTS,
    Entry,
    Key,
    chance_level,
    defined_pgr,
    first_of,
    gap,
    has_answers,
    mean_and_error,
    number,
    plural,
    show,
    show_accuracy,
)
from w2s_jax.report.settings import Setting, student_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A PGR outside this range is drawn as an arrow at the edge.
PGR_LOW, PGR_HIGH = -1.0, 2.0
#: Parameters of the strong model -> entries, one per seed.
Line = dict[float, list[Entry]]


# --- the ladder ----------------------------------------------------------------------------------


def ladder_panels(settings: Sequence[Setting]) -> list[Panel]:
    """Return panels of test accuracy against the size of the strong model."""
    rungs: dict[tuple[str, str, str], list[Setting]] = {}
    for setting in settings:
        rungs.setdefault((setting.task, setting.protocol, setting.variant), []).append(setting)
    labels = student_labels(settings)
    panels = []
    for (task, protocol, variant), members in rungs.items():
        supervisors = list(dict.fromkeys(m.weak for m in members))
        own = student_labels(members)
        split = [[label] for label in own] if len(supervisors) * len(own) > MAX_STUDENTS else [own]
        left_out = ""
        if len(members) == 1:
            # For a single pair of models, the accuracy panel shows all students.
            split = [own[:MAX_STUDENTS]]
            left_out = first_of(own)
        for shown in split:
            lines, ceilings, weak = _ladder_lines(members, shown)
            if not lines and not ceilings:
                continue
            title = "; ".join(filter(None, [f"{task}, {protocol} protocol", variant, left_out]))
            title += f", {shown[0]}" if len(split) > 1 else ""
            draw = partial(
                _draw_ladder, lines=lines, ceilings=ceilings, weak=weak,
                supervisors=supervisors, labels=labels,
            )  # fmt: skip
            panels.append(Panel(title, _ladder_alt_text(lines, ceilings), draw, 3.8))
    return panels


def _ladder_lines(
    settings: Sequence[Setting], labels: Sequence[str]
) -> tuple[dict[tuple[str, str], Line], Line, dict[str, Line]]:
    """Collect the points of a ladder.

    Settings share ceilings, which do not depend on the supervisor: each phase counts once.

    Returns:
        (supervisor, label) -> line of students; line of ceilings; supervisor -> line of its own.
    """
    lines: dict[tuple[str, str], Line] = {}
    ceilings: Line = {}
    weak: dict[str, Line] = {}
    seen: set[tuple[str, str, str]] = set()
    for setting in settings:
        for (role, label), entries in setting.entries.items():
            for seed, entry in enumerate(entries):
                size = number(entry.get("parameters"))
                if size is None:
                    continue
                if role == "student" and label in labels:
                    lines.setdefault((setting.weak, label), {}).setdefault(size, []).append(entry)
                key = (role, label, str(entry.get("phase") or (setting.weak, setting.strong, seed)))
                if role == "student" or key in seen:
                    continue
                seen.add(key)
                if label == "ceiling":
                    ceilings.setdefault(size, []).append(entry)
                elif role == "weak":
                    weak.setdefault(setting.weak, {}).setdefault(size, []).append(entry)
    return lines, ceilings, weak


def _ladder_alt_text(lines: dict[tuple[str, str], Line], ceilings: Line) -> str:
    named = [(f"{label} students of {weak}", line) for (weak, label), line in lines.items()]
    parts = []
    for name, line in [*named, ("ceiling", ceilings)]:
        values = ", ".join(
            f"{size:.0f} parameters: {show(mean_and_error(e)[0])}"
            for size, e in sorted(line.items())
        )
        parts += [f"{name} ({values})"] if values else []
    return "Test accuracy against parameters of the strong model: " + "; ".join(parts) + "."


def _draw_ladder(
    ax: "Axes",
    lines: dict[tuple[str, str], Line],
    ceilings: Line,
    weak: dict[str, Line],
    supervisors: Sequence[str],
    labels: Sequence[str],
) -> None:
    single = len(supervisors) == 1
    seeds: set[int] = set()

    def draw(line: Line, name: str, shade: str, marker: str, dashes: str) -> None:
        if not line:
            return
        sizes = sorted(line)
        points = [mean_and_error(line[s]) for s in sizes]
        seeds.update(p[2] for p in points)
        ax.errorbar(
            sizes, [p[0] for p in points], yerr=error_bars(points), color=shade, ls=dashes,
            marker=marker, ms=6, lw=1.6, capsize=3, elinewidth=1, label=escape_mathtext(name),
        )  # fmt: skip

    draw(ceilings, "ceiling (ground truth)", INK, "D", "-")
    for (supervisor, label), line in lines.items():
        kind = labels.index(label)
        shade = colour(kind if single else supervisors.index(supervisor))
        name = label if single else f"{supervisor}, {label}"
        draw(line, name, shade, MARKERS[kind % len(MARKERS)], LINES[kind % len(LINES)])
    for supervisor, line in weak.items():
        shade = WEAK if single else colour(supervisors.index(supervisor))
        name = f"weak model {supervisor}"
        draw(line, name, shade, "s", "none")
        for entries in line.values():
            ax.axhline(mean_and_error(entries)[0], color=shade, ls=":", lw=1, zorder=0)
    tables = [*lines.values(), *weak.values(), ceilings]
    sizes_axis(ax, [size for line in tables for size in line])
    entries = [e for line in tables for found in line.values() for e in found]
    ax.set_ylabel(f"test accuracy ({count_documents(entries)})")
    ax.set_xlabel(f"parameters of the strong model ({seeds_per_point(seeds)})")
    style(ax)
    legend(ax)


# --- PGR against the gap -------------------------------------------------------------------------


def gap_panels(settings: Sequence[Setting]) -> list[Panel]:
    """Return a panel of each student's PGR against the gap between weak model and ceiling."""
    labels = student_labels(settings)
    points: list[tuple[str, float, Entry]] = []
    undefined = 0
    for setting in settings:
        for found in setting.seeds.values():
            for (role, label), entry in found.items():
                if role != "student":
                    continue
                result = {"weak": found.get(("weak", "weak"))}
                result["ceiling"] = found.get(("ceiling", "ceiling"))
                size = gap(result, entry).value
                if defined_pgr(result, entry) is None or size is None:
                    undefined += 1
                else:
                    points.append((label, size, entry))
    if not points:
        return []
    alt_text = f"PGR against the gap between weak model and ceiling: {plural(len(points), 'point')}"
    alt_text += f"; {undefined} more have no defined PGR." if undefined else "."
    title = "All tasks and settings" if len(settings) > 1 else settings[0].title
    return [Panel(title, alt_text, partial(_draw_gap, points=points, labels=labels), 3.6)]


def _draw_gap(ax: "Axes", points: list[tuple[str, float, Entry]], labels: Sequence[str]) -> None:
    from matplotlib.transforms import ScaledTranslation

    # Students after the first few share one style and one legend entry.
    names = {label: label if i < MAX_STUDENTS else "others" for i, label in enumerate(labels)}
    groups: dict[str, list[tuple[float, Entry]]] = {}
    for label, width, entry in sorted(points, key=lambda point: labels.index(point[0])):
        groups.setdefault(names[label], []).append((width, entry))
    outside: dict[tuple[float, float], list[float]] = {}
    for position, (name, own) in enumerate(groups.items()):
        first = next(i for i, label in enumerate(labels) if names[label] == name)
        shade, marker = colour(first), MARKERS[first % len(MARKERS)]
        if first >= MAX_STUDENTS:
            shade, marker = RULE, "."
        # Students of one run have the same gap: put them side by side, 6 points apart.
        shift = (position - (len(groups) - 1) / 2) * 6 / 72
        place = ax.transData + ScaledTranslation(shift, 0, ax.figure.dpi_scale_trans)
        for width, entry in own:
            if not PGR_LOW <= entry["pgr"] <= PGR_HIGH:
                edge, arrow = (PGR_LOW, "v") if entry["pgr"] < PGR_LOW else (PGR_HIGH, "^")
                ax.plot([width], [edge], arrow, color=shade, ms=7, mfc="none", transform=place)
                outside.setdefault((width, edge), []).append(entry["pgr"])
            low, high = number(entry.get("pgr_low")), number(entry.get("pgr_high"))
            if len(points) <= 40 and low is not None and high is not None:
                ends = np.clip([low, high], PGR_LOW, PGR_HIGH)
                ax.plot([width, width], ends, color=shade, lw=1, alpha=0.6, transform=place)
        inside = [(g, e["pgr"]) for g, e in own if PGR_LOW <= e["pgr"] <= PGR_HIGH]
        ax.plot(
            [g for g, _ in inside], [p for _, p in inside], marker, ls="none", color=shade, ms=6,
            label=escape_mathtext(f"{name} (n={len(own)})"), transform=place,
            zorder=1 if first >= MAX_STUDENTS else 2,
        )  # fmt: skip
    widest = max(width for _, width, _ in points)
    for (width, edge), values in outside.items():
        left = width > 0.6 * widest
        shift = (len(groups) - 1) / 2 * 6 + 6
        ax.annotate(
            _show_outside(values), (width, edge), xytext=(-shift if left else shift, 0),
            textcoords="offset points", fontsize=8.5, color=INK, va="center",
            ha="right" if left else "left",
        )  # fmt: skip
    for height in (0, 1):
        ax.axhline(height, color=INK, ls=":", lw=1, zorder=0)
    ax.set_ylim(PGR_LOW - 0.1, PGR_HIGH + 0.1)
    ax.set_xlim(0, 1.12 * widest)
    ax.set_xlabel("gap (accuracy of ceiling − weak model)")
    ax.set_ylabel("PGR")
    style(ax)
    legend(ax)


def _show_outside(values: Sequence[float]) -> str:
    """Format the PGRs behind an arrow: `-7.2`, `-7.2, -3.1`, `-9.4 to -1.3 (n=12)`."""
    shown = [show(v, 1) for v in sorted(set(values))]
    return ", ".join(shown) if len(shown) < 3 else f"{shown[0]} to {shown[-1]} (n={len(values)})"


# --- accuracies by loss --------------------------------------------------------------------------


def accuracy_panels(settings: Sequence[Setting]) -> list[Panel]:
    """Return a panel per setting with the accuracies of weak model, students and ceiling."""
    labels = student_labels(settings)
    panels = []
    for setting in settings:
        table = setting.entries
        if not table:
            continue
        values = ", ".join(
            f"{label} {show(mean_and_error(e)[0])}" for (_, label), e in table.items()
        )
        several = max(map(len, table.values())) > 1
        alt_text = f"{'Mean test' if several else 'Test'} accuracies: {values}."
        level = chance_level(setting.classes)
        draw = partial(_draw_accuracies, table=table, labels=labels, chance=level)
        width = width_for(label for _, label in table)
        panels.append(Panel(setting.title, alt_text, draw, 1.25 + 0.4 * len(table), width))
    return panels


def _draw_accuracies(
    ax: "Axes", table: dict[Key, list[Entry]], labels: Sequence[str], chance: float
) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = 1.0, 0.0
    several = max(map(len, table.values())) > 1
    for y, ((role, label), entries) in enumerate(table.items()):
        index = labels.index(label) if role == "student" else 0
        shade, marker, _ = role_style(role, index)
        values = [float(e["accuracy"]) for e in entries]
        middle, error, seeds = mean_and_error(entries)
        if seeds > 1:
            ax.plot(values, [y] * seeds, marker, ms=5, color=shade, alpha=0.35, mew=0)
        bars = error_bars([(middle, error, seeds)])
        ax.errorbar([middle], [y], xerr=bars, color=shade, capsize=4, lw=1.8, fmt="none")
        ax.plot([middle], [y], marker, ms=8, color=shade, zorder=3)
        if role != "student":
            ax.axvline(middle, color=shade, ls="--", lw=1, zorder=0)
        value = f"{show(middle)} ± {show(error)}" if seeds > 1 else show_accuracy(entries[0])
        ax.annotate(
            f"{value} (n={seeds})" if several else value, (1.02, y),
            xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK,
        )  # fmt: skip
        low, high = min(low, middle - bars[0][0], *values), max(high, middle + bars[1][0], *values)
    pad = max(0.08 * (high - low), 0.01)
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    classes = not any(has_answers(e) for entries in table.values() for e in entries)
    if classes and low - pad < chance < high + pad:
        ax.axvline(chance, color=INK, ls=":", lw=1, zorder=0)
        # Above the first row, on the side that has more room.
        right = (low + high) / 2 < chance
        ax.annotate(
            "chance", (chance, 1), xycoords=("data", "axes fraction"),
            xytext=(-3 if right else 3, -1), textcoords="offset points",
            ha="right" if right else "left", va="top", fontsize=8.5, color=INK,
        )  # fmt: skip
    names = ["weak model" if role == "weak" else label for role, label in table]
    ax.set_yticks(range(len(table)), [escape_mathtext(n) for n in names])
    tested = count_documents(e for entries in table.values() for e in entries)
    ax.set_xlabel(f"test accuracy ({tested})")
    style(ax, grid=False)
    ax.grid(axis="x", color=RULE, lw=0.5, alpha=0.7)
