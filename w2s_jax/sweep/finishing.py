"""What comes after phases: the results of the runs, the report, and a word on what failed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from w2s_jax.core import errors
from w2s_jax.execution import execute
from w2s_jax.report import write_report
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.sweep import records
from w2s_jax.sweep.planning import SweepPlan, SweepRun


class SweepFailed(errors.W2SError):
    """Some phases of a sweep failed; everything else is complete: exit status 1."""


@dataclass
class Results:
    """The results of a sweep's runs, written as soon as their phases are complete.

    Attributes:
      stopped: whether to stop waiting for other processes.
      finished: the runs whose results are written.
      damaged: runs whose phases are complete, but damaged -> how.
    """

    plan: SweepPlan
    workdir: Path
    console: Console
    stopped: Callable[[], bool]
    finished: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Writes the results of the runs that have become complete."""
        # Several processes may come to the end of the same run.
        with artifacts.claim(PhaseFolder(self.workdir), should_stop=self.stopped):
            for run in self.plan.runs:
                if run.name in self.finished or run.name in self.damaged:
                    continue
                if all(self.plan.folder(name).complete for name in run.phases):
                    self._write(run)

    def conclude(self) -> None:
        """Writes what results are still missing and the report; says how many runs are complete.

        Raises:
          SweepFailed: if some phases have failed, or are damaged; it says which.
        """
        # The last phases may have been another process's.
        self.write()
        failed = self._failed()
        _report(self.workdir, self.console)
        self.console.print(
            f"{len(self.finished)} of {len(self.plan.runs)} runs are complete", highlight=False
        )
        if failed:
            raise SweepFailed(self._say_failed(failed))

    def _write(self, run: SweepRun) -> None:
        try:
            result, _ = execute.finish(run.prepared)
        except errors.StorageError as error:
            self.damaged[run.name] = errors.first_line(error)
            return
        self.finished.add(run.name)
        roles = {"weak": result["weak"], **result["students"], "ceiling": result["ceiling"]}
        accuracies = ", ".join(f"{name} {role['accuracy']:.3f}" for name, role in roles.items())
        self.console.print(
            f"{run.name}: {accuracies}", highlight=False, markup=False, soft_wrap=True
        )

    def _failed(self) -> dict[str, str]:
        """What failed: phase or run -> why."""
        found = {name: records.read_failure(self.plan.folder(name)) for name in self.plan.phases}
        known = {
            name: why
            for name, why in found.items()
            if why is not None and not self.plan.folder(name).complete
        }
        return known | {f"runs/{name}": why for name, why in self.damaged.items()}

    def _say_failed(self, failed: dict[str, str]) -> str:
        """Prints what failed; a line that says how much it is, and what was not run for that."""
        phases = self.plan.phases
        for name, why in failed.items():
            title = phases[name].title if name in phases else "run"
            self.console.print(
                f"failed: {title} ({name}): {why}", highlight=False, markup=False, soft_wrap=True
            )
        states = records.states(self.plan.store, self.plan.parents)
        blocked = list(states.values()).count("blocked")
        return (
            f"{len(failed)} failed ({', '.join(failed)}), {blocked} of {len(phases)} phases build "
            "on that and were not run; --retry_failed tries again"
        )


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
