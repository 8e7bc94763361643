"""Strong to strong: the student supervises a fresh student."""

from w2s_jax.config.options import Option
from w2s_jax.data.task import KINDS
from w2s_jax.methods.registry import Students, register
from w2s_jax.planning.plan import MethodPlanner


@register(
    "strong_to_strong",
    students="`+strong_to_strong`",
    kinds=KINDS,
    summary="The student labels its own slice again, for a fresh student",
    iterations=Option(2, "Number of times", low=1),
)
def strong_to_strong(planner: MethodPlanner, *, iterations: int) -> Students:
    """A chain of students, each on the labels of the one before."""
    students = {}
    for loss in planner.losses:
        labels = planner.naive.weak
        for number in range(iterations):
            labels = planner.builder.trained(
                "student",
                "strong",
                "slice2",
                loss=loss,
                parents={"labels": labels},
                label_splits=planner.label_splits,
                label=f"{loss.label}+relabelling {number + 1}" if number else loss.label,
            )
        key = f"{loss.label}+strong_to_strong"
        students[key] = planner.student("strong_to_strong", labels, loss)
    return students
