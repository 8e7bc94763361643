"""Units: the phases of a sweep that one task of a cluster runs. Imports no JAX.

A unit is one phase, or several that `mesh.population` asks to train together. The worker decides
which of them really train together (`phases.grouping`), and runs the others one by one. Phases are
joined only if `mesh.population` is a number: with -1 each is its own unit, so that it can run on
another device of the cluster.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from w2s_jax.planning.phase import Phase
from w2s_jax.sweep.planning import SweepPlan
from w2s_jax.sweep.worker import context_key


@dataclass(frozen=True)
class Unit:
    """Phases for one task, and the units that must end before it starts."""

    phases: tuple[str, ...]
    after: tuple[int, ...]


def make_units(plan: SweepPlan, names: Sequence[str]) -> list[Unit]:
    """Divide phases into units, each after those that it builds on.

    Args:
      plan: the sweep.
      names: the phases to run, each after its parents. Parents that are not listed do not count.
    """
    levels: dict[str, int] = {}
    for name in names:
        before = [levels[p] for p in plan.parents[name] if p in levels]
        levels[name] = max(before, default=-1) + 1
    # Phases of one level do not build on each other, so units cannot wait for each other.
    alike: defaultdict[Any, list[str]] = defaultdict(list)
    for name in names:
        alike[levels[name], _packing_key(plan, plan.phases[name])].append(name)
    groups = [
        tuple(own[start : start + size])
        for own in alike.values()
        for size in [max(1, plan.resolved[own[0]].settings.mesh.population)]
        for start in range(0, len(own), size)
    ]
    groups.sort(key=lambda group: levels[group[0]])
    unit_of = {name: number for number, group in enumerate(groups) for name in group}
    return [
        Unit(
            group,
            tuple(sorted({unit_of[p] for n in group for p in plan.parents[n] if p in unit_of})),
        )
        for group in groups
    ]


def _packing_key(plan: SweepPlan, phase: Phase) -> Any:
    """Return a key that is equal for phases that may form a population, as far as is known."""
    if phase.loss is None or not phase.classifies or not phase.total_steps:
        return phase.name
    start = phase.parents.get("features") or phase.parents.get("init") or phase.seed
    return (
        context_key(phase, plan.resolved[phase.name]),
        phase.model,
        dataclasses.replace(phase.train, learning_rate=0.0),
        phase.total_steps,
        phase.loss.kind,
        phase.inputs["train"],
        start,
        (phase.eval_every, phase.select),
        phase.parents["labels"] if phase.suffixed or phase.subset is not None else None,
    )
