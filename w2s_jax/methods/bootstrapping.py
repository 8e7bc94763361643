"""Bootstrapping: a chain of models from weak to strong."""

from w2s_jax.config.options import Option
from w2s_jax.data.task import KINDS
from w2s_jax.methods.registry import Students, register
from w2s_jax.planning.plan import MethodPlanner


@register(
    "bootstrapping",
    middle_models="models",
    kinds=KINDS,
    students="`+bootstrapping`",
    summary="Weak -> M2 -> ... -> strong. Each model learns the labels of the one before on a "
    "slice of its own, so the documents are cut into more slices: it cannot share a working "
    "directory with a run without it",
    source="Burns et al. 2023, section 4.3.2",
    models=Option(
        ("gpt-d16",),
        "The models in between, in order of strength; pretrained and trained as the strong one",
    ),
)
def bootstrapping(planner: MethodPlanner, *, models: tuple[str, ...]) -> Students:
    """M1 -> M2 -> ... -> Mn, each labels a fresh slice for the next."""
    del models  # `Settings.middle` has them.
    builder, roles = planner.builder, list(planner.builder.settings.roles)
    students = {}
    for loss in planner.losses:
        labels = planner.naive.weak
        for number, role in enumerate(roles[1:-1], 2):
            labels = builder.trained(
                "student",
                role,
                f"slice{number}",
                loss=loss,
                parents={"labels": labels},
                label=f"{loss.label}+bootstrapping {role}",
                label_splits=(f"slice{number + 1}", *builder.evaluated),
            )
        students[f"{loss.label}+bootstrapping"] = planner.student(
            "bootstrapping", labels, loss, split=f"slice{len(roles)}"
        )
    return students
