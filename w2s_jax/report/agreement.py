"""Charts of the students' agreement with their supervisors."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from w2s_jax.report.charts import Line
from w2s_jax.report.drawing import (
    INK,
    WEAK,
    Panel,
    count_documents,
    error_bars,
    escape_mathtext,
    legend,
    seeds_per_point,
    sizes_axis,
    style,
    width_for,
)
from w2s_jax.report.results import Entry, mean_and_error, number, show
from w2s_jax.report.settings import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Field of an entry -> name in the legend, colour, marker, line style.
_AGREEMENTS = {
    "agreement": ("all documents", INK, "o", "-"),
    "agreement_when_correct": ("supervisor correct", "#00805e", "^", "--"),
    "agreement_when_wrong": ("supervisor wrong", WEAK, "v", "-."),
}


def agreement_panels(settings: Sequence[Setting]) -> list[Panel]:
    """Return panels of agreement against the student's size, or by loss if sizes do not vary."""
    sets: dict[tuple[str, str, str, str], list[Setting]] = {}
    for setting in settings:
        key = (setting.task, setting.protocol, setting.weak, setting.variant)
        sets.setdefault(key, []).append(setting)
    panels = []
    for (task, _, weak, variant), members in sets.items():
        lines: dict[str, Line] = {}
        for setting in members:
            for (role, label), entries in setting.entries.items():
                size = number(entries[0].get("parameters"))
                if role == "student" and number(entries[0].get("agreement")) is not None:
                    lines.setdefault(label, {}).setdefault(size or 0.0, []).extend(entries)
        title = "; ".join(filter(None, [f"{task}, supervisor {weak}", variant]))
        sizes = {size for line in lines.values() for size in line}
        if len(sizes) > 1 and 0.0 not in sizes:
            for label, line in lines.items():
                rungs = {f"{s:.0f} parameters": e for s, e in sorted(line.items())}
                draw = partial(_draw_agreement_by_size, line=line)
                panels.append(Panel(f"{title}, {label}", _alt_text(rungs), draw))
        elif lines:
            table = {label: [e for f in line.values() for e in f] for label, line in lines.items()}
            alt_text = _alt_text(table)
            draw = partial(_draw_agreement_by_loss, table=table)
            panels.append(Panel(title, alt_text, draw, 1.55 + 0.32 * len(table), width_for(table)))
    return panels


def _alt_text(table: dict[str, list[Entry]]) -> str:
    parts = []
    for name, found in table.items():
        values = [
            f"{show(mean_and_error(found, f)[0])} ({n})" for f, (n, *_) in _AGREEMENTS.items()
        ]
        parts.append(f"{name} {', '.join(values)}")
    return f"Agreement with the supervisor: {'; '.join(parts)}."


def _draw_agreement_by_size(ax: "Axes", line: Line) -> None:
    sizes = sorted(line)
    for field, (name, shade, marker, dashes) in _AGREEMENTS.items():
        points = [mean_and_error(line[s], field) for s in sizes]
        ax.errorbar(
            sizes, [p[0] for p in points], yerr=error_bars(points), color=shade, ls=dashes,
            marker=marker, ms=6, lw=1.6, capsize=3, label=name,
        )  # fmt: skip
    sizes_axis(ax, sizes)
    found = list(line.values())
    ax.set_ylabel(_agreement_label(found))
    ax.set_xlabel(f"parameters of the student ({seeds_per_point(map(len, found))})")
    style(ax)
    legend(ax)


def _draw_agreement_by_loss(ax: "Axes", table: dict[str, list[Entry]]) -> None:
    for field, (name, shade, marker, _) in _AGREEMENTS.items():
        points = [mean_and_error(e, field) for e in table.values()]
        ax.errorbar(
            [p[0] for p in points], range(len(points)), xerr=error_bars(points), color=shade,
            ls="none", marker=marker, ms=7, capsize=3, label=name,
        )  # fmt: skip
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_yticks(range(len(table)), [escape_mathtext(n) for n in table])
    found = list(table.values())
    ax.set_xlabel(f"{_agreement_label(found)}, {seeds_per_point(map(len, found))}")
    style(ax)
    legend(ax)


def _agreement_label(found: Sequence[Sequence[Entry]]) -> str:
    return f"agreement ({count_documents(e for entries in found for e in entries)})"
