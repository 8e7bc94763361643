"""Intervals and tests against slow loops, closed forms, SciPy, and examples worked by hand."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from w2s_jax.metrics.classification import performance_gap_recovered
from w2s_jax.metrics.intervals import (
    holm,
    mcnemar,
    mean_over_seeds,
    median_pgr,
    paired_over_seeds,
    pgr_interval,
    pgr_over_seeds,
)


def three_models(n, seed=0, accuracies=(0.7, 0.78, 0.9)):
    """Predictions of weak, student and ceiling, correlated through a shared difficulty."""
    rng = np.random.default_rng(seed)
    truth_N = rng.integers(0, 2, n)
    shared_N = rng.random(n)
    out = []
    for accuracy in accuracies:
        hardness_N = np.where(rng.random(n) < 0.5, shared_N, rng.random(n))
        right_N = hardness_N < accuracy
        out.append(np.where(right_N == (truth_N == 1), 0.8, 0.2))
    return out, truth_N


def bootstrap_by_loop(models, truth_N, resamples, level=0.95):
    """The textbook: draw documents, threshold, divide."""
    rng = np.random.default_rng(1)
    right = [(p > 0.5) == (truth_N == 1) for p in models]
    found, n = [], truth_N.size
    for _ in range(resamples):
        index_N = rng.integers(0, n, n)
        pgr, _ = performance_gap_recovered(*(float(r[index_N].mean()) for r in right))
        if pgr is not None:
            found.append(pgr)
    tails = ((1 - level) / 2, (1 + level) / 2)
    return np.quantile(found, tails), len(found) / resamples


@pytest.mark.parametrize("n", [60, 400])
def test_pgr_interval_is_that_of_drawing_documents_one_by_one(n):
    models, truth_N = three_models(n)
    ours = pgr_interval(*models, truth_N, resamples=20000)
    (low, high), share = bootstrap_by_loop(models, truth_N, 6000)
    # The ends of 6,000 resamples vary by about 2% of the width.
    width = high - low
    assert ours["low"] == pytest.approx(low, abs=0.06 * width)
    assert ours["high"] == pytest.approx(high, abs=0.06 * width)
    assert ours["defined_share"] == pytest.approx(share, abs=0.01)


def test_pgr_interval_approaches_the_delta_method():
    models, truth_N = three_models(40_000)
    weak, student, ceiling = (((p > 0.5) == (truth_N == 1)).astype(float) for p in models)
    gap = (ceiling - weak).mean()
    pgr = (student - weak).mean() / gap
    influence_N = (student - weak - pgr * (ceiling - weak)) / gap
    reach = 1.645 * influence_N.std() / math.sqrt(truth_N.size)
    ours = pgr_interval(*models, truth_N, level=0.9, resamples=20000)
    assert ours["low"] == pytest.approx(pgr - reach, abs=0.05 * reach)
    assert ours["high"] == pytest.approx(pgr + reach, abs=0.05 * reach)
    assert ours["defined_share"] == 1.0
    middle, reach = (ceiling - weak).mean(), 1.645 * (ceiling - weak).std() / math.sqrt(40_000)
    assert ours["gap_low"] == pytest.approx(middle - reach, abs=0.05 * reach)
    assert ours["gap_high"] == pytest.approx(middle + reach, abs=0.05 * reach)


def test_pgr_interval_is_none_where_the_gap_is_mostly_absent():
    models, truth_N = three_models(200, accuracies=(0.8, 0.8, 0.7))
    ours = pgr_interval(*models, truth_N)
    assert ours["low"] is None and ours["high"] is None
    assert 0 < ours["defined_share"] < 0.5
    # The ceiling is right on one document more: it fails to be drawn, or not, as (1 - 1/n)^n says.
    truth_N, weak_N = np.ones(50), np.r_[np.zeros(1), np.ones(49)]
    share = pgr_interval(weak_N, weak_N, truth_N, truth_N, resamples=20000)["defined_share"]
    assert share == pytest.approx(1 - 0.98**50, abs=0.01)


def test_pgr_interval_depends_on_its_seed_only():
    models, truth_N = three_models(100)
    assert pgr_interval(*models, truth_N, seed=3) == pgr_interval(*models, truth_N, seed=3)
    assert pgr_interval(*models, truth_N, seed=3) != pgr_interval(*models, truth_N, seed=4)
    with pytest.raises(ValueError, match="shape"):
        pgr_interval(models[0], models[1], models[2][:-1], truth_N)


def test_pgr_over_seeds_in_two_ways():
    rows = [
        {"weak": 0.60, "student": 0.70, "ceiling": 0.80},  # .5
        {"weak": 0.60, "student": 0.66, "ceiling": 0.62},  # 3
        {"weak": 0.60, "student": 0.62, "ceiling": 0.80},  # .1
        {"weak": 0.60, "student": 0.62, "ceiling": 0.58},  # undefined
    ]
    ours = pgr_over_seeds(rows)
    assert ours["n"] == 4
    assert ours["of_means"]["pgr"] == pytest.approx((0.65 - 0.6) / (0.7 - 0.6))
    assert ours["per_seed"]["pgr"] == pytest.approx(0.5)
    assert (ours["of_means"]["n"], ours["per_seed"]["n"]) == (4, 3)
    # All four draws are the undefined seed: 1 in 256.
    assert ours["per_seed"]["defined_share"] == pytest.approx(1 - 4**-4, abs=0.005)
    assert ours["per_seed"]["low"] == pytest.approx(0.1, abs=1e-9)
    assert ours["per_seed"]["high"] == pytest.approx(3.0, abs=1e-9)
    json.dumps(ours, allow_nan=False)


def test_pgr_over_seeds_against_a_loop():
    rng = np.random.default_rng(0)
    rows = [
        {"weak": w, "student": w + 0.1 + d, "ceiling": w + 0.2}
        for w, d in zip(0.6 + 0.05 * rng.random(8), 0.03 * rng.normal(size=8), strict=True)
    ]
    of_means, per_seed = [], []
    for _ in range(4000):
        drawn = [rows[i] for i in rng.integers(0, 8, 8)]
        mean = {k: np.mean([r[k] for r in drawn]) for k in rows[0]}
        of_means.append((mean["student"] - mean["weak"]) / (mean["ceiling"] - mean["weak"]))
        single = [(r["student"] - r["weak"]) / (r["ceiling"] - r["weak"]) for r in drawn]
        per_seed.append(np.median(single))
    ours = pgr_over_seeds(rows, resamples=4000)
    for name, values in (("of_means", of_means), ("per_seed", per_seed)):
        low, high = np.quantile(values, (0.025, 0.975))
        assert ours[name]["low"] == pytest.approx(low, abs=0.1 * (high - low))
        assert ours[name]["high"] == pytest.approx(high, abs=0.1 * (high - low))


def test_one_seed_or_none_has_no_interval_over_seeds():
    one = pgr_over_seeds([{"weak": 0.6, "student": 0.7, "ceiling": 0.8}])
    assert one["of_means"]["pgr"] == pytest.approx(0.5) and one["of_means"]["low"] is None
    assert pgr_over_seeds([])["per_seed"]["pgr"] is None
    assert mean_over_seeds([0.5]) == dict(mean=0.5, se=None, low=None, high=None, n=1)
    assert mean_over_seeds([])["n"] == 0
    assert paired_over_seeds([0.5], [0.4])["t_p"] is None


def test_mean_over_seeds_is_the_t_interval():
    values = [0.71, 0.74, 0.78, 0.73]
    ours = mean_over_seeds(values, level=0.9)
    low, high = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    assert (ours["low"], ours["high"]) == (pytest.approx(low), pytest.approx(high))
    assert ours["se"] == pytest.approx(stats.sem(values)) and ours["n"] == 4


def test_median_pgr_counts_what_is_undefined():
    tasks = {"a": 0.1, "b": None, "c": 0.5, "d": 0.9}
    assert median_pgr(tasks) == {"median": 0.5, "n": 3, "undefined": 1}
    assert median_pgr({"a": None})["median"] is None


def test_mcnemar_by_hand():
    # 20 documents: both right 10, only the first 7, only the second 2, both wrong 1.
    truth_N = np.ones(20)
    first_N = np.r_[np.ones(17), np.zeros(3)]
    second_N = np.r_[np.ones(10), np.zeros(7), np.ones(2), np.zeros(1)]
    ours = mcnemar(first_N, second_N, truth_N)
    by_hand = 2 * sum(math.comb(9, k) for k in range(3)) / 2**9
    assert ours == {
        "difference": 0.25, "first_only": 7, "second_only": 2, "p": pytest.approx(by_hand), "n": 20,
    }  # fmt: skip
    assert mcnemar(second_N, first_N, truth_N)["p"] == pytest.approx(by_hand)
    assert mcnemar(first_N, first_N, truth_N)["p"] == 1.0


def test_paired_over_seeds_against_scipy():
    first, second = [0.75, 0.78, 0.70, 0.81, 0.79], [0.72, 0.79, 0.66, 0.75, 0.74]
    ours = paired_over_seeds(first, second)
    differences = np.subtract(first, second)
    assert ours["difference"] == pytest.approx(differences.mean())
    assert ours["t_p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    # One difference is negative and the smallest: rank sums 1 and 14 of 2**5 sign patterns; the
    # patterns with a rank sum of at most 1 are two, so p = 2 * 2 / 32.
    assert ours["wilcoxon_p"] == pytest.approx(4 / 32)
    assert ours["cohens_d_z"] == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert ours["cohens_d_z"] * math.sqrt(5) == pytest.approx(stats.ttest_rel(first, second)[0])
    assert ours["n"] == 5
    assert ours["low"] < ours["difference"] < ours["high"]


def test_equal_differences_have_no_test():
    ours = paired_over_seeds([0.8, 0.7, 0.6], [0.7, 0.6, 0.5])
    assert ours["difference"] == pytest.approx(0.1)
    assert ours["t_p"] is None and ours["wilcoxon_p"] is None and ours["cohens_d_z"] is None
    with pytest.raises(ValueError, match="2 seeds of the first"):
        paired_over_seeds([0.1, 0.2], [0.1])


def test_holm_by_hand():
    # Sorted: .005 * 4, .01 * 3, .03 * 2, .04 * 1, which may not fall below .06.
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None})
    assert corrected == {
        "a": pytest.approx(0.03), "b": pytest.approx(0.06), "c": pytest.approx(0.06),
        "d": pytest.approx(0.02), "e": None,
    }  # fmt: skip
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
