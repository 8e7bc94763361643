"""The phases that evaluate others on the test sets of other tasks. Imports no JAX."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from w2s_jax.core import errors
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.test_sets import split_name

if TYPE_CHECKING:
    from w2s_jax.planning.plan import PlanBuilder


def why_not(phase: Phase) -> str:
    """Return why a phase makes no predictions of other documents; '' if it does."""
    if phase.kind == "labels":
        if phase.labels_digest is not None:
            return "labels from a file are of the run's own documents only"
        return "labels made without training a model are of the run's own documents only"
    if phase.suffixed:
        return "its documents end in their weak labels, which others do not have"
    if not phase.total_steps or phase.loss is None or PHASE_KINDS[phase.kind].forward != "logits":
        return f"phases of kind {phase.kind!r} are not evaluated on other documents"
    return ""


def not_kept(names: Iterable[str]) -> errors.InputError:
    """Return the error on phases of which only the results were kept.

    They are not trained again: that might not give the models behind these results.
    """
    return errors.InputError(
        f"task.test_tasks: the final parameters of {errors.listed(dict.fromkeys(names))} were not "
        "kept (checkpoint.keep_final=False, or w2s gc --finals), so these models cannot be "
        "evaluated on other documents; use another folder (--workdir, --store), where they are "
        "trained again"
    )


def add_phases(builder: "PlanBuilder", names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Add the phases that evaluate others on the test sets of other tasks.

    Args:
      builder: has the phases of the run.
      names: the phases to evaluate; those that cannot be (`why_not`) are left out.

    Returns:
      Name of the task -> phase -> the phase that evaluates it there.
    """
    found: dict[str, dict[str, str]] = {}
    for name in builder.settings.task.test_tasks if builder.resolved.test_tasks else ():
        split = split_name(name)
        found[name] = {
            trained: _evaluating(builder, builder.phases[trained], name, split)
            for trained in names
            if not why_not(builder.phases[trained])
        }
    return found


def _evaluating(builder: "PlanBuilder", trained: Phase, name: str, split: str) -> str:
    parents = {"model": trained.name}
    if "init" in trained.parents:
        parents["init"] = trained.parents["init"]
    if "features" in trained.parents:
        start = builder.phases[trained.parents["features"]].parents
        parents["features"] = builder.make(
            "features", role=trained.role, parents=start, splits=(split,)
        )
    return builder.make("transfer", trained=trained, task=name, split=split, parents=parents)
