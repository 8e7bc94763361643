"""Confidence intervals, paired tests, and corrections for multiple comparisons.

Two sources of variation are kept apart. *Over documents*: other test documents could have been
drawn, the models are fixed (`pgr_interval`, `mcnemar`). *Over seeds*: training could have gone
otherwise (`mean_over_seeds`, `pgr_over_seeds`, `paired_over_seeds`); where these seeds share test
documents, their intervals hold for these documents only, and `crossed` has intervals over both.
Every result has its `n`; undefined values are None. Shapes: N documents, S seeds, R resamples.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from w2s_jax.metrics.classification import (
    checked_labels,
    checked_probabilities,
    performance_gap_recovered,
    predicted_classes,
)


def pgr_interval(
    p_weak: ArrayLike,
    p_student: ArrayLike,
    p_ceiling: ArrayLike,
    ground_truth_N: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float | None]:
    """Percentile interval of PGR from a paired bootstrap over the test documents.

    A document is drawn with the predictions of all three models, so shared errors cancel. Only the
    pattern of which models are right matters, so the counts of the eight patterns are drawn from a
    multinomial distribution, which is the same as drawing N documents with replacement.

    Args:
        p_weak, p_student, p_ceiling: float [N], each model's P(label 1), or [N, C], the
            probabilities of C > 2 classes.
        ground_truth_N: class indices [N].
        level: the interval's nominal coverage.
        resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        `low` and `high`, and `defined_share`: the share of resamples in which the ceiling exceeds
        the weak model, so that PGR is defined. The interval is over these; if they are less than
        half, `low` and `high` are None. `gap_low` and `gap_high`: the interval of the gap, ceiling
        minus weak model.

    Raises:
        ValueError: as `classification_metrics`, or vectors of different lengths.
    """
    weak_N = _correct(p_weak, ground_truth_N, "p_weak")
    student_N = _correct(p_student, ground_truth_N, "p_student")
    ceiling_N = _correct(p_ceiling, ground_truth_N, "p_ceiling")
    pattern_N = 4 * weak_N + 2 * student_N + ceiling_N
    share_8 = np.bincount(pattern_N, minlength=8) / pattern_N.size
    counts_R8 = np.random.default_rng(seed).multinomial(pattern_N.size, share_8, size=resamples)
    weak_8, student_8, ceiling_8 = (np.arange(8) >> bit & 1 for bit in (2, 1, 0))
    gain_R = counts_R8 @ (student_8 - weak_8)
    gap_R = counts_R8 @ (ceiling_8 - weak_8)
    defined_R = gap_R > 0
    pgr_R = gain_R[defined_R] / gap_R[defined_R]
    ends = _gap_ends(ceiling_N - weak_N, level, resamples, seed)
    return _percentiles(pgr_R, resamples, level) | ends


def _gap_ends(
    gap_N: NDArray[np.int64], level: float, resamples: int, seed: int
) -> dict[str, float | None]:
    """Return the interval of the mean gap; its draws are the same for all students of a ceiling."""
    share_3 = np.bincount(gap_N + 1, minlength=3) / gap_N.size
    counts_R3 = np.random.default_rng(seed).multinomial(gap_N.size, share_3, size=resamples)
    gap_R = (counts_R3[:, 2] - counts_R3[:, 0]) / gap_N.size
    low, high = np.quantile(gap_R, _tails(level))
    return {"gap_low": float(low), "gap_high": float(high)}


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def wilson_interval(accuracy: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of `n` documents; it is within [0, 1]."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    reach = math.sqrt(accuracy * (1 - accuracy) / n + (z / (2 * n)) ** 2) * z / (1 + z * z / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _correct(p: ArrayLike, ground_truth_N: ArrayLike, name: str) -> NDArray[np.int64]:
    values = checked_probabilities(p, name)
    right_N = predicted_classes(values) == checked_labels(ground_truth_N, values)
    return right_N.astype(np.int64)


def _percentiles(
    values_R: NDArray[np.float64], resamples: int, level: float
) -> dict[str, float | None]:
    share = values_R.size / resamples
    low: float | None = None
    high: float | None = None
    if share >= 0.5:
        ends = np.quantile(values_R, _tails(level))
        low, high = float(ends[0]), float(ends[1])
    return {"low": low, "high": high, "defined_share": share}


def mean_over_seeds(values_S: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Mean over seeds, its standard error, and Student's t interval.

    Returns:
        `mean`, `se`, `low`, `high`, `n`; with a single seed only `mean` and `n` are not None.
    """
    from scipy.stats import t

    count = len(values_S)
    summary: dict[str, Any] = dict(mean=None, se=None, low=None, high=None, n=count)
    if count:
        summary["mean"] = float(np.mean(values_S))
    if count > 1:
        summary["se"] = float(np.std(values_S, ddof=1) / math.sqrt(count))
        reach = float(t.ppf((1 + level) / 2, count - 1)) * summary["se"]
        summary |= {"low": summary["mean"] - reach, "high": summary["mean"] + reach}
    return summary


