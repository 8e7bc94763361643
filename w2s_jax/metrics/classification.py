"""Metrics of predictions: accuracy, calibration, agreement, and performance gap recovered (PGR).

All functions take probabilities `p` in one of two forms and compute in float64 on the host:

- two classes: float [N], the model's P(label 1). A prediction is `p > 0.5`.
- C > 2 classes: float [N, C], whose rows sum to 1. The prediction is the most probable class.

A tie predicts the lowest class. The shape [N, 2] is refused: two classes have only the first form
(`class_probabilities`). Ground truth is the index of a class, 0 to C - 1. Undefined values are
None, never NaN, so that results are strict JSON. Intervals and tests are in `intervals`.

The definitions follow Burns et al. 2023, "Weak-to-strong generalization" (arXiv 2312.09390).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ECE_BINS = 15


#: How far a row of probabilities may sum from 1: float32 rounding, not another scale.
_SUM_TOLERANCE = 1e-4


def class_probabilities(p_NC: ArrayLike) -> NDArray[Any]:
    """Return P(label 1) [N] of probabilities [N, 2], and those of more classes as they are."""
    values_NC = np.asarray(p_NC)
    return values_NC[:, 1] if values_NC.shape[1] == 2 else values_NC


def checked_probabilities(p: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return `p` as float64 in [0, 1], [N] for two classes and [N, C] for C > 2.

    Raises:
        ValueError: it is empty or has another shape, has values outside [0, 1], or rows that do not
            sum to 1; names `name`.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] < 3:
        raise ValueError(
            f"{name}: expected [N, C] with C > 2 classes, got shape {values.shape}; two classes"
            " take the vector P(label 1)"
        )
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"{name}: expected a non-empty vector or [N, C], got shape {values.shape}")
    # A float32 softmax may leave [0, 1] by a rounding error.
    if not np.all((values >= -1e-6) & (values <= 1 + 1e-6)):
        raise ValueError(f"{name}: probabilities must be finite and in [0, 1]")
    if values.ndim == 2:
        error_N = np.abs(values.sum(axis=1) - 1)
        if error_N.max() > _SUM_TOLERANCE:
            worst = int(error_N.argmax())
            raise ValueError(
                f"{name}: rows must sum to 1, row {worst} sums to {values[worst].sum():.6g}"
            )
    return np.clip(values, 0.0, 1.0)


def checked_labels(
    ground_truth_N: ArrayLike, probabilities: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return ground truth as int64 [N], class indices.

    Args:
        ground_truth_N: int, bool or float [N], each exactly the index of a class.
        probabilities: what it belongs to, as from `checked_probabilities`.

    Raises:
        ValueError: it has another shape, or values other than 0, ..., C - 1.
    """
    count, classes = len(probabilities), class_count(probabilities)
    values_N = np.asarray(ground_truth_N)
    if values_N.shape != (count,):
        raise ValueError(f"ground_truth_N: expected shape ({count},), got {values_N.shape}")
    if not np.isin(values_N, np.arange(classes)).all():
        allowed = "0 or 1" if classes == 2 else f"integers from 0 to {classes - 1}"
        raise ValueError(f"ground_truth_N: labels must be {allowed}")
    return values_N.astype(np.int64)


def class_count(p: NDArray[Any]) -> int:
    """Return the number of classes of probabilities in either form."""
    return 2 if p.ndim == 1 else p.shape[1]


def predicted_classes(p: ArrayLike) -> NDArray[np.int64]:
    """Return the most probable class of each document, int64 [N]; of equal ones the lowest.

    `p`: float [N], P(label 1), or soft labels [N, C].
    """
    values = np.asarray(p)
    if values.ndim == 2 and values.shape[1] == 2:
        values = values[:, 1]
    classes_N = values > 0.5 if values.ndim == 1 else values.argmax(axis=1)
    return classes_N.astype(np.int64)


