"""The local executor: run the missing phases of a sweep one by one in this process.

The phases of all runs are one DAG. So each is computed once, phases of several runs may train as
one population, and a failure stops only what builds on it. A run's result is written as soon as its
last phase is complete. Several processes may work on one store at once: each takes what is neither
done nor claimed, and claims nothing while it waits.
"""

from pathlib import Path

from rich.console import Console

from w2s_jax.core import accelerators, signals
from w2s_jax.execution import execute
from w2s_jax.sweep import records
from w2s_jax.sweep.finishing import SweepResults
from w2s_jax.sweep.planning import SweepPlan
from w2s_jax.sweep.points import PointSource
from w2s_jax.sweep.worker import Worker


def run_sweep(
    plan: SweepPlan, source: PointSource, workdir: Path, console: Console, *, retry_failed: bool
) -> None:
    """Run the missing phases of a sweep; write the results of its runs and the report.

    Args:
      plan: the sweep.
      source: the source of its points.
      workdir: its folder.
      console: where to print.
      retry_failed: forget which phases have failed.

    Raises:
      SweepFailed: some phases failed, now or earlier; all that do not build on them are done.
      Interrupted: by SIGTERM or SIGINT, after the state was saved; the same call resumes.
      InputError: these devices cannot make the mesh, or JAX does not see them; nothing has
        been written.
    """
    missing = plan.missing()
    with execute.disk_errors(workdir), signals.stop_on_signals() as stopped:
        worker = Worker(plan, console, stopped, plan.starts)
        results = SweepResults(plan, workdir, console, stopped)
        if missing:
            accelerators.check_slurm()
            worker.make_contexts(missing)
        records.begin(workdir, plan, source, retry_failed=retry_failed)
        results.write()
        worker.run_phases(missing, results.write)
        results.conclude()
