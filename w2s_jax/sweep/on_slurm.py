"""The Slurm executor: job arrays through submitit, a job per unit, and one for the results.

    DIR/slurm/jobs.json     phase -> id of its job; and 'results' -> id of the last job
    DIR/slurm/<id>_*        submitit's files: the batch script, the job's output and errors

Units that wait for the same jobs form a job array, so each phase waits only for its parents. Jobs
wait for others to end (`afterany`), not to succeed: a phase that builds on a failed one ends at
once when it starts, and nothing stays in the queue forever. A job that reaches its time limit saves
its state and is queued again, as are preempted jobs and those of nodes that die.
"""

import itertools
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from w2s_jax.core import errors, signals, terminal
from w2s_jax.core.files import write_json
from w2s_jax.execution import execute
from w2s_jax.sweep import records, slurm_submission
from w2s_jax.sweep.finishing import SweepResults
from w2s_jax.sweep.planning import SweepPlan, plan_sweep
from w2s_jax.sweep.points import PointSource
from w2s_jax.sweep.units import Unit, make_units
from w2s_jax.sweep.worker import work

#: Default time limit of a job in minutes, after which it is queued again.
MINUTES = 60
#: The name of the last job in jobs.json.
RESULTS = "results"

_NUMBERS = (
    "time", "nodes", "ntasks_per_node", "cpus_per_task", "cpus_per_gpu", "array_parallelism",
    "gpus_per_node", "gpus_per_task", "signal_delay_s",
)  # fmt: skip
_LISTS = ("setup", "teardown", "srun_args")
_MORE = "additional_parameters"


@dataclass(frozen=True)
class Array:
    """Units that wait for the same ones, as indices of units."""

    units: tuple[int, ...]
    after: tuple[int, ...]


def parse_parameters(flags: Sequence[str]) -> dict[str, Any]:
    """Parse '--slurm.time=60', '--slurm.partition=gpu', ... into parameters of submitit.

    Raises:
      InputError: submitit does not know the parameter, or the value is wrong.
    """
    executor = slurm_submission.submitit().SlurmExecutor
    known = sorted(executor._valid_parameters() - {_MORE, "dependency", "num_gpus"})
    found: dict[str, Any] = {"time": MINUTES}
    more: dict[str, Any] = {"requeue": True}
    for flag in flags:
        name, _, text = flag.removeprefix("--slurm.").partition("=")
        if name.startswith(f"{_MORE}."):
            more[name.removeprefix(f"{_MORE}.").replace("_", "-")] = text or True
            continue
        if name not in known:
            raise errors.unknown("--slurm", name, [*known, f"{_MORE}.NAME"])
        if name in _NUMBERS and not re.fullmatch(r"\d+", text, re.ASCII):
            # A number of GPUs may have a type before it.
            if not (name.startswith("gpus_per") and re.fullmatch(r"[\w.-]+:\d+", text, re.ASCII)):
                unit = " of minutes" if name == "time" else ""
                raise errors.InputError(f"--slurm.{name}: {text!r}; must be a number{unit}")
            found[name] = text
        elif name in _NUMBERS:
            found[name] = int(text)
        elif name in _LISTS:
            found[name] = [*found.get(name, []), text]
        else:
            found[name] = {"true": True, "false": False}.get(text.lower(), text)
    for name in ("nodes", "ntasks_per_node"):
        if found.get(name, 1) != 1:
            raise errors.InputError(
                f"--slurm.{name}: {found[name]}; must be 1 in a sweep, where each phase is one "
                "process (launch/slurm/run.sbatch is for runs on several nodes)"
            )
    return found | {_MORE: more}


def make_arrays(units: Sequence[Unit], largest: int) -> list[Array]:
    """Return job arrays of at most `largest` units, each after those that it waits for."""
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, unit in enumerate(units):
        alike[unit.after].append(number)
    arrays = [
        Array(tuple(own[start : start + largest]), after)
        for after, own in alike.items()
        for start in range(0, len(own), largest)
    ]
    # Units come after those that they wait for, so the last of these decides.
    return sorted(arrays, key=lambda array: max(array.after, default=-1))