def pgr_over_seeds(
    rows: Sequence[Mapping[str, float]],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """PGR of several seeds in two ways, each with a percentile bootstrap over the seeds.

    `of_means` is the PGR of the mean accuracies: one ratio, defined if the mean ceiling exceeds the
    mean weak model, and stable if single seeds have small gaps. `per_seed` is the median of the
    defined PGRs of single seeds, which a seed with a tiny gap hardly moves. They answer different
    questions and differ if gaps vary.

    Args:
        rows: one per seed, with the accuracies `weak`, `student` and `ceiling`.
        level, resamples, seed: of the bootstrap, which draws whole seeds.

    Returns:
        `n` (seeds), `of_means` and `per_seed`, each with `pgr`, `low`, `high`, `defined_share` (of
        the resamples) and `n` (the seeds it uses). `low` and `high` are None for fewer than two of
        these.
    """
    accuracy_S3 = np.array(
        [[row["weak"], row["student"], row["ceiling"]] for row in rows], dtype=np.float64
    ).reshape(-1, 3)
    count = len(accuracy_S3)
    nothing = dict(pgr=None, low=None, high=None, defined_share=None, n=0)
    if count == 0:
        return {"n": 0, "of_means": nothing, "per_seed": dict(nothing)}
    pgr_S = _ratios(accuracy_S3)
    defined_S = np.isfinite(pgr_S)
    drawn_RS = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    means_R = _ratios(accuracy_S3[drawn_RS].mean(axis=1))
    with warnings.catch_warnings():
        # All seeds of a resample may be without a PGR.
        warnings.simplefilter("ignore", RuntimeWarning)
        medians_R = np.nanmedian(pgr_S[drawn_RS], axis=1)

    def summary(point: float | None, values_R: NDArray[np.float64], n: int) -> dict[str, Any]:
        if point is None or n < 2:
            return nothing | {"pgr": point, "n": n}
        finite_R = values_R[np.isfinite(values_R)]
        return {"pgr": point, **_percentiles(finite_R, resamples, level), "n": n}

    of_means, _ = performance_gap_recovered(*accuracy_S3.mean(axis=0).tolist())
    per_seed = float(np.median(pgr_S[defined_S])) if defined_S.any() else None
    return {
        "n": count,
        "of_means": summary(of_means, means_R, count),
        "per_seed": summary(per_seed, medians_R, int(defined_S.sum())),
    }


def _ratios(accuracy_R3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the PGR of rows of weak, student, ceiling; NaN if undefined."""
    gap_R = accuracy_R3[:, 2] - accuracy_R3[:, 0]
    # Means of equal accuracies may differ in the last bit.
    safe_R = np.where(gap_R > 1e-12, gap_R, np.nan)
    return (accuracy_R3[:, 1] - accuracy_R3[:, 0]) / safe_R


def median_pgr(tasks: Mapping[str, float | None]) -> dict[str, Any]:
    """Median PGR over tasks (the headline number of Burns et al. 2023).

    Returns:
        `median` (None if no task has one), `n` (tasks with a PGR), `undefined` (tasks without).
    """
    defined = [pgr for pgr in tasks.values() if pgr is not None]
    return {
        "median": float(np.median(defined)) if defined else None,
        "n": len(defined),
        "undefined": len(tasks) - len(defined),
    }


def mcnemar(p_first: ArrayLike, p_second: ArrayLike, ground_truth_N: ArrayLike) -> dict[str, Any]:
    """Exact McNemar test of two models on the same documents.

    Documents on which both are right, or both wrong, do not tell which is better; of the others,
    equally good models would each win half (a two-sided binomial test). Arguments as of
    `pgr_interval`.

    Returns:
        `difference` (accuracy of the first minus that of the second), `first_only` and
        `second_only` (documents that only this model gets right), `p`, `n` (all documents).

    Raises:
        ValueError: as `classification_metrics`.
    """
    from scipy.stats import binomtest

    first_N = _correct(p_first, ground_truth_N, "p_first")
    second_N = _correct(p_second, ground_truth_N, "p_second")
    first_only = int(np.sum(first_N > second_N))
    second_only = int(np.sum(second_N > first_N))
    differing = first_only + second_only
    return {
        "difference": (first_only - second_only) / first_N.size,
        "first_only": first_only,
        "second_only": second_only,
        "p": float(binomtest(first_only, differing).pvalue) if differing else 1.0,
        "n": int(first_N.size),
    }


def paired_over_seeds(
    first_S: Sequence[float], second_S: Sequence[float], level: float = 0.95
) -> dict[str, Any]:
    """Paired comparison of two losses that were trained with the same seeds.

    Returns:
        `difference` (mean of first - second), `low` and `high` (t interval), `t_p` (paired t test),
        `wilcoxon_p` (signed ranks), `cohens_d_z` (mean over standard deviation of the differences),
        `n` (seeds). With one seed, or equal differences, tests and effect size are None.

    Raises:
        ValueError: different numbers of seeds.
    """
    from scipy.stats import ttest_rel, wilcoxon

    first, second = np.asarray(first_S, np.float64), np.asarray(second_S, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} seeds of the first, {second.size} of the second")
    differences_S = first - second
    interval = mean_over_seeds(differences_S.tolist(), level)
    summary: dict[str, Any] = {
        "difference": interval["mean"],
        "low": interval["low"],
        "high": interval["high"],
        "t_p": None,
        "wilcoxon_p": None,
        "cohens_d_z": None,
        "n": int(first.size),
    }
    spread = float(np.std(differences_S, ddof=1)) if first.size > 1 else 0.0
    # Accuracies are multiples of 1 / n: differences below this are rounding.
    if spread > 1e-12:
        summary["t_p"] = float(ttest_rel(first, second).pvalue)
        summary["wilcoxon_p"] = float(wilcoxon(np.round(differences_S, 12)).pvalue)
        summary["cohens_d_z"] = float(np.mean(differences_S)) / spread
    return summary


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """p values corrected for multiple comparisons (Holm 1979): controls the family-wise error.

    The k-th smallest of m is multiplied by m - k + 1, and corrected values never decrease with the
    uncorrected ones. Values of None are kept and not counted.
    """
    tested = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[name] = largest
    return corrected
