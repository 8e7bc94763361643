"""The Slurm executor: job arrays through submitit, one job a phase, and one for the results.

    DIR/slurm/jobs.json     phase -> id of its job; and that of the last job, 'results'
    DIR/slurm/<id>_*        what submitit keeps: the batch script, the job's output and errors

A job array is what has the same jobs to wait for: so each phase waits for its parents alone. Jobs
wait for others to end (`afterany`), not to succeed: what builds on a failed phase sees that at its
start and ends at once, and nothing stays in the queue for ever. A job that comes near its time
limit saves its state and queues again; so it is with a preempted one and where a node dies.
"""

import re
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from w2s_jax.core import errors
from w2s_jax.core.files import write_json
from w2s_jax.execution import execute
from w2s_jax.sweep import records
from w2s_jax.sweep.finishing import Results
from w2s_jax.sweep.planning import SweepPlan, plan_sweep
from w2s_jax.sweep.points import Source
from w2s_jax.sweep.units import Unit, make_units
from w2s_jax.sweep.worker import work

#: Minutes of a job where nothing is said; it queues again when they are over.
MINUTES = 60
#: Jobs of an array; Slurm's default limit is 1001.
LARGEST_ARRAY = 1000
#: How often a job queues again because its time is over.
MAX_TIMEOUTS = 100
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
    """Units that wait for the same ones; their places among all units."""

    units: tuple[int, ...]
    after: tuple[int, ...]


def parse_parameters(flags: Sequence[str]) -> dict[str, Any]:
    """What '--slurm.time=60', '--slurm.partition=gpu' and so on say, as submitit takes it.

    Raises:
      InputError: for a parameter that submitit does not know, or a wrong value.
    """
    known = sorted(
        _submitit().SlurmExecutor._valid_parameters() - {_MORE, "dependency", "num_gpus"}
    )
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
                raise errors.InputError(f"--slurm.{name}: {text!r}; allowed: a number{unit}")
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
                f"--slurm.{name}: {found[name]}; allowed in a sweep: 1 (a phase is one process; "
                "launch/slurm/run.sbatch is for runs over several nodes)"
            )
    return found | {_MORE: more}


def make_arrays(units: Sequence[Unit]) -> list[Array]:
    """Job arrays of units, each after those that it waits for."""
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, unit in enumerate(units):
        alike[unit.after].append(number)
    arrays = [
        Array(tuple(own[start : start + LARGEST_ARRAY]), after)
        for after, own in alike.items()
        for start in range(0, len(own), LARGEST_ARRAY)
    ]
    # Units come after those they wait for, so the last of these decides.
    return sorted(arrays, key=lambda array: max(array.after, default=-1))


def run_on_slurm(
    plan: SweepPlan,
    source: Source,
    workdir: Path,
    console: Console,
    *,
    parameters: Mapping[str, Any],
    retry_failed: bool,
) -> None:
    """Submits the missing phases of a sweep to Slurm, and a last job for results and report.

    What is in the queue already is not submitted again.

    Args:
      plan: what to run.
      source: where its points come from.
      workdir: the sweep's folder, on a file system that all nodes share.
      console: where to print.
      parameters: as `parse_parameters` returns them.
      retry_failed: forget which phases have failed.

    Raises:
      InputError: if there is no Slurm here, or it refuses the jobs.
    """
    if shutil.which("sbatch") is None:
        raise errors.InputError(
            "--executor: slurm, but there is no sbatch here; allowed: on a node from which jobs "
            "are submitted"
        )
    with execute.disk_errors(workdir):
        records.begin(workdir, plan, source, retry_failed=retry_failed)
        queued = _queued(workdir)
        left = _left(plan, queued)
        units = make_units(plan, left)
        jobs = _submit(plan, units, queued, workdir, parameters) if units else queued
        if not jobs:
            finish(str(workdir.absolute()), console)
            return
    waiting = len(queued.keys() - {RESULTS})
    console.print(
        f"{len(left)} phases submitted as {len(units)} jobs, {waiting} were in the queue; "
        f"results and report: job {jobs[RESULTS]}\nw2s sweep status {workdir} tells how it stands",
        highlight=False,
    )


def print_jobs(
    plan: SweepPlan, workdir: Path, parameters: Mapping[str, Any], console: Console
) -> None:
    """Prints what `run_on_slurm` would submit: parameters, arrays, and what each waits for."""
    queued = _queued(workdir) if shutil.which("squeue") else {}
    left = _left(plan, queued)
    units = make_units(plan, left)
    arrays = make_arrays(units)
    places = _places(arrays)
    flags = {**parameters, **parameters[_MORE]}
    said = " ".join(f"{k}={v}" for k, v in flags.items() if k != _MORE)
    console.print(f"Slurm: each job with {said}", highlight=False, markup=False, soft_wrap=True)
    for number, array in enumerate(arrays):
        waits = ", ".join(places[unit] for unit in array.after)
        waits = f"after {waits} have ended" if waits else "after nothing"
        console.print(
            f"array {number}: {len(array.units)} jobs, {waits}", highlight=False, markup=False,
            soft_wrap=True,
        )  # fmt: skip
        for unit in array.units:
            titles = [f"{plan.phases[name].title} ({name})" for name in units[unit].phases]
            console.print(
                f"  {places[unit]}: {', '.join(titles)}", highlight=False, markup=False,
                soft_wrap=True,
            )  # fmt: skip
    console.print("last: 1 job, after all others have ended: results and report", highlight=False)


