"""Charts of results: the ladder, PGR against the gap, accuracies by loss, agreement.

Each function returns the panels that have data. A point is a mean over seeds with one standard
error of this mean where there are several seeds, and one binomial standard error over the test
documents where there is one.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from w2s_jax.report.drawing import (
    INK,
    LINES,
    MARKERS,
    RULE,
    WEAK,
    WIDTH,
    Panel,
    colour,
    legend,
    plain,
    sizes_axis,
    style,
)
from w2s_jax.report.groups import Group, Key
from w2s_jax.report.words import MANY, Entry, number, plural, show, show_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Beyond these a PGR is drawn at the edge, as an arrow.
PGR_LOW, PGR_HIGH = -1.0, 2.0
Line = dict[float, list[Entry]]


def point(entries: Sequence[Entry], field: str = "accuracy") -> tuple[float, float, int]:
    """Mean, standard error and how many seeds, of entries that have the field."""
    values = [v for v in (number(e.get(field)) for e in entries) if v is not None]
    if len(values) > 1:
        spread = float(np.std(values, ddof=1))
        return float(np.mean(values)), spread / math.sqrt(len(values)), len(values)
    error = number(entries[0].get(f"{field}_se")) if entries else None
    return (values[0] if values else math.nan), error or 0.0, len(values)


def documents(entries: Iterable[Entry]) -> str:
    """`400 documents`, or `317 to 400 documents`, or `documents` where nobody counted."""
    sizes = sorted({int(n) for n in (number(e.get("n")) for e in entries) if n is not None})
    if not sizes:
        return "documents"
    if len(sizes) == 1:
        return plural(sizes[0], "document")
    return f"{sizes[0]} to {sizes[-1]} documents"


def seeds_a_point(counts: Iterable[int]) -> str:
    """`3 seeds a point`, or `1 to 3 seeds a point`."""
    distinct = sorted(set(counts))
    if len(distinct) == 1:
        return f"{plural(distinct[0], 'seed')} a point"
    return f"{distinct[0]} to {distinct[-1]} seeds a point"


def student_labels(groups: Iterable[Group]) -> list[str]:
    """The students' labels in the order in which they come: each has one colour everywhere."""
    return list(dict.fromkeys(k[1] for g in groups for k in g.entries if k[0] == "student"))


# --- the ladder ----------------------------------------------------------------------------------


def ladder_panels(groups: Sequence[Group]) -> list[Panel]:
    """Test accuracy against the strong model's size, a line a supervisor, ceilings in black."""
    rungs: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        rungs.setdefault((group.task, group.protocol, group.variant), []).append(group)
    labels = student_labels(groups)
    panels = []
    for (task, protocol, variant), members in rungs.items():
        supervisors = list(dict.fromkeys(g.weak for g in members))
        own = student_labels(members)
        split = [[label] for label in own] if len(supervisors) * len(own) > MANY else [own]
        if len(members) == 1:
            # Of one pair of models some are enough: all stand side by side below.
            split = [own[:MANY]]
        for shown in split:
            lines, ceilings, weak = _ladder_lines(members, shown)
            if not lines and not ceilings:
                continue
            title = "; ".join(filter(None, [f"{task}, {protocol} protocol", variant]))
            title += f", {shown[0]}" if len(split) > 1 else ""
            draw = partial(
                _draw_ladder, lines=lines, ceilings=ceilings, weak=weak,
                supervisors=supervisors, labels=labels,
            )  # fmt: skip
            panels.append(Panel(title, _ladder_words(lines, ceilings), draw, 3.8))
    return panels


def _ladder_lines(
    groups: Sequence[Group], labels: Sequence[str]
) -> tuple[dict[tuple[str, str], Line], Line, dict[str, Line]]:
    """(supervisor, label) -> size -> entries; size -> ceilings; supervisor -> size -> entries.

    Groups share ceilings, which do not depend on the supervisor: each phase counts once.
    """
    lines: dict[tuple[str, str], Line] = {}
    ceilings: Line = {}
    weak: dict[str, Line] = {}
    seen: set[tuple[str, str, str]] = set()
    for group in groups:
        for seed, found in group.seeds.items():
            for (role, label), entry in found.items():
                size = number(entry.get("parameters"))
                if size is None or number(entry.get("accuracy")) is None:
                    continue
                if role == "student" and label in labels:
                    lines.setdefault((group.weak, label), {}).setdefault(size, []).append(entry)
                mark = (role, label, str(entry.get("phase") or (group.weak, group.strong, seed)))
                if role == "student" or mark in seen:
                    continue
                seen.add(mark)
                if label == "ceiling":
                    ceilings.setdefault(size, []).append(entry)
                elif role == "weak":
                    weak.setdefault(group.weak, {}).setdefault(size, []).append(entry)
    return lines, ceilings, weak


