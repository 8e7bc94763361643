"""The result of a run, computed from the results of its phases. Imports no JAX."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core import errors
from w2s_jax.metrics import answers, classification, intervals
from w2s_jax.planning.plan import Plan, Student
from w2s_jax.planning.resolve import Resolved
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder

#: `pgr_note` of students without a ceiling.
NO_CEILING = (
    "There is no ceiling, so no PGR: with protocol.halves='shared' it would be trained on the "
    "documents of task.unlabelled, which have no labels; protocol.halves=separate trains it on "
    "slice 1."
)


def collect(plan: Plan, resolved: Resolved, store: Path) -> dict[str, Any]:
    """Return the contents of a run's result.json; `classes` has the names of more than two classes.

    Args:
      plan: the phases of the run, all complete.
      resolved: its input.
      store: the folder of the phases.

    Raises:
      StorageError: the result of a phase is damaged.
    """
    settings = resolved.settings
    found = {p.name: artifacts.read_result(PhaseFolder(store / p.name)) for p in plan.phases}
    phases = _Phases(plan, resolved, store, found)
    return {
        "name": settings.name,
        "task": settings.task.name,
        **({"classes": list(resolved.classes)} if resolved.classes else {}),
        "seed": settings.seed,
        "protocol": settings.protocol.name,
        "weak": phases.role(plan.weak),
        "ceiling": None if plan.ceiling is None else phases.role(plan.ceiling),
        "students": {key: phases.student(student) for key, student in plan.students.items()},
        "stages": phases.stages(),
        "timing": {
            "seconds": sum(result["seconds"] for result in found.values()),
            # Phases of earlier versions have not recorded it.
            "compile_seconds": sum(result.get("compile_seconds", 0.0) for result in found.values()),
        },
        "versions": _versions(found.values()),
    }


@dataclass(frozen=True)
class _Phases:
    """The complete phases of a run and their results, by name."""

    plan: Plan
    resolved: Resolved
    store: Path
    found: dict[str, dict[str, Any]]

    def role(self, name: str) -> dict[str, Any]:
        """Return a phase's model and its test metrics."""
        result = self.found[name]
        if name == self.plan.weak and self.resolved.settings.weak.labels is not None:
            entry = {"model": self.plan.phase(name).label}
        else:
            entry = {"model": result["model"], "parameters": result["parameters"]}
        return entry | {"phase": name, **result["metrics"]["test"]}

    def student(self, student: Student) -> dict[str, Any]:
        """Return a student's test metrics, with the gap that it recovers and its agreement."""
        plan = self.plan
        kinds = {loss.label: loss.kind for loss in self.resolved.settings.losses}
        entry = self.role(student.phase)
        entry |= {"loss": kinds.get(student.loss), "method": student.method}
        if student.ceiling is not None and student.ceiling != plan.ceiling:
            entry["ceiling"] = self.role(student.ceiling)
        if student.supervisor != plan.weak:
            entry["supervisor"] = self.role(student.supervisor)
        own = self._test_predictions(student.phase)
        others = {
            name: self._test_predictions(name)
            for name in (student.supervisor, plan.weak, student.ceiling)
            if name is not None
        }
        for name, other in others.items():
            if list(own["id"]) != list(other["id"]):
                raise errors.StorageError(
                    f"{self.store / student.phase}: its test documents are not those of {name}"
                )
        entry |= self._recovered(student, entry["accuracy"], own, others)
        supervisor = others[student.supervisor]
        if "answer" in own:
            return entry | answers.answer_agreement(
                own["answer"], supervisor["answer"], supervisor["correct"]
            )
        return entry | classification.agreement_metrics(
            own["p"], supervisor["p"], own["ground_truth"]
        )

    def _recovered(
        self,
        student: Student,
        accuracy: float,
        own: Mapping[str, Any],
        others: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return the gap that a student recovers, with intervals; null without a ceiling.

        Args:
          student: the student.
          accuracy: its accuracy.
          own: its predictions.
          others: phase -> its predictions, of the weak model and of the ceiling.
        """
        if student.ceiling is None:
            names = ("pgr", "pgr_note", "pgr_low", "pgr_high", "gap_low", "gap_high")
            return dict.fromkeys(names) | {"pgr_note": NO_CEILING}
        weak, ceiling = self.role(self.plan.weak), self.role(student.ceiling)
        pgr, note = classification.performance_gap_recovered(
            weak["accuracy"], accuracy, ceiling["accuracy"]
        )
        found: dict[str, Any] = {"pgr": pgr} | ({} if note is None else {"pgr_note": note})
        interval = intervals.pgr_interval(
            others[self.plan.weak]["p"],
            own["p"],
            others[student.ceiling]["p"],
            own["ground_truth"],
        )
        found |= {"pgr_low": interval["low"], "pgr_high": interval["high"]}
        return found | {name: interval[name] for name in ("gap_low", "gap_high")}

    def stages(self) -> list[dict[str, Any]]:
        """Return a record of each phase, each after its parents."""
        stages = []
        for phase in self.plan.phases:
            result = self.found[phase.name]
            model = result["model"]
            stage = {"kind": phase.kind, "phase": phase.name, "model": model}
            # Where nothing is classified, the label is often the model, which is listed already.
            if phase.label and (phase.loss is not None or phase.label != model):
                stage["label"] = phase.label
            if "test" in result.get("metrics", {}):
                stage["accuracy"] = result["metrics"]["test"]["accuracy"]
            stages.append(stage)
        return stages

    def _test_predictions(self, name: str) -> dict[str, Any]:
        return artifacts.read_predictions(PhaseFolder(self.store / name).predictions, "test")


def _versions(results: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the package versions that computed the phases; several of a package are joined."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for name, version in result["execution"]["versions"].items():
            if version not in seen.setdefault(name, []):
                seen[name].append(version)
    return {name: ", ".join(versions) for name, versions in seen.items()}
