"""`w2s gc`: list what no result needs, then remove it. Imports no JAX.

In a run's folder, or in a folder of runs (DIR/runs/*) that share DIR/phases, these are:

- phases that no run there refers to, by its config.json (`phases`) or its result.json (`stages`),
  and that no such phase builds on;
- mid-phase checkpoints of complete phases, also in `checkpoint.dir`;
- temporary files and folders of interrupted writes;
- checkpoints that were found damaged and set aside;
- on request, the final parameters of complete runs, which `checkpoint.keep_final=False` would not
  have kept. Parameters that other phases start from stay.

Phases that a process has claimed are never touched, nor is anything outside of DIR, except what its
phases have in the run's `checkpoint.dir`. After the confirmation the search is repeated, so that a
run that has started in the meantime keeps its files.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from w2s_jax.core import errors, files
from w2s_jax.core.files import read_json
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import STARTS
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder

_PHASE = re.compile(r"[a-z]+-[0-9a-f]{16}")
#: What writes leave that are killed: `files.write_json`, predictions, Orbax's folders.
_TEMPORARY = (".*.tmp", "*.orbax-checkpoint-tmp*")
#: What `files.set_aside` has renamed.
_ASIDE = ("*.damaged-*",)
#: A run's own folder is not claimed, so its temporary files count as abandoned after this time.
_SETTLED_SECONDS = 600


@dataclass(frozen=True)
class Garbage:
    """A file or folder to remove, the reason, and the phase that it belongs to, if any."""

    path: Path
    why: str
    phase: PhaseFolder | None = None

    @property
    def num_bytes(self) -> int:
        """Size of all files in it."""
        if files.is_remote(self.path):
            remote = cast(Any, self.path)
            return int(remote.fs.du(remote.path))
        if not self.path.is_dir():
            return self.path.lstat().st_size
        return sum(p.lstat().st_size for p in self.path.rglob("*") if not p.is_dir())


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
      folder: its folder.
      phases: the phases that it refers to; None if its config.json does not name them.
      complete: whether it has a result.
      store: the folder of its phases.
      saves: its `checkpoint.dir`.
    """

    folder: Path
    phases: frozenset[str] | None
    complete: bool
    store: Path
    saves: str | None = None


def collect(
    folder: Path, console: Console, confirm: Callable[[], bool], *, finals: bool = False
) -> int:
    """Print what no result needs in `folder`, and remove it if `confirm` returns True.

    Args:
      folder: a run's folder, or one with runs/<name>.
      console: where to print.
      confirm: called once, if there is anything to remove.
      finals: include the final parameters of complete runs.

    Returns:
      The number of bytes that were removed.

    Raises:
      InputError: there is no run in `folder`.
    """
    found, notes = find(folder, finals=finals)
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False)
    if not found:
        console.print(f"{folder}: nothing to remove", highlight=False, markup=False)
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("path", "why", "size"):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for item in found:
        table.add_row(str(_below(item.path, folder)), item.why, _size(item.num_bytes))
    console.print(table)
    total = sum(item.num_bytes for item in found)
    console.print(f"{len(found)} to remove, {_size(total)}", highlight=False)
    if not confirm():
        console.print("nothing was removed", highlight=False)
        return 0
    removed = _remove(found, set(find(folder, finals=finals)[0]))
    console.print(f"removed {_size(removed)}", highlight=False)
    return removed


def find(folder: Path, *, finals: bool = False) -> tuple[list[Garbage], list[str]]:
    """Return what no result needs, and notes on what is left alone; see `collect`."""
    runs = _runs(folder)
    root = folder.resolve()
    stores = {folder / "phases", *(run.folder / "phases" for run in runs)}
    stores |= {run.store for run in runs}
    inside = sorted({s for s in stores if s.is_dir() and s.resolve().is_relative_to(root)})
    notes = [
        f"{store}: outside of {folder}, left alone"
        for store in sorted(stores - set(inside))
        if store.is_dir()
    ]
    phases: dict[Path, PhaseFolder] = {}
    for store in inside:
        for path in sorted(store.iterdir()):
            if _PHASE.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                phases.setdefault(path.resolve(), PhaseFolder(path))
    unknown = [run for run in runs if run.phases is None]
    notes += [
        f"{run.folder}: its config.json (of an earlier version) names no phases, so no whole phase "
        "is removed; `w2s run` with the same config adds the names when it next runs a phase"
        for run in unknown
    ]
    kept = _with_parents({n for r in runs for n in r.phases or ()}, list(phases.values()))
    done = _finals(runs, list(phases.values())) if finals else set()
    found = [g for run in runs for g in _settled(run.folder)]
    saved = _saved(runs, notes)
    for phase in phases.values():
        name = phase.path.name
        saves = [folder / name for folder, names in saved.items() if name in names]
        with artifacts.claim_if_free(phase) as free:
            if not free:
                notes.append(f"{phase.path}: claimed by a process, left alone")
                continue
            unused = name not in kept and not unknown
            if unused or phase.complete:
                why = "mid-phase checkpoints of a phase that is complete or belongs to no run"
                found += [Garbage(path, why, phase) for path in saves]
            if unused:
                found.append(Garbage(phase.path, "no run refers to it", phase))
            else:
                found += _within(phase, name in done)
    return found, notes


