"""The phases of a run, a DAG, from a resolved config. Pure; imports no JAX."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.config import METHODS, LossSettings, Settings
from w2s_jax.planning.build import (
    ceiling_slice,
    features_phase,
    finetune_phase,
    generative_phase,
    labels_phase,
    pretrain_phase,
)
from w2s_jax.planning.phase import Phase as Phase
from w2s_jax.planning.resolve import Resolved


@dataclass(frozen=True)
class Student:
    """Who is compared with the weak model and the ceiling.

    Attributes:
      phase: whose predictions they are.
      loss: label of the loss.
      method: 'naive', or what made it.
      supervisor: the phase whose test labels it is held against in agreement.
      ceiling: the phase that recovers the whole gap.
    """

    phase: str
    loss: str
    method: str
    supervisor: str
    ceiling: str


@dataclass(frozen=True)
class Plan:
    """Phases in an order in which each comes after its parents, without duplicates, and the roles.

    `weak` and `ceiling` are phase names; `students` maps '<loss>', and '<loss>+<method>', to who
    they are.
    """

    phases: tuple[Phase, ...]
    weak: str
    ceiling: str
    students: Mapping[str, Student]

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(p for p in self.phases if p.name == name)


class Builder:
    """Collects the phases of a run; each method returns a phase's name."""

    def __init__(self, resolved: Resolved):
        self.resolved, self.settings = resolved, resolved.settings
        self.phases: dict[str, Phase] = {}
        weak = resolved.roles["weak"].splits
        self.evaluated = tuple(sorted({"test", "validation"} & set(weak)))

    def add(self, phase: Phase) -> str:
        """Adds a phase, unless it is there."""
        return self.phases.setdefault(phase.name, phase).name

    def init(self, role: str) -> dict[str, str]:
        """{'init': a role's pretraining}, or {}."""
        pretrain = pretrain_phase(self.resolved, role)
        return {} if pretrain is None else {"init": self.add(pretrain)}

    def generative(self, role: str, split: str, epochs: float) -> dict[str, str]:
        """{'init': a role's model after next-token training on a split's texts}."""
        return {
            "init": self.add(generative_phase(self.resolved, role, split, epochs, self.init(role)))
        }

    def features(self, role: str, init: Mapping[str, str] | None = None) -> str:
        """What the heads of a role's frozen model see, pretrained or as a phase has left it."""
        parents = self.init(role) if init is None else init
        return self.add(features_phase(self.resolved, role, parents))

    def labels(
        self,
        kind: str,
        role: str,
        splits: tuple[str, ...],
        parents: Mapping[str, str],
        *,
        label: str = "",
        **options: Any,
    ) -> str:
        """Labels of some splits, made as `phases.labelling` says of `kind`."""
        made = labels_phase(self.resolved, kind, role, splits, parents, options, label or kind)
        return self.add(made)

    def trained(
        self,
        kind: str,
        role: str,
        split: str,
        *,
        init: Mapping[str, str] | None = None,
        parents: Mapping[str, str] | None = None,
        adapt: str | None = None,
        **more: Any,
    ) -> str:
        """The phase that trains a role's model, behind those that it starts from.

        Args:
          kind, role, split: as in `Phase`; the split that it trains on.
          init: what it starts from; None: the role's pretraining.
          parents: others, such as 'labels'.
          adapt: instead of the role's own.
          **more: `loss`, `label`, `label_splits`, `subset`, `suffixed`, `seed`, `select`, `train`
            (see `finetune_phase`).
        """
        own = self.settings.roles[role].train
        adapt = adapt or own.adapt
        start = self.init(role) if init is None else dict(init)
        given = dict(parents or {})
        if adapt in ("probe", "probe_then_full"):
            probed = given | {"features": self.features(role, start)}
            more_of_probe = {k: more[k] for k in ("loss", "subset", "seed") if k in more}
            if adapt == "probe":
                return self.add(
                    finetune_phase(self.resolved, kind, role, split, probed, probe=True, **more)
                )
            first = finetune_phase(
                self.resolved,
                "probe",
                role,
                split,
                probed,
                probe=True,
                purpose=kind,
                **more_of_probe,
            )
            given["head"] = self.add(first)
        return self.add(finetune_phase(self.resolved, kind, role, split, start | given, **more))


