"""What a sweep keeps on disk beside what runs and phases leave. Imports no JAX.

    DIR/sweep.json                 the runs and the phases, as they were planned, and from what
    DIR/slurm/jobs.json            phase -> id of its job, where Slurm runs them
    DIR/phases/<phase>/failed.json     why it failed; removed when it is complete
    DIR/phases/<phase>/holder.json     who runs it; says nothing once the claim is free

Whether a phase is done, failed or being run is always read from its folder.
"""

import dataclasses
import fcntl
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core import errors
from w2s_jax.core.files import read_json, write_json
from w2s_jax.execution import workdirs
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.sweep.planning import SweepPlan
from w2s_jax.sweep.points import Source

#: The states of a phase, in the order in which they are told.
STATES = ("done", "running", "failed", "waiting", "blocked")


@dataclass(frozen=True)
class Holder:
    """Who runs a phase: host, process, since when (seconds of the epoch), and from which step."""

    host: str
    pid: int
    since: float
    from_step: int


def sweep_path(workdir: Path) -> Path:
    """The record of a sweep."""
    return workdir / "sweep.json"


def check_workdir(workdir: Path) -> None:
    """Refuses a folder that holds something else than a sweep.

    Raises:
      InputError: saying what is allowed.
    """
    if sweep_path(workdir).exists():
        read_sweep(workdir)
        return
    # A kill in the first write leaves its temporary file.
    foreign = workdir.exists() and (
        not workdir.is_dir() or any(not p.match(".sweep.json.*.tmp") for p in workdir.iterdir())
    )
    if foreign:
        raise errors.InputError(
            f"--workdir: {workdir} is not empty and holds no sweep; allowed: a new or empty "
            "folder, or the folder of this sweep"
        )


def begin(workdir: Path, plan: SweepPlan, source: Source, *, retry_failed: bool) -> None:
    """Makes the folders and writes what is planned; forgets what has failed, if asked."""
    workdirs.make(workdir)
    workdirs.make(plan.store)
    _write_sweep(workdir, plan, source)
    if retry_failed:
        for name in plan.phases:
            forget_failure(plan.folder(name))


def _write_sweep(workdir: Path, plan: SweepPlan, source: Source) -> None:
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
    """What `begin` wrote.

    Raises:
      InputError: if the folder holds no sweep.
    """
    path = sweep_path(workdir)
    if not path.exists():
        raise errors.InputError(f"{workdir}: no sweep.json here; allowed: the folder of a sweep")
    found = read_json(path)
    if not (isinstance(found, dict) and {"store", "runs", "phases"} <= found.keys()):
        raise errors.InputError(f"{path} is not a sweep's record; allowed: the folder of a sweep")
    return found


def read_source(record: dict[str, Any]) -> Source:
    """Where the points of a recorded sweep come from."""
    source = record["source"]
    return Source(source["config"], tuple(source["overrides"]), source["folder"])


def jobs_path(workdir: Path) -> Path:
    """The jobs of a sweep, where a batch system runs it: phase -> id."""
    return workdir / "slurm" / "jobs.json"


def read_jobs(workdir: Path) -> dict[str, str]:
    """The jobs of a sweep, as they were last submitted; {} if none were."""
    path = jobs_path(workdir)
    return dict(read_json(path)) if path.exists() else {}


def _failed_path(folder: PhaseFolder) -> Path:
    return folder.path / "failed.json"


def _holder_path(folder: PhaseFolder) -> Path:
    return folder.path / "holder.json"


def write_failure(folder: PhaseFolder, error: Exception) -> None:
    """Records why a phase failed; of what is not an error of this package, where in the code."""
    record = {"error": errors.first_line(error), "time": time.time()}
    if not isinstance(error, errors.W2SError):
        record["traceback"] = "".join(traceback.format_exception(error))
    write_json(_failed_path(folder), record)


def read_failure(folder: PhaseFolder) -> str | None:
    """The first line of the error that a phase failed with, or None."""
    path = _failed_path(folder)
    try:
        return str(read_json(path)["error"])
    except FileNotFoundError:
        return None
    except (errors.InputError, KeyError, TypeError):
        return f"{path} is damaged"


def forget_failure(folder: PhaseFolder) -> None:
    """Removes the record of a failure, if there is one."""
    _failed_path(folder).unlink(missing_ok=True)


@contextmanager
def held(folders: list[PhaseFolder]) -> Iterator[None]:
    """Says in the folders of phases, which this process has claimed, that it runs them."""
    # What is trained together has its checkpoints in the first folder.
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
    """Who says that it runs a phase; None if nobody does."""
    try:
        return Holder(**read_json(_holder_path(folder)))
    except (FileNotFoundError, errors.InputError, TypeError):
        return None


def is_claimed(folder: PhaseFolder) -> bool:
    """Whether some process holds the claim on a phase now; changes nothing on disk."""
    try:
        with (folder.path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def states(store: Path, parents: Mapping[str, list[str]]) -> dict[str, str]:
    """The state of each phase, one of `STATES`; 'blocked' is what a failed phase stands before.

    Args:
      store: where the phases live.
      parents: phase -> phases, each after its parents.
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
