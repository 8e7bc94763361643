"""A run's result, from what its phases have left. Imports no JAX."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from w2s_jax.core import errors
from w2s_jax.metrics import classification, intervals
from w2s_jax.planning.plan import Plan
from w2s_jax.planning.resolve import Resolved
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder


def collect(plan: Plan, resolved: Resolved, phases_dir: Path) -> dict[str, Any]:
    """The contents of a run's result.json, from what its phases have left.

    Raises:
      StorageError: if that is damaged.
    """
    settings = resolved.settings
    found = {p.name: artifacts.read_result(PhaseFolder(phases_dir / p.name)) for p in plan.phases}

    outside = settings.weak.labels is not None

    def role(name: str) -> dict[str, Any]:
        entry = {"model": found[name]["model"], "parameters": found[name]["parameters"]}
        if outside and name == plan.weak:
            entry = {"model": plan.phase(name).label}
        return entry | {"phase": name, **found[name]["metrics"]["test"]}

    weak, ceiling = role(plan.weak), role(plan.ceiling)
    kinds = {loss.label: loss.kind for loss in settings.losses}
    students = {}
    for key, made in plan.students.items():
        top = role(made.ceiling)
        student = role(made.phase) | {"loss": kinds.get(made.loss), "method": made.method}
        if made.ceiling != plan.ceiling:
            student["ceiling"] = top
        if made.supervisor != plan.weak:
            student["supervisor"] = role(made.supervisor)
        pgr, note = classification.performance_gap_recovered(
            weak["accuracy"], student["accuracy"], top["accuracy"]
        )
        student |= {"pgr": pgr} | ({} if note is None else {"pgr_note": note})
        tests = [
            _test_predictions(phases_dir, name)
            for name in (made.phase, made.supervisor, plan.weak, made.ceiling)
        ]
        own, supervisor, weak_test, top_test = tests
        for name, other in zip((made.supervisor, plan.weak, made.ceiling), tests[1:], strict=True):
            if list(own["id"]) != list(other["id"]):
                raise errors.StorageError(
                    f"{phases_dir / made.phase}: its test documents are not those of {name}"
                )
        interval = intervals.pgr_interval(
            weak_test["p"], own["p"], top_test["p"], own["ground_truth"]
        )
        student |= {"pgr_low": interval["low"], "pgr_high": interval["high"]}
        students[key] = student | classification.agreement_metrics(
            own["p"], supervisor["p"], own["ground_truth"]
        )
    stages = []
    for phase in plan.phases:
        model = found[phase.name]["model"]
        stage = {"kind": phase.kind, "phase": phase.name, "model": model}
        # Phases without a loss are called after their model, which is there already.
        if phase.label and (phase.loss is not None or phase.label != model):
            stage["label"] = phase.label
        if "test" in found[phase.name].get("metrics", {}):
            stage["accuracy"] = found[phase.name]["metrics"]["test"]["accuracy"]
        stages.append(stage)
    return {
        "name": settings.name,
        "task": settings.task.name,
        "seed": settings.seed,
        "protocol": settings.protocol.name,
        "weak": weak,
        "ceiling": ceiling,
        "students": students,
        "stages": stages,
        "timing": {
            "seconds": sum(f["seconds"] for f in found.values()),
            # Phases of earlier versions do not tell.
            "compile_seconds": sum(f.get("compile_seconds", 0.0) for f in found.values()),
        },
        "versions": _versions(found.values()),
    }


def _versions(results: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The versions that computed the phases; several of a package are joined."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for name, version in result["execution"]["versions"].items():
            if version not in seen.setdefault(name, []):
                seen[name].append(version)
    return {name: ", ".join(versions) for name, versions in seen.items()}


def _test_predictions(phases_dir: Path, name: str) -> dict[str, Any]:
    return artifacts.read_predictions(PhaseFolder(phases_dir / name).predictions, "test")