def _ladder_words(lines: dict[tuple[str, str], Line], ceilings: Line) -> str:
    named = [(f"{weak} to students with {label}", line) for (weak, label), line in lines.items()]
    parts = []
    for name, line in [*named, ("ceiling", ceilings)]:
        values = ", ".join(
            f"{size:.0f} parameters {show(point(e)[0])}" for size, e in sorted(line.items())
        )
        parts.append(f"{name}: {values}")
    return "Test accuracy by size of the strong model. " + "; ".join(parts) + "."


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
        points = [point(line[s]) for s in sizes]
        seeds.update(p[2] for p in points)
        ax.errorbar(
            sizes, [p[0] for p in points], yerr=[p[1] for p in points], color=shade, ls=dashes,
            marker=marker, ms=6, lw=1.6, capsize=3, elinewidth=1, label=plain(name),
        )  # fmt: skip

    draw(ceilings, "ceiling (ground truth)", INK, "D", "-")
    for (supervisor, label), line in lines.items():
        kind = labels.index(label)
        shade = colour(kind if single else supervisors.index(supervisor))
        name = label if single else f"{supervisor}, {label}"
        draw(line, name, shade, MARKERS[kind % len(MARKERS)], LINES[kind % len(LINES)])
    for supervisor, line in weak.items():
        shade = WEAK if single else colour(supervisors.index(supervisor))
        name = f"weak: {supervisor}" if single else f"weak {supervisor} itself"
        draw(line, name, shade, "s", "none")
        for entries in line.values():
            ax.axhline(point(entries)[0], color=shade, ls=":", lw=1, zorder=0)
    tables = [*lines.values(), *weak.values(), ceilings]
    sizes_axis(ax, [size for line in tables for size in line])
    entries = [e for line in tables for found in line.values() for e in found]
    ax.set_ylabel(f"test accuracy ({documents(entries)})")
    ax.set_xlabel(f"parameters of the strong model ({seeds_a_point(seeds)})")
    style(ax)
    legend(ax)


# --- PGR against the gap -------------------------------------------------------------------------


def gap_panels(groups: Sequence[Group]) -> list[Panel]:
    """PGR of every student against the gap that it could recover, with its interval."""
    labels = student_labels(groups)
    points: list[tuple[str, float, Entry]] = []
    undefined = 0
    for group in groups:
        for found in group.seeds.values():
            for (role, label), entry in found.items():
                if role != "student":
                    continue
                ceiling = entry.get("ceiling") or found.get(("ceiling", "ceiling"), {})
                high = number(ceiling.get("accuracy"))
                low = number(found.get(("weak", "weak"), {}).get("accuracy"))
                if number(entry.get("pgr")) is None or high is None or low is None:
                    undefined += 1
                else:
                    points.append((label, high - low, entry))
    if not points:
        return []
    words = f"PGR against the gap between weak model and ceiling, {plural(len(points), 'student')}"
    words += f"; {undefined} more have no PGR." if undefined else "."
    title = "All tasks and settings" if len(groups) > 1 else groups[0].title
    return [Panel(title, words, partial(_draw_gap, points=points, labels=labels), 3.6)]


