"""Intervals for seeds that share test documents.

Several trainings that are evaluated on the same documents are not several test sets: seeds and
documents are *crossed*. Both are resampled, independently of each other: a draw of documents
applies to all seeds, a draw of seeds takes whole seeds (the pigeonhole bootstrap of Owen 2007, "The
pigeonhole bootstrap", Annals of Applied Statistics 1(2), arXiv 0712.1111, which errs on the side of
wide intervals). Percentiles of few resampled seeds are too narrow, by the factor between the normal
and Student's t distribution and by sqrt((S - 1) / S), so the tails are cut further out (the
expanded percentile interval of Hesterberg 2015, "What teachers should know about the bootstrap",
The American Statistician 69(4), section 5), with the degrees of freedom of Satterthwaite 1946.

Shapes: S seeds, R resamples, N documents of a seed, U documents of all seeds, K columns.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
#: Draws of documents that are held in memory at a time.
_CHUNK = 500

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def share_documents(ids_by_seed: Sequence[NDArray[Any]]) -> bool:
    """Return whether any document is one of several seeds'."""
    return np.unique(np.concatenate(ids_by_seed)).size < sum(ids.size for ids in ids_by_seed)


def resample_documents(
    ids_by_seed: Sequence[NDArray[Any]],
    columns_by_seed: Sequence[NDArray[Any]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Sum columns over resampled documents, the same documents for all seeds.

    Documents are drawn from those of all seeds together. What a seed does not have does not count
    for it.

    Args:
        ids_by_seed: [N] per seed, the ids of its documents, each once.
        columns_by_seed: [N, K] per seed, 0 or 1.
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        The sums, [R, S, K].
    """
    every_U = np.unique(np.concatenate(ids_by_seed))
    width = columns_by_seed[0].shape[1]
    table_USK = np.zeros((every_U.size, len(ids_by_seed), width), np.float32)
    for index, (ids, columns) in enumerate(zip(ids_by_seed, columns_by_seed, strict=True)):
        table_USK[np.searchsorted(every_U, ids), index] = columns
    rng = np.random.default_rng(seed)
    table = table_USK.reshape(every_U.size, -1)
    sums = np.empty((resamples, table.shape[1]), np.float32)
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        drawn = rng.integers(0, every_U.size, size=(count, every_U.size), dtype=np.int32)
        drawn += np.arange(count, dtype=np.int32)[:, None] * every_U.size
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        sums[start : start + count] = times.astype(np.float32) @ table
    return sums.reshape(resamples, len(ids_by_seed), width).astype(np.float64)


def crossed_interval(
    values_SK: NDArray[np.float64],
    resampled_RSK: NDArray[np.float64],
    statistic: Statistic,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Interval of a statistic of several seeds that share test documents.

    Args:
        values_SK: the values of each seed, such as the accuracies of its models.
        resampled_RSK: the same on resampled documents (`resample_documents`).
        statistic: maps [..., S, K] to [...]; NaN where it is undefined.
        level: the interval's nominal coverage.
        seed: seed of the draws of seeds.

    Returns:
        `value`; `low` and `high`; `se` and `df` (standard error over seeds and documents, and its
        degrees of freedom); `p` (two-sided, of the hypothesis that the value is 0); `defined_share`
        (of the draws for which the statistic is defined; below one half all others but `value` are
        None); `n` (seeds).

    Raises:
        ValueError: there are fewer than two seeds.
    """
    from scipy.stats import t

    count, resamples = len(values_SK), len(resampled_RSK)
    if count < 2:
        raise ValueError(f"crossed_interval needs at least two seeds, got {count}")
    drawn_RS = _draw_seeds(seed, count, resamples)
    both_R = statistic(np.take_along_axis(resampled_RSK, drawn_RS[..., None], axis=1))
    defined_R = both_R[np.isfinite(both_R)]
    value = float(statistic(values_SK))
    summary: dict[str, Any] = dict.fromkeys(("value", "low", "high", "se", "df", "p"))
    summary |= {"value": value if math.isfinite(value) else None, "n": count}
    summary["defined_share"] = defined_R.size / resamples
    if summary["value"] is None or summary["defined_share"] < 0.5:
        return summary
    over_seeds = _variance(statistic(values_SK[drawn_RS]))
    over_documents = _variance(statistic(resampled_RSK))
    unbiased = over_seeds * count / (count - 1)
    variance = unbiased + over_documents
    df = (count - 1) * (variance / unbiased) ** 2 if unbiased else math.inf
    reach = float(t.ppf((1 + level) / 2, df))
    if variance:
        reach *= math.sqrt(variance / (over_seeds + over_documents))
    tail = NormalDist().cdf(-reach)
    low, high = np.quantile(defined_R, [tail, 1 - tail])
    se = math.sqrt(variance)
    p = float(2 * t.sf(abs(value) / se, df)) if se else None
    return summary | {"low": float(low), "high": float(high), "se": se, "df": df, "p": p}


@lru_cache(maxsize=8)
def _draw_seeds(seed: int, count: int, resamples: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, count)).integers(0, count, size=(resamples, count))


def _variance(values_R: NDArray[np.float64]) -> float:
    finite_R = values_R[np.isfinite(values_R)]
    variance = float(np.var(finite_R)) if finite_R.size else 0.0
    # Equal values differ by rounding.
    return variance if variance > 1e-24 else 0.0


def mean_of_first(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds of the first column."""
    return np.asarray(values[..., 0].mean(axis=-1))


def mean_difference(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds of the first column minus the second."""
    return np.asarray((values[..., 0] - values[..., 1]).mean(axis=-1))


def pgr_of_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """PGR of the means over seeds of columns weak, student, ceiling; NaN if undefined."""
    return _pgr(values.mean(axis=-2))


def median_of_pgrs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over seeds of their defined PGRs (columns weak, student, ceiling); NaN without any."""
    # Undefined ones come last. `nanmedian` would take ten times as long.
    pgr = np.sort(_pgr(values), axis=-1)
    defined = np.isfinite(pgr).sum(axis=-1, keepdims=True)
    middle = [np.take_along_axis(pgr, np.maximum(defined - i, 0) // 2, -1) for i in (0, 1)]
    return np.asarray((middle[0] + middle[1])[..., 0] / 2)


def _pgr(values: NDArray[np.float64]) -> NDArray[np.float64]:
    gap = values[..., 2] - values[..., 0]
    # Means of equal accuracies may differ in the last bit.
    safe = np.where(gap > 1e-12, gap, np.nan)
    return np.asarray((values[..., 1] - values[..., 0]) / safe)
