"""Plan all points of a sweep as one DAG of distinct phases. Imports no JAX."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.config import CheckpointSettings, LogSettings, MeshSettings, Settings
from w2s_jax.core import errors
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.execution.prepare import Prepared, prepare
from w2s_jax.planning import generation
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved, check_training, resolve
from w2s_jax.planning.role_inputs import RoleInput
from w2s_jax.planning.templates import averaging
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.sweep.points import NamedPoint


@dataclass(frozen=True)
class SweepRun:
    """A point of a sweep, checked and planned; its folder is `runs/<name>`."""

    name: str
    overrides: Mapping[str, Any]
    prepared: Prepared

    @property
    def phases(self) -> tuple[str, ...]:
        """The names of its phases."""
        return tuple(phase.name for phase in self.prepared.plan.phases)


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep and their phases.

    Attributes:
      runs: in the order of the points.
      phases: by name, each after its parents; those of the first run first.
      resolved: phase -> the input of the first run that has it.
      store: the folder of the phases.
    """

    runs: tuple[SweepRun, ...]
    phases: Mapping[str, Phase]
    resolved: Mapping[str, Resolved]
    store: Path

    def folder(self, name: str) -> PhaseFolder:
        """Return the folder of a phase."""
        return PhaseFolder(self.store / name)

    def missing(self) -> list[Phase]:
        """Return the phases without a result, each after its parents."""
        return [phase for name, phase in self.phases.items() if not self.folder(name).complete]

    @property
    def parents(self) -> dict[str, list[str]]:
        """Phase -> the phases that it builds on."""
        return {name: sorted({*phase.parents.values()}) for name, phase in self.phases.items()}

    @property
    def starts(self) -> frozenset[str]:
        """The phases from whose parameters others start."""
        return frozenset(name for phase in self.phases.values() for name in phase.starts)

    @property
    def uses(self) -> Counter[str]:
        """Phase -> number of runs that have it."""
        return Counter(name for run in self.runs for name in run.phases)


def plan_sweep(
    points: Sequence[NamedPoint],
    workdir: Path,
    store: Path,
    resolver: "SharedResolver | None" = None,
) -> SweepPlan:
    """Check, resolve and plan every point. Writes nothing.

    Args:
      points: the points.
      workdir: the sweep's folder.
      store: the folder of the phases.
      resolver: one that has resolved other points of the sweep, to reuse their data.

    Raises:
      InputError: as `prepare`, for the first bad point.
    """
    resolver = resolver or SharedResolver()
    runs = []
    for point in points:
        if point.config.log.wandb:
            raise errors.InputError(
                "log.wandb: True, but phases of a sweep may belong to several runs; allowed in a "
                "sweep: False"
            )
        folder = workdir / "runs" / point.name
        prepared = prepare(point.config, folder, store, resolve=resolver)
        runs.append(SweepRun(point.name, point.overrides, prepared))
    phases: dict[str, Phase] = {}
    resolved: dict[str, Resolved] = {}
    for run in runs:
        for phase in run.prepared.plan.phases:
            phases.setdefault(phase.name, phase)
            resolved.setdefault(phase.name, run.prepared.resolved)
    return SweepPlan(tuple(runs), phases, resolved, store)


class SharedResolver:
    """`resolve`, but once for all settings that are equal in everything it reads.

    Equal documents are kept in memory once, even if their settings differ.
    """

    def __init__(self) -> None:
        self._resolved: dict[Settings, Resolved] = {}
        self._documents: dict[str, TokenizedDocuments] = {}

    def __call__(self, settings: Settings) -> Resolved:
        """Return `resolve(settings)`."""
        key = _read_settings(settings)
        if key in self._resolved:
            _check(self._resolved[key], settings)
        else:
            found = resolve(settings)
            roles = {role: self._with_kept(data) for role, data in found.roles.items()}
            self._resolved[key] = dataclasses.replace(found, roles=roles)
        found = self._resolved[key]
        own = dataclasses.replace(
            settings,
            task=found.settings.task,  # with the pool that the layout of files implies
            weak=found.settings.weak,
            strong=found.settings.strong,
            middle=found.settings.middle,
        )
        return dataclasses.replace(found, settings=own)

    def _with_kept(self, data: RoleInput) -> RoleInput:
        splits = {
            name: self._documents.setdefault(data.digests[name], documents)
            for name, documents in data.splits.items()
        }
        return dataclasses.replace(data, splits=splits)


def _check(found: Resolved, settings: Settings) -> None:
    """Check what `resolve` checks of settings that are not part of `_read_settings`.

    Raises:
      InputError: losses or methods do not suit the task or the models.
    """
    assert found.task is not None
    check_training(found.task, settings, {role: data.model for role, data in found.roles.items()})
    if found.task.generates:
        tokenizers = {role: data.tokenizer for role, data in found.roles.items()}
        generation.check_tokenizers(settings, tokenizers)


def _read_settings(settings: Settings) -> Settings:
    """Return the settings with defaults for everything that `resolve` does not read.

    It checks losses and methods (see `_check`), and reads documents inside the templates over which
    methods average.
    """
    # Only the expansion 'one' draws documents with the run's own seed.
    seed = settings.seed if settings.protocol.item_expansion == "one" else 0
    return dataclasses.replace(
        settings,
        name="",
        seed=seed,
        losses=(),
        methods=averaging(settings),
        method_losses=(),
        eval_every=None,
        mesh=MeshSettings(),
        checkpoint=CheckpointSettings(),
        log=LogSettings(),
    )
