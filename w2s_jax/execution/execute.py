"""A whole run: check the working directory, run the missing phases, write result and report."""

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import config_dict
from rich.console import Console
from rich.table import Table

from w2s_jax.config import Settings, validation, with_labels
from w2s_jax.config.mesh_shapes import Shape, known_shape
from w2s_jax.core import errors, processes, signals
from w2s_jax.core.files import read_json, write_json
from w2s_jax.execution import results, workdirs
from w2s_jax.phases import logs
from w2s_jax.planning import mesh_fit
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.plan import Plan
from w2s_jax.planning.plan import plan as make_plan
from w2s_jax.planning.resolve import Resolved, resolve
from w2s_jax.report import print_result, write_report
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from w2s_jax import phases


def run(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    console: Console | None = None,
    profile: tuple[int, int] | None = None,
    dump_hlo: bool = False,
) -> dict[str, Any]:
    """Runs the experiment that `config` describes, or what of it is missing in `workdir`.

    Args:
      config: see `w2s_jax.config.default_config`.
      workdir: the run's folder. A finished one is read, not run again; with more losses or
        methods their students are added; any other difference is refused.
      store: where phases live, if not in `workdir`/phases; may be shared between runs.
      dry_run: print what would be done, write nothing, and return {}.
      console: where to print.
      profile: (start, stop): trace the steps start to stop - 1 of each phase that trains, into the
        phase's folder profile/ (see `perf.profile`).
      dump_hlo: write the step programs of each phase that trains into its folder hlo/.

    Returns:
      The contents of `workdir`/result.json.

    Raises:
      InputError: bad config, data or working directory; nothing has been written.
      Interrupted: by SIGTERM or SIGINT, after the state was saved; the same call resumes.
      TrainingFailed, StorageError: see there.

    With several processes (`processes.join`) all call it alike; the first one writes and prints.
    """
    console = console or Console()
    if not processes.is_first():
        console = Console(quiet=True)
    prepared = _prepare_alike(config, workdir, store)
    workdir, plan, resolved = prepared.workdir, prepared.plan, prepared.resolved
    missing, settings = _missing(prepared), resolved.settings
    for note in resolved.notes:
        console.print(note, style="dim", highlight=False)
    if dry_run:
        _print_plan(plan, resolved, missing, console)
        # Which devices there are is not asked: that would take hold of them.
        tell_fit(missing, known_shape(settings.mesh), console)
        return {}
    with disk_errors(workdir):
        if missing:
            from w2s_jax import phases
            from w2s_jax.profiling import compilation

            compilation.enable_cache()
            mesh, wandb_run = processes.everywhere(
                "devices",
                lambda: _devices_and_loggers(settings, workdir, prepared.record, missing, console),
            )
            processes.on_first("folders", lambda: _make_folders(prepared))
            processes.log_to(workdir / "logs")
            with signals.stop_on_signals() as asked:
                context = phases.Context(
                    resolved=resolved,
                    store=prepared.phases_dir,
                    mesh=mesh,
                    console=console,
                    should_stop=lambda: processes.any_of("stop", asked()),
                    wandb_run=wandb_run,
                    profile=profile,
                    dump_hlo=dump_hlo,
                    starts=frozenset(p.parents["init"] for p in plan.phases if "init" in p.parents),
                )
                _run_phases(missing, context)
            if wandb_run is not None:
                wandb_run.finish()
        result = processes.on_first("finish", lambda: _finish_and_report(prepared, console))
    return result


@dataclass(frozen=True)
class Prepared:
    """A run of which nothing has been written yet.

    `record` is what its config.json will hold.
    """

    workdir: Path
    phases_dir: Path
    record: dict[str, Any]
    resolved: Resolved
    plan: Plan

    def missing(self) -> list[Phase]:
        """The phases without a result, in an order in which each comes after its parents."""
        return [p for p in self.plan.phases if not PhaseFolder(self.phases_dir / p.name).complete]


