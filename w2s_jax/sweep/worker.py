"""A worker: runs phases of a sweep in this process. All executors use it.

The local executor is one worker for all phases. A cluster has many workers. Each gets the sweep's
folder and the names of some phases, plans the part of the sweep that it needs, and claims what it
runs. So workers of all executors can share a store: each phase is run by one of them.
"""

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from w2s_jax.config import MeshSettings
from w2s_jax.core import accelerators, errors, signals, terminal
from w2s_jax.execution import execute, printing
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved
from w2s_jax.store import artifacts, claims
from w2s_jax.sweep import records
from w2s_jax.sweep.planning import SharedResolver, SweepPlan, plan_sweep
from w2s_jax.sweep.points import NamedPoint, PointSource

if TYPE_CHECKING:
    from w2s_jax import phases

#: Seconds between checks of what other processes do.
POLL_SECONDS = 0.5
#: Seconds to wait for files that other hosts have written: network file systems may lag.
LATE_SECONDS = 60.0


def work(
    workdir: str | os.PathLike[str],
    names: Sequence[str],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
    check_devices: Callable[[], None] = accelerators.check_slurm,
) -> dict[str, str]:
    """Run phases of a sweep, each once its parents are complete.

    A phase that another process runs is waited for. A phase that fails is recorded as failed; it is
    not run again, and phases that build on it are not run.

    Args:
      workdir: the sweep's folder, with sweep.json.
      names: the phases.
      should_stop: called at boundaries; returns whether to stop. Signals stop the work as well.
      console: where to print.
      check_devices: raises `accelerators.NotSeen` if JAX does not see this process's accelerators;
        the phases then fail.

    Returns:
      phase -> its state afterwards, one of `records.STATES`.

    Raises:
      InputError: the sweep no longer has such a phase, or these devices cannot make the mesh.
      Interrupted: by SIGTERM, SIGINT or `should_stop`, after the state was saved.
      StorageError: the disk failed.
    """
    folder = Path(workdir).absolute()
    record = records.read_sweep(folder)
    plan = _planned(folder, names)
    with execute.disk_errors(plan.store), signals.stop_on_signals() as signalled:
        worker = Worker(
            plan,
            console or terminal.console(),
            lambda: signalled() or should_stop(),
            frozenset(record["starts"]),
        )
        chosen = [plan.phases[name] for name in names]
        worker.await_parents(chosen)
        missing = [phase for phase in chosen if not plan.folder(phase.name).complete]
        try:
            if missing:
                check_devices()
        except accelerators.NotSeen as error:
            worker.fail(missing, error)
        else:
            if missing:
                worker.make_contexts(missing)
            worker.run_phases(missing)
    states = records.states(plan.store, plan.parents)
    return {name: states[name] for name in names}


def _planned(workdir: Path, names: Sequence[str]) -> SweepPlan:
    """Plan the first run that has each of the phases."""
    record = records.read_sweep(workdir)
    runs = record["runs"]
    needed = {
        next((run for run, own in runs.items() if name in own["phases"]), None) for name in names
    }
    points, resolver = _read_once(records.read_source(record))
    chosen = [point for point in points if point.name in needed]
    plan = plan_sweep(chosen, workdir, Path(record["store"]), resolver)
    gone = [name for name in names if name not in plan.phases]
    if gone:
        raise errors.InputError(
            f"{workdir}: the sweep no longer plans phase {gone[0]!r}; the sweep file or the data "
            "have changed since it was started"
        )
    return plan


@functools.lru_cache(maxsize=1)
def _read_once(source: PointSource) -> tuple[list[NamedPoint], SharedResolver]:
    """Return the points of a sweep and a resolver, cached: a worker may run phases for hours."""
    return source.points(), SharedResolver()


