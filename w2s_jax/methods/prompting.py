"""Prompting: the strong model without training, by the probabilities of the label tokens."""

from typing import TYPE_CHECKING

import numpy as np

from w2s_jax.config.options import Option
from w2s_jax.data.prompts import few_shot
from w2s_jax.methods.registry import (
    Students,
    register,
    require_label_tokens,
    require_slice1,
)
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.planning.plan import MethodPlanner, Student

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import Labels, LabelWork


def _prompted(work: "LabelWork", *, shots: int) -> "Labels":
    """Probabilities of the label tokens after some solved examples and the document."""
    weak = "labels" in work.phase.parents
    split = "slice2" if weak else "slice1"
    label_N = predicted_classes(work.labels(split)) if weak else work.truth(split)
    order_N = np.random.default_rng((work.phase.seed, shots)).permutation(len(label_N))
    index_E = order_N[~np.isnan(label_N[order_N])][:shots]  # a tie solves nothing
    made: Labels = {}
    for name in work.phase.label_splits:
        prompts = few_shot(
            work.documents(name),
            work.documents(split).select(index_E),
            label_N[index_E],
            work.data.label_tokens,
            work.max_length,
            work.phase.seed,
            prefix=work.data.prefix,
            suffix=work.data.suffix,
        )
        made |= work.of_all(name, work.next_token_labels(prompts))
    return made


@register(
    "prompting",
    label_makers={"prompted": _prompted},
    students="`prompting_zero_shot`, `prompting_few_shot_truth`, `prompting_few_shot_weak`",
    summary="No training: the label tokens' probabilities after solved examples, with ground truth "
    "or with weak labels, and the document. Decoders only",
    source="Burns et al. 2023, appendix on prompting",
    shots=Option(5, "Solved examples; 0: zero-shot only", low=0),
)
def prompting(planner: MethodPlanner, *, shots: int) -> Students:
    """Zero-shot, and few-shot with ground truth and with weak labels."""
    builder, naive = planner.builder, planner.naive
    require_label_tokens(planner, "prompting")
    init = builder.init("strong")
    variants: dict[str, tuple[int, dict[str, str]]] = {"zero_shot": (0, {})}
    if shots:
        require_slice1(builder, "prompting (method.prompting.shots above 0)")
        variants |= {
            "few_shot_truth": (shots, {}),
            "few_shot_weak": (shots, {"labels": naive.weak}),
        }
    students: Students = {}
    for variant, (count, parents) in variants.items():
        phase = builder.labels(
            "prompted", "strong", builder.evaluated, init | parents, label=variant, shots=count
        )
        name = f"prompting_{variant}"
        students[name] = Student(phase, "", name, naive.weak, naive.ceiling)
    return students
