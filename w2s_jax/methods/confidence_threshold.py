"""Confidence thresholding: students on the most confident weak labels."""

from typing import TYPE_CHECKING

import numpy as np

from w2s_jax.config.options import Option
from w2s_jax.data.task import KINDS
from w2s_jax.methods.labels import confidence_of, kept_count
from w2s_jax.methods.registry import Students, refused, register
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.planning.plan import MethodPlanner

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import CompletionLabels, Labels, LabelWork


def _confident(work: "LabelWork", *, share: float) -> "Labels | CompletionLabels":
    """The most confident labels of each class, or the most probable completions."""
    if work.phase.completion is not None:
        labels = work.token_labels("slice2")
        return {"slice2": labels.select(most_probable(labels.total_logprobs_N, share))}
    return work.of_some("slice2", most_confident(work.labels("slice2"), share))


@register(
    "confidence_threshold",
    label_makers={"confident": _confident},
    students="`+confidence_threshold`",
    kinds=KINDS,
    summary="Only the most confident weak labels of each class; of completions, the most probable",
    source="Burns et al. 2023, appendix",
    share=Option(0.5, "Share of the labels that is kept", above=0, below=1),
)
def confidence_threshold(planner: MethodPlanner, *, share: float) -> Students:
    """Students on a share of the weak labels."""
    weak = planner.naive.weak
    settings, data = planner.builder.settings, planner.builder.resolved.roles["weak"]
    if data.completion is not None and settings.weak.labels is not None:
        found = "the file weak.labels has none"
        raise refused("confidence_threshold", "log-probabilities of completions", found)
    labels = planner.builder.labels(
        "confident", "strong", ("slice2",), {"labels": weak}, share=share
    )
    count = kept_count(planner.size("slice2"), share)
    return planner.students("confidence_threshold", labels, supervisor=weak, subset=count)


def most_probable(logprobs_N: np.ndarray, share: float) -> np.ndarray:
    """Return a mask of the largest share of log-probabilities, bool [N]; of equal ones the first.

    NaN, an unknown log-probability, counts as the lowest.
    """
    keep_N = np.zeros(len(logprobs_N), bool)
    order_N = np.argsort(-np.nan_to_num(logprobs_N, nan=-np.inf), kind="stable")
    keep_N[order_N[: kept_count(len(logprobs_N), share)]] = True
    return keep_N


def most_confident(soft_NC: np.ndarray, share: float) -> np.ndarray:
    """Return a mask of the most confident share of each predicted class.

    It keeps `kept_count(N, share)` documents, with each class in proportion to its number (rounded
    so that the sum is right). Confidence is the largest probability; of equal ones the earlier is
    kept.

    Returns:
      Keep mask, bool [N].
    """
    predicted_N = predicted_classes(soft_NC)
    num, counts_C = len(soft_NC), np.bincount(predicted_N, minlength=2)
    kept = kept_count(num, share)
    # Rounded down; what is left goes to the largest remainders, of equal ones to the last class.
    kept_C, remainder_C = np.divmod(kept * counts_C, max(1, num))
    last = np.argsort(remainder_C, kind="stable")[len(counts_C) - (kept - kept_C.sum()) :]
    kept_C[last] += 1
    order_N = np.argsort(-confidence_of(soft_NC), kind="stable")
    keep_N = np.zeros(num, bool)
    for label, count in enumerate(kept_C.tolist()):
        keep_N[order_N[predicted_N[order_N] == label][:count]] = True
    return keep_N