def base(builder: Builder) -> Plan:
    """Weak model, ceiling, and a naive student for each loss, behind what they start from."""
    settings = builder.settings
    for role in ("weak", "strong"):
        start = builder.init(role)
        if settings.roles[role].train.adapt.startswith("probe"):
            builder.features(role, start)
    splits = (*_supervised(settings), *builder.evaluated)
    if settings.weak.labels is None:
        weak = builder.trained("weak", "weak", "slice1", label_splits=splits)
    else:
        name = f"labels of {Path(settings.weak.labels).name}"
        weak = builder.labels("outside", "weak", splits, {}, label=name)
    ceiling = builder.trained("ceiling", "strong", ceiling_slice(settings))
    students = {
        loss.label: Student(
            builder.trained("student", "strong", "slice2", loss=loss, parents={"labels": weak}),
            loss.label,
            "naive",
            weak,
            ceiling,
        )
        for loss in settings.losses
    }
    return Plan(tuple(builder.phases.values()), weak, ceiling, students)


def _supervised(settings: Settings) -> tuple[str, ...]:
    """The slices that the weak model labels."""
    return tuple(f"slice{number}" for number in range(2, settings.num_slices + 1))


# --- methods --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MethodPlanner:
    """Where a method adds its phases and students.

    Attributes:
      builder: collects the phases of the run.
      naive: the weak model, the ceiling and the naive students.
    """

    builder: Builder
    naive: Plan

    @property
    def losses(self) -> tuple[LossSettings, ...]:
        """The losses that a method trains its students with."""
        return self.builder.settings.method_losses

    @property
    def label_splits(self) -> tuple[str, ...]:
        """The splits that a supervisor labels: the student's slice, validation and test."""
        return ("slice2", *self.builder.evaluated)

    def size(self, split: str) -> int:
        """Documents of a split."""
        return len(self.builder.resolved.roles["strong"].splits[split])

    def student(
        self,
        method: str,
        labels: str,
        loss: LossSettings,
        *,
        supervisor: str = "",
        ceiling: str = "",
        split: str = "slice2",
        **more: Any,
    ) -> Student:
        """Add a student: the strong model, trained on labels that a phase has made.

        Args:
          method: name of the method, or of its variant.
          labels: the phase with the labels.
          loss: of the student.
          supervisor: the phase whose test labels agreement is measured against; '': `labels`.
          ceiling: the phase that recovers the whole gap; '': that of the run.
          split: the slice that is labelled.
          **more: as in `Builder.trained`.
        """
        phase = self.builder.trained(
            "student",
            "strong",
            split,
            loss=loss,
            parents={"labels": labels},
            label=f"{loss.label}+{method}",
            **more,
        )
        ceiling = ceiling or self.naive.ceiling
        return Student(phase, loss.label, method, supervisor or labels, ceiling)

    def students(self, method: str, labels: str, **more: Any) -> dict[str, Student]:
        """Add a student for each loss, and return them by their keys in result.json."""
        return {
            f"{loss.label}+{method}": self.student(method, labels, loss, **more)
            for loss in self.losses
        }


def plan(resolved: Resolved) -> Plan:
    """Return all phases of a run: naive students, and what its methods add.

    Raises:
      InputError: for a method that the models, the data or the other settings do not allow.
    """
    builder = Builder(resolved)
    naive = base(builder)
    students = dict(naive.students)
    for method in resolved.settings.methods:
        spec = METHODS[method.kind]
        students |= spec.plan(MethodPlanner(builder, naive), **dict(method.options))
    used = {naive.weak, naive.ceiling}
    for student in students.values():
        used |= {student.phase, student.supervisor, student.ceiling}
    used = _with_ancestors(builder, used)
    phases = tuple(phase for phase in builder.phases.values() if phase.name in used)
    return dataclasses.replace(naive, phases=phases, students=students)


def _with_ancestors(builder: Builder, names: Iterable[str]) -> set[str]:
    """Return the names, and those of all phases that they build on."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += builder.phases[name].parents.values()
    return found
