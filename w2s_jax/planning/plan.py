"""The phases of a run, a DAG, from a resolved config. Pure; imports no JAX."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2s_jax.config import METHODS, PREFERENCES, LossSettings, Settings
from w2s_jax.planning import pool, transfer
from w2s_jax.planning.build import ceiling_slice
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase as Phase
from w2s_jax.planning.resolve import Resolved
from w2s_jax.planning.templates import names_of


@dataclass(frozen=True)
class Student:
    """A student of a run: what is compared with the weak model and the ceiling.

    Attributes:
      phase: the phase with its predictions.
      loss: label of its loss.
      method: the method that adds it, or 'naive'.
      supervisor: the phase with whose test labels its agreement is measured.
      ceiling: the phase that recovers the whole gap; None without a ceiling.
    """

    phase: str
    loss: str
    method: str
    supervisor: str
    ceiling: str | None


@dataclass(frozen=True)
class Plan:
    """The phases of a run and what they are to it.

    Attributes:
      phases: distinct, each after its parents.
      weak: the phase of the weak model.
      ceiling: the phase of the ceiling; None if the documents that it would learn have no labels.
      students: key in result.json ('<loss>' or '<loss>+<method>') -> student.
      transfer: task of `task.test_tasks` -> phase -> the phase that evaluates it there.
    """

    phases: tuple[Phase, ...]
    weak: str
    ceiling: str | None
    students: Mapping[str, Student]
    transfer: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def phase(self, name: str) -> Phase:
        """Return the phase of that name."""
        return next(p for p in self.phases if p.name == name)


class PlanBuilder:
    """Collects the phases of a run. Methods that add a phase return its name."""

    def __init__(self, resolved: Resolved):
        self.resolved, self.settings = resolved, resolved.settings
        self.phases: dict[str, Phase] = {}
        weak = resolved.roles["weak"].splits
        self.evaluated = tuple(sorted({"test", "validation"} & set(weak)))

    def add(self, phase: Phase) -> str:
        """Add a phase, unless the builder has it; its parents must have been added."""
        sources = {
            split: source
            for split in phase.inputs.values()
            if (source := self._label_source(phase, split)) is not None
        }
        phase = dataclasses.replace(phase, label_sources=sources)
        known = self.phases.setdefault(phase.name, phase)
        # Or one of the two would be missing labels that others learn.
        assert set(known.label_splits) == set(phase.label_splits), (known, phase)
        return known.name

    def _label_source(self, phase: Phase, split: str) -> str | None:
        """Return the phase whose labels of a split apply; None for ground truth.

        Some phases make labels of the training documents only, from other labels. On other splits,
        these other labels apply.
        """
        source = phase.parents.get("labels")
        while source is not None and split not in self.phases[source].label_splits:
            source = self.phases[source].parents.get("labels")
        return source

    def make(self, kind: str, **arguments: Any) -> str:
        """Add a phase of a kind; `arguments` are those of its `PhaseKind.build`."""
        return self.add(PHASE_KINDS[kind].build(self.resolved, **arguments))

    def init(self, role: str) -> dict[str, str]:
        """Return {'init': a role's pretraining phase}, or {} without one."""
        if "pretrain" not in self.resolved.roles[role].digests:
            return {}
        return {"init": self.make("pretrain", role=role)}

    def generative(self, role: str, split: str, epochs: float) -> dict[str, str]:
        """Return {'init': a phase of next-token training of a role's model on a split's texts}."""
        parents = self.init(role)
        name = self.make("pretrain", role=role, split=split, epochs=epochs, parents=parents)
        return {"init": name}

    def features(
        self, role: str, init: Mapping[str, str] | None = None, split: str | None = None
    ) -> str:
        """Add features of a role's frozen model: pretrained, or that of the phase in `init`.

        They are those of the documents that probes of every run need, and of `split`.
        """
        parents = self.init(role) if init is None else init
        name = self.make("features", role=role, parents=parents)
        splits = self.phases[name].label_splits
        if split is None or split in splits:
            return name
        return self.make("features", role=role, parents=parents, splits=(split, *splits))

    def labels(
        self,
        method: str,
        role: str,
        splits: tuple[str, ...],
        parents: Mapping[str, str],
        *,
        label: str = "",
        **options: Any,
    ) -> str:
        """Add labels of some splits, made by the label maker `method` (see `phases.labelling`)."""
        return self.make(
            "labels",
            method=method,
            role=role,
            splits=splits,
            parents=parents,
            options=options,
            label=label,
        )

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
        """Add a phase that finetunes a role's model, and those that it starts from.

        Args:
          kind: 'weak', 'student' or 'ceiling'.
          role: the role.
          split: the split that it is trained on.
          init: what it starts from; None for the role's pretraining.
          parents: others, such as 'labels'.
          adapt: in place of the role's own.
          **more: `loss`, `label`, `label_splits`, `subset`, `suffixed`, `seed`, `select`, `train`
            (see `phases.kinds.finetune.build`).
        """
        adapt = adapt or self.settings.roles[role].train.adapt
        start = self.init(role) if init is None else dict(init)
        given, where = dict(parents or {}), {"role": role, "split": split}
        if adapt in ("probe", "probe_then_full"):
            probed = given | {"features": self.features(role, start, split)}
            if adapt == "probe":
                return self.make(kind, **where, parents=probed, probe=True, **more)
            shared = {k: more[k] for k in ("loss", "subset", "seed") if k in more}
            given["head"] = self.make(
                "probe", **where, parents=probed, probe=True, purpose=kind, **shared
            )
        return self.make(kind, **where, parents=start | given, **more)


def base(builder: PlanBuilder) -> Plan:
    """Return the plan of every run: weak model, ceiling, and a naive student for each loss."""
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
    split = ceiling_slice(settings)
    ceiling = None if split is None else builder.trained("ceiling", "strong", split)
    students = {
        loss.label: Student(
            builder.trained("student", "strong", "slice2", loss=loss, parents={"labels": weak}),
            loss.label,
            "naive",
            weak,
            ceiling,
        )
        for loss in settings.losses
        if loss.kind not in PREFERENCES
    }
    return Plan(tuple(builder.phases.values()), weak, ceiling, students)


def _supervised(settings: Settings) -> tuple[str, ...]:
    """Return the slices that the weak model labels."""
    return tuple(f"slice{number}" for number in range(2, settings.num_slices + 1))


# --- methods --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MethodPlanner:
    """The plan of a run, to which a method adds its phases and students.

    Attributes:
      builder: collects the phases of the run.
      naive: the weak model, the ceiling and the naive students.
    """

    builder: PlanBuilder
    naive: Plan

    @property
    def losses(self) -> tuple[LossSettings, ...]:
        """The losses that a method trains its students with."""
        losses = self.builder.settings.method_losses
        return tuple(loss for loss in losses if loss.kind not in PREFERENCES)

    @property
    def pair_losses(self) -> tuple[LossSettings, ...]:
        """The losses that a method trains its students with on pairs of completions."""
        losses = self.builder.settings.method_losses
        return tuple(loss for loss in losses if loss.kind in PREFERENCES)

    @property
    def label_splits(self) -> tuple[str, ...]:
        """The splits that a supervisor labels: the student's slice, validation and test."""
        return ("slice2", *self.builder.evaluated)

    def templates(self, choice: str) -> tuple[str, ...]:
        """The templates over which a method averages, of its option `planning.templates.TEMPLATES`.

        () if it reads the documents as all models do.
        """
        resolved = self.builder.resolved
        return () if resolved.task is None else names_of(choice, resolved.task, resolved.settings)

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
          **more: as in `PlanBuilder.trained`.
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
        supervisor, whole = supervisor or labels, ceiling or self.naive.ceiling
        return Student(phase, loss.label, method, supervisor, whole)

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
    pool.check(resolved.settings)
    builder = PlanBuilder(resolved)
    naive = base(builder)
    students = dict(naive.students)
    for method in resolved.settings.methods:
        spec = METHODS[method.kind]
        students |= spec.plan(MethodPlanner(builder, naive), **dict(method.options))
    needed = {naive.weak, naive.ceiling}
    for student in students.values():
        needed |= {student.phase, student.supervisor, student.ceiling}
    used = {name for name in needed if name is not None}
    evaluated = transfer.add_phases(builder, [name for name in builder.phases if name in used])
    used |= {name for phases in evaluated.values() for name in phases.values()}
    used = _with_ancestors(builder, used)
    phases = tuple(phase for phase in builder.phases.values() if phase.name in used)
    return dataclasses.replace(naive, phases=phases, students=students, transfer=evaluated)


def _with_ancestors(builder: PlanBuilder, names: Iterable[str]) -> set[str]:
    """Return the names, and those of all phases that they build on."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += builder.phases[name].parents.values()
    return found
