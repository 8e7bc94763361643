"""Early stopping by other criteria."""

from w2s_jax.config import STOPPING
from w2s_jax.config.options import Option
from w2s_jax.data.task import KINDS
from w2s_jax.methods.registry import Students, register, require_validation
from w2s_jax.planning.plan import MethodPlanner

#: Criterion -> name of the students.
_NAMES = {"none": "last_step", "agreement": "agreement_stop", "ground_truth": "oracle_stop"}


@register(
    "early_stopping",
    students="`+last_step`, `+agreement_stop`, `+oracle_stop`",
    kinds=KINDS,
    summary="The same student, with the last step, the step of the best agreement with weak "
    "labels, or the step of the best accuracy on ground truth (an oracle)",
    source="Burns et al. 2023, appendix A.5",
    by=Option(("none", "ground_truth"), "Criteria of the kept step", choices=STOPPING),
)
def early_stopping(planner: MethodPlanner, *, by: tuple[str, ...]) -> Students:
    """The naive students with other kept steps."""
    require_validation(planner.builder, "early_stopping")
    students: Students = {}
    for criterion in by:
        students |= planner.students(_NAMES[criterion], planner.naive.weak, select=criterion)
    return students
