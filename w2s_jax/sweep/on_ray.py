"""The Ray executor: a task per unit of phases, on a cluster or on this machine.

All tasks are submitted at once. Each takes the outcomes of those it builds on as arguments, so Ray
starts it when they have ended and resources are free. Ray starts it again if its worker or node
dies; as the store is on a file system that all nodes share, it continues from its checkpoint.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from w2s_jax.core import accelerators, errors, signals
from w2s_jax.execution import execute
from w2s_jax.sweep import records
from w2s_jax.sweep.finishing import SweepResults
from w2s_jax.sweep.planning import SweepPlan
from w2s_jax.sweep.points import PointSource
from w2s_jax.sweep.units import Unit, make_units
from w2s_jax.sweep.worker import POLL_SECONDS, print_outcome, work

#: How often Ray restarts a task whose worker or node died.
MAX_RETRIES = 10


def parse_resources(text: str | None) -> dict[str, float]:
    """Parse 'num_gpus=1,TPU=4' into resource -> amount per task.

    Raises:
      InputError: the text has another form.
    """
    found: dict[str, float] = {}
    for part in (text or "").split(",") if text is not None else ():
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+(?:\.\d+)?)\s*", part, re.ASCII)
        if match is None or match[1] in found:
            raise errors.InputError(
                f"--resources: {text!r}; must be NAME=NUMBER,..., each name once, as num_gpus=1"
            )
        found[match[1]] = float(match[2])
    return found


def task_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Return the options of `ray.remote` for tasks that take these resources.

    The process of a task with accelerators ends with the task: JAX would keep them, and Ray may
    assign other devices to the next task.
    """
    own = {name: resources[name] for name in ("num_cpus", "num_gpus") if name in resources}
    custom = {name: amount for name, amount in resources.items() if name not in own}
    only_cpus = resources.keys() <= {"num_cpus"}
    return {
        **own,
        "resources": custom,
        "max_calls": 0 if only_cpus else 1,
        "max_retries": MAX_RETRIES,
        # A worker that was stopped by a signal has saved its state.
        "retry_exceptions": [errors.Interrupted],
    }


