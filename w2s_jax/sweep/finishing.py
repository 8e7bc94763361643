"""The end of a sweep: results of its runs, the report, and a summary of failures."""

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
    """Some phases of a sweep failed; all others are complete: exit status 1."""


@dataclass
class SweepResults:
    """The results of a sweep's runs, written as soon as their phases are complete.

    Attributes:
      plan: the sweep.
      workdir: its folder.
      console: where to print.
      stopped: returns whether to stop waiting for other processes.
      finished: the runs whose results are written.
      damaged: run with a damaged phase -> the error.
    """

    plan: SweepPlan
    workdir: Path
    console: Console
    stopped: Callable[[], bool]
    finished: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write the results of the runs that have become complete."""
        # Several processes may finish the same run.
        with artifacts.claim(PhaseFolder(self.workdir), should_stop=self.stopped):
            for run in self.plan.runs:
                if run.name in self.finished or run.name in self.damaged:
                    continue
                if all(self.plan.folder(name).complete for name in run.phases):
                    self._write(run)

    def conclude(self) -> None:
        """Write the remaining results and the report; print how many runs are complete.

        Raises:
          SweepFailed: some phases have failed or are damaged.
        """
        # Another process may have run the last phases.
        self.write()
        failed = self._failed()
        self.console.print(
            f"{len(self.finished)} of {len(self.plan.runs)} runs are complete", highlight=False
        )
        summary = self._print_failed(failed) if failed else ""
        # Last, as a full disk may have no room for it.
        _report(self.workdir, self.console)
        if failed:
            raise SweepFailed(summary)

    def _write(self, run: SweepRun) -> None:
        try:
            result, _ = execute.finish(run.prepared)
        except errors.StorageError as error:
            self.damaged[run.name] = errors.first_line(error)
            return
        self.finished.add(run.name)
        roles = {"weak": result["weak"], **result["students"], "ceiling": result["ceiling"]}
        accuracies = ", ".join(
            f"{name} {role['accuracy']:.3f}" for name, role in roles.items() if role is not None
        )
        self.console.print(
            f"{run.name}: {accuracies}", highlight=False, markup=False, soft_wrap=True
        )

    def _failed(self) -> dict[str, str]:
        """Return the failed phases, and the runs with damaged ones: name -> error."""
        found = {name: records.read_failure(self.plan.folder(name)) for name in self.plan.phases}
        known = {
            name: why
            for name, why in found.items()
            if why is not None and not self.plan.folder(name).complete
        }
        return known | {f"runs/{name}": why for name, why in self.damaged.items()}

    def _print_failed(self, failed: dict[str, str]) -> str:
        """Print the failures; return a line that summarises them."""
        phases = self.plan.phases
        for name, why in failed.items():
            title = phases[name].title if name in phases else "run"
            self.console.print(
                f"failed: {title} ({name}): {why}", highlight=False, markup=False, soft_wrap=True
            )
        states = records.states(self.plan.store, self.plan.parents)
        blocked = list(states.values()).count("blocked")
        return (
            f"{len(failed)} failed ({', '.join(failed)}); {blocked} of {len(phases)} phases build "
            "on them and were not run; use --retry_failed to try again"
        )


def _report(workdir: Path, console: Console) -> None:
    """Write the report on all finished runs, unless it is up to date."""
    results = list((workdir / "runs").glob("*/result.json"))
    if not results:
        return
    page = workdir / "report" / "report.html"
    with artifacts.claim(PhaseFolder(workdir)):
        newest = max(path.stat().st_mtime_ns for path in results)
        if not page.exists() or page.stat().st_mtime_ns < newest:
            write_report([workdir], page.parent)
    console.print(f"report: {page}", highlight=False)