def run_on_slurm(
    plan: SweepPlan,
    source: PointSource,
    workdir: Path,
    console: Console,
    *,
    parameters: Mapping[str, Any],
    retry_failed: bool,
) -> None:
    """Submit the missing phases of a sweep to Slurm, and a last job for results and report.

    Phases that are in the queue already are not submitted again.

    Args:
      plan: the sweep.
      source: the source of its points.
      workdir: its folder, on a file system that all nodes share.
      console: where to print.
      parameters: as `parse_parameters` returns them.
      retry_failed: forget which phases have failed.

    Raises:
      InputError: this host has no Slurm, or Slurm refuses the jobs; the same call goes on.
      Interrupted: by SIGTERM or SIGINT; the same call goes on.
    """
    slurm_submission.check_host()
    with execute.disk_errors(workdir), signals.stop_on_signals() as stopped:
        records.begin(workdir, plan, source, retry_failed=retry_failed)
        queued = _queued(workdir)
        left = _left(plan, queued)
        units = make_units(plan, left)
        if not (units or queued):
            finish(str(workdir.absolute()), console)
            return
        jobs = dict(queued)
        # The last job may be missing: it may have been refused.
        if units or RESULTS not in queued:
            _submit(plan, units, jobs, workdir, parameters, stopped)
    waiting = len(queued.keys() - {RESULTS})
    console.print(
        f"{len(left)} phases submitted as {len(units)} jobs, {waiting} were in the queue; "
        f"results and report: job {jobs[RESULTS]}\nw2s sweep status {workdir} shows the state",
        highlight=False,
    )


def print_jobs(
    plan: SweepPlan, workdir: Path, parameters: Mapping[str, Any], console: Console
) -> None:
    """Print what `run_on_slurm` would submit: parameters, arrays, and what each waits for."""
    queued = _queued(workdir) if shutil.which("squeue") else {}
    left = _left(plan, queued)
    units = make_units(plan, left)
    arrays = make_arrays(units, slurm_submission.largest_array())
    names = _job_names(arrays)
    flags = {**parameters, **parameters[_MORE]}
    shown = " ".join(f"{k}={v}" for k, v in flags.items() if k != _MORE)
    console.print(f"Slurm: each job with {shown}", highlight=False, markup=False, soft_wrap=True)
    for number, array in enumerate(arrays):
        waits = ", ".join(names[unit] for unit in array.after)
        waits = f"after {waits} have ended" if waits else "can start at once"
        console.print(
            f"array {number}: {len(array.units)} jobs, {waits}", highlight=False, markup=False,
            soft_wrap=True,
        )  # fmt: skip
        for unit in array.units:
            titles = [f"{plan.phases[name].title} ({name})" for name in units[unit].phases]
            console.print(
                f"  {names[unit]}: {', '.join(titles)}", highlight=False, markup=False,
                soft_wrap=True,
            )  # fmt: skip
    console.print("last: 1 job, after all others have ended: results and report", highlight=False)


def _job_names(arrays: Sequence[Array]) -> dict[int, str]:
    """Return unit -> name of its future job: '2[0]' for the first job of array 2."""
    return {
        unit: f"{number}[{index}]"
        for number, array in enumerate(arrays)
        for index, unit in enumerate(array.units)
    }


def _left(plan: SweepPlan, queued: Mapping[str, str]) -> list[str]:
    """Return the phases to submit; also those that other processes run and that may be killed."""
    states = records.states(plan.store, plan.parents)
    open_ = ("waiting", "running")
    return [name for name, state in states.items() if state in open_ and name not in queued]


def _submit(
    plan: SweepPlan,
    units: Sequence[Unit],
    jobs: dict[str, str],
    workdir: Path,
    parameters: Mapping[str, Any],
    stopped: Callable[[], bool],
) -> None:
    """Submit units and the last job, and add them to `jobs`: phase -> job, of those queued."""
    folder, root, ids = workdir / "slurm", str(workdir.absolute()), dict[int, str]()
    jobs.pop(RESULTS, None)
    queued, name = dict(jobs), slurm_submission.job_name(workdir)
    try:
        for array in make_arrays(units, slurm_submission.largest_array()):
            names = [units[unit].phases for unit in array.units]
            # Jobs of parents that an earlier command submitted.
            parents = {p for own in names for n in own for p in plan.parents[n]}
            before = {ids[unit] for unit in array.after} | {
                job for parent, job in queued.items() if parent in parents
            }
            waits = slurm_submission.dependency(before, jobs.values()) if before else ""
            left = iter(array.units)
            for part in slurm_submission.submit(
                folder, parameters, waits, name, PhaseJob(root), names
            ):
                for unit, job in zip(itertools.islice(left, len(part)), part, strict=True):
                    ids[unit] = job
                    jobs |= dict.fromkeys(units[unit].phases, job)
                # Each time, so that no job is forgotten if this process is killed.
                write_json(records.jobs_path(workdir), jobs)
                if stopped():
                    raise signals.interruption()
        _submit_results(jobs, workdir, parameters)
    except slurm_submission.Refused as error:
        raise errors.InputError(
            f"{error}; {len(jobs)} phases are in the queue; run the same command again for what is "
            "missing"
        ) from error


