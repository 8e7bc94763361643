"""Metrics of predictions: accuracy, calibration, agreement, and performance gap recovered (PGR).

All functions take `p`, the model's probability of label 1, and compute in float64 on the host.
A prediction is `p > 0.5`, so a tie predicts label 0. Undefined values are None, never NaN, so that
results are strict JSON. Intervals and tests are in `intervals`.

The definitions follow Burns et al. 2023, "Weak-to-strong generalization" (arXiv 2312.09390).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ECE_BINS = 15


def checked_probabilities(p_N: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return `p_N` as float64 [N] in [0, 1].

    Raises:
        ValueError: it is empty or not a vector, or has values outside [0, 1]; names `name`.
    """
    values_N = np.asarray(p_N, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0:
        raise ValueError(f"{name}: expected a non-empty vector, got shape {values_N.shape}")
    # A float32 softmax may leave [0, 1] by a rounding error.
    if not np.all((values_N >= -1e-6) & (values_N <= 1 + 1e-6)):
        raise ValueError(f"{name}: probabilities must be finite and in [0, 1]")
    return np.clip(values_N, 0.0, 1.0)


def checked_labels(ground_truth_N: ArrayLike, count: int) -> NDArray[np.bool_]:
    """Return ground truth as bool [count].

    Raises:
        ValueError: it has another shape, or values other than 0 and 1.
    """
    values_N = np.asarray(ground_truth_N)
    if values_N.shape != (count,):
        raise ValueError(f"ground_truth_N: expected shape ({count},), got {values_N.shape}")
    if not np.all((values_N == 0) | (values_N == 1)):
        raise ValueError("ground_truth_N: labels must be 0 or 1")
    return values_N == 1


def predicted_classes(soft_NC: ArrayLike) -> NDArray[np.int64]:
    """Return the likeliest class of each document, int64 [N]; of equal ones the first.

    Args:
        soft_NC: class probabilities, float [N, C]; or P(label 1), float [N].
    """
    values = np.asarray(soft_NC)
    if values.ndim == 2 and values.shape[1] > 2:
        return values.argmax(axis=1)
    p_N = values if values.ndim == 1 else values[:, 1]
    return (p_N > 0.5).astype(np.int64)


def auroc(p_N: ArrayLike, ground_truth_N: ArrayLike) -> float | None:
    """Area under the ROC curve: P(a random positive ranks above a random negative).

    Ties count one half. `p_N`: float [N]; `ground_truth_N`: 0 or 1, [N]. None if only one class is
    present. Raises ValueError as `classification_metrics`.
    """
    from sklearn.metrics import roc_auc_score

    values_N = checked_probabilities(p_N, "p_N")
    truth_N = checked_labels(ground_truth_N, values_N.size)
    return None if truth_N.all() or not truth_N.any() else float(roc_auc_score(truth_N, values_N))


def expected_calibration_error(
    p_N: ArrayLike, ground_truth_N: ArrayLike, bins: int = ECE_BINS
) -> float:
    """Top-label expected calibration error with equal-width bins.

    The confidence of a document is the probability of its predicted class, max(p, 1 - p).
    Confidences fall into `bins` equal bins over [0, 1], each open on the left and closed on the
    right (a binary confidence is at least one half, so the lower bins are empty). The error is the
    sum over non-empty bins of
    (documents in the bin / N) * |accuracy in the bin - mean confidence in the bin|.

    `p_N`: float [N]; `ground_truth_N`: 0 or 1, [N]. Raises ValueError as `classification_metrics`.
    """
    count_by_bin, right_by_bin, confidence_by_bin = _confidence_bins(p_N, ground_truth_N, bins)
    # (count / N) * |mean correct - mean confidence| = |sum of (correct - confidence)| / N
    return float(np.abs(right_by_bin - confidence_by_bin).sum() / count_by_bin.sum())


def overconfidence_error(p_N: ArrayLike, ground_truth_N: ArrayLike, bins: int = ECE_BINS) -> float:
    """Overconfidence error: counts confidence above accuracy, but not below.

    The sum over the bins of (documents in the bin / N) * confidence * max(confidence - accuracy, 0)
    with the bins of `expected_calibration_error` (Thulasidasan et al. 2019, "On mixup training",
    arXiv 1905.11001, section 3.2).

    `p_N`: float [N]; `ground_truth_N`: 0 or 1, [N]. Raises ValueError as `classification_metrics`.
    """
    count_by_bin, right_by_bin, confidence_by_bin = _confidence_bins(p_N, ground_truth_N, bins)
    mean_by_bin = confidence_by_bin / np.maximum(count_by_bin, 1)
    excess_by_bin = np.maximum(confidence_by_bin - right_by_bin, 0.0)
    return float((mean_by_bin * excess_by_bin).sum() / count_by_bin.sum())


def _confidence_bins(
    p_N: ArrayLike, ground_truth_N: ArrayLike, bins: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return documents, correct predictions and summed confidences by bin of confidence."""
    values_N = checked_probabilities(p_N, "p_N")
    truth_N = checked_labels(ground_truth_N, values_N.size)
    correct_N = ((values_N > 0.5) == truth_N).astype(np.float64)
    confidence_N = np.maximum(values_N, 1 - values_N)
    bin_N = _bin(confidence_N, bins)
    count_by_bin = np.bincount(bin_N, minlength=bins)
    right_by_bin = np.bincount(bin_N, weights=correct_N, minlength=bins)
    confidence_by_bin = np.bincount(bin_N, weights=confidence_N, minlength=bins)
    return count_by_bin, right_by_bin, confidence_by_bin


def _bin(values_N: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    """Return the index of each value's bin: equal widths over [0, 1], closed on the right."""
    return np.digitize(values_N, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True)


def calibration_curve(
    p_N: ArrayLike, ground_truth_N: ArrayLike, bins: int = 10
) -> list[dict[str, float]]:
    """Reliability diagram of P(label 1), in equal-width bins that are closed on the right.

    Args:
        p_N: float [N], P(label 1).
        ground_truth_N: 0 or 1, [N].
        bins: number of bins over [0, 1].

    Returns:
        For each non-empty bin `low` and `high` (its edges), `n`, `mean_p` and `share` (of label
        1). A calibrated model has `share` = `mean_p`.

    Raises:
        ValueError: as `classification_metrics`.
    """
    values_N = checked_probabilities(p_N, "p_N")
    truth_N = checked_labels(ground_truth_N, values_N.size)
    bin_N = _bin(values_N, bins)
    count_by_bin = np.bincount(bin_N, minlength=bins)
    p_by_bin = np.bincount(bin_N, weights=values_N, minlength=bins)
    positive_by_bin = np.bincount(bin_N, weights=truth_N, minlength=bins)
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


def classification_metrics(p_N: ArrayLike, ground_truth_N: ArrayLike) -> dict[str, Any]:
    """Accuracy with its standard error, AUROC and calibration of binary predictions.

    Args:
        p_N: float [N], P(label 1) of each document; a prediction is p > 0.5, so a tie predicts 0.
        ground_truth_N: int, bool or float [N], each exactly 0 or 1.

    Returns:
        `accuracy`, `accuracy_se` (the binomial standard error sqrt(a (1 - a) / n)), `auroc` (None
        if only one class is present), `ece` (`expected_calibration_error`, 15 bins),
        `overconfidence` (`overconfidence_error`, the same bins), `n`.

    Raises:
        ValueError: an empty vector, different shapes, a probability that is not finite or outside
            [0, 1], a label other than 0 or 1.
    """
    values_N = checked_probabilities(p_N, "p_N")
    truth_N = checked_labels(ground_truth_N, values_N.size)
    accuracy = float(np.mean((values_N > 0.5) == truth_N))
    return {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / values_N.size),
        "auroc": auroc(values_N, truth_N),
        "ece": expected_calibration_error(values_N, truth_N),
        "overconfidence": overconfidence_error(values_N, truth_N),
        "n": int(values_N.size),
    }


def agreement_metrics(
    p_student_N: ArrayLike, p_weak_N: ArrayLike, ground_truth_N: ArrayLike
) -> dict[str, float | None]:
    """Agreement of a student's predictions with its supervisor's, on the test split.

    Both are thresholded at p > 0.5 (a tie predicts 0). The split by whether the supervisor is right
    follows the imitation analysis of Burns et al. 2023 (arXiv 2312.09390): a student that
    generalizes agrees with correct supervision and disagrees with wrong supervision.

    Args:
        p_student_N: float [N], the student's P(label 1).
        p_weak_N: float [N], the supervisor's P(label 1) for the same documents in the same order.
        ground_truth_N: [N], each exactly 0 or 1.

    Returns:
        `agreement` over all documents, `agreement_when_correct` over those where the supervisor is
        right, `agreement_when_wrong` over those where it is wrong (None for an empty subset), and
        `misfit`, the mean squared difference of the two probabilities, which for squared loss
        bounds the student's gain (Charikar et al. 2024, arXiv 2405.15116).

    Raises:
        ValueError: as `classification_metrics`.
    """
    soft_student_N = checked_probabilities(p_student_N, "p_student_N")
    soft_weak_N = checked_probabilities(p_weak_N, "p_weak_N")
    if soft_student_N.shape != soft_weak_N.shape:
        raise ValueError(
            f"p_weak_N: expected shape {soft_student_N.shape}, got {soft_weak_N.shape}"
        )
    truth_N = checked_labels(ground_truth_N, soft_student_N.size)
    student_N, weak_N = soft_student_N > 0.5, soft_weak_N > 0.5
    agrees_N = student_N == weak_N
    right_N = weak_N == truth_N

    def share(subset_N: NDArray[np.bool_]) -> float | None:
        return float(agrees_N[subset_N].mean()) if subset_N.any() else None

    return {
        "agreement": float(agrees_N.mean()),
        "agreement_when_correct": share(right_N),
        "agreement_when_wrong": share(~right_N),
        "misfit": float(np.mean((soft_student_N - soft_weak_N) ** 2)),
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

    For binary predictions the two models' correctness differs exactly where their predictions
    differ, and there by one, so the variance of the difference is (1 - agreement - difference²)/n
    (McNemar's setting). It is smaller than for independent test sets, because the models share the
    documents. None if the three numbers are inconsistent.
    """
    variance = (1 - agreement) - difference**2
    if n <= 0 or 1 - agreement < abs(difference) - 1e-9:
        return None
    return math.sqrt(max(variance, 0.0) / n)
