"""The local executor: the missing phases of a sweep, one after another in this process.

The phases of all runs are one DAG, not one run after another: so each is computed once, phases of
several runs may be trained as one population, and a failure stops nothing but what builds on it.
A run's result is written as soon as its last phase is there. Several processes may work on one
store at once: each takes what is neither done nor claimed, and holds nothing while it waits.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from w2s_jax import artifacts, errors, execute, workdirs
from w2s_jax.artifacts import PhaseFolder
from w2s_jax.config import MeshSettings
from w2s_jax.phase import Phase
from w2s_jax.report import write_report
from w2s_jax.resolve import Resolved
from w2s_jax.sweep import records
from w2s_jax.sweep.planning import SweepPlan, SweepRun

if TYPE_CHECKING:
    from w2s_jax import phases

#: Seconds between looks at what other processes do.
POLL_SECONDS = 0.5


class SweepFailed(errors.W2SError):
    """Some phases of a sweep failed; everything else is complete: exit status 1."""


def run_sweep(plan: SweepPlan, workdir: Path, console: Console, *, retry_failed: bool) -> None:
    """Runs the missing phases of a sweep, and writes the results of its runs and the report.

    Args:
      plan: what to run.
      workdir: the sweep's folder.
      console: where to print.
      retry_failed: forget which phases have failed.

    Raises:
      SweepFailed: if some phases failed, now or earlier; all that do not build on them are done.
      Interrupted: by SIGTERM or SIGINT, after the state was saved; the same call resumes.
      InputError: for a mesh that these devices do not make; nothing has been written.
    """
    missing = [p for p in plan.phases.values() if not plan.folder(p.name).complete]
    with execute.disk_errors(workdir), execute.stop_on_signals() as stopped:
        work = _Work(plan, workdir, console, stopped)
        if missing:
            from w2s_jax import compilation

            compilation.enable_cache()
            work.make_contexts(missing)
        workdirs.make(workdir)
        workdirs.make(plan.store)
        records.write_sweep(workdir, plan)
        if retry_failed:
            for name in plan.phases:
                records.forget_failure(plan.folder(name))
        work.finish_runs()
        work.run_phases(missing)
        # The last phases may have been another process's.
        work.finish_runs()
        failed = work.failed()
        _report(workdir, console)
    done = len(work.finished)
    console.print(f"{done} of {len(plan.runs)} runs are complete", highlight=False)
    if failed:
        raise SweepFailed(_say_failed(failed, plan, console))


@dataclass
class _Work:
    """What is under way.

    Attributes:
      contexts: what phases share that work on equal data in the same way.
      keys: phase -> its context.
      finished: the runs whose results are written.
      damaged: runs whose phases are complete, but damaged -> how.
    """

    plan: SweepPlan
    workdir: Path
    console: Console
    stopped: Callable[[], bool]
    contexts: dict[Any, "phases.Context"] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)

    def make_contexts(self, missing: Sequence[Phase]) -> None:
        """Gives each phase the context of those that work on the same data in the same way."""
        from w2s_jax import phases, sharding

        all_phases = self.plan.phases.values()
        starts = frozenset(p.parents["init"] for p in all_phases if "init" in p.parents)
        meshes: dict[MeshSettings, list[Phase]] = {}
        for phase in missing:
            resolved = self.plan.resolved[phase.name]
            key = self.keys[phase.name] = _context_key(phase, resolved)
            meshes.setdefault(resolved.settings.mesh, []).append(phase)
            if key not in self.contexts:
                self.contexts[key] = phases.Context(
                    resolved=resolved,
                    store=self.plan.store,
                    mesh=sharding.make_mesh(resolved.settings.mesh),
                    console=self.console,
                    should_stop=self.stopped,
                    starts=starts,
                )
        for settings, alike in meshes.items():
            shape = sharding.make_mesh(settings).devices.shape
            execute.tell_fit(alike, shape, self.console)

    def run_phases(self, missing: Sequence[Phase]) -> None:
        """Runs phases until each is complete, has failed, or builds on one that has."""
        pending, told = {phase.name: phase for phase in missing}, False
        while True:
            for name in [n for n in pending if self._is_over(n)]:
                del pending[name]
            ready = [p for p in pending.values() if self._is_ready(p)]
            if not ready:
                return
            if any(self._try(phase, ready, len(pending)) for phase in ready):
                told = False
                self.finish_runs()
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

    def _try(self, phase: Phase, ready: Sequence[Phase], left: int) -> bool:
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
                self._note(group.phases, failures, left)
        return True

    def _note(self, members: Sequence[Phase], failures: dict[str, Exception], left: int) -> None:
        """Records and prints what became of phases."""
        total = len(self.plan.phases)
        for number, member in enumerate(members, total - left + 1):
            folder = self.plan.folder(member.name)
            if member.name in failures:
                error = failures[member.name]
                records.write_failure(folder, error)
                self.console.print(
                    f"[{number}/{total}] {member.title:<20} failed: {records.first_line(error)}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
            elif folder.complete:
                records.forget_failure(folder)
                result = artifacts.read_result(folder)
                execute.print_phase(number, total, member, result, self.console)

    def finish_runs(self) -> None:
        """Writes the results of the runs that have become complete."""
        # Several processes may come to the end of the same run.
        with artifacts.claim(PhaseFolder(self.workdir), should_stop=self.stopped):
            for run in self.plan.runs:
                if run.name in self.finished or run.name in self.damaged:
                    continue
                if all(self.plan.folder(name).complete for name in run.phases):
                    self._finish(run)

    def _finish(self, run: SweepRun) -> None:
        try:
            result, _ = execute.finish(run.prepared)
        except errors.StorageError as error:
            self.damaged[run.name] = records.first_line(error)
            return
        self.finished.add(run.name)
        roles = {"weak": result["weak"], **result["students"], "ceiling": result["ceiling"]}
        accuracies = ", ".join(f"{name} {role['accuracy']:.3f}" for name, role in roles.items())
        self.console.print(
            f"{run.name}: {accuracies}", highlight=False, markup=False, soft_wrap=True
        )

    def failed(self) -> dict[str, str]:
        """What failed: phase or run -> why."""
        found = {name: records.read_failure(self.plan.folder(name)) for name in self.plan.phases}
        known = {
            name: why
            for name, why in found.items()
            if why is not None and not self.plan.folder(name).complete
        }
        return known | {f"runs/{name}": why for name, why in self.damaged.items()}


def _context_key(phase: Phase, resolved: Resolved) -> Any:
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


def _report(workdir: Path, console: Console) -> None:
    """Writes the report on all finished runs, if there are any and it is not there."""
    results = list((workdir / "runs").glob("*/result.json"))
    if not results:
        return
    page = workdir / "report" / "report.html"
    with artifacts.claim(PhaseFolder(workdir)):
        newest = max(path.stat().st_mtime_ns for path in results)
        if not page.exists() or page.stat().st_mtime_ns < newest:
            write_report([workdir], page.parent)
    console.print(f"report: {page}", highlight=False)


def _say_failed(failed: dict[str, str], plan: SweepPlan, console: Console) -> str:
    """Prints what failed, and what could not be run for that; a line that says how much it is."""
    for name, why in failed.items():
        title = plan.phases[name].title if name in plan.phases else "run"
        console.print(
            f"failed: {title} ({name}): {why}", highlight=False, markup=False, soft_wrap=True
        )
    parents = {name: list(phase.parents.values()) for name, phase in plan.phases.items()}
    blocked = list(records.states(plan.store, parents).values()).count("blocked")
    return (
        f"{len(failed)} failed ({', '.join(failed)}), {blocked} of {len(parents)} phases build on "
        "that and were not run; --retry_failed tries again"
    )