def _confidence(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each document's predicted class [N]."""
    return np.maximum(values, 1 - values) if values.ndim == 1 else values.max(axis=1)


def auroc(p: ArrayLike, ground_truth_N: ArrayLike) -> float | None:
    """Area under the ROC curve: P(a random positive ranks above a random negative).

    Ties count one half. With more than two classes it is the unweighted mean of the areas of each
    class against the rest, over the classes that some, but not all, documents belong to.

    `p`: float [N] or [N, C]; `ground_truth_N`: class indices [N]. None if only one class is
    present. Raises ValueError as `classification_metrics`.
    """
    from sklearn.metrics import roc_auc_score

    values = checked_probabilities(p, "p")
    truth_N = checked_labels(ground_truth_N, values)
    present = np.unique(truth_N)
    if present.size == 1:
        return None
    if values.ndim == 1:
        return float(roc_auc_score(truth_N, values))
    return float(np.mean([roc_auc_score(truth_N == c, values[:, c]) for c in present]))


def expected_calibration_error(
    p: ArrayLike, ground_truth_N: ArrayLike, bins: int = ECE_BINS
) -> float:
    """Top-label expected calibration error with equal-width bins.

    The confidence of a document is the probability of its predicted class, for two classes
    max(p, 1 - p).
    Confidences fall into `bins` equal bins over [0, 1], each open on the left and closed on the
    right (a binary confidence is at least one half, so the lower bins are empty). The error is the
    sum over non-empty bins of
    (documents in the bin / N) * |accuracy in the bin - mean confidence in the bin|.

    `p`: float [N] or [N, C]; `ground_truth_N`: class indices [N]. Raises ValueError as
    `classification_metrics`.
    """
    count_by_bin, right_by_bin, confidence_by_bin = _confidence_bins(p, ground_truth_N, bins)
    # (count / N) * |mean correct - mean confidence| = |sum of (correct - confidence)| / N
    return float(np.abs(right_by_bin - confidence_by_bin).sum() / count_by_bin.sum())


def overconfidence_error(p: ArrayLike, ground_truth_N: ArrayLike, bins: int = ECE_BINS) -> float:
    """Overconfidence error: counts confidence above accuracy, but not below.

    The sum over the bins of (documents in the bin / N) * confidence * max(confidence - accuracy, 0)
    with the bins of `expected_calibration_error` (Thulasidasan et al. 2019, "On mixup training",
    arXiv 1905.11001, section 3.2).

    `p`: float [N] or [N, C]; `ground_truth_N`: class indices [N]. Raises ValueError as
    `classification_metrics`.
    """
    count_by_bin, right_by_bin, confidence_by_bin = _confidence_bins(p, ground_truth_N, bins)
    mean_by_bin = confidence_by_bin / np.maximum(count_by_bin, 1)
    excess_by_bin = np.maximum(confidence_by_bin - right_by_bin, 0.0)
    return float((mean_by_bin * excess_by_bin).sum() / count_by_bin.sum())


def _confidence_bins(
    p: ArrayLike, ground_truth_N: ArrayLike, bins: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return documents, correct predictions and summed confidences by bin of confidence."""
    values = checked_probabilities(p, "p")
    truth_N = checked_labels(ground_truth_N, values)
    correct_N = (predicted_classes(values) == truth_N).astype(np.float64)
    confidence_N = _confidence(values)
    bin_N = _bin(confidence_N, bins)
    count_by_bin = np.bincount(bin_N, minlength=bins)
    right_by_bin = np.bincount(bin_N, weights=correct_N, minlength=bins)
    confidence_by_bin = np.bincount(bin_N, weights=confidence_N, minlength=bins)
    return count_by_bin, right_by_bin, confidence_by_bin


def _bin(values_N: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    """Return the index of each value's bin: equal widths over [0, 1], closed on the right."""
    return np.digitize(values_N, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True)


def calibration_curve(
    p: ArrayLike, ground_truth_N: ArrayLike, bins: int = 10
) -> list[dict[str, float]]:
    """Reliability diagram, in equal-width bins that are closed on the right.

    With two classes it is that of P(label 1): the share of label 1 by its probability. With more it
    is that of the predicted class: the share of right predictions by their confidence.

    Args:
        p: float [N], P(label 1), or [N, C] with C > 2.
        ground_truth_N: class indices [N].
        bins: number of bins over [0, 1].

    Returns:
        For each non-empty bin `low` and `high` (its edges), `n`, `mean_p` (of P(label 1), or
        confidence) and `share` (of label 1, or right predictions). A calibrated model has
        `share` = `mean_p`.

    Raises:
        ValueError: as `classification_metrics`.
    """
    values_N = checked_probabilities(p, "p")
    positive_N = checked_labels(ground_truth_N, values_N)
    if values_N.ndim == 2:
        positive_N = (predicted_classes(values_N) == positive_N).astype(np.int64)
        values_N = _confidence(values_N)
    bin_N = _bin(values_N, bins)
    count_by_bin = np.bincount(bin_N, minlength=bins)
    p_by_bin = np.bincount(bin_N, weights=values_N, minlength=bins)
    positive_by_bin = np.bincount(bin_N, weights=positive_N, minlength=bins)
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "n": int(count_by_bin[b]),
            "mean_p": float(p_by_bin[b] / count_by_bin[b]),
            "share": float(positive_by_bin[b] / count_by_bin[b]),
        }
        for b in np.flatnonzero(count_by_bin).tolist()
    ]


def classification_metrics(p: ArrayLike, ground_truth_N: ArrayLike) -> dict[str, Any]:
    """Accuracy with its standard error, AUROC and calibration of predictions.

    Args:
        p: float [N], P(label 1) of each document, or [N, C], those of C > 2 classes.
        ground_truth_N: int, bool or float [N], each exactly 0 or 1, or from 0 to C - 1.

    Returns:
        `accuracy`, `accuracy_se` (the binomial standard error sqrt(a (1 - a) / n)), `auroc` (None
        if only one class is present), `ece` (`expected_calibration_error`, 15 bins),
        `overconfidence` (`overconfidence_error`, the same bins), `n`; with more than two classes
        also `macro_f1`, the unweighted mean of the F1 scores of the classes that occur in ground
        truth or predictions, and `log_loss`, the mean of -log p of the true class in nats (a p of 0
        counts as 2.2e-16, the epsilon of float64).

    Raises:
        ValueError: an empty vector, different shapes, a probability that is not finite or outside
            [0, 1], rows that do not sum to 1, a label that is no class.
    """
    values = checked_probabilities(p, "p")
    truth_N = checked_labels(ground_truth_N, values)
    accuracy = float(np.mean(predicted_classes(values) == truth_N))
    found: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(values)),
        "auroc": auroc(values, truth_N),
        "ece": expected_calibration_error(values, truth_N),
        "overconfidence": overconfidence_error(values, truth_N),
        "n": len(values),
    }
    return found if values.ndim == 1 else found | _class_metrics(values, truth_N)