def _submit_results(jobs: dict[str, str], workdir: Path, parameters: Mapping[str, Any]) -> None:
    """Submit the last job, which waits for all of `jobs`, and add it to them."""
    cheap = {k: v for k, v in parameters.items() if "gpu" not in k and k != "gres"}
    waits, name = slurm_submission.dependency(jobs.values(), jobs.values()), "w2s-results"
    if len(waits) > slurm_submission.LONGEST_DEPENDENCY:
        # After all jobs of the same name.
        waits, name = "singleton", slurm_submission.job_name(workdir)
    for (job,) in slurm_submission.submit(
        workdir / "slurm", cheap, waits, name, finish_job, [str(workdir.absolute())]
    ):
        jobs[RESULTS] = job
    write_json(records.jobs_path(workdir), jobs)


class PhaseJob:
    """The function of a job, which submitit can start again after a time limit."""

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir

    def __call__(self, names: Sequence[str]) -> dict[str, str]:
        """Run phases; near the time limit save the state and have Slurm queue the job again.

        Slurm announces the time limit by a signal that submitit chooses. SIGTERM announces a
        preemption, after which Slurm itself queues the job again, or a cancellation.
        """
        number = slurm_submission.submitit().JobEnvironment()._usr_sig()
        again, asked = signal.getsignal(number), list[int]()
        signal.signal(number, lambda number, _: asked.append(number))
        try:
            return work(self.workdir, names, should_stop=lambda: bool(asked))
        except errors.Interrupted as error:
            if asked and callable(again):
                _queue_again(again, number)
            _exit(error)
        except errors.W2SError as error:
            _exit(error)

    def checkpoint(self, names: Sequence[str]) -> Any:
        """Return the job to start again: the same, as the state is in the phase's folder."""
        return slurm_submission.submitit().helpers.DelayedSubmission(self, names)


def _queue_again(again: Callable[[int, None], Any], number: int) -> None:
    """Call submitit's handler, which ends the process unless Slurm refuses."""
    try:
        again(number, None)
    except Exception as error:
        _exit(
            errors.Interrupted(
                f"Slurm does not queue this job again ({errors.first_line(error)}); the state is "
                "saved: run the same w2s sweep command to resume"
            )
        )


def _exit(error: errors.W2SError) -> NoReturn:
    """End a job with one line; submitit would add the traceback of an exception."""
    print(f"w2s: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_status)


def finish_job(workdir: str) -> None:
    """The last job: `finish`, with one line for an error."""
    try:
        finish(workdir)
    except errors.W2SError as error:
        _exit(error)


def finish(workdir: str, console: Console | None = None) -> None:
    """Write the results of all complete runs, and the report.

    Raises:
      SweepFailed: some phases have failed.
    """
    record = records.read_sweep(Path(workdir))
    points = records.read_source(record).points()
    plan = plan_sweep(points, Path(workdir), Path(record["store"]))
    results = SweepResults(plan, Path(workdir), console or terminal.console(), lambda: False)
    results.write()
    results.conclude()


def _queued(workdir: Path) -> dict[str, str]:
    """Return the jobs of the sweep that are queued or running: phase -> id."""
    jobs = records.read_jobs(workdir)
    if not jobs:
        return {}
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        message = str(getattr(error, "stderr", None) or error)
        raise errors.InputError(f"--executor=slurm: squeue: {' '.join(message.split())}") from error
    alive = set(found.stdout.split())
    return {name: job for name, job in jobs.items() if job in alive}
