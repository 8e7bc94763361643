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
from w2s_jax.planning.templates import TEMPLATES

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import Labels, LabelWork


def _prompted(work: "LabelWork", *, shots: int, templates: tuple[str, ...] = ()) -> "Labels":
    """Probabilities of the label tokens after some solved examples and the document.

    Inside templates it is the mean over them; of pairs that of (p + 1 - p') / 2, where p' is the
    probability with the texts swapped.
    """
    weak = "labels" in work.phase.parents
    split = "slice2" if weak else "slice1"
    label_N = predicted_classes(work.labels(split)) if weak else work.truth(split)
    order_N = np.random.default_rng((work.phase.seed, shots)).permutation(len(label_N))
    index_E = order_N[~np.isnan(label_N[order_N])][:shots]  # a tie solves nothing
    label_E = label_N[index_E]
    made: Labels = {}
    for name in work.phase.label_splits:
        means = []
        for both_orders in work.prompts(templates):
            found = []
            for prompts in both_orders:
                solved = few_shot(
                    prompts.splits[name],
                    prompts.splits[split].select(index_E),
                    1 - label_E if prompts.swapped else label_E,
                    prompts.answers,
                    work.max_length,
                    work.phase.seed,
                    prefix=work.data.prefix,
                    suffix=work.data.suffix,
                )
                p_NC = work.next_token_labels(solved, prompts.label_tokens)
                found.append(p_NC[:, ::-1] if prompts.swapped else p_NC)
            means.append(np.mean(found, axis=0, dtype=np.float64))
        made |= work.of_all(name, np.mean(means, axis=0))
    return made


@register(
    "prompting",
    label_makers={"prompted": _prompted},
    students="`prompting_zero_shot`, `prompting_few_shot_truth`, `prompting_few_shot_weak`",
    summary="No training: the label tokens' probabilities after solved examples, with ground truth "
    "or with weak labels, and the document, averaged over the task's templates. Decoders only",
    source="Burns et al. 2023, appendix on prompting",
    shots=Option(5, "Solved examples; 0: zero-shot only", low=0),
    templates=TEMPLATES,
)
def prompting(planner: MethodPlanner, *, shots: int, templates: str) -> Students:
    """Zero-shot, and few-shot with ground truth and with weak labels."""
    builder, naive = planner.builder, planner.naive
    names = planner.templates(templates)
    require_label_tokens(planner, "prompting", names)
    inside = {"templates": names} if names else {}
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
            "prompted",
            "strong",
            builder.evaluated,
            init | parents,
            label=variant,
            shots=count,
            **inside,
        )
        name = f"prompting_{variant}"
        students[name] = Student(phase, "", name, naive.weak, naive.ceiling)
    return students
