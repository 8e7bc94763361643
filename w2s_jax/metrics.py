"""What predictions are worth: accuracy, calibration, agreement, and the performance gap recovered.

Everything here takes `p`, the model's probability of label 1, and works in float64 on the host.
A prediction is `p > 0.5`: a tie at exactly one half predicts label 0. No function returns NaN;
what is undefined is None, so that results can be written as strict JSON.

The definitions follow Burns et al. 2023, "Weak-to-strong generalization" (arXiv 2312.09390).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ECE_BINS = 15


def _probabilities(p_N: ArrayLike, name: str) -> NDArray[np.float64]:
    values_N = np.asarray(p_N, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0:
        raise ValueError(f"{name}: expected a non-empty vector, got shape {values_N.shape}")
    # A float32 softmax may leave [0, 1] by a rounding error; anything more is a mistake.
    if not np.all((values_N >= -1e-6) & (values_N <= 1 + 1e-6)):
        raise ValueError(f"{name}: probabilities must be finite and in [0, 1]")
    return np.clip(values_N, 0.0, 1.0)


def _labels(ground_truth_N: ArrayLike, count: int) -> NDArray[np.bool_]:
    values_N = np.asarray(ground_truth_N)
    if values_N.shape != (count,):
        raise ValueError(f"ground_truth_N: expected shape ({count},), got {values_N.shape}")
    if not np.all((values_N == 0) | (values_N == 1)):
        raise ValueError("ground_truth_N: labels must be 0 or 1")
    return values_N == 1


def auroc(p_N: ArrayLike, ground_truth_N: ArrayLike) -> float | None:
    """Area under the ROC curve: P(a random positive ranks above a random negative).

    Ties count one half (the Mann-Whitney statistic). `p_N`: float [N]; `ground_truth_N`: 0 or 1,
    [N]. None when only one class is present. Raises ValueError as `classification_metrics` does.
    """
    from scipy.stats import rankdata

    values_N = _probabilities(p_N, "p_N")
    positive_N = _labels(ground_truth_N, values_N.size)
    positives = int(positive_N.sum())
    negatives = positive_N.size - positives
    if positives == 0 or negatives == 0:
        return None
    rank_sum = float(np.asarray(rankdata(values_N))[positive_N].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def expected_calibration_error(
    p_N: ArrayLike, ground_truth_N: ArrayLike, bins: int = ECE_BINS
) -> float:
    """Top-label expected calibration error with equal-width bins.

    The confidence of a document is the probability of the class that is predicted for it,
    max(p, 1 - p). Confidences fall into `bins` equal bins over [0, 1], each open on the left and
    closed on the right (a binary confidence is at least one half, so the lower bins stay empty).
    The error is the sum over the bins that hold documents of
    (documents in the bin / N) * |accuracy in the bin - mean confidence in the bin|.

    `p_N`: float [N]; `ground_truth_N`: 0 or 1, [N]. Raises ValueError as `classification_metrics`.
    """
    values_N = _probabilities(p_N, "p_N")
    truth_N = _labels(ground_truth_N, values_N.size)
    correct_N = ((values_N > 0.5) == truth_N).astype(np.float64)
    confidence_N = np.maximum(values_N, 1 - values_N)
    inner_edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    bin_N = np.digitize(confidence_N, inner_edges, right=True)
    # (count / N) * |mean correct - mean confidence| = |sum of (correct - confidence)| / N
    gap_by_bin = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=bins)
    return float(np.abs(gap_by_bin).sum() / values_N.size)


def classification_metrics(p_N: ArrayLike, ground_truth_N: ArrayLike) -> dict[str, Any]:
    """Accuracy with its standard error, AUROC and calibration of binary predictions.

    Args:
        p_N: float [N], P(label 1) of each document; a prediction is p > 0.5, so a tie predicts 0.
        ground_truth_N: int, bool or float [N], each exactly 0 or 1.

    Returns:
        `accuracy`, `accuracy_se` (the binomial standard error sqrt(a (1 - a) / n)), `auroc` (None
        when only one class is present), `ece` (`expected_calibration_error`, 15 bins), `n`.

    Raises:
        ValueError: an empty vector, shapes that differ, a probability outside [0, 1] or not
            finite, a label other than 0 or 1.
    """
    values_N = _probabilities(p_N, "p_N")
    truth_N = _labels(ground_truth_N, values_N.size)
    accuracy = float(np.mean((values_N > 0.5) == truth_N))
    return {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / values_N.size),
        "auroc": auroc(values_N, truth_N),
        "ece": expected_calibration_error(values_N, truth_N),
        "n": int(values_N.size),
    }


def agreement_metrics(
    p_student_N: ArrayLike, p_weak_N: ArrayLike, ground_truth_N: ArrayLike
) -> dict[str, float | None]:
    """How often the student predicts what its supervisor predicts, on the test split.

    Both sides are thresholded at p > 0.5 (a tie predicts 0). The split by whether the supervisor is
    right follows the imitation analysis of Burns et al. 2023 (arXiv 2312.09390): a student that
    generalizes agrees with correct supervision and disagrees with wrong supervision.

    Args:
        p_student_N: float [N], the student's P(label 1).
        p_weak_N: float [N], the supervisor's P(label 1) for the same documents in the same order.
        ground_truth_N: [N], each exactly 0 or 1.

    Returns:
        `agreement` over all documents, `agreement_when_correct` over those where the supervisor is
        right, `agreement_when_wrong` over those where it is wrong (None for an empty subset).

    Raises:
        ValueError: as `classification_metrics`.
    """
    student_N = _probabilities(p_student_N, "p_student_N") > 0.5
    weak_N = _probabilities(p_weak_N, "p_weak_N") > 0.5
    if student_N.shape != weak_N.shape:
        raise ValueError(f"p_weak_N: expected shape {student_N.shape}, got {weak_N.shape}")
    truth_N = _labels(ground_truth_N, student_N.size)
    agrees_N = student_N == weak_N
    right_N = weak_N == truth_N

    def share(subset_N: NDArray[np.bool_]) -> float | None:
        return float(agrees_N[subset_N].mean()) if subset_N.any() else None

    return {
        "agreement": float(agrees_N.mean()),
        "agreement_when_correct": share(right_N),
        "agreement_when_wrong": share(~right_N),
    }


def performance_gap_recovered(
    weak: float, student: float, ceiling: float
) -> tuple[float | None, str | None]:
    """PGR = (student - weak) / (ceiling - weak), from accuracies (Burns et al. 2023, section 3).

    0 means no better than the supervisor, 1 as good as the ceiling; values outside [0, 1] occur.
    PGR is undefined where the ceiling does not exceed the weak model.

    Returns:
        (pgr, None) where it is defined, (None, note) where it is not; the note is plain English and
        gives both accuracies.

    Raises:
        ValueError: an accuracy that is not finite.
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
    (McNemar's setting). It is smaller than for independent test sets, since models that share a
    test set share its luck. None where the three numbers can't belong together.
    """
    variance = (1 - agreement) - difference**2
    if n <= 0 or 1 - agreement < abs(difference) - 1e-9:
        return None
    return math.sqrt(max(variance, 0.0) / n)
