"""A run before anything is written: checked, resolved and planned. Imports no JAX."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from w2s_jax.config import Settings, validation, with_labels
from w2s_jax.core import errors, processes
from w2s_jax.execution import workdirs
from w2s_jax.planning import transfer
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.plan import Plan
from w2s_jax.planning.plan import plan as make_plan
from w2s_jax.planning.resolve import Resolved, resolve
from w2s_jax.store.artifacts import PhaseFolder, phase_folder


@dataclass(frozen=True)
class Prepared:
    """A run of which nothing has been written yet.

    Attributes:
      workdir: the run's folder.
      store: the folder of its phases.
      record: the future contents of its config.json.
      resolved: its input.
      plan: its phases.
    """

    workdir: Path
    store: Path
    record: dict[str, Any]
    resolved: Resolved
    plan: Plan

    def missing(self) -> list[Phase]:
        """Return the phases without a result, each after its parents."""
        return [p for p in self.plan.phases if not PhaseFolder(self.store / p.name).complete]

    def folder(self, phase_name: str) -> PhaseFolder:
        """Return the folder of a phase."""
        return phase_folder(self.store, phase_name, self.resolved.settings.checkpoint.dir)


def prepare(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    store: str | os.PathLike[str] | None = None,
    *,
    resolve: Callable[[Settings], Resolved] = resolve,
) -> Prepared:
    """Check, resolve and plan a run. Writes nothing.

    Args:
      config, workdir, store: as for `execute.run`.
      resolve: the function that reads the input.

    Raises:
      InputError: bad config, data or working directory.
    """
    workdir, config = Path(workdir), with_labels(config)
    settings = validation.validate(config)
    stored = workdirs.stored(workdir)
    if store is None and stored is not None:
        store = stored.get("store")
    if stored is not None:
        workdirs.refuse_other_config(workdir, stored["config"], stored["data"], config)
        settings = workdirs.with_earlier_losses(settings, stored["config"])
        settings = workdirs.with_earlier_methods(settings, stored["config"])
        settings = workdirs.with_earlier_test_tasks(settings, stored["config"])
    folder = workdir / "phases" if store is None else Path(store)
    # A finished run is read from anywhere, even a read-only disk.
    if not (workdir / "result.json").exists():
        workdirs.refuse_unwritable(workdir, folder, settings)
    resolved = resolve(settings)
    if stored is not None:
        workdirs.refuse_other_data(workdir, stored, resolved)
    plan = make_plan(resolved)
    _refuse_without_parameters(plan, folder)
    record = workdirs.record(config, stored, resolved)
    record["phases"] = [phase.name for phase in plan.phases]
    if store is not None:
        record["store"] = str(Path(store).absolute())
    return Prepared(workdir, folder, record, resolved, plan)


def _refuse_without_parameters(plan: Plan, store: Path) -> None:
    """Refuse to evaluate phases of which only the results were kept.

    Raises:
      InputError: there are such.
    """
    gone = []
    for phase in plan.phases:
        trained = phase.parents.get("model")
        if trained is None or PhaseFolder(store / phase.name).complete:
            continue
        folder = PhaseFolder(store / trained)
        if folder.complete and not folder.final.exists():
            gone.append(trained)
    if gone:
        raise transfer.not_kept(gone)


def prepare_alike(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    store: str | os.PathLike[str] | None,
) -> Prepared:
    """Call `prepare` in all processes of a run, before any of them writes.

    Raises:
      InputError: as `prepare`, and if the processes do not plan the same phases.
    """
    prepared = processes.everywhere("prepare", lambda: prepare(config, workdir, store))
    names = [phase.name for phase in prepared.plan.phases]
    for number, other in enumerate(processes.gather("plan", names)):
        if other != names:
            raise errors.InputError(
                f"--config: process {number} reads other data, models or settings than process "
                f"{processes.index()}; give all processes the same"
            )
    return prepared
