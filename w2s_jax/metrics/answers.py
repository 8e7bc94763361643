"""Metrics of answers: exact match, scores of the task, agreement. Undefined values are None.

The predictions of a generation task are texts; an answer is read from each, and is right or wrong.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def answer_metrics(
    correct_N: ArrayLike, scores: Mapping[str, Sequence[float | bool | None]] | None = None
) -> dict[str, Any]:
    """Return the share of right answers, with its standard error, and the means of scores.

    Args:
      correct_N: bool [N], whether each answer is right.
      scores: name -> a number for each document; None where a score does not apply.

    Returns:
      `accuracy`, `accuracy_se` (the binomial standard error), `auroc`, `ece` and `overconfidence`
      (None: answers have no probabilities of classes), `n` and, with scores, `scores`: name ->
      the mean over the documents to which it applies, None if there are none.

    Raises:
      ValueError: there are no documents.
    """
    right_N = np.asarray(correct_N, bool)
    if right_N.ndim != 1 or not right_N.size:
        raise ValueError(f"correct_N: expected a non-empty vector, got shape {right_N.shape}")
    accuracy = float(right_N.mean())
    found: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / right_N.size),
        "auroc": None,
        "ece": None,
        "overconfidence": None,
        "n": int(right_N.size),
    }
    if scores:
        found["scores"] = {name: _mean(values) for name, values in scores.items()}
    return found


def _mean(values: Sequence[float | bool | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def answer_agreement(
    student: Iterable[str], supervisor: Iterable[str], supervisor_correct_N: ArrayLike
) -> dict[str, float | None]:
    """Return how often a student gives its supervisor's answer, on the same documents.

    Args:
      student, supervisor: their answers; one that is empty agrees with nothing.
      supervisor_correct_N: bool [N], whether the supervisor's answer is right.

    Returns:
      `agreement` over all documents, `agreement_when_correct` and `agreement_when_wrong` over those
      where the supervisor is right, or wrong (None for none); `misfit` is None.
    """
    agrees_N = same_answers(student, supervisor)
    right_N = np.asarray(supervisor_correct_N, bool)

    def share(subset_N: np.ndarray) -> float | None:
        return float(agrees_N[subset_N].mean()) if subset_N.any() else None

    return {
        "agreement": float(agrees_N.mean()),
        "agreement_when_correct": share(right_N),
        "agreement_when_wrong": share(~right_N),
        "misfit": None,
    }


def same_answers(first: Iterable[str], second: Iterable[str]) -> np.ndarray:
    """Return where two lists have the same answer, bool [N]; an empty one equals nothing."""
    return np.array([a == b and a != "" for a, b in zip(first, second, strict=True)], bool)
