"""Submit jobs to Slurm through submitit, within the limits of the cluster. Imports no JAX."""

import contextlib
import hashlib
import io
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from w2s_jax.core import errors

#: Jobs of an array; Slurm's default limit is 1001.
LARGEST_ARRAY = 1000
#: How often a job is queued again after its time limit.
MAX_TIMEOUTS = 100
#: Characters of a dependency; longer ones are written in another way.
LONGEST_DEPENDENCY = 1000
#: What Slurm says of limits on jobs, of an array, a user, a QOS or the cluster.
_LIMIT = re.compile(r"array|limit|policy|temporarily unavailable", re.IGNORECASE)


class Refused(errors.InputError):
    """Slurm refuses a job: exit status 2. Those submitted before are in the queue."""


def submitit() -> ModuleType:
    """Return the module.

    Raises:
      InputError: it is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise errors.InputError(
            "--executor=slurm needs submitit; install it with pip install 'w2s_jax[slurm]'"
        ) from error
    return submitit


def check_host() -> None:
    """Check that this host can submit jobs.

    Raises:
      InputError: it has no Slurm, or only a part of it.
    """
    for program in ("sbatch", "squeue", "srun"):
        if shutil.which(program) is None:
            raise errors.InputError(
                f"--executor=slurm needs {program}, which is not on this host; run it on a login "
                "node"
            )


def largest_array() -> int:
    """Return how many jobs an array may have: Slurm's MaxArraySize, if it is known."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "config"], check=True, capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return LARGEST_ARRAY
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return max(1, min(LARGEST_ARRAY, int(found[1]))) if found else LARGEST_ARRAY


def job_name(workdir: Path) -> str:
    """Return the name of a sweep's jobs."""
    return f"w2s-sweep-{hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:6]}"


def dependency(before: Collection[str], jobs: Collection[str]) -> str:
    """Return the value of sbatch's `--dependency` that waits for jobs to end.

    An array is named as a whole, '7' instead of '7_0:7_1', if all its jobs that are in the queue
    are waited for; and also if the line would be too long otherwise, as that waits at most longer.

    Args:
      before: ids of the jobs to wait for; not empty.
      jobs: ids of all jobs of the sweep that are in the queue.
    """
    queued: defaultdict[str, set[str]] = defaultdict(set)
    for job in jobs:
        queued[_array(job)].add(job)
    wanted = set(before)
    exact = {_array(job) if queued[_array(job)] <= wanted else job for job in wanted}
    line = _afterany(exact)
    return line if len(line) <= LONGEST_DEPENDENCY else _afterany({_array(job) for job in wanted})


def _afterany(ids: Collection[str]) -> str:
    return f"afterany:{':'.join(sorted(ids))}"


def _array(job: str) -> str:
    return job.partition("_")[0]


def submit(
    folder: Path,
    parameters: Mapping[str, Any],
    waits: str,
    name: str,
    function: Callable[[Any], Any],
    arguments: Sequence[Any],
) -> Iterator[list[str]]:
    """Submit a job per argument, as one array or as several smaller ones if Slurm refuses it.

    Args:
      folder: where submitit keeps its files.
      parameters: as `on_slurm.parse_parameters` returns them.
      waits: value of `--dependency`, or ''.
      name: name of the jobs, unless `parameters` has one.
      function: what a job calls.
      arguments: its argument in each job.

    Yields:
      The ids of jobs as soon as they are submitted, in the order of `arguments`.

    Raises:
      Refused: Slurm refuses even a single job.
    """
    executor = submitit().SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
    more = {"dependency": waits} if waits else {}
    executor.update_parameters(**{"job_name": name, **parameters, **more})
    pending = [arguments]
    while pending:
        part = pending.pop(0)
        try:
            yield _sbatch(executor, function, part)
        except Refused as error:
            if len(part) == 1 or not _LIMIT.search(str(error)):
                raise
            half = (len(part) + 1) // 2
            # What does not fit now does not fit later either.
            rest = [each for more in (part, *pending) for each in more]
            pending = [rest[start : start + half] for start in range(0, len(rest), half)]


def _sbatch(executor: Any, function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[str]:
    core = submitit().core.utils
    try:
        # It also prints what sbatch says.
        with contextlib.redirect_stderr(io.StringIO()):
            return [job.job_id for job in executor.map_array(function, arguments)]
    except (core.FailedJobError, core.FailedSubmissionError) as error:
        raise Refused(f"--slurm: sbatch: {' '.join(str(error).split())}") from error