def _places(arrays: Sequence[Array]) -> dict[int, str]:
    """Unit -> its job, before it has a number: '2[0]', the first of the array 2."""
    return {
        unit: f"{number}[{index}]"
        for number, array in enumerate(arrays)
        for index, unit in enumerate(array.units)
    }


def _left(plan: SweepPlan, queued: Mapping[str, str]) -> list[str]:
    """The phases to submit; also those that other processes run, as they may be killed."""
    states = records.states(plan.store, plan.parents)
    open_ = ("waiting", "running")
    return [name for name, state in states.items() if state in open_ and name not in queued]


def _submit(
    plan: SweepPlan,
    units: Sequence[Unit],
    queued: Mapping[str, str],
    workdir: Path,
    parameters: Mapping[str, Any],
) -> dict[str, str]:
    """Submits units and the last job; phase -> job, of these and those that were queued."""
    submitit = _submitit()
    folder, root = workdir / "slurm", str(workdir.absolute())
    jobs, ids = dict(queued), dict[int, str]()
    jobs.pop(RESULTS, None)
    for array in make_arrays(units):
        names = [units[unit].phases for unit in array.units]
        # Parents that an earlier command has submitted.
        earlier = {jobs[p] for own in names for n in own for p in plan.parents[n] if p in queued}
        before = [ids[unit] for unit in array.after] + sorted(earlier)
        executor = _executor(submitit, folder, parameters, before, "w2s-sweep")
        try:
            submitted = executor.map_array(PhaseJob(root), names)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as e:
            raise errors.InputError(f"--slurm: sbatch: {' '.join(str(e).split())}") from e
        for unit, job in zip(array.units, submitted, strict=True):
            ids[unit] = job.job_id
            jobs |= dict.fromkeys(units[unit].phases, job.job_id)
        # At once: a kill in between must not make jobs unknown.
        write_json(records.jobs_path(workdir), jobs)
    cheap = {k: v for k, v in parameters.items() if "gpu" not in k and k != "gres"}
    last = _executor(submitit, folder, cheap, sorted(set(jobs.values())), "w2s-results")
    jobs[RESULTS] = last.submit(finish, root).job_id
    write_json(records.jobs_path(workdir), jobs)
    return jobs


def _executor(
    submitit: ModuleType,
    folder: Path,
    parameters: Mapping[str, Any],
    before: Sequence[str],
    name: str,
) -> Any:
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
    waits = {"dependency": f"afterany:{':'.join(before)}"} if before else {}
    executor.update_parameters(**{"job_name": name, **parameters, **waits})
    return executor


class PhaseJob:
    """What a job does; submitit starts it again after it has called its signal handler."""

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir

    def __call__(self, names: Sequence[str]) -> dict[str, str]:
        """Runs phases; near the time limit saves the state and asks Slurm to queue the job again.

        Slurm says that the time is nearly over by a signal of submitit's choice. SIGTERM comes
        before a preemption, where Slurm itself queues the job again, and when somebody cancels it.
        """
        number = _submitit().JobEnvironment()._usr_sig()
        again, asked = signal.getsignal(number), list[int]()
        signal.signal(number, lambda number, _: asked.append(number))
        try:
            return work(self.workdir, names, should_stop=lambda: bool(asked))
        except errors.Interrupted:
            if asked and callable(again):
                again(number, None)
            raise

    def checkpoint(self, names: Sequence[str]) -> Any:
        """What to start again: the same, as the state is in the phase's folder."""
        return _submitit().helpers.DelayedSubmission(self, names)


def finish(workdir: str, console: Console | None = None) -> None:
    """The last job: writes the results of all runs that are complete, and the report.

    Raises:
      SweepFailed: if some phases have failed.
    """
    record = records.read_sweep(Path(workdir))
    points = records.read_source(record).points()
    plan = plan_sweep(points, Path(workdir), Path(record["store"]))
    results = Results(plan, Path(workdir), console or Console(), lambda: False)
    results.write()
    results.conclude()


def _queued(workdir: Path) -> dict[str, str]:
    """The jobs of the sweep that are in Slurm's queue, or run: phase -> id."""
    jobs = records.read_jobs(workdir)
    if not jobs:
        return {}
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error)
        raise errors.InputError(f"--executor: slurm: squeue: {' '.join(said.split())}") from error
    alive = set(found.stdout.split())
    return {name: job for name, job in jobs.items() if job in alive}


def _submitit() -> ModuleType:
    try:
        import submitit
    except ImportError as error:
        raise errors.InputError(
            "--executor: submitit is not installed; allowed: pip install 'w2s_jax[slurm]' first"
        ) from error
    return submitit
