"""All points of a sweep as one DAG of phases, each of which is there once. Imports no JAX."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.config import CheckpointSettings, LogSettings, MeshSettings, Settings
from w2s_jax.core import errors
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.execution.execute import Prepared, prepare
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved, RoleInput, resolve
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
      resolved: phase -> what the first run that has it works on.
      store: where the phases live.
    """

    runs: tuple[SweepRun, ...]
    phases: Mapping[str, Phase]
    resolved: Mapping[str, Resolved]
    store: Path

    def folder(self, name: str) -> PhaseFolder:
        """Where a phase lives."""
        return PhaseFolder(self.store / name)

    def missing(self) -> list[Phase]:
        """The phases without a result, each after its parents."""
        return [phase for name, phase in self.phases.items() if not self.folder(name).complete]

    @property
    def parents(self) -> dict[str, list[str]]:
        """Phase -> the phases that it builds on."""
        return {name: sorted({*phase.parents.values()}) for name, phase in self.phases.items()}

    @property
    def starts(self) -> frozenset[str]:
        """The phases from whose parameters others start."""
        phases = self.phases.values()
        return frozenset(p.parents["init"] for p in phases if "init" in p.parents)

    @property
    def uses(self) -> Counter[str]:
        """Phase -> how many runs have it."""
        return Counter(name for run in self.runs for name in run.phases)


def plan_sweep(
    points: Sequence[NamedPoint],
    workdir: Path,
    store: Path,
    resolver: "SharedResolver | None" = None,
) -> SweepPlan:
    """Checks, resolves and plans every point; reads, writes nothing.

    Args:
      points: the points.
      workdir: the sweep's folder.
      store: where phases live.
      resolver: what has resolved other points, if some have been planned before.

    Raises:
      InputError: as `execute.prepare`, for the first bad point.
    """
    resolver = resolver or SharedResolver()
    runs = []
    for point in points:
        if point.config.log.wandb:
            raise errors.InputError(
                "log.wandb: True, but the phases of a sweep belong to several runs; allowed in a "
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
    """`resolve`, but settings that differ in nothing that it reads are resolved once.

    Equal documents are kept once, also those of settings that differ.
    """

    def __init__(self) -> None:
        self._resolved: dict[Settings, Resolved] = {}
        self._documents: dict[str, TokenizedDocuments] = {}

    def __call__(self, settings: Settings) -> Resolved:
        """As `resolve(settings)`."""
        key = _what_is_read(settings)
        if key not in self._resolved:
            found = resolve(settings)
            roles = {role: self._with_kept(data) for role, data in found.roles.items()}
            self._resolved[key] = dataclasses.replace(found, roles=roles)
        found = self._resolved[key]
        own = dataclasses.replace(
            settings,
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


def _what_is_read(settings: Settings) -> Settings:
    """The settings without what `resolve` does not look at."""
    # Only the expansion 'one' draws documents with the run's own seed.
    seed = settings.seed if settings.protocol.item_expansion == "one" else 0
    return dataclasses.replace(
        settings,
        name="",
        seed=seed,
        losses=(),
        methods=(),
        method_losses=(),
        eval_every=None,
        mesh=MeshSettings(),
        checkpoint=CheckpointSettings(),
        log=LogSettings(),
    )
