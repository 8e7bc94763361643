"""Read finished runs from their folders, with the logs and predictions of their phases."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.core.files import contents, refuse_missing
from w2s_jax.report.results import Result, roles
from w2s_jax.store.artifacts import read_predictions

#: Column -> values [N] of a phase's predictions on the N test documents.
Predictions = dict[str, np.ndarray]


@dataclass(frozen=True)
class FinishedRun:
    """A run with a result.

    Attributes:
        folder: the run's folder.
        result: the content of its result.json.
        config: the config in its config.json.
        curves: phase -> rows of its metrics.jsonl.
        predictions: phase -> its predictions on the test documents.
        phases: phase -> its own result.json.
    """

    folder: Path
    result: Result
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name, also of relative paths such as `.`."""
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
    """Read a metrics.jsonl, skipping incomplete lines, which interrupted runs leave behind."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def phase_folder(run: Path, phase: str, store: str | None) -> Path | None:
    """Return the folder of a run's phase, with `store` as in the run's config.json; else None."""
    parents = [run / "phases"]
    if store:
        parents.append(Path(store))
    if run.parent.name == "runs":  # the runs of a sweep keep their phases in the sweep's folder
        parents.append(run.parent.parent / "phases")
    # Results are not trusted to name paths outside of these folders.
    if phase in ("", "..") or Path(phase).name != phase:
        return None
    return next((p / phase for p in parents if (p / phase).is_dir()), None)


class _PhaseReader:
    """A reader of phase folders that reads each once, since runs share phases."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[Any, Any, Any]] = {}

    def read(self, folder: Path) -> tuple[Any, Any, Any]:
        """Return metrics rows, test predictions and result, None for missing files."""
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


def _load_run(folder: Path, reader: _PhaseReader) -> FinishedRun:
    if not (folder / "result.json").is_file():
        raise _no_result(folder)
    result = _read_json(folder / "result.json")
    record = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    run = FinishedRun(folder, result, record.get("config", {}))
    names = [str(stage.get("phase", "")) for stage in result.get("stages") or []]
    names += [str(entry["phase"]) for _, _, entry in roles(result) if entry.get("phase")]
    for phase in dict.fromkeys(names):
        found = phase_folder(folder, phase, record.get("store"))
        if found is None:
            continue
        rows, predictions, own = reader.read(found)
        for table, value in ((run.curves, rows), (run.predictions, predictions), (run.phases, own)):
            if value is not None:
                table[phase] = value
    return run


def _no_result(folder: Path) -> InputError:
    """Return the error for a folder without result.json, by what it is."""
    try:
        refuse_missing(folder)
    except InputError as error:
        return InputError(f"{error}; give a folder that w2s run or w2s sweep has finished")
    if (folder / "config.json").is_file() or (folder / "sweep.json").is_file():
        command = "run" if (folder / "config.json").is_file() else "sweep"
        return InputError(
            f"{folder}: is not finished (it has no result.json): w2s {command} --config=... "
            f"--workdir={folder}"
        )
    inside = sorted(path.parent for path in folder.glob("*/result.json"))
    hint = f"; give its runs: w2s report {folder}/*" if inside else ""
    return InputError(f"{folder}: is neither a run nor a sweep{hint}")


def load_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[Path]]:
    """Read finished runs and sweeps.

    Args:
        folders: folders of runs, or of sweeps (with `runs/` and no result.json), which are replaced
            by their finished runs.

    Returns:
        The runs, each once, and the folders of a sweep's runs that have no result yet.

    Raises:
        InputError: there are no folders, a folder is neither a finished run nor a sweep with
            finished runs, or a file cannot be read.
    """
    if not folders:
        raise InputError("report: give at least one folder of a finished run")
    finished: dict[Path, Path] = {}
    unfinished: list[Path] = []
    for folder in map(Path, folders):
        members = [folder]
        if (folder / "runs").is_dir() and not (folder / "result.json").is_file():
            every = [p for p in contents(folder / "runs") if p.is_dir()]
            done = [p for p in every if (p / "result.json").is_file()]
            unfinished += [p for p in every if p not in done]
            members = done or [folder]
        for member in members:
            finished.setdefault(member.resolve(), member)
    reader = _PhaseReader()
    return [_load_run(folder, reader) for folder in finished.values()], unfinished
