"""The local executor: the missing phases of a sweep, one after another in this process.

The phases of all runs are one DAG, not one run after another: so each is computed once, phases of
several runs may be trained as one population, and a failure stops nothing but what builds on it.
A run's result is written as soon as its last phase is there. Several processes may work on one
store at once: each takes what is neither done nor claimed, and holds nothing while it waits.
"""

from pathlib import Path

from rich.console import Console

from w2s_jax.core import signals
from w2s_jax.execution import execute
from w2s_jax.sweep import records
from w2s_jax.sweep.finishing import Results
from w2s_jax.sweep.planning import SweepPlan
from w2s_jax.sweep.points import Source
from w2s_jax.sweep.worker import Worker


def run_sweep(
    plan: SweepPlan, source: Source, workdir: Path, console: Console, *, retry_failed: bool
) -> None:
    """Runs the missing phases of a sweep, and writes the results of its runs and the report.

    Args:
      plan: what to run.
      source: where its points come from.
      workdir: the sweep's folder.
      console: where to print.
      retry_failed: forget which phases have failed.

    Raises:
      SweepFailed: if some phases failed, now or earlier; all that do not build on them are done.
      Interrupted: by SIGTERM or SIGINT, after the state was saved; the same call resumes.
      InputError: for a mesh that these devices do not make; nothing has been written.
    """
    missing = plan.missing()
    with execute.disk_errors(workdir), signals.stop_on_signals() as stopped:
        worker = Worker(plan, console, stopped, plan.starts)
        results = Results(plan, workdir, console, stopped)
        if missing:
            worker.make_contexts(missing)
        records.begin(workdir, plan, source, retry_failed=retry_failed)
        results.write()
        worker.run_phases(missing, results.write)
        results.conclude()