def run_on_ray(
    plan: SweepPlan,
    source: PointSource,
    workdir: Path,
    console: Console,
    *,
    address: str | None,
    resources: Mapping[str, float],
    retry_failed: bool,
) -> None:
    """Run the missing phases of a sweep on Ray; write results and report.

    Args:
      plan: the sweep.
      source: the source of its points.
      workdir: its folder.
      console: where to print.
      address: of the cluster; None for RAY_ADDRESS, a cluster on this machine, or a new one.
      resources: resource -> amount per task; {} for `_default_resources`.
      retry_failed: forget which phases have failed.

    Raises:
      SweepFailed, Interrupted: as `local.run_sweep`.
      InputError: Ray is not installed, or there is no such cluster, or it lacks the resources.
      StorageError: a worker's disk failed.
    """
    missing = [phase.name for phase in plan.missing()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(execute.disk_errors(workdir))
        if missing:
            stack.enter_context(_connected(address))
            resources = _checked(resources or _default_resources())
        stopped = stack.enter_context(signals.stop_on_signals())
        results = SweepResults(plan, workdir, console, stopped)
        records.begin(workdir, plan, source, retry_failed=retry_failed)
        results.write()
        states = records.states(plan.store, plan.parents)
        left = [name for name in missing if states[name] in ("waiting", "running")]
        if left:
            tasks = _submit(make_units(plan, left), workdir, resources)
            _collect(tasks, results, len(plan.phases) - len(missing))
        results.conclude()


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to Ray while the block runs."""
    try:
        import ray
    except ImportError as error:
        raise errors.InputError(
            "--executor=ray needs Ray; install it with pip install 'w2s_jax[ray]'"
        ) from error
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS")
        raise errors.InputError(
            f"--ray_address: {where!r}: {errors.first_line(error)}; give HOST:PORT of a "
            "cluster's head, or omit it for a cluster on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _default_resources() -> dict[str, float]:
    """Return a GPU if the cluster has GPUs, all chips of a host if it has TPUs, else a CPU."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("GPU", 0) >= 1 for node in nodes):
        return {"num_gpus": 1.0}
    chips = [node["TPU"] for node in nodes if node.get("TPU", 0) >= 1]
    return {"TPU": min(chips)} if chips else {"num_cpus": 1.0}


def _checked(resources: Mapping[str, float]) -> Mapping[str, float]:
    """Return the resources if a node has them; otherwise Ray would wait forever.

    Raises:
      InputError: no node has them.
    """
    import ray

    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, amount in resources.items():
        most = max((node.get(names.get(name, name), 0.0) for node in nodes), default=0.0)
        if amount > most:
            raise errors.InputError(
                f"--resources: {name}={amount:g}; allowed: at most {most:g}, as on the largest "
                "node of the cluster"
            )
    return resources


def _submit(
    units: list[Unit], workdir: Path, resources: Mapping[str, float]
) -> dict[Any, tuple[str, ...]]:
    """Submit all units; return Ray's reference of each task -> its phases."""
    import ray

    # Only our own variables: Ray would show others, such as access tokens, in its dashboard.
    environment = {n: value for n, value in os.environ.items() if n.startswith("W2S_")}
    task = ray.remote(**task_options(resources))(_task)
    folder = str(workdir.absolute())
    refs: list[Any] = []
    for unit in units:
        name = " ".join(unit.phases)
        before = [refs[number] for number in unit.after]
        run = task.options(name=name[:100])
        refs.append(run.remote(folder, unit.phases, environment, *before))
    return dict(zip(refs, (unit.phases for unit in units), strict=True))


def _task(
    workdir: str, names: tuple[str, ...], environment: dict[str, str], *before: Any
) -> dict[str, str]:
    """Run phases on a worker, after the tasks that returned `before` have ended."""
    import ray

    os.environ.update(environment)
    given = accelerators.given_by_ray(ray.get_runtime_context().get_accelerator_ids())
    return work(workdir, names, check_devices=lambda: accelerators.check("Ray", given))


def _collect(tasks: dict[Any, tuple[str, ...]], results: SweepResults, done: int) -> None:
    """Wait for tasks; print the outcome of their phases and write results."""
    import ray

    plan, console = results.plan, results.console
    pending = list(tasks)
    try:
        while pending:
            ended, pending = ray.wait(pending, timeout=POLL_SECONDS)
            for ref in ended:
                _record_death(ref, tasks[ref], plan)
                for name in tasks[ref]:
                    done += 1
                    print_outcome(plan, plan.phases[name], done, console)
            if ended:
                results.write()
            if results.stopped():
                raise signals.interruption()
    except BaseException:
        for ref in pending:
            ray.cancel(ref)
        if pending:
            # Workers save their state before they stop.
            ray.wait(pending, num_returns=len(pending))
        raise


def _record_death(ref: Any, names: tuple[str, ...], plan: SweepPlan) -> None:
    """Record phases as failed whose worker died as often as tasks are retried."""
    import ray
    from ray import exceptions

    try:
        ray.get(ref)
    except exceptions.RayTaskError as error:
        if isinstance(error, errors.W2SError):
            raise
        # Usually the error of a task that this one builds on; anything else is a bug.
        if not isinstance(error.cause, exceptions.RayError):
            raise
    except exceptions.RayError as error:
        for name in names:
            folder = plan.folder(name)
            if not folder.complete and records.read_failure(folder) is None:
                folder.path.mkdir(parents=True, exist_ok=True)
                records.write_failure(folder, _Died(f"its worker died: {errors.first_line(error)}"))


class _Died(errors.W2SError):
    """A worker died as often as tasks are retried."""
