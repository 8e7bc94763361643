"""The phases of a run, a DAG, from a resolved config. Pure; imports no JAX.

`base` plans what every run has; `methods.planning.plan` adds what its methods do.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.config import Settings
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
        """Adds a phase, unless it is there, and returns its name."""
        if phase.name not in self.phases:
            sources = self._label_sources(phase)
            self.phases[phase.name] = dataclasses.replace(phase, label_sources=sources)
        return phase.name

    def _label_sources(self, phase: Phase) -> dict[str, str]:
        """Returns, for each split of a phase, the nearest phase behind it that labels the split."""
        found = {}
        for split in phase.inputs.values():
            source = phase.parents.get("labels")
            while source is not None and split not in self.phases[source].label_splits:
                source = self.phases[source].parents.get("labels")
            if source is not None:
                found[split] = source
        return found

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
