"""Files of a sweep, besides those of its runs and phases. Imports no JAX.

    DIR/sweep.json                     the planned runs and phases, and the source of the points
    DIR/slurm/jobs.json                phase -> id of its job, with Slurm
    DIR/phases/<phase>/failed.json     why the phase failed; removed when it is complete
    DIR/phases/<phase>/holder.json     the process that runs it; valid while the phase is claimed

The state of a phase is always read from its folder.
"""

import dataclasses
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core import errors, library_logs
from w2s_jax.core.files import contents, read_json, write_json
from w2s_jax.execution import workdirs
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.store.claims import is_claimed as is_claimed
from w2s_jax.sweep.planning import SweepPlan
from w2s_jax.sweep.points import PointSource

#: The states of a phase, in the order in which they are listed.
STATES = ("done", "running", "failed", "waiting", "blocked")


@dataclass(frozen=True)
class Holder:
    """The process that runs a phase.

    Attributes:
      host: its host name.
      pid: its process id.
      since: when it claimed the phase, in seconds since the epoch.
      from_step: the step from which it trains.
    """

    host: str
    pid: int
    since: float
    from_step: int


def sweep_path(workdir: Path) -> Path:
    """Return the path of a sweep's record."""
    return workdir / "sweep.json"


def check_workdir(workdir: Path) -> None:
    """Check that a folder is new, empty, or that of a sweep.

    Raises:
      InputError: it is not.
    """
    if sweep_path(workdir).exists():
        read_sweep(workdir)
        return
    # A kill in the first write leaves its temporary file, which is hidden.
    foreign = workdir.exists() and (not workdir.is_dir() or bool(contents(workdir)))
    if foreign:
        kind = "not a sweep folder" if workdir.is_dir() else "a file"
        raise errors.InputError(
            f"--workdir: {workdir} is {kind}; use a new or empty folder, or this sweep's folder"
        )


def begin(workdir: Path, plan: SweepPlan, source: PointSource, *, retry_failed: bool) -> None:
    """Create the folders and write the plan; with `retry_failed` forget failures."""
    workdirs.make(workdir)
    workdirs.make(plan.store)
    library_logs.write_to(workdir / "logs")
    _write_sweep(workdir, plan, source)
    if retry_failed:
        for name in plan.phases:
            forget_failure(plan.folder(name))


def _write_sweep(workdir: Path, plan: SweepPlan, source: PointSource) -> None:
    phases = {
        name: {
            "kind": phase.kind,
            "title": phase.title,
            "model": phase.model.name,
            "steps": phase.total_steps,
            "parents": plan.parents[name],
        }
        for name, phase in plan.phases.items()
    }
    runs = {
        run.name: {"overrides": dict(run.overrides), "phases": list(run.phases)}
        for run in plan.runs
    }
    record = {
        "source": dataclasses.asdict(source),
        "store": str(plan.store.absolute()),
        "runs": runs,
        "phases": phases,
        "starts": sorted(plan.starts),
    }
    write_json(sweep_path(workdir), record)


def read_sweep(workdir: Path) -> dict[str, Any]:
    """Return what `begin` wrote.

    Raises:
      InputError: the folder is not that of a sweep.
    """
    path = sweep_path(workdir)
    if not path.exists():
        kind = "is a file" if workdir.exists() else "does not exist"
        advice = "give the folder of a sweep" if workdir.is_dir() else f"{workdir} {kind}"
        raise errors.InputError(f"{workdir}: has no sweep.json; {advice}")
    found = read_json(path)
    if not (isinstance(found, dict) and {"store", "runs", "phases"} <= found.keys()):
        raise errors.InputError(f"{path} is not the record of a sweep; give the folder of a sweep")
    return found


def read_source(record: dict[str, Any]) -> PointSource:
    """Return the source of the points of a recorded sweep."""
    source = record["source"]
    return PointSource(source["config"], tuple(source["overrides"]), source["folder"])


def jobs_path(workdir: Path) -> Path:
    """Return the path of a sweep's jobs in a batch system."""
    return workdir / "slurm" / "jobs.json"


def read_jobs(workdir: Path) -> dict[str, str]:
    """Return the last submitted jobs of a sweep: phase -> id; {} if there are none."""
    path = jobs_path(workdir)
    return dict(read_json(path)) if path.exists() else {}


def _failed_path(folder: PhaseFolder) -> Path:
    return folder.path / "failed.json"


def _holder_path(folder: PhaseFolder) -> Path:
    return folder.path / "holder.json"


def write_failure(folder: PhaseFolder, error: Exception) -> None:
    """Record why a phase failed, with a traceback unless the error is one of this package's."""
    record = {"error": errors.first_line(error), "time": time.time()}
    if not isinstance(error, errors.W2SError):
        record["traceback"] = "".join(traceback.format_exception(error))
    write_json(_failed_path(folder), record)


def read_failure(folder: PhaseFolder) -> str | None:
    """Return the first line of the error that a phase failed with, or None."""
    path = _failed_path(folder)
    try:
        return str(read_json(path)["error"])
    except FileNotFoundError:
        return None
    except (errors.InputError, KeyError, TypeError):
        return f"{path} is damaged"


def forget_failure(folder: PhaseFolder) -> None:
    """Remove the record of a failure, if there is one."""
    _failed_path(folder).unlink(missing_ok=True)


@contextmanager
def held(folders: list[PhaseFolder]) -> Iterator[None]:
    """Record this process in the folders of phases that it has claimed, while the block runs."""
    # Phases that train together have their checkpoints in the first folder.
    steps = [int(p.name) for p in folders[0].steps.glob("*") if p.name.isdigit()]
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.time(),
        "from_step": max(steps, default=0),
    }
    try:
        for folder in folders:
            write_json(_holder_path(folder), record)
        yield
    finally:
        for folder in folders:
            _holder_path(folder).unlink(missing_ok=True)


def read_holder(folder: PhaseFolder) -> Holder | None:
    """Return the process recorded as running a phase, or None."""
    try:
        return Holder(**read_json(_holder_path(folder)))
    except (FileNotFoundError, errors.InputError, TypeError):
        return None


def states(store: Path, parents: Mapping[str, list[str]]) -> dict[str, str]:
    """Return the state of each phase, one of `STATES`; 'blocked' ones build on a failed phase.

    Args:
      store: the folder of the phases.
      parents: phase -> its parents, each phase after its parents.
    """
    found: dict[str, str] = {}
    for name, before in parents.items():
        folder = PhaseFolder(store / name)
        if folder.complete:
            found[name] = "done"
        elif is_claimed(folder):
            found[name] = "running"
        elif read_failure(folder) is not None:
            found[name] = "failed"
        elif any(found.get(parent) in ("failed", "blocked") for parent in before):
            found[name] = "blocked"
        else:
            found[name] = "waiting"
    return found
