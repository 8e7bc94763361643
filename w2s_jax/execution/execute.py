"""A whole run: prepare, run the missing phases, write result and report."""

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import config_dict
from rich.console import Console

from w2s_jax.config.mesh_shapes import known_shape
from w2s_jax.core import accelerators, errors, joining, library_logs, processes, signals, terminal
from w2s_jax.core.files import read_json, write_json
from w2s_jax.execution import code_changes, printing, results, workdirs
from w2s_jax.execution.prepare import Prepared, prepare_alike
from w2s_jax.phases import logs
from w2s_jax.planning.phase import Phase
from w2s_jax.profiling.devices import device_memory, host_memory
from w2s_jax.report import print_result, write_report
from w2s_jax.store import artifacts, claims

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from w2s_jax import phases

#: Errors of a storage device or of its server, not of a program.
DISK_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip


def run(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    console: Console | None = None,
    profile: tuple[int, int] | None = None,
    dump_hlo: bool = False,
    accept_changed_code: bool = False,
) -> dict[str, Any]:
    """Run an experiment, or the part of it that is missing in `workdir`.

    With several processes (`joining.join`) all of them call this with the same arguments; the
    first one writes and prints.

    Args:
      config: see `w2s_jax.config.default_config`.
      workdir: the run's folder. A finished run is read, not repeated. More losses or methods add
        their students, more of `task.test_tasks` evaluations; any other difference is refused.
      store: the folder of the phases, which runs may share; None for `workdir`/phases.
      dry_run: print what would be done, write nothing, and return {}.
      console: where to print.
      profile: (start, stop): trace the steps start to stop - 1 of each phase that trains, into the
        phase's folder profile/ (see `profiling.profile`).
      dump_hlo: write the step programs of each phase that trains into its folder hlo/.
      accept_changed_code: use phases that were computed by other code of a loss, family, method or
        kind of the user's own than is registered now, with a note; otherwise they are refused.

    Returns:
      The contents of `workdir`/result.json.

    Raises:
      InputError: bad config, data or working directory, or changed code; nothing has been written.
      Interrupted: by SIGTERM or SIGINT, after the state was saved; the same call resumes.
      TrainingFailed: a loss or gradient is not finite.
      StorageError: something could not be written or read.
    """
    console = console or terminal.console()
    if not processes.is_first():
        console = Console(quiet=True)
    prepared = prepare_alike(config, workdir, store)
    missing = _missing(prepared)
    changes = processes.on_first("code", lambda: _code_changes(prepared, accept_changed_code))
    for note in (*prepared.resolved.notes, *changes):
        console.print(note, style="dim", highlight=False, markup=False)
    if dry_run:
        printing.print_plan(prepared, missing, console)
        # Only what the config says of the mesh: asking for the devices would take hold of them.
        shape = known_shape(prepared.resolved.settings.mesh)
        printing.check_mesh(missing, shape, console)
        memory = (host_memory(), "this machine")
        printing.warn_of_memory(missing, prepared.resolved, shape, *memory, console)
        return {}
    with disk_errors(prepared.workdir):
        if missing:
            _run_missing(prepared, missing, console, profile, dump_hlo)
        return processes.on_first("finish", lambda: _finish_and_report(prepared, console))


def _missing(prepared: Prepared) -> list[Phase]:
    """Return the phases without a result, as the first process sees them."""
    names = processes.on_first("missing", lambda: [phase.name for phase in prepared.missing()])
    return [prepared.plan.phase(name) for name in names]


def _code_changes(prepared: Prepared, accept: bool) -> list[str]:
    phases = [(phase, prepared.folder(phase.name)) for phase in prepared.plan.phases]
    return code_changes.check(phases, accept=accept)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        raise errors.StorageError(
            f"{error.strerror or error} ({error.filename or folder}); complete checkpoints and "
            "phases are intact: fix the problem, then run the same command again"
        ) from error


# --- phases --------------------------------------------------------------------------------------


def _run_missing(
    prepared: Prepared,
    missing: Sequence[Phase],
    console: Console,
    profile: tuple[int, int] | None,
    dump_hlo: bool,
) -> None:
    """Run phases in order, each after its parents."""
    from w2s_jax import phases
    from w2s_jax.profiling import compilation

    compilation.enable_cache()
    mesh, wandb_run = processes.everywhere(
        "devices", lambda: _mesh_and_wandb(prepared, missing, console)
    )
    processes.on_first("folders", lambda: _make_folders(prepared))
    processes.log_to(prepared.workdir / "logs")
    library_logs.write_to(prepared.workdir / "logs")
    with signals.stop_on_signals() as asked:
        context = phases.Context(
            resolved=prepared.resolved,
            store=prepared.store,
            mesh=mesh,
            console=console,
            should_stop=claims.or_lost(lambda: processes.any_of("stop", asked())),
            wandb_run=wandb_run,
            profile=profile,
            dump_hlo=dump_hlo,
            starts=frozenset(name for phase in prepared.plan.phases for name in phase.starts),
        )
        for number, phase in enumerate(missing, 1):
            _run_claimed(phase, missing[number:], context)
            processes.on_first(
                "phase done",
                functools.partial(_print_complete, number, len(missing), phase, context),
            )
            if context.should_stop():
                raise signals.interruption(f"after {phase.title}")
    if wandb_run is not None:
        wandb_run.finish()