def prepare(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    store: str | os.PathLike[str] | None = None,
    *,
    resolve: Callable[[Settings], Resolved] = resolve,
) -> Prepared:
    """Checks, resolves and plans a run; reads, writes nothing.

    Args:
      config, workdir, store: as for `run`.
      resolve: what reads the input.

    Raises:
      InputError: bad config, data or working directory.
    """
    workdir, config = Path(workdir), with_labels(config)
    settings = validation.validate(config)
    stored = workdirs.stored(workdir)
    if store is None and stored is not None:
        store = stored.get("store")
    phases_dir = Path(store) if store is not None else workdir / "phases"
    if stored is not None:
        workdirs.refuse_other_config(workdir, stored["config"], stored["data"], config)
        settings = workdirs.with_earlier_losses(settings, stored["config"])
        settings = workdirs.with_earlier_methods(settings, stored["config"])
    resolved = resolve(settings)
    if stored is not None:
        workdirs.refuse_other_data(workdir, stored["data"], resolved)
    record = workdirs.record(config, stored, resolved)
    plan = make_plan(resolved)
    record["phases"] = [phase.name for phase in plan.phases]
    if store is not None:
        record["store"] = str(phases_dir.absolute())
    return Prepared(workdir, phases_dir, record, resolved, plan)


def _prepare_alike(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    store: str | os.PathLike[str] | None,
) -> Prepared:
    """`prepare`, in all processes before any of them writes.

    Raises:
      InputError: as there, and if processes would compute different things.
    """
    prepared = processes.everywhere("prepare", lambda: prepare(config, workdir, store))
    names = [phase.name for phase in prepared.plan.phases]
    for number, other in enumerate(processes.gather("plan", names)):
        if other != names:
            raise errors.InputError(
                f"--config: process {number} reads other data, models or settings than process "
                f"{processes.index()}; allowed: the same for all"
            )
    return prepared


def _missing(prepared: Prepared) -> list[Phase]:
    """The phases without a result, as the first process sees them."""
    names = processes.on_first("missing", lambda: [phase.name for phase in prepared.missing()])
    return [prepared.plan.phase(name) for name in names]


def _make_folders(prepared: Prepared) -> None:
    # The record first: a folder that holds anything else is taken for a foreign one.
    workdirs.make(prepared.workdir)
    write_json(prepared.workdir / "config.json", prepared.record)
    workdirs.make(prepared.phases_dir)


def finish(prepared: Prepared) -> tuple[dict[str, Any], Path]:
    """Writes the result of a run whose phases are complete, if it is not there; it and its path.

    Raises:
      StorageError: if what a phase has left is damaged.
    """
    workdir, settings = prepared.workdir, prepared.resolved.settings
    result = results.collect(prepared.plan, prepared.resolved, prepared.phases_dir)
    path = workdir / "result.json"
    if not _holds(path, result):
        workdirs.make(workdir)
        write_json(workdir / "config.json", prepared.record)
        write_json(path, result)
        logs.log_result(result, workdir, settings.log)
    return result, path


def _finish_and_report(prepared: Prepared, console: Console) -> dict[str, Any]:
    """Writes and prints the result, and the report if that is older."""
    result, path = finish(prepared)
    page = prepared.workdir / "report" / "report.html"
    if not page.exists() or page.stat().st_mtime_ns < path.stat().st_mtime_ns:
        write_report([prepared.workdir], page.parent)
    print_result(result, console)
    console.print(f"result: {path}\nreport: {page}", highlight=False)
    return result


def _holds(path: Path, result: dict[str, Any]) -> bool:
    """Whether a result.json is there and says this; a damaged one is written again."""
    try:
        return path.exists() and read_json(path) == result
    except errors.InputError:
        return False