@dataclass
class Worker:
    """A worker, which runs phases of a sweep in this process.

    Attributes:
      plan: the sweep, or the part of it that the worker needs.
      console: where to print.
      stopped: returns whether to stop at the next boundary.
      starts: the phases from whose parameters others of the sweep start.
      contexts: key -> context; phases with equal data and settings share one.
      keys: phase -> key of its context.
    """

    plan: SweepPlan
    console: Console
    stopped: Callable[[], bool]
    starts: frozenset[str]
    contexts: dict[Any, "phases.Context"] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)

    def make_contexts(self, missing: Sequence[Phase]) -> None:
        """Make the contexts of phases.

        Raises:
          InputError: these devices cannot make the mesh.
        """
        from w2s_jax import phases, sharding
        from w2s_jax.profiling import compilation

        compilation.enable_cache()
        meshes: dict[MeshSettings, list[Phase]] = {}
        for phase in missing:
            resolved = self.plan.resolved[phase.name]
            key = self.keys[phase.name] = context_key(phase, resolved)
            meshes.setdefault(resolved.settings.mesh, []).append(phase)
            if key not in self.contexts:
                self.contexts[key] = phases.Context(
                    resolved=resolved,
                    store=self.plan.store,
                    mesh=sharding.make_mesh(resolved.settings.mesh),
                    console=self.console,
                    should_stop=claims.or_lost(self.stopped),
                    starts=self.starts,
                )
        for settings, alike in meshes.items():
            shape = sharding.make_mesh(settings).devices.shape
            printing.check_mesh(alike, shape, self.console)

    def fail(self, chosen: Sequence[Phase], error: Exception) -> None:
        """Record the phases that would be run now as failed."""
        first = len(self.plan.phases) - len(chosen) + 1
        for number, phase in enumerate(chosen, first):
            folder = self.plan.folder(phase.name)
            with artifacts.claim_if_free(folder) as claimed:
                if claimed and self._is_ready(phase) and not self._is_over(phase.name):
                    records.write_failure(folder, error)
                    print_outcome(self.plan, phase, number, self.console)

    def await_parents(self, chosen: Sequence[Phase]) -> None:
        """Wait for the results of parents while others run them, or else for a short time.

        Parents that have failed are not waited for.
        """
        own = {phase.name for phase in chosen}
        parents = {name for phase in chosen for name in phase.parents.values()} - own
        deadline = time.monotonic() + LATE_SECONDS
        while not self.stopped():
            missing = [name for name in parents if not self._is_over(name)]
            if any(records.is_claimed(self.plan.folder(name)) for name in missing):
                deadline = time.monotonic() + LATE_SECONDS
            elif not missing or time.monotonic() >= deadline:
                return
            time.sleep(POLL_SECONDS)

    def run_phases(
        self, missing: Sequence[Phase], after_each: Callable[[], None] = lambda: None
    ) -> None:
        """Run phases until each is complete, has failed, or waits for one that is not listed.

        Args:
          missing: the phases, which have contexts.
          after_each: called when some of them have ended.

        Raises:
          Interrupted: `stopped` returned True.
        """
        pending, is_waiting = {phase.name: phase for phase in missing}, False
        while True:
            for name in [n for n in pending if self._is_over(n)]:
                del pending[name]
            ready = [p for p in pending.values() if self._is_ready(p)]
            if not ready:
                return
            if any(self._try(phase, ready, len(missing) - len(pending)) for phase in ready):
                is_waiting = False
                after_each()
            elif not is_waiting:
                titles = ", ".join(phase.title for phase in ready)
                self.console.print(
                    f"waiting: other processes run {titles}", highlight=False, markup=False
                )
                is_waiting = True
            if self.stopped():
                raise signals.interruption()
            if is_waiting:
                time.sleep(POLL_SECONDS)

    def _is_over(self, name: str) -> bool:
        """Return whether a phase is complete or cannot be run."""
        folder = self.plan.folder(name)
        if folder.complete or records.read_failure(folder) is not None:
            return True
        parents = self.plan.phases[name].parents.values()
        return any(not self.plan.folder(p).complete and self._is_over(p) for p in parents)

    def _is_ready(self, phase: Phase) -> bool:
        return all(self.plan.folder(name).complete for name in phase.parents.values())

    def _try(self, phase: Phase, ready: Sequence[Phase], ended: int) -> bool:
        """Run a phase and those that train with it; return False if another process runs it."""
        from w2s_jax import phases

        folder, context = self.plan.folder(phase.name), self.contexts[self.keys[phase.name]]
        later = [p for p in ready if p is not phase and self.keys[p.name] == self.keys[phase.name]]
        with artifacts.claim_if_free(folder) as claimed:
            if not claimed:
                return False
            # Another process may have finished it since the last check.
            if self._is_over(phase.name):
                return True
            with phases.claimed_group(phase, later, context) as group:
                folders = [self.plan.folder(member.name) for member in group.phases]
                with records.held(folders):
                    failures = _run_group(group, context)
                for number, member in enumerate(group.phases, ended + 1):
                    self._note(member, failures.get(member.name), number)
        return True

    def _note(self, phase: Phase, failure: Exception | None, number: int) -> None:
        """Record and print the outcome of a phase."""
        folder = self.plan.folder(phase.name)
        if failure is not None:
            records.write_failure(folder, failure)
        elif folder.complete:
            records.forget_failure(folder)
        # The number counts all phases of the sweep, but only those that this worker has run.
        total = len(self.plan.phases)
        print_outcome(self.plan, phase, total - len(self.keys) + number, self.console)


def print_outcome(plan: SweepPlan, phase: Phase, number: int, console: Console) -> None:
    """Print a line on a phase that is complete or has failed, the `number`-th of the sweep."""
    folder, total = plan.folder(phase.name), len(plan.phases)
    if folder.complete:
        printing.print_phase(number, total, phase, artifacts.read_result(folder), console)
        return
    why = records.read_failure(folder)
    if why is not None:
        console.print(
            f"[{number}/{total}] {phase.title:<20} failed: {why}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def context_key(phase: Phase, resolved: Resolved) -> Any:
    """Return a key that is equal for phases that may share a context.

    A phase reads only its own role's data from the context.
    """
    data, settings = resolved.roles[phase.role], resolved.settings
    return (
        phase.role,
        data.model,
        None if data.source is None else data.source.digest,
        None if data.tokenizer is None else data.tokenizer.digest,
        data.label_tokens,
        data.num_classes,
        data.head_init,
        (data.prefix, data.suffix, data.completion),
        tuple(sorted(data.digests.items())),
        settings.weak.labels,
        (settings.mesh, settings.checkpoint, settings.log),
    )


def _run_group(group: "phases.Group", context: "phases.Context") -> dict[str, Exception]:
    """Run the members of a group; return the errors of those that failed.

    Disk errors are raised instead, because other phases would fail as well.
    """
    from w2s_jax import phases

    failures: dict[str, Exception] = {}
    if group.mode:
        try:
            failures |= phases.train_together(group, context)
        except Exception as error:
            _raise_unless_failed(error)
            return {member.name: error for member in group.phases}
    for member in group.phases:
        if member.name in failures:
            continue
        try:
            phases.run_phase(member, context)
        except Exception as error:
            _raise_unless_failed(error)
            failures[member.name] = error
        if context.should_stop():
            break
    return failures


def _raise_unless_failed(error: Exception) -> None:
    """Raise an error that is not the phase's: an interruption, or one of the disk."""
    cause = error if isinstance(error, OSError) else error.__cause__
    from_disk = isinstance(cause, OSError) and cause.errno in execute.DISK_ERRNOS
    if isinstance(error, errors.Interrupted) or from_disk or "no space left" in str(error).lower():
        raise error