def _mesh_and_wandb(
    prepared: Prepared, missing: Sequence[Phase], console: Console
) -> tuple["Mesh", Any]:
    """Make the mesh and the Weights & Biases run: what may fail before anything is written."""
    from w2s_jax import sharding

    settings = prepared.resolved.settings
    accelerators.check_slurm()
    workdirs.refuse_unwritable(prepared.workdir, prepared.store, settings)
    joining.refuse_unjoined()
    mesh = sharding.make_mesh(settings.mesh)
    printing.check_mesh(missing, mesh.devices.shape, console)
    device = mesh.local_devices[0]
    memory = (
        device_memory(device),
        "this machine" if device.platform == "cpu" else device.device_kind,
    )
    printing.warn_of_memory(missing, prepared.resolved, mesh.devices.shape, *memory, console)
    if not processes.is_first():
        return mesh, None
    config = prepared.record["config"]
    return mesh, logs.start_wandb(settings.log, settings.name, prepared.workdir, config)


def _make_folders(prepared: Prepared) -> None:
    # The record first: without it, a folder with files is not recognised as a run's folder.
    workdirs.make(prepared.workdir)
    write_json(prepared.workdir / "config.json", prepared.record)
    workdirs.make(prepared.store)


def _run_claimed(phase: Phase, later: Sequence[Phase], context: "phases.Context") -> None:
    """Run a phase unless another process completes it; wait while one works on it."""
    folder = context.folder(phase.name)

    def waiting() -> None:
        context.console.print(f"waiting: another process runs {phase.title}", highlight=False)

    with artifacts.claim(folder, waiting, context.should_stop):
        if not processes.on_first("phase", lambda: folder.complete):
            processes.note(f"{phase.title}: begins ({phase.name})")
            _run_phase(phase, later, context)
            processes.note(f"{phase.title}: ends")


def _run_phase(phase: Phase, later: Sequence[Phase], context: "phases.Context") -> None:
    """Run a phase, and those of the later phases that train together with it."""
    from w2s_jax import phases

    with phases.claimed_group(phase, later, context) as group:
        failures = phases.train_together(group, context) if group.mode else {}
        for member in group.phases:
            if member.name in failures:
                continue
            phases.run_phase(member, context)
            if context.should_stop():
                break
        for failure in failures.values():
            raise failure


def _print_complete(number: int, total: int, phase: Phase, context: "phases.Context") -> None:
    result = artifacts.read_result(context.folder(phase.name))
    printing.print_phase(number, total, phase, result, context.console)


# --- result --------------------------------------------------------------------------------------


def _finish_and_report(prepared: Prepared, console: Console) -> dict[str, Any]:
    """Print and write the result; write the report if it is older.

    The table comes first: it is what a run is for, and a disk may be full.
    """
    result = results.collect(prepared.plan, prepared.resolved, prepared.store)
    print_result(result, console)
    path = _write(result, prepared)
    console.print(f"result: {path}", highlight=False)
    page = prepared.workdir / "report" / "report.html"
    if not page.exists() or page.stat().st_mtime_ns < path.stat().st_mtime_ns:
        write_report([prepared.workdir], page.parent)
    console.print(f"report: {page}", highlight=False)
    return result


def finish(prepared: Prepared) -> tuple[dict[str, Any], Path]:
    """Write the result of a run whose phases are complete, unless it is there already.

    Returns:
      The result and its path.

    Raises:
      StorageError: the result of a phase is damaged.
    """
    result = results.collect(prepared.plan, prepared.resolved, prepared.store)
    return result, _write(result, prepared)


def _write(result: dict[str, Any], prepared: Prepared) -> Path:
    """Write result.json unless it is there already; return its path."""
    workdir, path = prepared.workdir, prepared.workdir / "result.json"
    if not _contains(path, result):
        workdirs.make(workdir)
        write_json(workdir / "config.json", prepared.record)
        write_json(path, result)
        logs.log_result(result, workdir, prepared.resolved.settings.log)
    return path


def _contains(path: Path, result: dict[str, Any]) -> bool:
    """Return whether a result.json exists, is whole and equals `result`."""
    try:
        return path.exists() and read_json(path) == result
    except errors.InputError:
        return False
