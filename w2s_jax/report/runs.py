"""Reading finished runs from their folders, and grouping those that differ only in their seeds."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2s_jax.config import flatten
from w2s_jax.errors import InputError
from w2s_jax.report.words import Result, setting

# What may differ without changing a result: where things lie, how they are logged and laid out.
_INERT = ("name", "mesh", "log", "checkpoint", "losses", "task.data_dir")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, result.json, config and training rows by phase folder."""

    folder: Path
    result: Result
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


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
    return next((p / phase for p in parents if (p / phase / "metrics.jsonl").is_file()), None)


def load_run(folder: Path) -> Run:
    """Reads one run's folder; InputError, which names it, if it has no result.json."""
    if not (folder / "result.json").is_file():
        raise InputError(
            f"{folder}: no result.json here; finish the run first with"
            f" `w2s run --config=... --workdir={folder}`"
        )
    result = _read_json(folder / "result.json")
    record = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    curves = {}
    for stage in result.get("stages") or []:
        phase = str(stage.get("phase", ""))
        found = _phase_folder(folder, phase, record.get("store"))
        if found is not None:
            curves[phase] = _read_rows(found / "metrics.jsonl")
    return Run(folder, result, record.get("config", {}), curves)


def load_runs(folders: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """Read runs, and sweeps: a folder with `runs/` and no result.json stands for its finished runs.

    Returns:
        The runs, without repetitions, and the folders of a sweep's runs that have no result yet.

    Raises:
        InputError: no folders, a folder that is neither a finished run nor a sweep with finished
            runs, or a file that is not JSON.
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
    return [load_run(folder) for folder in finished.values()], unfinished


def _matters(name: str) -> bool:
    if any(name == inert or name.startswith(f"{inert}.") for inert in _INERT):
        return False
    last = name.rsplit(".", 1)[-1]
    return last not in ("seed", "microbatch_size") and not last.endswith("_seed")


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group the runs that differ only in seeds (fields named `seed` or `*_seed`).

    Fields that can't change a result (name, mesh, log, checkpoint, data folder) are not compared.
    The keys are titles: task, protocol and models, and whichever fields tell the groups apart.
    """
    groups: dict[str, list[Run]] = {}
    fields: dict[str, dict[str, str]] = {}
    for run in runs:
        flat = {k: json.dumps(v, sort_keys=True) for k, v in flatten(run.config).items()}
        flat = {k: v for k, v in flat.items() if _matters(k)}
        key = json.dumps([setting(run.result), flat], sort_keys=True)
        groups.setdefault(key, []).append(run)
        fields[key] = flat
    names = sorted({name for flat in fields.values() for name in flat})
    varying = [n for n in names if len({flat.get(n) for flat in fields.values()}) > 1]
    titled: dict[str, list[Run]] = {}
    for key, members in groups.items():
        title = setting(members[0].result)
        twins = [k for k, other in groups.items() if setting(other[0].result) == title]
        telling = [n for n in varying if len({fields[k].get(n) for k in twins}) > 1]
        shown = [f"{n}={fields[key].get(n, 'unset')}" for n in telling[:4]]
        title = "; ".join([title, ", ".join(shown)]) if shown else title
        # Beyond four telling fields two groups could get one title: number them.
        unique, count = title, 2
        while unique in titled:
            unique, count = f"{title} ({count})", count + 1
        titled[unique] = members
    return titled