def _draw_gap(ax: "Axes", points: list[tuple[str, float, Entry]], labels: Sequence[str]) -> None:
    bars = len(points) <= 40
    # Of many the later ones are told from one another in the table only.
    others = sum(name in labels[MANY:] for name, _, _ in points)
    outside: dict[tuple[float, float], list[str]] = {}
    for index, label in enumerate(labels):
        own = [(gap, entry) for name, gap, entry in points if name == label]
        if not own:
            continue
        shade, marker = colour(index), MARKERS[index % len(MARKERS)]
        words = f"{label} (n={len(own)})"
        if index >= MANY:
            shade, marker = RULE, "."
            words = f"others (n={others})" if index == MANY else ""
        for gap, entry in own:
            if not PGR_LOW <= entry["pgr"] <= PGR_HIGH:
                edge, arrow = (PGR_LOW, "v") if entry["pgr"] < PGR_LOW else (PGR_HIGH, "^")
                ax.plot([gap], [edge], arrow, color=shade, ms=7, mfc="none", clip_on=False)
                outside.setdefault((gap, edge), []).append(show(entry["pgr"], 1))
            low, high = number(entry.get("pgr_low")), number(entry.get("pgr_high"))
            if bars and low is not None and high is not None:
                ends = np.clip([low, high], PGR_LOW, PGR_HIGH)
                ax.plot([gap, gap], ends, color=shade, lw=1, alpha=0.6)
        inside = [(g, e["pgr"]) for g, e in own if PGR_LOW <= e["pgr"] <= PGR_HIGH]
        ax.plot(
            [g for g, _ in inside], [p for _, p in inside], marker, ls="none", color=shade, ms=6,
            label=plain(words), zorder=1 if index >= MANY else 2,
        )  # fmt: skip
    for place, values in outside.items():
        ax.annotate(
            ", ".join(dict.fromkeys(values)), place, xytext=(6, 0), textcoords="offset points",
            fontsize=8.5, color=INK, va="center",
        )  # fmt: skip
    for height in (0, 1):
        ax.axhline(height, color=INK, ls=":", lw=1, zorder=0)
    ax.set_ylim(PGR_LOW - 0.1, PGR_HIGH + 0.1)
    ax.set_xlim(left=0)
    ax.set_xlabel("gap: accuracy of the ceiling − of the weak model")
    ax.set_ylabel("PGR")
    style(ax)
    legend(ax)


# --- accuracies by loss --------------------------------------------------------------------------


def accuracy_panels(groups: Sequence[Group]) -> list[Panel]:
    """Weak model, students and ceiling of each group side by side."""
    labels = student_labels(groups)
    panels = []
    for group in groups:
        table = group.entries
        if not table:
            continue
        values = ", ".join(f"{label} {show(point(e)[0])}" for (_, label), e in table.items())
        several = max(map(len, table.values())) > 1
        words = f"{'Mean test' if several else 'Test'} accuracies: {values}."
        draw = partial(_draw_accuracies, table=table, labels=labels)
        width = _width(label for _, label in table)
        panels.append(Panel(group.title, words, draw, 1.25 + 0.4 * len(table), width))
    return panels


