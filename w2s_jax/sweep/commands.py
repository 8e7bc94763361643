"""`w2s sweep`: print the plan of a sweep and its cost, then run it. Imports no JAX."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from w2s_jax.core import errors, files
from w2s_jax.execution import code_changes
from w2s_jax.planning.costs import phase_flops
from w2s_jax.report.results import plural
from w2s_jax.store.artifacts import phase_folder
from w2s_jax.sweep import costs, local, records
from w2s_jax.sweep.planning import SweepPlan, plan_sweep
from w2s_jax.sweep.points import load_points, point_source
from w2s_jax.sweep.status import print_counts

#: Ways to run the phases.
EXECUTORS = ("local", "ray", "slurm")


def sweep(
    config: str,
    overrides: Sequence[str],
    workdir: str | os.PathLike[str],
    console: Console,
    *,
    store: str | os.PathLike[str] | None = None,
    executor: str = "local",
    ray_address: str | None = None,
    resources: str | None = None,
    slurm: Sequence[str] = (),
    dry_run: bool = False,
    retry_failed: bool = False,
    accept_changed_code: bool = False,
    mfu: float = costs.MFU,
) -> None:
    """Run all points of a sweep file, or what is missing of them.

    Args:
      config: the sweep file.
      overrides: `--config.FIELD=VALUE`, for all points.
      workdir: the sweep's folder.
      console: where to print.
      store: the folder of the phases, which sweeps and runs may share; None for `workdir`/phases.
      executor: one of `EXECUTORS`.
      ray_address: with 'ray': address of the cluster, see `on_ray.run_on_ray`.
      resources: with 'ray': resources of a task, as 'num_gpus=1,TPU=4'.
      slurm: with 'slurm': `--slurm.NAME=VALUE`, see `on_slurm.parse_parameters`.
      dry_run: print the plan and its cost, and write nothing.
      retry_failed: forget which phases have failed.
      accept_changed_code: as for `execute.run`.
      mfu: assumed utilisation for device-hours.

    Raises:
      InputError: bad input, before anything is written.
      SweepFailed, Interrupted, StorageError: see `local.run_sweep` and `on_ray.run_on_ray`.
    """
    if executor not in EXECUTORS:
        raise errors.unknown("--executor", executor, EXECUTORS)
    flags = {"--ray_address": ray_address, "--resources": resources, "--slurm": slurm or None}
    for flag, value in flags.items():
        of = "slurm" if flag == "--slurm" else "ray"
        if value is not None and executor != of:
            raise errors.InputError(
                f"{flag}: {value!r} needs --executor={of}, not --executor={executor}"
            )
    if not 0 < mfu <= 1:
        raise errors.InputError(f"--mfu: {mfu!r}; allowed: above 0 and at most 1")
    folder = Path(workdir)
    records.check_workdir(folder)
    files.refuse_unwritable(folder, "--workdir")
    if executor == "slurm":
        from w2s_jax.sweep import on_slurm

        parameters = on_slurm.parse_parameters(slurm)
    elif executor == "ray":
        from w2s_jax.sweep import on_ray

        amounts = on_ray.parse_resources(resources)
    source = point_source(config, overrides)
    points = load_points(config, overrides)
    plan = plan_sweep(points, folder, Path(store) if store is not None else folder / "phases")
    saves = {name: own.settings.checkpoint.dir for name, own in plan.resolved.items()}
    phases = [(p, phase_folder(plan.store, name, saves[name])) for name, p in plan.phases.items()]
    for note in code_changes.check(phases, accept=accept_changed_code):
        console.print(note, style="dim", highlight=False, markup=False)
    print_plan(plan, mfu, console, all_runs=dry_run)
    if dry_run and executor == "slurm":
        on_slurm.print_jobs(plan, folder, parameters, console)
    if dry_run:
        return
    if executor == "ray":
        on_ray.run_on_ray(
            plan, source, folder, console, address=ray_address, resources=amounts,
            retry_failed=retry_failed,
        )  # fmt: skip
    elif executor == "slurm":
        on_slurm.run_on_slurm(
            plan, source, folder, console, parameters=parameters, retry_failed=retry_failed
        )
    else:
        local.run_sweep(plan, source, folder, console, retry_failed=retry_failed)


def print_plan(plan: SweepPlan, mfu: float, console: Console, *, all_runs: bool) -> None:
    """Print the runs (with `all_runs`), the phases by kind and state, and the remaining cost."""
    if all_runs:
        table = Table(title="runs", title_justify="left", box=None, pad_edge=False)
        for column in ("run", "phases", "missing"):
            table.add_column(column, overflow="fold")
        for run in plan.runs:
            left = len(run.prepared.missing())
            table.add_row(run.name, str(len(run.phases)), str(left))
        console.print(table)
    for note in dict.fromkeys(n for run in plan.runs for n in run.prepared.resolved.notes):
        console.print(note, style="dim", highlight=False, markup=False)
    uses, phases = plan.uses, plan.phases
    shared = sum(count > 1 for count in uses.values())
    states = records.states(plan.store, plan.parents)
    missing = [name for name, state in states.items() if state != "done"]
    console.print(
        f"{plural(len(plan.runs), 'run')} with {uses.total()} phases, {len(phases)} of them "
        f"distinct, {shared} shared by several runs; {len(phases) - len(missing)} done, "
        f"{len(missing)} missing",
        highlight=False,
    )
    print_counts({name: phase.kind for name, phase in phases.items()}, states, console)
    if missing:
        _print_costs(plan, missing, mfu, console)


def _print_costs(plan: SweepPlan, missing: list[str], mfu: float, console: Console) -> None:
    flops = {n: phase_flops(plan.phases[n], plan.resolved[n]) for n in missing}
    training = sum(own.training for own in flops.values())
    total = sum(own.total for own in flops.values())
    uses = plan.uses
    unshared = sum(uses[name] * own.total for name, own in flops.items())
    console.print(
        f"missing: {_si(total)}FLOP ({_si(training)}FLOP training, the rest labels and "
        f"evaluation); {_si(unshared)}FLOP if nothing were shared",
        highlight=False,
    )
    table = Table(
        title=f"assuming {mfu:.0%} of peak FLOP/s", title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for column in ("device", "min. devices", "device-hours", "wall-clock hours"):
        table.add_column(column, overflow="fold")
    chosen = {name: plan.phases[name] for name in missing}
    for row in costs.hours(chosen, plan.resolved, mfu):
        if row.devices is None:
            continue
        each = row.device_hours / row.devices
        table.add_row(row.device, str(row.devices), _hours(row.device_hours), _hours(each))
    console.print(table)


def _hours(value: float) -> str:
    return f"{value:,.3g}" if value >= 0.001 else "below 0.001"


def _si(value: float) -> str:
    """Return a number with three digits and a prefix, as '3.21 T'."""
    for prefix in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if value < 999.5 or prefix == "Z":
            return f"{value:.3g} {prefix}"
        value /= 1000
    raise AssertionError
