"""Synthetic supervisors: labels of one accuracy with errors on different documents.

Burns et al. 2023 (arXiv 2312.09390) compare weak models' own errors with such labels, to see
whether it matters to the student where a supervisor errs, not only how often.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from w2s_jax.config.options import Option
from w2s_jax.core.errors import InputError, unknown
from w2s_jax.data.tokenize import soft_labels
from w2s_jax.methods.labels import confidence_of, probabilities_of
from w2s_jax.methods.registry import Students, refused, register, require_slice1
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.planning.plan import MethodPlanner

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import Labels, LabelWork

#: Structure -> where the labels are wrong.
STRUCTURES = {
    "weak": "where the weak model is wrong, then where it is least certain of the right label",
    "random": "at random",
    "longest": "on the longest documents",
    "shortest": "on the shortest documents",
    "strong_unconfident": "where a strong model trained on ground truth is the least confident",
    "strong_confident": "where a strong model trained on ground truth is the most confident",
}


def _synthetic(work: "LabelWork", *, structure: str) -> "Labels":
    """Ground truth, but for ties with as many errors of one structure as the weak model's."""
    made: Labels = {}
    for number, split in enumerate(work.phase.label_splits):
        truth_N, weak_NC = work.truth(split), work.labels(split)
        strong = "strong" in work.phase.parents
        known_N = ~np.isnan(truth_N)
        wrong_N = predicted_classes(weak_NC) != truth_N
        classes = weak_NC.shape[1]
        soft_NC = np.full(weak_NC.shape, 1 / classes, np.float32)
        soft_NC[known_N] = synthetic_labels(
            structure,
            truth_N[known_N],
            error_rate=float(np.mean(wrong_N[known_N])),
            seed=work.phase.seed + number,
            lengths_N=work.documents(split).lengths_N[known_N],
            strong_soft_NC=work.labels(split, "strong")[known_N] if strong else None,
            weak_soft_NC=weak_NC[known_N],
            classes=classes,
        )
        made |= work.of_all(split, soft_NC)
    return made


@register(
    "synthetic",
    label_makers={"synthetic": _synthetic},
    students="`+synthetic_<structure>`",
    summary="Supervisors made of ground truth with exactly as many errors as the weak model makes: "
    "its own, at random, on the longest or shortest documents, or where a strong model is least or "
    "most confident. Hard labels",
    source="Burns et al. 2023, appendix on synthetic supervisors",
    structures=Option(tuple(STRUCTURES), "Where the errors are", choices=tuple(STRUCTURES)),
)
def synthetic(planner: MethodPlanner, *, structures: tuple[str, ...]) -> Students:
    """Students of a synthetic supervisor for each structure."""
    builder, splits = planner.builder, planner.label_splits
    require_slice1(builder, "synthetic")
    strong = builder.resolved.roles["strong"].model
    by_length = [name for name in structures if name in ("longest", "shortest")]
    if strong.is_features and by_length:
        raise refused(
            "synthetic",
            f"documents with tokens for the structure {by_length[0]!r}",
            f"strong.model={strong.name} reads none",
        )
    ceiling = builder.trained("ceiling", "strong", "slice1", label="on slice1", label_splits=splits)
    students: Students = {}
    for structure in structures:
        parents = {"labels": planner.naive.weak}
        if structure.startswith("strong"):
            parents["strong"] = ceiling
        labels = builder.labels(
            "synthetic",
            "strong",
            splits,
            parents,
            label=f"errors {structure}",
            structure=structure,
        )
        students |= planner.students(f"synthetic_{structure}", labels)
    return students


