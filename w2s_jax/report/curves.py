"""Charts of what phases left: calibration of their predictions, and how they were trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_jax.metrics import classification
from w2s_jax.planning.kinds import kind_title
from w2s_jax.report.charts import student_labels
from w2s_jax.report.drawing import (
    INK,
    LINES,
    MARKERS,
    RULE,
    SERIES,
    WEAK,
    Panel,
    colour,
    legend,
    plain,
    style,
)
from w2s_jax.report.groups import Group, seed_of
from w2s_jax.report.words import MANY, number, plural, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 600
CALIBRATION_BINS = 10
#: Fewer documents than this make a point of the calibration curve that says nothing.
MIN_DOCUMENTS = 5


# --- calibration ---------------------------------------------------------------------------------


def calibration_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row a bin: `setting`, `role`, `label`, `seeds`, and `metrics.calibration_curve`'s fields.

    The test documents of a group's seeds are pooled.
    """
    rows = []
    for group in groups:
        predictions = group.predictions
        for (role, label), entries in group.entries.items():
            phases = dict.fromkeys(str(e.get("phase")) for e in entries)
            found = [predictions[p] for p in phases if p in predictions]
            if not found:
                continue
            p_N = np.concatenate([f["p"] for f in found])
            truth_N = np.concatenate([f["ground_truth"] for f in found])
            head = dict(setting=group.title, role=role, label=label, seeds=len(found))
            bins = classification.calibration_curve(p_N, truth_N, CALIBRATION_BINS)
            rows += [head | row for row in bins]
    return rows


def calibration_panels(groups: Sequence[Group], rows: list[dict[str, Any]]) -> list[Panel]:
    """Reliability diagrams of P(label 1), a panel a group."""
    labels = student_labels(groups)
    by_group: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    # More lines could not be told from one another: the others stand in calibration.csv.
    drawn = {*labels[:MANY], "weak", "ceiling"}
    for row in rows:
        if row["label"] not in drawn:
            continue
        own = by_group.setdefault(row["setting"], {})
        own.setdefault((row["role"], row["label"]), []).append(row)
    panels = []
    for title, table in by_group.items():
        counts = {label: sum(r["n"] for r in bins) for (_, label), bins in table.items()}
        words = ", ".join(f"{label} ({n} predictions)" for label, n in counts.items())
        draw = partial(_draw_calibration, table=table, labels=labels)
        panels.append(Panel(title, f"Share of label 1 against P(label 1): {words}.", draw, 3.9))
    return panels


def _draw_calibration(
    ax: "Axes", table: dict[tuple[str, str], list[dict[str, Any]]], labels: Sequence[str]
) -> None:
    ax.plot([0, 1], [0, 1], color=INK, ls=":", lw=1)
    for (role, label), bins in table.items():
        shade, marker, dashes = {"weak": (WEAK, "s", "-"), "ceiling": (INK, "D", "-")}.get(
            role, ("", "", "")
        )
        if role == "student":
            index = labels.index(label)
            shade, marker = colour(index), MARKERS[index % len(MARKERS)]
            dashes = LINES[index % len(LINES)]
        shown = [b for b in bins if b["n"] >= MIN_DOCUMENTS]
        name = f"{'weak model' if role == 'weak' else label} (n={sum(b['n'] for b in bins)})"
        ax.plot(
            [b["mean_p"] for b in shown], [b["share"] for b in shown], color=shade, marker=marker,
            ls=dashes, ms=4.5, lw=1.3, label=plain(name),
        )  # fmt: skip
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_xlabel("mean P(label 1) in the bin")
    ax.set_ylabel("share of label 1")
    style(ax)
    legend(ax)


# --- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The rows of one phase's metrics.jsonl, and the step whose parameters it kept."""

    run: str
    seed: str
    phase: str
    kind: str
    label: str
    rows: list[dict[str, Any]]
    kept_step: int | None
    steps: int | None


def training_curves(groups: Sequence[Group]) -> dict[str, list[Curve]]:
    """Panel title -> the phases of this kind and label, a seed each; each phase once."""
    curves: dict[str, list[Curve]] = {}
    seen: set[str] = set()
    for group in groups:
        for run in group.runs:
            for stage in run.result.get("stages") or []:
                phase = str(stage.get("phase", ""))
                if phase in seen or not run.curves.get(phase):
                    continue
                seen.add(phase)
                kind, label = str(stage.get("kind", "phase")), str(stage.get("label") or "")
                own = run.phases.get(phase, {})
                title = " ".join(filter(None, [kind_title(kind), label]))
                title = f"{title}: {stage.get('model', '')}".rstrip(": ")
                if len(groups) > 1:
                    title += f" ({group.title})"
                curve = Curve(
                    run.name, seed_of(run), phase, kind, label, run.curves[phase],
                    own.get("kept_step"), own.get("steps"),
                )  # fmt: skip
                curves.setdefault(title, []).append(curve)
    return curves


