"""Which phases each method adds to a run. Pure; imports no JAX.

A method is a function of what it adds to (`Making`) and its options. It returns its students: key
in result.json -> who they are. To add one: its options in `method_options.METHODS`, a function
here, and, where it makes labels in a new way, one in `phases.labelling`.
"""

import dataclasses
from collections.abc import Iterable

from w2s_jax.methods import by_labels, by_models
from w2s_jax.methods.making import Making, Method
from w2s_jax.planning.plan import Plan, PlanBuilder, Student, base
from w2s_jax.planning.resolve import Resolved

_METHODS: dict[str, Method] = {
    "bootstrapping": by_labels.bootstrapping,
    "strong_to_strong": by_labels.strong_to_strong,
    "generative": by_models.generative,
    "bagging": by_labels.bagging,
    "boosting": by_labels.boosting,
    "confidence_threshold": by_labels.confidence_threshold,
    "probe_filter": by_labels.probe_filter,
    "probe_relabel": by_labels.probe_relabel,
    "trust_filter": by_labels.trust_filter,
    "early_stopping": by_models.early_stopping,
    "saliency": by_models.saliency,
    "prompting": by_models.prompting,
    "contrast_consistent_search": by_models.contrast_consistent_search,
    "em_posterior": by_labels.em_posterior,
    "synthetic": by_labels.synthetic,
    "controls": by_models.controls,
    "imitation": by_labels.imitation,
}


def plan(resolved: Resolved) -> Plan:
    """All phases of a run: naive students, and what its methods add.

    Raises:
      InputError: for a method that the models, the data or the other settings do not allow.
    """
    builder = PlanBuilder(resolved)
    naive = base(builder)
    students = dict(naive.students)
    for method in resolved.settings.methods:
        students |= _METHODS[method.kind](Making(builder, naive), dict(method.options))
    used = _ancestors(builder, (naive.weak, naive.ceiling, *(s.phase for s in students.values())))
    used |= _ancestors(builder, (name for s in students.values() for name in _named(s)))
    phases = tuple(phase for phase in builder.phases.values() if phase.name in used)
    return dataclasses.replace(naive, phases=phases, students=students)


def _named(student: Student) -> tuple[str, str]:
    return student.supervisor, student.ceiling


def _ancestors(builder: PlanBuilder, names: Iterable[str]) -> set[str]:
    """The phases of these names, and all that they build on."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += builder.phases[name].parents.values()
    return found
