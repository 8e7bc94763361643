"""The result of a run, computed from the results of its phases. Imports no JAX."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core import errors
from w2s_jax.metrics import answers, classification, intervals
from w2s_jax.planning import transfer
from w2s_jax.planning.plan import Plan, Student
from w2s_jax.planning.resolve import Resolved
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder

#: `pgr_note` of students without a ceiling.
NO_CEILING = (
    "There is no ceiling, so no PGR: it would be trained on the documents of task.unlabelled, "
    "which have no labels; protocol.halves=separate trains it on slice 1."
)


def collect(plan: Plan, resolved: Resolved, store: Path) -> dict[str, Any]:
    """Return the contents of a run's result.json.

    `classes` has the names of more than two classes, `transfer` the results on the test sets of
    other tasks; others have no such field.

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
        "ceiling": phases.role(plan.ceiling),
        "students": {key: phases.student(student) for key, student in plan.students.items()},
        **(
            {"transfer": {name: phases.on(name) for name in plan.transfer}} if plan.transfer else {}
        ),
        "stages": phases.stages(),
        "timing": {
            "seconds": sum(result["seconds"] for result in found.values()),
            # Phases of earlier versions have not recorded it.
            "compile_seconds": sum(result.get("compile_seconds", 0.0) for result in found.values()),
        },
        "versions": _versions(found.values()),
    }


#: What a student's predictions are compared with those of its supervisor by.
_AGREEMENTS = ("agreement", "agreement_when_correct", "agreement_when_wrong")


@dataclass(frozen=True)
class _Phases:
    """The complete phases of a run and their results, by name.

    Attributes:
      plan, resolved, store: as of `collect`.
      found: phase -> its result.
      at: phase -> the phase with its predictions on the test set of another task, if it has some;
        None: those on the run's own.
    """

    plan: Plan
    resolved: Resolved
    store: Path
    found: dict[str, dict[str, Any]]
    at: Mapping[str, str] | None = None

    def on(self, task: str) -> dict[str, Any]:
        """Return the results on the test set of another task, null where there are none.

        `notes` says why, by the key of the student, or 'weak'.
        """
        plan, there = self.plan, dataclasses.replace(self, at=self.plan.transfer[task])
        students = {key: there.student(student) for key, student in plan.students.items()}
        entries = {"weak": there.role(plan.weak), "ceiling": there.role(plan.ceiling)}
        phases = {"weak": plan.weak} | {key: s.phase for key, s in plan.students.items()}
        notes = {
            key: transfer.why_not(plan.phase(name))
            for key, name in phases.items()
            if (entries | students)[key] is None
        }
        return {**entries, "students": students} | ({"notes": notes} if notes else {})

    def role(self, name: str | None) -> dict[str, Any] | None:
        """Return a phase's model and its test metrics; None if it was not evaluated."""
        place = None if name is None else self._place(name)
        if name is None or place is None:
            return None
        result = self.found[place]
        if name == self.plan.weak and self.resolved.settings.weak.labels is not None:
            entry = {"model": self.plan.phase(name).label}
        else:
            entry = {"model": result["model"], "parameters": result["parameters"]}
        return entry | {"phase": place, **result["metrics"]["test"]}

    def student(self, student: Student) -> dict[str, Any] | None:
        """Return a student's test metrics, with the gap that it recovers and its agreement."""
        plan = self.plan
        kinds = {loss.label: loss.kind for loss in self.resolved.settings.losses}
        weak, ceiling = self.role(plan.weak), self.role(student.ceiling)
        entry = self.role(student.phase)
        if entry is None:
            return None
        entry |= {"loss": kinds.get(student.loss), "method": student.method}
        if student.ceiling is not None and student.ceiling != plan.ceiling:
            entry["ceiling"] = ceiling
        supervisor = self.role(student.supervisor)
        if student.supervisor != plan.weak and supervisor is not None:
            entry["supervisor"] = supervisor
        entry |= self._recovered(student, weak, entry, ceiling)
        if supervisor is None:
            why = transfer.why_not(plan.phase(student.supervisor))
            return entry | dict.fromkeys(_AGREEMENTS) | {"agreement_note": why}
        own, other = (self._test_predictions(n) for n in (student.phase, student.supervisor))
        self._refuse_other_documents(student.phase, own, student.supervisor, other)
        if "answer" in own:
            return entry | answers.answer_agreement(
                own["answer"], other["answer"], other["correct"]
            )
        return entry | classification.agreement_metrics(own["p"], other["p"], own["ground_truth"])

    def _recovered(
        self,
        student: Student,
        weak: dict[str, Any] | None,
        entry: dict[str, Any],
        ceiling: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Return a student's PGR with its interval, and that of the gap."""
        ends = ("pgr_low", "pgr_high", "gap_low", "gap_high")
        if student.ceiling is None:
            return {"pgr": None, "pgr_note": NO_CEILING} | dict.fromkeys(ends)
        if weak is None or ceiling is None:
            missing = self.plan.weak if weak is None else student.ceiling
            model = "weak model" if weak is None else "ceiling"
            why = transfer.why_not(self.plan.phase(missing))
            reason = f"PGR is undefined: the {model} was not evaluated on these documents: {why}"
            return {"pgr": None, "pgr_note": reason} | dict.fromkeys(ends)
        pgr, note = classification.performance_gap_recovered(
            weak["accuracy"], entry["accuracy"], ceiling["accuracy"]
        )
        found: dict[str, Any] = {"pgr": pgr} | ({} if note is None else {"pgr_note": note})
        own = self._test_predictions(student.phase)
        others = [self._test_predictions(name) for name in (self.plan.weak, student.ceiling)]
        for name, other in zip((self.plan.weak, student.ceiling), others, strict=True):
            self._refuse_other_documents(student.phase, own, name, other)
        interval = intervals.pgr_interval(
            others[0]["p"], own["p"], others[1]["p"], own["ground_truth"]
        )
        ends_of = {"pgr_low": interval["low"], "pgr_high": interval["high"]}
        return found | ends_of | {name: interval[name] for name in ends[2:]}

    def _refuse_other_documents(
        self, name: str, own: dict[str, Any], other_name: str, other: dict[str, Any]
    ) -> None:
        if list(own["id"]) != list(other["id"]):
            raise errors.StorageError(
                f"{self.store / str(self._place(name))}: its test documents are not those of "
                f"{self._place(other_name)}"
            )

    def _place(self, name: str) -> str | None:
        """Return the phase with the predictions of another one; None if there are none."""
        return name if self.at is None else self.at.get(name)

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
        folder = PhaseFolder(self.store / str(self._place(name)))
        return artifacts.read_predictions(folder.predictions, "test")


def _versions(results: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the package versions that computed the phases; several of a package are joined."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for name, version in result["execution"]["versions"].items():
            if version not in seen.setdefault(name, []):
                seen[name].append(version)
    return {name: ", ".join(versions) for name, versions in seen.items()}
