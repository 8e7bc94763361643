"""Saliency of the task to the strong model: linear probes before and after finetuning."""

from w2s_jax.methods.registry import Students, register, require_full
from w2s_jax.planning.build import ceiling_slice
from w2s_jax.planning.plan import MethodPlanner, Student


@register(
    "saliency",
    truth_of="ceiling",
    students="`lp_truth`, `+lp_weak`, `+ft_weak_lp_truth`",
    summary="Linear probes with ground truth and with weak labels, and a probe with ground truth "
    "after weak finetuning: with the naive student and the ceiling, the five bars of the section. "
    "`strong.probe` has the probes' settings",
    source="Burns et al. 2023, section 5.2",
)
def saliency(planner: MethodPlanner) -> Students:
    """Linear probes of the pretrained and of the weakly finetuned strong model."""
    builder, weak = planner.builder, planner.naive.weak
    require_full(builder, "strong", "saliency")
    split, ceiling = ceiling_slice(builder.settings), planner.naive.ceiling
    assert split is not None  # `truth_of`
    truth = builder.trained("ceiling", "strong", split, adapt="probe", label="lp(truth)")
    students: Students = {"lp_truth": Student(truth, "", "lp_truth", weak, ceiling)}
    for loss in planner.losses:
        key = f"{loss.label}+lp_weak"
        students[key] = planner.student("lp_weak", weak, loss, adapt="probe")
        finetuned = planner.naive.students[loss.label].phase
        probe = builder.trained(
            "ceiling",
            "strong",
            split,
            init={"init": finetuned},
            adapt="probe",
            label=f"{loss.label}: ft(weak), lp(truth)",
        )
        key = f"{loss.label}+ft_weak_lp_truth"
        students[key] = Student(probe, loss.label, "ft_weak_lp_truth", weak, ceiling)
    return students
