"""Results on the test sets of other tasks (`task.test_tasks`): tables, caveats and the figure."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from w2s_jax.report import tables
from w2s_jax.report.caveats import result_caveats
from w2s_jax.report.drawing import (
    INK,
    MARKERS,
    RULE,
    Panel,
    colour,
    count_documents,
    error_bars,
    escape_mathtext,
    legend,
    role_style,
    seeds_per_point,
    style,
)
from w2s_jax.report.results import (
    MAX_STUDENTS,
    Entry,
    Key,
    Result,
    join,
    mean_and_error,
    normal_estimate,
    number,
    show,
)
from w2s_jax.report.settings import Setting, student_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# --- one result ----------------------------------------------------------------------------------


def test_tasks(result: Result) -> list[str]:
    """Return the other tasks on whose test sets the models of a result were evaluated."""
    return list(result.get("transfer") or {})


def transfer_result(result: Result, task: str) -> Result:
    """Return the part of a result on another task's test set, as a result of its own."""
    found = result["transfer"][task]
    students = {key: entry for key, entry in found["students"].items() if entry}
    return {**result, **found, "students": students}


def transfer_caveats(result: Result, task: str) -> list[str]:
    """Return the caveats of a result on another task's test set that it does not have itself.

    The first are on models that were not evaluated there.
    """
    own = result_caveats(result)
    more = result_caveats(transfer_result(result, task))
    return _not_evaluated(result, task) + [line for line in more if line not in own]


def _not_evaluated(result: Result, task: str) -> list[str]:
    found = transfer_result(result, task)
    students = found["students"].items()
    reasons = {
        "Not evaluated": found.get("notes", {}),
        "The supervisor was not evaluated": {k: e.get("agreement_note") for k, e in students},
    }
    return [
        f"{what} ({why}): {join(label for label, other in labels.items() if other == why)}."
        for what, labels in reasons.items()
        for why in dict.fromkeys(filter(None, labels.values()))
    ]


# --- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transfer:
    """A setting on the test set of another task.

    Attributes:
        task: the other task.
        own: the setting.
        there: the same runs, with their results there.
    """

    task: str
    own: Setting
    there: Setting

    @property
    def title(self) -> str:
        """The title of the setting with the other task."""
        return f"{self.own.title}: on {self.task}"


def transfers(settings: Sequence[Setting]) -> list[Transfer]:
    """Return each setting on each of its other test sets."""
    found = []
    for setting in settings:
        names = dict.fromkeys(task for run in setting.runs for task in test_tasks(run.result))
        for task in names:
            runs = [
                dataclasses.replace(run, result=transfer_result(run.result, task))
                for run in setting.runs
                if task in test_tasks(run.result)
            ]
            found.append(Transfer(task, setting, Setting(setting.title, setting.variant, runs)))
    return found


