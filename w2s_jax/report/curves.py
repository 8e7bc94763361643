"""Charts of phases: calibration of their predictions, and training curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_jax.metrics import classification
from w2s_jax.planning.kinds import kind_title
from w2s_jax.report.drawing import (
    INK,
    RULE,
    SERIES,
    WEAK,
    Panel,
    escape_mathtext,
    legend,
    role_style,
    style,
)
from w2s_jax.report.results import MAX_STUDENTS, first_of, number, plural, show
from w2s_jax.report.settings import Key, Setting, seeds_of, student_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A curve is drawn with at most about this many points.
MAX_POINTS = 600
CALIBRATION_BINS = 10
#: Calibration bins with fewer documents are too noisy to draw.
MIN_DOCUMENTS = 5


# --- calibration ---------------------------------------------------------------------------------


def calibration_rows(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return one row per setting, role and bin, with the seeds of a setting pooled.

    The fields are `setting`, `role`, `label`, `seeds`, and those of
    `classification.calibration_curve`: of P(label 1), or with more than two classes of the
    predicted class.
    """
    rows = []
    for setting in settings:
        predictions = setting.predictions
        for (role, label), entries in setting.entries.items():
            phases = dict.fromkeys(str(e.get("phase")) for e in entries)
            found = [predictions[p] for p in phases if p in predictions]
            # Answers have no probability of being right.
            found = [columns for columns in found if "answer" not in columns]
            if not found:
                continue
            p_N = np.concatenate([f["p"] for f in found])
            truth_N = np.concatenate([f["ground_truth"] for f in found])
            head = dict(setting=setting.title, role=role, label=label, seeds=len(found))
            bins = classification.calibration_curve(p_N, truth_N, CALIBRATION_BINS)
            rows += [head | row for row in bins]
    return rows


def calibration_panels(settings: Sequence[Setting], rows: list[dict[str, Any]]) -> list[Panel]:
    """Return a reliability diagram per setting: of P(label 1), or of the predicted class."""
    labels = student_labels(settings)
    by_setting: dict[str, dict[Key, list[dict[str, Any]]]] = {}
    # More lines would not be distinguishable; calibration.csv lists all.
    drawn = {*labels[:MAX_STUDENTS], "weak", "ceiling"}
    for row in rows:
        if row["label"] not in drawn:
            continue
        own = by_setting.setdefault(row["setting"], {})
        own.setdefault((row["role"], row["label"]), []).append(row)
    panels = []
    for title, table in by_setting.items():
        counts = {label: sum(r["n"] for r in bins) for (_, label), bins in table.items()}
        names = ", ".join(f"{label} ({n} predictions)" for label, n in counts.items())
        setting = next(s for s in settings if s.title == title)
        shown = first_of(student_labels([setting]))
        axes = ("P(label 1)", "observed share of label 1")
        if setting.classes:
            axes = ("confidence", "accuracy")
        alt_text = f"{axes[1][0].upper()}{axes[1][1:]} against {axes[0]}: {names}."
        draw = partial(_draw_calibration, table=table, labels=labels, axes=axes)
        panels.append(Panel("; ".join(filter(None, [title, shown])), alt_text, draw, 3.9))
    return panels


def _draw_calibration(
    ax: "Axes",
    table: dict[Key, list[dict[str, Any]]],
    labels: Sequence[str],
    axes: tuple[str, str],
) -> None:
    ax.plot([0, 1], [0, 1], color=INK, ls=":", lw=1)
    for (role, label), bins in table.items():
        index = labels.index(label) if role == "student" else 0
        shade, marker, dashes = role_style(role, index)
        shown = [b for b in bins if b["n"] >= MIN_DOCUMENTS]
        name = f"{'weak model' if role == 'weak' else label} (n={sum(b['n'] for b in bins)})"
        ax.plot(
            [b["mean_p"] for b in shown], [b["share"] for b in shown], color=shade, marker=marker,
            ls=dashes, ms=4.5, lw=1.3, label=escape_mathtext(name),
        )  # fmt: skip
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_xlabel(f"mean {axes[0]} in the bin")
    ax.set_ylabel(axes[1])
    style(ax)
    legend(ax)