def _runs(folder: Path) -> list[RunFolder]:
    """Return the run in `folder`, or those in its runs/."""
    inner = folder / "runs"
    candidates = [folder, *(files.contents(inner) if inner.is_dir() else ())]
    runs = [_run(path) for path in candidates if (path / "config.json").is_file()]
    if not runs:
        files.refuse_missing(folder)
        inside = sorted(p.parent.name for p in folder.glob("*/config.json") if _is_run(p))
        hint = f"; it has folders of runs, so give one of them: {', '.join(inside)}"
        raise errors.InputError(
            f"gc: {folder}: is neither a run nor a sweep{hint if inside else ''}"
        )
    return runs


def _is_run(path: Path) -> bool:
    """Return whether a config.json is that of a run, not of a phase or a model."""
    found = read_json(path)
    return isinstance(found, dict) and {"config", "data"} <= found.keys()


def _run(folder: Path) -> RunFolder:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not {"config", "data"} <= config.keys():
        raise errors.InputError(f"gc: {folder / 'config.json'} is not the config of a run")
    phases: frozenset[str] | None = None
    if "phases" in config:
        phases = frozenset(config["phases"])
    path = folder / "result.json"
    if path.exists() and phases is not None:
        phases |= {stage["phase"] for stage in read_json(path)["stages"]}
    store = Path(config["store"]) if "store" in config else folder / "phases"
    saves = config["config"].get("checkpoint", {}).get("dir")
    return RunFolder(folder, phases, path.exists(), store, saves)


def _saved(runs: list[RunFolder], notes: list[str]) -> dict[Path, set[str]]:
    """Return each `checkpoint.dir` of the runs, and the phases that have checkpoints there."""
    found = {}
    for text in sorted({run.saves for run in runs if run.saves is not None}):
        try:
            folder = files.checkpoint_location(text)
            found[folder] = {p.name for p in folder.iterdir()} if folder.exists() else set()
        except Exception as error:  # whatever a store's client says
            notes.append(f"checkpoint.dir {text}: cannot be read ({error}), left alone")
    return found


def _with_parents(names: set[str], phases: list[PhaseFolder]) -> set[str]:
    """Return the names and those of all phases that they build on, as far as these exist."""
    parents = {phase.path.name: _parents(phase) for phase in phases}
    reached: set[str] = set()
    waiting = set(names)
    while waiting:
        reached |= waiting
        waiting = {p for n in waiting for p in parents.get(n, {}).values()} - reached
    return reached


def _parents(phase: PhaseFolder) -> dict[str, str]:
    return artifacts.read_parents(phase) if phase.config.exists() else {}


def _finals(runs: list[RunFolder], phases: list[PhaseFolder]) -> set[str]:
    """Return the phases of complete runs alone whose final parameters no phase starts from."""
    open_runs = [run for run in runs if not run.complete]
    if any(run.phases is None for run in open_runs):
        return set()
    needed = _with_parents({n for run in open_runs for n in run.phases or ()}, phases)
    starts = {_parents(phase).get(key) for phase in phases for key in STARTS}
    return {
        phase.path.name
        for phase in phases
        if phase.complete
        and phase.path.name not in needed | starts
        and not _keeps_parameters(phase.path.name.partition("-")[0])
    }


def _keeps_parameters(kind: str) -> bool:
    """Return whether phases start from a kind's parameters; True for kinds not registered here."""
    return kind not in PHASE_KINDS or PHASE_KINDS[kind].keeps_parameters


def _within(phase: PhaseFolder, finals: bool) -> Iterator[Garbage]:
    """Yield what can be removed of an unclaimed phase that stays."""
    checkpoints = phase.final.parent
    searched = [phase.path, checkpoints, phase.steps]
    if finals and checkpoints.exists():
        yield Garbage(checkpoints, "final parameters of a complete run", phase)
        searched = [phase.path]
    elif phase.complete:
        for path in (phase.steps, phase.population):
            if path.exists():
                yield Garbage(path, "mid-phase checkpoints of a complete phase", phase)
        searched = [phase.path, checkpoints]
    for parent in searched:
        for path in _matching(parent, _TEMPORARY):
            yield Garbage(path, "interrupted write", phase)
        for path in _matching(parent, _ASIDE):
            if files.is_aside(path.name):
                yield Garbage(path, "damaged, set aside", phase)


def _settled(folder: Path) -> Iterator[Garbage]:
    """Yield abandoned temporary files of a run's own folder."""
    for path in _matching(folder, _TEMPORARY) + _matching(folder / "report", _TEMPORARY):
        if time.time() - path.lstat().st_mtime > _SETTLED_SECONDS:
            yield Garbage(path, "interrupted write")


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _remove(listed: list[Garbage], still: set[Garbage]) -> int:
    removed = 0
    for item in listed:
        if item not in still:
            continue
        size = item.num_bytes
        if item.phase is None:
            item.path.unlink()
        else:
            with artifacts.claim_if_free(item.phase) as free:
                if not free:
                    continue
                if files.is_remote(item.path) or item.path.is_dir():
                    files.remove_folder(item.path)
                else:
                    item.path.unlink()
        removed += size
    return removed


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