def transfer_rows(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return one row per run, other test set and role, with the values of result.json.

    The columns are those of table.csv, `test_task`, and `note`: why a model was not evaluated.
    """
    rows: list[dict[str, Any]] = []
    for found in transfers(settings):
        for row in tables.table_rows([found.there]):
            rows.append(row | {"test_task": found.task, "note": None})
        for run in found.there.runs:
            head = {k: run.result.get(k) for k in ("name", "task", "protocol", "seed")}
            head |= {"run": run.name, "test_task": found.task, "setting": found.own.title}
            head |= dict.fromkeys(tables.CLASS_METRICS)
            for label, why in run.result.get("notes", {}).items():
                role = "weak" if label == "weak" else "student"
                rows.append(head | {"role": role, "label": label, "note": why})
    return rows


def transfer_columns(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return the columns of transfer.csv with these rows."""
    first, *rest = tables.table_columns(rows)
    return (first, "test_task", *rest, "note")


def transfer_context(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return what the page shows of each setting and test set.

    Returns:
        A dict for each: `title`; `task`; `rows`, a dict per role with `role`, `label`, and the
        estimates `own` and `there` of the accuracy, their `difference`, `gap` and `pgr` (of
        students, on the other set), `agreement`, and the documents `n` and `own_n` of a single
        seed; `several`, whether there are several seeds; `over`, what the intervals are over then;
        and `notes`.
    """
    return [
        {
            "title": found.title,
            "task": found.task,
            "rows": [_row(found, key) for key in found.there.entries],
            "several": len(found.there.seeds) > 1,
            "over": "seeds and documents" if found.there.estimates.crossed else "seeds",
            "notes": _notes(found),
        }
        for found in transfers(settings)
    ]


def _row(found: Transfer, key: Key) -> dict[str, Any]:
    role, label = key
    own, there = found.own.estimates.accuracy.get(key), found.there.estimates.accuracy[key]
    row: dict[str, Any] = {"role": role, "label": label, "own": own, "there": there}
    row |= {"difference": None, "pgr": None, "gap": None, "agreement": None}
    row |= {"n": None, "own_n": None}
    entries = found.there.entries[key]
    if len(entries) == 1:
        known = found.own.entries.get(key, [{}])
        row |= {"n": entries[0].get("n"), "own_n": known[0].get("n")}
    if own is not None and own.value is not None and there.value is not None:
        errors = [own.se, there.se]
        # Other documents, so the two errors are independent over documents.
        se = None if None in errors else math.hypot(*(e or 0.0 for e in errors))
        row["difference"] = normal_estimate(there.value - own.value, se, n=there.n)
    if role == "student":
        row |= {"gap": found.there.estimates.gap[label], "pgr": found.there.estimates.pgr[label]}
        row["agreement"] = number(mean_and_error(entries, "agreement")[0])
    return row


def _notes(found: Transfer) -> list[str]:
    """Return the caveats of a single run; of several those on models that were not evaluated."""
    runs = [run.result for run in found.own.runs if found.task in test_tasks(run.result)]
    caveats = transfer_caveats if len(runs) == 1 else _not_evaluated
    return list(dict.fromkeys(line for result in runs for line in caveats(result, found.task)))


# --- the figure ----------------------------------------------------------------------------------


def transfer_panels(settings: Sequence[Setting]) -> list[Panel]:
    """Return panels of the accuracy on another task's test set against that on the run's own."""
    labels = student_labels(settings)
    panels = []
    for found in transfers(settings):
        table = {
            key: (found.own.entries[key], entries)
            for key, entries in found.there.entries.items()
            if key in found.own.entries
        }
        if table:
            draw = partial(_draw, task=found.own.task, other=found.task, table=table, labels=labels)
            panels.append(Panel(found.title, _alt_text(table), draw, 3.8))
    return panels


#: (role, label) -> entries on the run's own test set, and on another.
_Table = dict[Key, tuple[list[Entry], list[Entry]]]


def _alt_text(table: _Table) -> str:
    values = ", ".join(
        f"{label} {show(mean_and_error(own)[0])} and {show(mean_and_error(there)[0])}"
        for (_, label), (own, there) in table.items()
    )
    return f"Accuracies on the run's own test set and on the other: {values}."


def _styled(table: _Table, labels: Sequence[str]) -> Iterator[tuple[Key, str, str, str]]:
    """Yield key, name in the legend, colour and marker; students after the first few share one."""
    students = [label for role, label in table if role == "student"]
    for role, label in table:
        index = labels.index(label) if role == "student" else 0
        shade, marker, _ = role_style(role, index)
        name = "weak model" if role == "weak" else label
        if role == "student" and students.index(label) >= MAX_STUDENTS:
            name, shade, marker = "others", RULE, "."
        elif role == "student":
            shade, marker = colour(index), MARKERS[index % len(MARKERS)]
        yield (role, label), name, shade, marker


def _draw(ax: "Axes", task: str, other: str, table: _Table, labels: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = 1.0, 0.0
    seeds: set[int] = set()
    named: set[str] = set()
    for key, name, shade, marker in _styled(table, labels):
        points = [mean_and_error(entries) for entries in table[key]]
        bars = [error_bars([point]) for point in points]
        (x, _, _), (y, _, count) = points
        seeds.add(count)
        ax.errorbar(
            [x], [y], xerr=bars[0], yerr=bars[1], color=shade, ls="none", marker=marker, ms=7,
            capsize=3, elinewidth=1, label=None if name in named else escape_mathtext(name),
            zorder=1 if name == "others" else 2,
        )  # fmt: skip
        named.add(name)
        for value, (below, above) in zip((x, y), bars, strict=True):
            low, high = min(low, value - below[0]), max(high, value + above[0])
    pad = max(0.06 * (high - low), 0.01)
    ends = low - pad, high + pad
    # On the line, a model is as accurate on both.
    ax.plot(ends, ends, color=INK, ls=":", lw=1, zorder=0)
    ax.set_xlim(ends)
    ax.set_ylim(ends)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    tested = [count_documents(e for sets in table.values() for e in sets[n]) for n in (0, 1)]
    # Two lines on the side without the legend, as a panel is narrow.
    counts = f"{tested[1]}, {seeds_per_point(seeds)}"
    ax.set_xlabel(escape_mathtext(f"accuracy on {task} ({tested[0]})"))
    ax.set_ylabel(escape_mathtext(f"accuracy on {other}\n({counts})"))
    style(ax)
    legend(ax)