# --- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The training curve of one phase.

    Attributes:
        run: name of the first run that has the phase.
        seed: the seeds of this run (`settings.seeds_of`).
        phase: the phase's folder name.
        kind: its kind.
        label: the student's label, or an empty string.
        rows: the rows of its metrics.jsonl.
        kept_step: the step whose parameters it kept, if known.
        steps: its number of steps, if known.
    """

    run: str
    seed: str
    phase: str
    kind: str
    label: str
    rows: list[dict[str, Any]]
    kept_step: int | None
    steps: int | None


def training_curves(settings: Sequence[Setting]) -> dict[str, list[Curve]]:
    """Return title -> curves of one kind and label, one per seed. Shared phases appear once."""
    curves: dict[str, list[Curve]] = {}
    seen: set[str] = set()
    for setting in settings:
        for run in setting.runs:
            for stage in run.result.get("stages") or []:
                phase = str(stage.get("phase", ""))
                if phase in seen or not run.curves.get(phase):
                    continue
                seen.add(phase)
                kind, label = str(stage.get("kind", "phase")), str(stage.get("label") or "")
                own = run.phases.get(phase, {})
                title = " ".join(filter(None, [kind_title(kind), label]))
                title = f"{title}: {stage.get('model', '')}".rstrip(": ")
                if len(settings) > 1:
                    title += f" ({setting.title})"
                curve = Curve(
                    run.name, seeds_of(run), phase, kind, label, run.curves[phase],
                    own.get("kept_step"), own.get("steps"),
                )  # fmt: skip
                curves.setdefault(title, []).append(curve)
    return curves


def training_panels(curves: dict[str, list[Curve]]) -> list[Panel]:
    """Return panels of training loss and validation scores, with the step that was kept."""
    panels = []
    for title, members in curves.items():
        losses = [v for c in members for v in series(c.rows, "train", "loss")[1][-1:]]
        ends = f"; final losses {', '.join(map(show, losses))}" if losses else "; no losses logged"
        alt_text = f"Training loss against step, {plural(len(members), 'phase')}{ends}."
        panels.append(Panel(title, alt_text, partial(_draw_training, curves=members), 3.3))
    return panels


def series(rows: list[dict[str, Any]], split: str, field: str) -> tuple[list[float], list[float]]:
    """Return steps and values of a field, in order of steps.

    If a step was logged twice, as after a resume, the later row counts. Values that are not finite
    numbers are skipped.
    """
    points: dict[float, float] = {}
    for row in rows:
        step, value = number(row.get("step")), number(row.get(field))
        if row.get("split") == split and step is not None and value is not None:
            points[step] = value
    steps = sorted(points)
    return steps, [points[s] for s in steps]


def thinned(values: list[float]) -> list[float]:
    """Return every n-th value, at most `MAX_POINTS`, and the last one."""
    every = max(1, math.ceil(len(values) / MAX_POINTS))
    return values[::every] + ([values[-1]] if (len(values) - 1) % every else [])


def _smooth(values: list[float]) -> list[float]:
    """Return the bias-corrected exponential moving average over about a thirtieth of the run."""
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
        # A line through one or two points is hard to see.
        marker = "o" if len(steps) < 3 else ""
        smoothed = _smooth(losses)
        if steps:
            ax.plot(thinned(steps), thinned(smoothed), color=SERIES[0], lw=thin, marker=marker,
                    ms=4, label=name)  # fmt: skip
            name = None
    if name is not None:
        ax.text(0.5, 0.5, "no losses logged", transform=ax.transAxes, ha="center", color=INK)
    _mark_kept(ax, curves)
    ax.set_xlabel(f"training step ({plural(len(curves), 'seed')})")
    ax.set_ylabel("training loss (nats)")
    style(ax)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    _validation_axis(ax, curves, thin)


def _mark_kept(ax: "Axes", curves: list[Curve]) -> None:
    """Mark the step that early stopping kept with a star, unless it is the last."""
    name: str | None = "step kept"
    for curve in curves:
        steps, losses = series(curve.rows, "train", "loss")
        if curve.kept_step is None or curve.kept_step == curve.steps or not steps:
            continue
        index = int(np.searchsorted(steps, curve.kept_step).clip(0, len(steps) - 1))
        ax.plot([curve.kept_step], [_smooth(losses)[index]], "*", color=INK, ms=10, label=name,
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
        # For a model trained on ground truth, the two are the same.
        found["agreement"] = []
    if any(found.values()):
        right = ax.twinx()
        for field, lines in found.items():
            shade, marker = styles[field]
            for index, (steps, values) in enumerate(lines):
                # The legend belongs to the left axis.
                right.plot(thinned(steps), thinned(values), color=shade, marker=marker, ms=3.5,
                           lw=width * 0.7, ls="--")  # fmt: skip
                if index == 0:
                    ax.plot([], [], color=shade, marker=marker, ms=3.5, ls="--", label=names[field])
        style(right, grid=False)
        right.spines["right"].set_visible(True)
        right.spines["right"].set_color(RULE)
        right.set_ylabel("validation score")
    legend(ax)
