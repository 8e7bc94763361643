"""A worker: phases of a sweep, run by this process. All executors run them so.

The local executor is one worker for all phases. A cluster has many: each is told the sweep's folder
and some phases, plans what it needs of the sweep again, and claims what it runs. So workers of any
kind may be at one store at once: each phase is run by one of them.
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
from w2s_jax.core import errors, signals
from w2s_jax.execution import execute
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved
from w2s_jax.store import artifacts
from w2s_jax.sweep import records
from w2s_jax.sweep.planning import SharedResolver, SweepPlan, plan_sweep
from w2s_jax.sweep.points import NamedPoint, Source

if TYPE_CHECKING:
    from w2s_jax import phases

#: Seconds between looks at what other processes do.
POLL_SECONDS = 0.5
#: So long a worker waits for files that others have written: a network's file system may be late.
LATE_SECONDS = 60.0


def work(
    workdir: str | os.PathLike[str],
    names: Sequence[str],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> dict[str, str]:
    """Runs phases of a sweep whose parents are complete, and what among them becomes so by that.

    A phase that another process runs is waited for. One that fails is recorded as failed; what
    builds on it is left alone, as is what failed earlier.

    Args:
      workdir: the sweep's folder; its sweep.json says what to plan.
      names: the phases.
      should_stop: asked at boundaries, besides signals.
      console: where to print.

    Returns:
      phase -> its state afterwards, one of `records.STATES`.

    Raises:
      InputError: if the sweep has no such phase any more, or these devices make no such mesh.
      Interrupted: by SIGTERM, SIGINT or `should_stop`, after the state was saved.
      StorageError: if the disk did something wrong.
    """
    folder = Path(workdir).absolute()
    record = records.read_sweep(folder)
    plan = _planned(folder, names)
    with execute.disk_errors(plan.store), signals.stop_on_signals() as signalled:
        worker = Worker(
            plan,
            console or Console(),
            lambda: signalled() or should_stop(),
            frozenset(record["starts"]),
        )
        chosen = [plan.phases[name] for name in names]
        worker.await_parents(chosen)
        missing = [phase for phase in chosen if not plan.folder(phase.name).complete]
        if missing:
            worker.make_contexts(missing)
        worker.run_phases(missing)
    states = records.states(plan.store, plan.parents)
    return {name: states[name] for name in names}


def _planned(workdir: Path, names: Sequence[str]) -> SweepPlan:
    """The plan of runs that have these phases, of each phase the first."""
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
            f"{workdir}: its sweep has no phase {gone[0]!r} (any more); allowed: those in "
            "sweep.json, as long as the sweep file and the data are as they were"
        )
    return plan


@functools.lru_cache(maxsize=1)
def _read_once(source: Source) -> tuple[list[NamedPoint], SharedResolver]:
    """The points of a sweep, and what remembers their data: workers may run phases for hours."""
    return source.points(), SharedResolver()


@dataclass
class Worker:
    """What of a sweep this process runs.

    Attributes:
      stopped: whether to stop at the next boundary.
      starts: the phases from whose parameters others of the sweep start.
      contexts: what phases share that work on equal data in the same way.
      keys: phase -> its context.
    """

    plan: SweepPlan
    console: Console
    stopped: Callable[[], bool]
    starts: frozenset[str]
    contexts: dict[Any, "phases.Context"] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)

    def make_contexts(self, missing: Sequence[Phase]) -> None:
        """Gives each phase the context of those that work on the same data in the same way.

        Raises:
          InputError: for a mesh that these devices do not make.
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
                    should_stop=self.stopped,
                    starts=self.starts,
                )
        for settings, alike in meshes.items():
            shape = sharding.make_mesh(settings).devices.shape
            execute.tell_fit(alike, shape, self.console)

    def await_parents(self, chosen: Sequence[Phase]) -> None:
        """Waits for the results of parents: as long as others run them, else but a while.

        What has failed is not waited for.
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
        """Runs phases until each is complete, has failed, or waits for one that is not of them.

        Args:
          missing: what to run; they have contexts.
          after_each: called when some of them have ended.

        Raises:
          Interrupted: if it was stopped.
        """
        pending, told = {phase.name: phase for phase in missing}, False
        while True:
            for name in [n for n in pending if self._is_over(n)]:
                del pending[name]
            ready = [p for p in pending.values() if self._is_ready(p)]
            if not ready:
                return
            if any(self._try(phase, ready, len(missing) - len(pending)) for phase in ready):
                told = False
                after_each()
            elif not told:
                titles = ", ".join(phase.title for phase in ready)
                self.console.print(
                    f"waiting: other processes run {titles}", highlight=False, markup=False
                )
                told = True
            if self.stopped():
                raise errors.Interrupted("stopped by a signal; the same command resumes")
            if told:
                time.sleep(POLL_SECONDS)

    def _is_over(self, name: str) -> bool:
        """Whether a phase is complete, or cannot be run."""
        folder = self.plan.folder(name)
        if folder.complete or records.read_failure(folder) is not None:
            return True
        parents = self.plan.phases[name].parents.values()
        return any(not self.plan.folder(p).complete and self._is_over(p) for p in parents)

    def _is_ready(self, phase: Phase) -> bool:
        return all(self.plan.folder(name).complete for name in phase.parents.values())

    def _try(self, phase: Phase, ready: Sequence[Phase], ended: int) -> bool:
        """Runs a phase, and what is to be trained with it, unless another process does."""
        from w2s_jax import phases

        folder, context = self.plan.folder(phase.name), self.contexts[self.keys[phase.name]]
        later = [p for p in ready if p is not phase and self.keys[p.name] == self.keys[phase.name]]
        with artifacts.claim_if_free(folder) as claimed:
            if not claimed:
                return False
            # Another process may have been at it since the last look.
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
        """Records and prints what became of a phase."""
        folder = self.plan.folder(phase.name)
        if failure is not None:
            records.write_failure(folder, failure)
        elif folder.complete:
            records.forget_failure(folder)
        # Numbered among all of a sweep; of what other workers do, nothing is known here.
        total = len(self.plan.phases)
        print_outcome(self.plan, phase, total - len(self.keys) + number, self.console)


def print_outcome(plan: SweepPlan, phase: Phase, number: int, console: Console) -> None:
    """Prints a line on a phase that is complete or has failed, the `number`-th of the sweep."""
    folder, total = plan.folder(phase.name), len(plan.phases)
    if folder.complete:
        execute.print_phase(number, total, phase, artifacts.read_result(folder), console)
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
    """Phases with equal keys may share a context: of it they look at their role's data alone."""
    data, settings = resolved.roles[phase.role], resolved.settings
    return (
        phase.role,
        data.model,
        None if data.source is None else data.source.digest,
        None if data.tokenizer is None else data.tokenizer.digest,
        data.label_tokens,
        data.head_init,
        (data.prefix, data.suffix),
        tuple(sorted(data.digests.items())),
        settings.weak.labels,
        (settings.mesh, settings.checkpoint, settings.log),
    )


def _run_group(group: "phases.Group", context: "phases.Context") -> dict[str, Exception]:
    """Runs the members of a group; what went wrong, of those of which something did.

    What a disk does wrong is raised instead: it would befall the other phases as well.
    """
    from w2s_jax import phases

    failures: dict[str, Exception] = {}
    if group.mode:
        try:
            failures |= phases.train_together(group, context)
        except Exception as error:
            _raise_if_no_failure(error)
            return {member.name: error for member in group.phases}
    for member in group.phases:
        if member.name in failures:
            continue
        try:
            phases.run_phase(member, context)
        except Exception as error:
            _raise_if_no_failure(error)
            failures[member.name] = error
        if context.should_stop():
            break
    return failures


def _raise_if_no_failure(error: Exception) -> None:
    """Raises what is not the fault of a phase: a stop, or a disk's."""
    cause = error if isinstance(error, OSError) else error.__cause__
    from_disk = isinstance(cause, OSError) and cause.errno in execute.DISK_ERRNOS
    if isinstance(error, errors.Interrupted) or from_disk or "no space left" in str(error).lower():
        raise error
