"""Metrics against closed forms, brute force, and scikit-learn."""

import json
import math

import numpy as np
import pytest

from w2s_jax.metrics.classification import (
    agreement_metrics,
    auroc,
    calibration_curve,
    classification_metrics,
    expected_calibration_error,
    overconfidence_error,
    paired_difference_se,
    performance_gap_recovered,
)


def sample(seed, n=500):
    rng = np.random.default_rng(seed)
    truth_N = rng.integers(0, 2, n)
    # Rounding makes ties, which AUROC must count one half.
    p_N = np.clip(np.round(rng.beta(2, 2, n) * 0.6 + 0.4 * truth_N * rng.random(n), 2), 0, 1)
    return p_N, truth_N


def ece_by_loop(p_N, truth_N, bins=15):
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = []
        for p, y in zip(p_N, truth_N, strict=True):
            confidence = max(p, 1 - p)
            if low < confidence <= high:
                inside.append((float((p > 0.5) == bool(y)), confidence))
        if inside:
            right, sure = np.mean(inside, axis=0)
            total += len(inside) / len(p_N) * abs(right - sure)
    return total


def test_closed_forms():
    metrics = classification_metrics([0.9, 0.8, 0.3, 0.6], [1, 1, 0, 0])
    assert metrics["accuracy"] == 0.75
    assert metrics["accuracy_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert metrics["auroc"] == 1.0
    assert metrics["n"] == 4
    # Each confidence (.9, .8, .7, .6) has a bin of its own; only the last one is wrong.
    assert metrics["ece"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_against_scikit_learn_and_pair_counting(seed):
    from sklearn.metrics import accuracy_score, roc_auc_score

    p_N, truth_N = sample(seed)
    metrics = classification_metrics(p_N, truth_N)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(truth_N, p_N), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth_N, p_N > 0.5))
    pos, neg = p_N[truth_N == 1][:, None], p_N[truth_N == 0][None, :]
    pairs = (pos > neg).mean() + 0.5 * (pos == neg).mean()
    assert metrics["auroc"] == pytest.approx(pairs, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_ece_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    p_N, truth_N = rng.random(300), rng.integers(0, 2, 300)
    expected = ece_by_loop(p_N, truth_N)
    assert expected_calibration_error(p_N, truth_N) == pytest.approx(expected, abs=1e-12)


def test_ece_of_calibrated_and_of_overconfident_predictions():
    truth_N = np.array([1, 1, 1, 0] * 10)
    assert expected_calibration_error(np.full(40, 0.75), truth_N) == pytest.approx(0.0)
    assert expected_calibration_error(np.ones(40), truth_N) == pytest.approx(0.25)
    assert expected_calibration_error(np.zeros(40), truth_N) == pytest.approx(0.75)


def test_standard_error_matches_the_spread_of_repeated_test_sets():
    rng = np.random.default_rng(0)
    right = rng.random((4000, 200)) < 0.8
    predicted = classification_metrics(np.ones(200), np.r_[np.ones(160), np.zeros(40)])
    assert predicted["accuracy_se"] == pytest.approx(right.mean(axis=1).std(), rel=0.05)


def test_one_class_only_has_no_auroc_and_everything_is_json():
    metrics = classification_metrics(np.array([0.2, 0.9], np.float32), np.array([True, True]))
    assert metrics["auroc"] is None and auroc([0.1], [0]) is None
    json.dumps(metrics, allow_nan=False)


def test_a_tie_predicts_label_0():
    metrics = classification_metrics([0.5] * 4, [0, 0, 0, 1])
    assert metrics["accuracy"] == 0.75
    assert metrics["auroc"] == 0.5
    assert metrics["ece"] == pytest.approx(0.25)


def test_perfect_accuracy_has_zero_standard_error():
    metrics = classification_metrics([0.0, 1.0], [0, 1])
    assert (metrics["accuracy"], metrics["accuracy_se"], metrics["ece"]) == (1.0, 0.0, 0.0)


def test_agreement_by_hand():
    weak = [0.9, 0.9, 0.1, 0.1, 0.9, 0.5]
    truth = [1, 1, 0, 0, 0, 1]
    student = [0.8, 0.2, 0.2, 0.3, 0.1, 0.4]
    # The weak model is right on the first four, wrong on the last two (its tie predicts 0).
    metrics = agreement_metrics(student, weak, truth)
    assert metrics["agreement"] == pytest.approx(4 / 6)
    assert metrics["agreement_when_correct"] == 0.75
    assert metrics["agreement_when_wrong"] == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_the_weighted_mean_of_its_subsets(seed):
    weak_N, truth_N = sample(seed)
    student_N, _ = sample(seed + 100)
    metrics = agreement_metrics(student_N, weak_N, truth_N)
    accuracy = classification_metrics(weak_N, truth_N)["accuracy"]
    parts = metrics["agreement_when_correct"] * accuracy
    parts += metrics["agreement_when_wrong"] * (1 - accuracy)
    assert metrics["agreement"] == pytest.approx(parts)


def test_agreement_on_empty_subsets_is_none():
    always_right = agreement_metrics([0.9, 0.9], [0.9, 0.1], [1, 0])
    assert always_right["agreement_when_wrong"] is None
    assert always_right["agreement_when_correct"] == 0.5
    always_wrong = agreement_metrics([0.9, 0.9], [0.1, 0.9], [1, 0])
    assert always_wrong["agreement_when_correct"] is None
    json.dumps([always_right, always_wrong], allow_nan=False)


def test_pgr():
    assert performance_gap_recovered(0.6, 0.7, 0.8) == (pytest.approx(0.5), None)
    assert performance_gap_recovered(0.6, 0.5, 0.8)[0] == pytest.approx(-0.5)
    assert performance_gap_recovered(0.6, 0.9, 0.8)[0] == pytest.approx(1.5)


@pytest.mark.parametrize(("weak", "ceiling"), [(0.8125, 0.8125), (0.8125, 0.79)])
def test_pgr_is_undefined_without_a_gap_and_the_note_gives_both(weak, ceiling):
    pgr, note = performance_gap_recovered(weak, 0.85, ceiling)
    assert pgr is None
    assert f"{weak:.4f}" in note and f"{ceiling:.4f}" in note


@pytest.mark.parametrize("seed", range(3))
def test_paired_standard_error_is_that_of_the_differences(seed):
    weak_N, truth_N = sample(seed)
    student_N = np.clip(weak_N + np.random.default_rng(seed).normal(0, 0.1, weak_N.size), 0, 1)
    deltas_N = ((student_N > 0.5) == truth_N).astype(float) - ((weak_N > 0.5) == truth_N)
    agreement = agreement_metrics(student_N, weak_N, truth_N)["agreement"]
    se = paired_difference_se(float(deltas_N.mean()), agreement, deltas_N.size)
    assert se == pytest.approx(deltas_N.std() / math.sqrt(deltas_N.size))


def test_paired_standard_error_of_impossible_numbers_is_none():
    assert paired_difference_se(0.2, 0.95, 100) is None
    assert paired_difference_se(0.0, 1.0, 0) is None
    assert paired_difference_se(0.0, 1.0, 100) == 0.0


@pytest.mark.parametrize(
    ("p", "truth"),
    [
        ([], []),
        ([0.5, float("nan")], [0, 1]),
        ([0.5, 1.5], [0, 1]),
        ([0.5, 0.5], [0]),
        ([0.5, 0.5], [0, 0.5]),
        ([0.5, 0.5], [0, 2]),
        ([[0.5, 0.5]], [[0, 1]]),
    ],
)
def test_bad_vectors_are_refused(p, truth):
    with pytest.raises(ValueError):
        classification_metrics(p, truth)


def test_mismatched_agreement_and_nan_accuracies_are_refused():
    with pytest.raises(ValueError, match="p_weak"):
        agreement_metrics([0.1, 0.2], [0.1], [0, 1])
    with pytest.raises(ValueError, match="finite"):
        performance_gap_recovered(float("nan"), 0.5, 0.6)


def test_a_float32_rounding_error_above_one_is_not_refused():
    assert classification_metrics([np.nextafter(np.float32(1), np.float32(2))], [1])["ece"] == 0.0


def test_overconfidence_by_hand():
    # Two bins of confidence hold documents: (.8, 1] with .9, .9, .9 of which one is right, and
    # (.6, .8] with .7, which is right, so it is not overconfident.
    p_N, truth_N = [0.9, 0.9, 0.1, 0.7], [1, 0, 1, 1]
    expected = 3 / 4 * 0.9 * (0.9 - 1 / 3)
    assert overconfidence_error(p_N, truth_N, bins=5) == pytest.approx(expected)
    assert classification_metrics([0.9, 0.9, 0.9], [1, 1, 1])["overconfidence"] == 0.0
    assert classification_metrics([0.9], [0])["overconfidence"] == pytest.approx(0.81)


def test_overconfidence_of_a_confidence_of_one_is_the_calibration_error():
    truth_N = np.array([1, 1, 1, 0] * 10)
    assert overconfidence_error(np.ones(40), truth_N) == pytest.approx(0.25)


def test_misfit_is_the_mean_squared_difference():
    metrics = agreement_metrics([0.9, 0.2, 0.5], [0.6, 0.2, 0.1], [1, 0, 1])
    assert metrics["misfit"] == pytest.approx((0.09 + 0.0 + 0.16) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_curve_against_scikit_learn(seed):
    from sklearn import calibration

    p_N, truth_N = sample(seed)
    p_N = np.clip(p_N + 1e-4, 0, 1)  # away from edges, whose side is a convention
    shares, means = calibration.calibration_curve(truth_N, p_N, n_bins=7)
    curve = calibration_curve(p_N, truth_N, bins=7)
    assert [b["share"] for b in curve] == pytest.approx(shares)
    assert [b["mean_p"] for b in curve] == pytest.approx(means)
    assert sum(b["n"] for b in curve) == p_N.size
    for b in curve:
        inside = (p_N > b["low"]) & (p_N <= b["high"])
        assert b["n"] == inside.sum()