def _draw_accuracies(ax: "Axes", table: dict[Key, list[Entry]], labels: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = 1.0, 0.0
    several = max(map(len, table.values())) > 1
    for y, ((role, label), entries) in enumerate(table.items()):
        shade, marker = {"weak": (WEAK, "s"), "ceiling": (INK, "D")}.get(role, ("", ""))
        if role == "student":
            index = labels.index(label)
            shade, marker = colour(index), MARKERS[index % len(MARKERS)]
        values = [float(e["accuracy"]) for e in entries]
        middle, error, seeds = point(entries)
        if seeds > 1:
            ax.plot(values, [y] * seeds, marker, ms=5, color=shade, alpha=0.35, mew=0)
        ax.errorbar([middle], [y], xerr=[error], color=shade, capsize=4, lw=1.8, fmt="none")
        ax.plot([middle], [y], marker, ms=8, color=shade, zorder=3)
        if role != "student":
            ax.axvline(middle, color=shade, ls="--", lw=1, zorder=0)
        words = f"{show(middle)} ± {show(error)}" if seeds > 1 else show_accuracy(entries[0])
        ax.annotate(
            f"{words} (n={seeds})" if several else words, (1.02, y),
            xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK,
        )  # fmt: skip
        low, high = min(low, middle - error, *values), max(high, middle + error, *values)
    pad = max(0.08 * (high - low), 0.01)
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if low - pad < 0.5 < high + pad:
        ax.axvline(0.5, color=INK, ls=":", lw=1, zorder=0)
        ax.annotate("chance", (0.5, 1.01), xycoords=("data", "axes fraction"), ha="center",
                    fontsize=8.5, color=INK)  # fmt: skip
    names = ["weak model" if role == "weak" else label for role, label in table]
    ax.set_yticks(range(len(table)), [plain(n) for n in names])
    ax.set_xlabel(f"test accuracy ({documents(e for found in table.values() for e in found)})")
    style(ax, grid=False)
    ax.grid(axis="x", color=RULE, lw=0.5, alpha=0.7)


# --- agreement with the supervisor ---------------------------------------------------------------

_AGREEMENTS = {
    "agreement": ("all documents", INK, "o", "-"),
    "agreement_when_correct": ("supervisor right", "#00805e", "^", "--"),
    "agreement_when_wrong": ("supervisor wrong", WEAK, "v", "-."),
}


def agreement_panels(groups: Sequence[Group]) -> list[Panel]:
    """Agreement with the supervisor against the student's size; by loss if there is one size."""
    sets: dict[tuple[str, str, str, str], list[Group]] = {}
    for group in groups:
        key = (group.task, group.protocol, group.weak, group.variant)
        sets.setdefault(key, []).append(group)
    panels = []
    for (task, _, weak, variant), members in sets.items():
        lines: dict[str, Line] = {}
        for group in members:
            for (role, label), entries in group.entries.items():
                size = number(entries[0].get("parameters"))
                if role == "student" and number(entries[0].get("agreement")) is not None:
                    lines.setdefault(label, {}).setdefault(size or 0.0, []).extend(entries)
        title = "; ".join(filter(None, [f"{task}, supervisor {weak}", variant]))
        sizes = {size for line in lines.values() for size in line}
        if len(sizes) > 1 and 0.0 not in sizes:
            for label, line in lines.items():
                rungs = {f"{s:.0f} parameters": e for s, e in sorted(line.items())}
                draw = partial(_draw_agreement_by_size, line=line)
                panels.append(Panel(f"{title}, {label}", _agreement_words(rungs), draw))
        elif lines:
            table = {label: [e for f in line.values() for e in f] for label, line in lines.items()}
            words = _agreement_words(table)
            draw = partial(_draw_agreement_by_loss, table=table)
            panels.append(Panel(title, words, draw, 1.4 + 0.32 * len(table), _width(table)))
    return panels


def _width(labels: Iterable[str]) -> float:
    """Of a panel with labels at its left, in inches."""
    return WIDTH + 0.07 * max(0, max(map(len, labels)) - 14)


def _agreement_words(table: dict[str, list[Entry]]) -> str:
    parts = []
    for name, found in table.items():
        values = [f"{show(point(found, f)[0])} ({words})" for f, (words, *_) in _AGREEMENTS.items()]
        parts.append(f"{name} {', '.join(values)}")
    return f"Agreement with the supervisor. {'; '.join(parts)}."


def _draw_agreement_by_size(ax: "Axes", line: Line) -> None:
    sizes = sorted(line)
    for field, (name, shade, marker, dashes) in _AGREEMENTS.items():
        points = [point(line[s], field) for s in sizes]
        ax.errorbar(
            sizes, [p[0] for p in points], yerr=[p[1] for p in points], color=shade, ls=dashes,
            marker=marker, ms=6, lw=1.6, capsize=3, label=name,
        )  # fmt: skip
    sizes_axis(ax, sizes)
    _agreement_axes(ax, list(line.values()), "parameters of the student")


def _draw_agreement_by_loss(ax: "Axes", table: dict[str, list[Entry]]) -> None:
    for field, (name, shade, marker, _) in _AGREEMENTS.items():
        points = [point(e, field) for e in table.values()]
        ax.errorbar(
            [p[0] for p in points], range(len(points)), xerr=[p[1] for p in points], color=shade,
            ls="none", marker=marker, ms=7, capsize=3, label=name,
        )  # fmt: skip
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_yticks(range(len(table)), [plain(n) for n in table])
    found = list(table.values())
    seeds = seeds_a_point(len(entries) for entries in found)
    ax.set_xlabel(f"{_agreement_of(found)}, {seeds}")
    style(ax)
    legend(ax, 2, below=0.6 / (0.32 * len(table) + 0.3))


def _agreement_of(found: list[list[Entry]]) -> str:
    return f"agreement ({documents(e for entries in found for e in entries)})"


def _agreement_axes(ax: "Axes", found: list[list[Entry]], across: str) -> None:
    ax.set_ylabel(_agreement_of(found))
    ax.set_xlabel(f"{across} ({seeds_a_point(len(entries) for entries in found)})")
    style(ax)
    legend(ax, 3)
