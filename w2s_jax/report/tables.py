"""Tables of a report as rows and as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from w2s_jax.report.curves import Curve, series, thinned
from w2s_jax.report.results import Entry, roles, show_pgr
from w2s_jax.report.settings import Setting

_METRICS = ("accuracy", "accuracy_se", "auroc", "ece", "n", "pgr", "pgr_note")
_AGREEMENTS = ("agreement", "agreement_when_correct", "agreement_when_wrong")
_DETAILS = (
    "overconfidence", "misfit", "pgr_low", "pgr_high", "parameters", "phase", "method", "gap_low",
    "gap_high",
)  # fmt: skip
TABLE_COLUMNS = (
    "run", "name", "task", "protocol", "seed", "role", "loss", "model", *_METRICS, *_AGREEMENTS,
    *_DETAILS, "loss_kind", "label", "weak_model", "strong_model", "setting",
)  # fmt: skip
#: Metrics of more than two classes: columns of table.csv where some row has them.
CLASS_METRICS = ("macro_f1", "log_loss")
CURVE_COLUMNS = (
    "run", "seed", "phase", "kind", "label", "kept_step", "split", "step", "loss", "accuracy",
    "agreement",
)  # fmt: skip
CALIBRATION_COLUMNS = ("setting", "role", "label", "seeds", "low", "high", "mean_p", "share", "n")


def table_rows(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return one row per run and role, with the values of result.json.

    `label` is the student's key in the result, `loss` the part of it before the method, `loss_kind`
    the name of the loss function, `index` the position of the run among all runs, and `shown_pgr`
    PGR as printed: undefined where the gap's interval holds 0.
    """
    rows = []
    index = 0
    for setting in settings:
        for run in setting.runs:
            head = {k: run.result.get(k) for k in ("name", "task", "protocol", "seed")}
            head |= {"run": run.name, "index": index, "setting": setting.title}
            head |= {"weak_model": setting.weak, "strong_model": setting.strong}
            index += 1
            for role, label, entry in roles(run.result):
                row = head | _entry_row(role, label, entry)
                row["shown_pgr"] = show_pgr(run.result, entry) if role == "student" else ""
                rows.append(row)
    return rows


def table_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns of table.csv with these rows."""
    return TABLE_COLUMNS + (CLASS_METRICS if any_multiclass(rows) else ())


def any_multiclass(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether some row is of a task with more than two classes."""
    return any(row["macro_f1"] is not None for row in rows)


def _entry_row(role: str, label: str, entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"role": role, "label": label, "loss": None, "loss_kind": None}
    row |= {k: entry.get(k) for k in ("model", *_METRICS, *_AGREEMENTS, *_DETAILS, *CLASS_METRICS)}
    if role == "student":
        row |= {"loss": label.partition("+")[0], "loss_kind": entry.get("loss")}
    return row


def curve_rows(curves: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    """Return losses and validation scores as drawn: at most some hundreds of steps per phase."""
    rows: list[dict[str, Any]] = []
    for curve in (c for members in curves.values() for c in members):
        head = {name: getattr(curve, name) for name in CURVE_COLUMNS[:6]}
        for split in ("train", "validation"):
            fields = {f: series(curve.rows, split, f) for f in ("loss", "accuracy", "agreement")}
            tables = {f: dict(zip(*xy, strict=True)) for f, xy in fields.items()}
            steps = sorted({step for xy in fields.values() for step in xy[0]})
            for step in thinned(steps):
                values = {f: table.get(step) for f, table in tables.items()}
                rows.append(head | {"split": split, "step": int(step)} | values)
    return rows


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Format rows as CSV with full precision; undefined values are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()