def training_panels(curves: dict[str, list[Curve]]) -> list[Panel]:
    """The training loss of each phase, its validation scores, and the step that was kept."""
    panels = []
    for title, members in curves.items():
        losses = [v for c in members for v in series(c.rows, "train", "loss")[1][-1:]]
        ends = f"; last losses {', '.join(map(show, losses))}" if losses else "; no losses logged"
        words = f"Training loss against the step, {plural(len(members), 'phase')}{ends}."
        panels.append(Panel(title, words, partial(_draw_training, curves=members), 3.3))
    return panels


def series(rows: list[dict[str, Any]], split: str, field: str) -> tuple[list[float], list[float]]:
    """Steps and values of one field, in the order of the steps.

    After a resume a step may be there twice: the later row counts. What is not a finite number is
    passed over.
    """
    points: dict[float, float] = {}
    for row in rows:
        step, value = number(row.get("step")), number(row.get(field))
        if row.get("split") == split and step is not None and value is not None:
            points[step] = value
    steps = sorted(points)
    return steps, [points[s] for s in steps]


def thinned(values: list[float]) -> list[float]:
    """At most `MAX_POINTS` of the values, and the last one."""
    every = max(1, math.ceil(len(values) / MAX_POINTS))
    return values[::every] + ([values[-1]] if (len(values) - 1) % every else [])


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average over about a thirtieth of the run, unbiased at its start."""
    keep = 1 - 1 / max(1.0, len(values) / 30)
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _draw_training(ax: "Axes", curves: list[Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    thin = 1.0 if len(curves) > 1 else 1.8
    name: str | None = "training loss"
    for curve in curves:
        steps, losses = series(curve.rows, "train", "loss")
        if len(curves) == 1:
            ax.plot(thinned(steps), thinned(losses), color=SERIES[0], alpha=0.3, lw=0.8)
        # A series of one or two points has no line to see.
        marker = "o" if len(steps) < 3 else ""
        smoothed = _smooth(losses)
        if steps:
            ax.plot(thinned(steps), thinned(smoothed), color=SERIES[0], lw=thin, marker=marker,
                    ms=4, label=name)  # fmt: skip
            name = None
    if name is not None:
        ax.text(0.5, 0.5, "no losses logged", transform=ax.transAxes, ha="center", color=INK)
    _mark_kept(ax, curves)
    ax.set_xlabel(f"optimiser step ({plural(len(curves), 'seed')})")
    ax.set_ylabel("training loss (nats)")
    style(ax)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    _validation_axis(ax, curves, thin)


def _mark_kept(ax: "Axes", curves: list[Curve]) -> None:
    """A star at the step that early stopping kept, where it is not the last."""
    name: str | None = "step kept"
    for curve in curves:
        steps, losses = series(curve.rows, "train", "loss")
        if curve.kept_step is None or curve.kept_step == curve.steps or not steps:
            continue
        place = int(np.searchsorted(steps, curve.kept_step).clip(0, len(steps) - 1))
        ax.plot([curve.kept_step], [_smooth(losses)[place]], "*", color=INK, ms=10, label=name,
                ls="none", zorder=4)  # fmt: skip
        name = None


def _validation_axis(ax: "Axes", curves: list[Curve], width: float) -> None:
    styles = {"accuracy": (SERIES[2], "D"), "agreement": (WEAK, "s")}
    names = {"accuracy": "validation accuracy", "agreement": "agreement with weak labels"}
    found = {
        field: [xy for c in curves if (xy := series(c.rows, "validation", field))[0]]
        for field in styles
    }
    if found["agreement"] == found["accuracy"]:
        # Trained on ground truth, with which it is compared.
        found["agreement"] = []
    if any(found.values()):
        right = ax.twinx()
        for field, lines in found.items():
            shade, marker = styles[field]
            for index, (steps, values) in enumerate(lines):
                # Named on the left axis, whose legend has all.
                right.plot(thinned(steps), thinned(values), color=shade, marker=marker, ms=3.5,
                           lw=width * 0.7, ls="--")  # fmt: skip
                if index == 0:
                    ax.plot([], [], color=shade, marker=marker, ms=3.5, ls="--", label=names[field])
        style(right, grid=False)
        right.spines["right"].set_visible(True)
        right.spines["right"].set_color(RULE)
        right.set_ylabel("validation (fraction)")
    legend(ax)