def synthetic_labels(
    structure: str,
    truth_N: ArrayLike,
    error_rate: float,
    *,
    seed: int,
    lengths_N: ArrayLike | None = None,
    strong_soft_NC: ArrayLike | None = None,
    weak_soft_NC: ArrayLike | None = None,
    confidence: float = 1.0,
    classes: int = 2,
) -> np.ndarray:
    """Return labels that are wrong on round(error_rate * N) documents, chosen by `structure`.

    Args:
      structure: one of `STRUCTURES`. 'weak' takes the weak model's errors first, the most certain
        before others: at the weak model's own error rate, exactly its errors.
      truth_N: ground truth, the class of each document.
      error_rate: share of wrong labels.
      seed: seed of 'random', and of the order of documents that the structure ranks equal.
      lengths_N: tokens of each document; for 'longest' and 'shortest'.
      strong_soft_NC: the strong model's probabilities, or its P(label 1); for 'strong_unconfident'
        and 'strong_confident'. Its confidence is the largest probability.
      weak_soft_NC: the weak model's labels; for 'weak'.
      confidence: probability that each label gives the class it names: 1 for hard labels. The
        others share the rest.
      classes: C. Of more than two, a wrong label names the weak model's class with 'weak', where
        that is wrong, and else one of the others at random.

    Returns:
      Soft labels, float32 [N, C].

    Raises:
      InputError: for an unknown structure, one without the array it needs, ground truth that is
        no class, or an error rate or confidence out of range.
    """
    values_N: np.ndarray = np.asarray(truth_N)
    if not np.isin(values_N, np.arange(classes)).all():
        allowed = "0 or 1" if classes == 2 else f"a class from 0 to {classes - 1}"
        raise InputError(f"synthetic_labels: ground truth must be {allowed} for every document")
    if not 0 <= error_rate <= 1:
        raise InputError(f"error_rate: {error_rate}; allowed: from 0 to 1")
    if not 1 / classes < confidence <= 1:
        raise InputError(f"confidence: {confidence}; allowed: above {1 / classes:g} and at most 1")
    label_N = values_N.astype(np.int64)
    score_N = _scores(structure, label_N, lengths_N, strong_soft_NC, weak_soft_NC)
    if score_N.shape != label_N.shape:
        raise ValueError(f"{structure}: expected shape {label_N.shape}, got {score_N.shape}")
    rng = np.random.default_rng(seed)
    ties_N = rng.permutation(len(label_N))
    wrong = np.lexsort((ties_N, -score_N))[: round(error_rate * len(label_N))]
    if classes == 2:
        label_N[wrong] = 1 - label_N[wrong]
        return soft_labels(np.where(label_N == 1, confidence, 1 - confidence))
    other_N = (label_N + rng.integers(1, classes, len(label_N))) % classes
    if structure == "weak":
        predicted_N = predicted_classes(np.asarray(weak_soft_NC))
        other_N = np.where(predicted_N == label_N, other_N, predicted_N)
    label_N[wrong] = other_N[wrong]
    rest = (1 - confidence) / (classes - 1)
    own_NC = label_N[:, None] == np.arange(classes)
    return np.where(own_NC, confidence, rest).astype(np.float32)


def _scores(
    structure: str,
    truth_N: np.ndarray,
    lengths_N: ArrayLike | None,
    strong_soft_NC: ArrayLike | None,
    weak_soft_NC: ArrayLike | None,
) -> np.ndarray:
    """Return scores, float64 [N]; the labels of the highest are wrong."""

    def given(array: ArrayLike | None, name: str) -> ArrayLike:
        if array is None:
            raise InputError(f"synthetic_labels: structure {structure!r} needs {name}")
        return array

    match structure:
        case "random":
            return np.zeros(len(truth_N))
        case "longest":
            return np.asarray(given(lengths_N, "lengths_N"), np.float64)
        case "shortest":
            return -np.asarray(given(lengths_N, "lengths_N"), np.float64)
        case "strong_unconfident":
            return -confidence_of(given(strong_soft_NC, "strong_soft_NC"))
        case "strong_confident":
            return confidence_of(given(strong_soft_NC, "strong_soft_NC"))
        case "weak":
            p = probabilities_of(given(weak_soft_NC, "weak_soft_NC"))
            # A tie predicts the first, so the error of a tie must rank above a tie that is right.
            wrong_N = predicted_classes(p) != truth_N
            if p.ndim == 1:
                return np.where(truth_N == 1, 1 - p, p) + wrong_N
            return 1 - np.take_along_axis(p, truth_N[:, None], axis=1)[:, 0] + wrong_N
    raise unknown("structure", structure, STRUCTURES)