def _class_metrics(values_NC: NDArray[np.float64], truth_N: NDArray[np.int64]) -> dict[str, float]:
    from sklearn.metrics import f1_score, log_loss

    f1 = f1_score(truth_N, predicted_classes(values_NC), average="macro", zero_division=0)
    # scikit-learn warns of rows that do not sum to 1 in float64.
    rows_NC = values_NC / values_NC.sum(axis=1, keepdims=True)
    loss = log_loss(truth_N, rows_NC, labels=np.arange(values_NC.shape[1]))
    return {"macro_f1": float(f1), "log_loss": float(loss)}


def agreement_metrics(
    p_student: ArrayLike, p_weak: ArrayLike, ground_truth_N: ArrayLike
) -> dict[str, float | None]:
    """Agreement of a student's predictions with its supervisor's, on the test split.

    The split by whether the supervisor is right follows the imitation analysis of Burns et al. 2023
    (arXiv 2312.09390): a student that generalizes agrees with correct supervision and disagrees
    with wrong supervision.

    Args:
        p_student: float [N], the student's P(label 1), or [N, C], those of C > 2 classes.
        p_weak: the supervisor's for the same documents in the same order and form.
        ground_truth_N: class indices [N].

    Returns:
        `agreement` over all documents, `agreement_when_correct` over those where the supervisor is
        right, `agreement_when_wrong` over those where it is wrong (None for an empty subset), and
        `misfit`, the mean squared difference of the two probabilities, which for squared loss
        bounds the student's gain (Charikar et al. 2024, arXiv 2405.15116). With more than two
        classes it is that of half the squared distance of the two distributions, 1/2 sum_c
        (difference)^2, which for two classes is the same.

    Raises:
        ValueError: as `classification_metrics`.
    """
    soft_student = checked_probabilities(p_student, "p_student")
    soft_weak = checked_probabilities(p_weak, "p_weak")
    if soft_student.shape != soft_weak.shape:
        raise ValueError(f"p_weak: expected shape {soft_student.shape}, got {soft_weak.shape}")
    truth_N = checked_labels(ground_truth_N, soft_student)
    student_N, weak_N = predicted_classes(soft_student), predicted_classes(soft_weak)
    agrees_N = student_N == weak_N
    right_N = weak_N == truth_N
    squares = (soft_student - soft_weak) ** 2

    def share(subset_N: NDArray[np.bool_]) -> float | None:
        return float(agrees_N[subset_N].mean()) if subset_N.any() else None

    return {
        "agreement": float(agrees_N.mean()),
        "agreement_when_correct": share(right_N),
        "agreement_when_wrong": share(~right_N),
        "misfit": float(np.mean(squares if squares.ndim == 1 else squares.sum(axis=1) / 2)),
    }


def performance_gap_recovered(
    weak: float, student: float, ceiling: float
) -> tuple[float | None, str | None]:
    """PGR = (student - weak) / (ceiling - weak), from accuracies (Burns et al. 2023, section 3).

    0 means no better than the supervisor, 1 as good as the ceiling; values outside [0, 1] occur.
    PGR is undefined where the ceiling does not exceed the weak model.

    Returns:
        (pgr, None) if it is defined, else (None, note with both accuracies).

    Raises:
        ValueError: an accuracy is not finite.
    """
    if not all(math.isfinite(a) for a in (weak, student, ceiling)):
        raise ValueError(f"accuracies must be finite: {weak=}, {student=}, {ceiling=}")
    if ceiling <= weak:
        relation = "equals" if ceiling == weak else "is below"
        return None, (
            f"PGR is undefined: the ceiling's accuracy ({ceiling:.4f}) {relation} the weak model's"
            f" ({weak:.4f}), so there is no gap to recover."
        )
    return float((student - weak) / (ceiling - weak)), None


def paired_difference_se(difference: float, agreement: float, n: int) -> float | None:
    """Standard error of the difference of two accuracies measured on the same `n` documents.

    The two models' correctness differs by one where just one of them is right, so the variance of
    the difference is (1 - agreement - difference²)/n (McNemar's setting), where `agreement` is the
    share of documents for which both or neither is right; with two classes, for which they predict
    the same one. It is smaller than for independent test sets, because the models share the
    documents. None if the three numbers are inconsistent.
    """
    variance = (1 - agreement) - difference**2
    if n <= 0 or 1 - agreement < abs(difference) - 1e-9:
        return None
    return math.sqrt(max(variance, 0.0) / n)