#: What a storage device, rather than a program, does wrong.
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what a disk does wrong into a `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        raise errors.StorageError(
            f"{error.strerror or error} ({error.filename or folder}); complete checkpoints and "
            "phases are intact: mend it and run the same command again"
        ) from error


# --- phases --------------------------------------------------------------------------------------


def _devices_and_loggers(
    settings: Settings,
    workdir: Path,
    record: dict[str, Any],
    missing: Sequence[Phase],
    console: Console,
) -> tuple["Mesh", Any]:
    """What may still be refused before anything is written: the mesh, and Weights & Biases."""
    from w2s_jax import sharding

    processes.refuse_unjoined()
    mesh = sharding.make_mesh(settings.mesh)
    tell_fit(missing, mesh.devices.shape, console)
    if not processes.is_first():
        return mesh, None
    return mesh, logs.start_wandb(settings.log, settings.name, workdir, record["config"])


def tell_fit(missing: Sequence[Phase], shape: Shape | None, console: Console) -> None:
    """Refuses a mesh that the phases cannot use, and tells of one that leaves devices idle.

    Raises:
      InputError: for a tensor axis along which nothing would be split.
    """
    if shape is not None:
        mesh_fit.refuse_idle_tensor(missing, shape)
        for line in mesh_fit.explain(missing, shape):
            console.print(line, style="yellow", highlight=False, markup=False)


def _run_phases(missing: list[Phase], context: "phases.Context") -> None:
    console = context.console
    for number, phase in enumerate(missing, 1):
        folder = context.folder(phase.name)

        def waiting(phase: Phase = phase) -> None:
            console.print(f"waiting: another process runs {phase.title}", highlight=False)

        with artifacts.claim(folder, waiting, context.should_stop):
            if not processes.on_first("phase", folder.result.exists):
                processes.note(f"{phase.title}: begins ({phase.name})")
                _run_phase(phase, missing[number:], context)
                processes.note(f"{phase.title}: ends")
        processes.on_first(
            "phase done", functools.partial(_print_complete, number, len(missing), phase, context)
        )
        if context.should_stop():
            raise errors.Interrupted(
                f"stopped by a signal after {phase.title}; the same command resumes"
            )


def _run_phase(phase: Phase, later: Sequence[Phase], context: "phases.Context") -> None:
    """Runs a phase, and with it what of `later` is to be trained together with it."""
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
    print_phase(number, total, phase, result, context.console)


def print_phase(
    number: int, total: int, phase: Phase, result: dict[str, Any], console: Console
) -> None:
    """A line on a phase that is complete, the `number`-th of `total`."""
    numbers = f"loss {result['train_loss']:.4f}" if "train_loss" in result else ""
    if "test" in result.get("metrics", {}):
        test = result["metrics"]["test"]
        numbers += f"  test accuracy {test['accuracy']:.3f} ± {test['accuracy_se']:.3f}"
    if result.get("kept_step") != result.get("steps"):
        numbers += f"  kept step {result['kept_step']}"
    compiling = result.get("compile_seconds", 0.0)
    if compiling >= max(1.0, 0.25 * result["seconds"]):
        numbers += f"  (compiling: {compiling:.1f} s)"
    console.print(
        f"[{number}/{total}] {phase.title:<20} {phase.model.name:<12} {phase.total_steps:>5} steps "
        f"{result['seconds']:6.1f} s  {numbers}",
        highlight=False,
        markup=False,
    )


def _print_plan(plan: Plan, resolved: Resolved, missing: list[Phase], console: Console) -> None:
    table = Table(title="phases", title_justify="left", box=None, pad_edge=False)
    columns = ("phase", "what", "model", "trains", "rate", "steps", "state", "memory (estimate)")
    for column in columns:
        table.add_column(column, overflow="fold")
    for phase in plan.phases:
        total = memory_estimate(phase, resolved)["total"]
        state = "missing" if phase in missing else "done"
        table.add_row(
            phase.name,
            phase.title,
            phase.model.name,
            phase.train.adapt if phase.total_steps else "",
            f"{phase.train.learning_rate:g}" if phase.total_steps else "",
            str(phase.total_steps),
            state,
            f"{total / 2**20:,.1f} MiB",
        )
    console.print(table)
    console.print(f"{len(missing)} of {len(plan.phases)} phases to run", highlight=False)
