"""Reading finished runs from their folders, with what their phases left beside the result."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.metrics import classification, intervals
from w2s_jax.report.words import Entry, Result, roles
from w2s_jax.store.artifacts import read_predictions

#: Columns of a phase's predictions on the test documents.
Predictions = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, result.json, config, and what was found of its phases, by name.

    `curves`: the rows of metrics.jsonl; `predictions`: those on the test documents; `phases`: each
    phase's own result.json.
    """

    folder: Path
    result: Result
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name; `.` has one as well."""
        return self.folder.resolve().name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a line that a killed run left half written is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _phase_folder(run: Path, phase: str, store: str | None) -> Path | None:
    parents = [run / "phases"]
    if store:
        parents.append(Path(store))
    if run.parent.name == "runs":  # the runs of a sweep keep their phases in the sweep's folder
        parents.append(run.parent.parent / "phases")
    # A phase is one folder's name: anything with a separator in it is not ours to follow.
    if phase in ("", "..") or Path(phase).name != phase:
        return None
    return next((p / phase for p in parents if (p / phase).is_dir()), None)


class _PhaseReader:
    """Reads each phase's folder once, although runs share phases."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[Any, Any, Any]] = {}

    def read(self, folder: Path) -> tuple[Any, Any, Any]:
        """Rows, predictions and result; None for what is not there."""
        key = folder.resolve()
        if key not in self._seen:
            rows, predictions, result = (
                folder / name for name in ("metrics.jsonl", "predictions.parquet", "result.json")
            )
            self._seen[key] = (
                _read_rows(rows) if rows.is_file() else None,
                _test_predictions(predictions) if predictions.is_file() else None,
                _read_json(result) if result.is_file() else None,
            )
        return self._seen[key]


def _test_predictions(path: Path) -> Predictions | None:
    import pyarrow as pa

    try:
        columns = read_predictions(path, "test")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as predictions ({error})") from error
    return columns if len(columns["p"]) else None


def load_run(folder: Path, reader: _PhaseReader | None = None) -> Run:
    """Reads one run's folder; InputError, which names it, if it has no result.json.

    What results of earlier versions lack (phases, sizes, newer metrics) is taken from the phases
    where they are still there; what result.json says is never replaced.
    """
    if not (folder / "result.json").is_file():
        raise InputError(
            f"{folder}: no result.json here; finish the run first with"
            f" `w2s run --config=... --workdir={folder}`"
        )
    result = _read_json(folder / "result.json")
    record = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    run = Run(folder, result, record.get("config", {}))
    names = [str(stage.get("phase", "")) for stage in result.get("stages") or []]
    names += [str(entry["phase"]) for _, _, entry in roles(result) if entry.get("phase")]
    reader = reader or _PhaseReader()
    for phase in dict.fromkeys(names):
        found = _phase_folder(folder, phase, record.get("store"))
        if found is None:
            continue
        rows, predictions, own = reader.read(found)
        for table, value in ((run.curves, rows), (run.predictions, predictions), (run.phases, own)):
            if value is not None:
                table[phase] = value
    _complete(run)
    return run


def _complete(run: Run) -> None:
    """Adds to the entries of an earlier version's result what the phases tell."""
    stages = run.result.get("stages") or []
    for role, label, entry in roles(run.result):
        same = [s for s in stages if s.get("kind") == role]
        own = [str(s["phase"]) for s in same if role != "student" or s.get("label") == label]
        # Several supervisors are not one phase.
        if len(own) == 1:
            entry.setdefault("phase", own[0])
        phase = run.phases.get(str(entry.get("phase")), {})
        if phase.get("parameters") is not None:
            entry.setdefault("parameters", phase["parameters"])
        if role == "student":
            loss, _, method = label.partition("+")
            kind = (run.config.get("loss") or {}).get(loss, {}).get("kind", loss)
            entry.setdefault("loss", kind)
            entry.setdefault("method", method or "naive")
    _measure(run)


def _measure(run: Run) -> None:
    """The metrics that an earlier version did not write, from the predictions."""
    weak = _predictions(run, run.result.get("weak") or {})
    for role, _, entry in roles(run.result):
        own = _predictions(run, entry)
        if own is None:
            continue
        if "overconfidence" not in entry:
            entry["overconfidence"] = classification.overconfidence_error(
                own["p"], own["ground_truth"]
            )
        if role != "student" or weak is None or not np.array_equal(own["id"], weak["id"]):
            continue
        if "misfit" not in entry:
            entry["misfit"] = float(np.mean((own["p"].astype(float) - weak["p"]) ** 2))
        ceiling = _predictions(run, entry.get("ceiling") or run.result.get("ceiling") or {})
        if "pgr_low" in entry or ceiling is None or not np.array_equal(own["id"], ceiling["id"]):
            continue
        interval = intervals.pgr_interval(weak["p"], own["p"], ceiling["p"], own["ground_truth"])
        entry |= {"pgr_low": interval["low"], "pgr_high": interval["high"]}


def _predictions(run: Run, entry: Entry) -> Predictions | None:
    return run.predictions.get(str(entry.get("phase")))


def load_runs(folders: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """Read runs, and sweeps: a folder with `runs/` and no result.json stands for its finished runs.

    Returns:
        The runs, without repetitions, and the folders of a sweep's runs that have no result yet.

    Raises:
        InputError: no folders, a folder that is neither a finished run nor a sweep with finished
            runs, or a file that can't be read.
    """
    if not folders:
        raise InputError("report: name at least one folder of a finished run")
    finished: dict[Path, Path] = {}
    unfinished: list[Path] = []
    for folder in map(Path, folders):
        members = [folder]
        if (folder / "runs").is_dir() and not (folder / "result.json").is_file():
            every = sorted(p for p in (folder / "runs").iterdir() if p.is_dir())
            done = [p for p in every if (p / "result.json").is_file()]
            unfinished += [p for p in every if p not in done]
            members = done or [folder]
        for member in members:
            finished.setdefault(member.resolve(), member)
    reader = _PhaseReader()
    return [load_run(folder, reader) for folder in finished.values()], unfinished
