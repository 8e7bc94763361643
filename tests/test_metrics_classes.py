"""Metrics of more than two classes: by hand, by slow loops, and against two classes."""

import json
import math
import warnings

import numpy as np
import pytest

from w2s_jax.metrics.classification import (
    agreement_metrics,
    auroc,
    calibration_curve,
    class_probabilities,
    classification_metrics,
    expected_calibration_error,
    overconfidence_error,
    predicted_classes,
)
from w2s_jax.metrics.intervals import mcnemar, pgr_interval
from w2s_jax.store.artifacts import read_predictions, write_predictions

# Five documents of three classes: predictions 0, 1, 1, 2, 0; the fourth and fifth are wrong.
P = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]])
TRUTH = np.array([0, 1, 1, 0, 1])


def softmax(seed, n, classes, scale=2.0):
    logits_NC = scale * np.random.default_rng(seed).normal(size=(n, classes))
    p_NC = np.exp(logits_NC)
    return (p_NC / p_NC.sum(axis=1, keepdims=True)).astype(np.float32)


def sample(seed, n=400, classes=5):
    """Predictions that are right more often than not, float32 as a model's."""
    truth_N = np.random.default_rng(seed + 100).integers(0, classes, n)
    p_NC = softmax(seed, n, classes) + 0.5 * np.eye(classes, dtype=np.float32)[truth_N]
    return p_NC / p_NC.sum(axis=1, keepdims=True), truth_N


def pairs_auroc(score_N, positive_N):
    pairs = [(a > b) + (a == b) / 2 for a in score_N[positive_N] for b in score_N[~positive_N]]
    return sum(pairs) / len(pairs)


def test_metrics_by_hand():
    found = classification_metrics(P, TRUTH)
    assert found["accuracy"] == 3 / 5 and found["n"] == 5
    assert found["accuracy_se"] == pytest.approx(math.sqrt(0.6 * 0.4 / 5))
    # F1 = 2 tp / (2 tp + fp + fn): class 0: 1 tp, 1 fp, 1 fn; class 1: 2 tp, 1 fn; class 2: 1 fp.
    assert found["macro_f1"] == pytest.approx((2 / 4 + 4 / 5 + 0) / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.7, 0.8, 0.4, 0.2, 0.3]).mean())
    # Class 0 against the rest: .7 and .2 against .1, .3, .5; class 1: .8, .4, .3 against .2, .2.
    assert found["auroc"] == pytest.approx(((3 + 1) / 6 + 1) / 2)
    # Confidences .7 and .8 right, .4 right, .6 and .5 wrong, all in bins of their own.
    assert found["ece"] == pytest.approx((0.3 + 0.2 + 0.6 + 0.6 + 0.5) / 5)
    assert found["overconfidence"] == pytest.approx((0.6**2 + 0.5**2) / 5)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_against_loops(seed):
    p_NC, truth_N = sample(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(p_NC, truth_N)
    predicted_N = [max(range(5), key=lambda c, row=row: row[c]) for row in p_NC]
    assert found["accuracy"] == np.mean(predicted_N == truth_N)
    losses = [-math.log(float(row[t])) for row, t in zip(p_NC, truth_N, strict=True)]
    assert found["log_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    areas = [pairs_auroc(p_NC[:, c], truth_N == c) for c in range(5)]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    scores = []
    for c in range(5):
        pairs = list(zip(predicted_N, truth_N.tolist(), strict=True))
        hits = pairs.count((c, c))
        scores.append(2 * hits / (predicted_N.count(c) + truth_N.tolist().count(c)))
    assert found["macro_f1"] == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("seed", [0, 1])
def test_top_class_is_calibrated_as_a_binary_prediction_with_the_same_confidence(seed):
    # No binary prediction has a confidence below one half, which some of five classes have.
    p_NC, truth_N = sample(seed)
    confident_N = p_NC.max(axis=1) > 0.5
    assert 0.1 < confident_N.mean() < 0.9
    p_NC, truth_N = p_NC[confident_N], truth_N[confident_N]
    right_N = p_NC.argmax(axis=1) == truth_N
    top_N = p_NC.max(axis=1)
    for metric in (expected_calibration_error, overconfidence_error):
        assert metric(p_NC, truth_N) == pytest.approx(metric(top_N, right_N), abs=1e-12)
    assert calibration_curve(p_NC, truth_N) == calibration_curve(top_N, right_N)


def test_a_third_class_without_documents_leaves_two_class_metrics():
    rng = np.random.default_rng(3)
    p_N, truth_N = rng.random(300), rng.integers(0, 2, 300)
    p_NC = np.stack([1 - p_N, p_N, np.zeros(300)], axis=1)
    two, three = classification_metrics(p_N, truth_N), classification_metrics(p_NC, truth_N)
    assert three.keys() - two.keys() == {"macro_f1", "log_loss"}
    assert {k: three[k] for k in two} == pytest.approx(two)
    other_N = rng.random(300)
    other_NC = np.stack([1 - other_N, other_N, np.zeros(300)], axis=1)
    assert agreement_metrics(p_NC, other_NC, truth_N) == pytest.approx(
        agreement_metrics(p_N, other_N, truth_N)
    )
    assert mcnemar(p_NC, other_NC, truth_N) == mcnemar(p_N, other_N, truth_N)
    ceiling_NC = np.eye(3)[truth_N]
    assert pgr_interval(p_NC, other_NC, ceiling_NC, truth_N) == pgr_interval(
        p_N, other_N, truth_N, truth_N
    )


def test_metrics_do_not_depend_on_the_order_of_classes_or_documents():
    p_NC, truth_N = sample(4)
    order_C, order_N = np.random.default_rng(0).permutation(5), np.arange(400)[::-1]
    renamed_N = np.argsort(order_C)[truth_N]
    shuffled = classification_metrics(p_NC[order_N][:, order_C], renamed_N[order_N])
    assert shuffled == pytest.approx(classification_metrics(p_NC, truth_N))


def test_a_tie_predicts_the_lowest_class():
    assert predicted_classes([[0.2, 0.4, 0.4], [1 / 3] * 3, [0.5, 0, 0.5]]).tolist() == [1, 0, 0]
    assert predicted_classes([0.5, 0.51, 0.2]).tolist() == [0, 1, 0]


def test_absent_classes_and_one_class_only():
    # Only classes 1 and 2 of four occur: their areas are averaged.
    p_NC, truth_N = softmax(5, 60, 4), np.arange(60) % 2 + 1
    wanted = np.mean([pairs_auroc(p_NC[:, c], truth_N == c) for c in (1, 2)])
    assert auroc(p_NC, truth_N) == pytest.approx(wanted)
    found = classification_metrics(p_NC, np.full(60, 3))
    assert found["auroc"] is None and found["log_loss"] > 0
    # A class without documents and predictions is not part of the mean.
    perfect = classification_metrics(np.eye(4)[[0, 1, 1]], [0, 1, 1])
    assert perfect["macro_f1"] == 1 and perfect["log_loss"] == pytest.approx(0)


def test_calibration_curve_is_that_of_the_predicted_class():
    rows = calibration_curve(P, TRUTH, 2)
    # .4 and .5 are in the lower half: right and wrong; .6, .7, .8 above it: wrong, right, right.
    assert [(r["n"], r["share"]) for r in rows] == [(2, 0.5), (3, pytest.approx(2 / 3))]
    assert [r["mean_p"] for r in rows] == pytest.approx([0.45, 0.7])


def test_agreement_by_hand():
    weak = P
    student = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0, 1, 0], [0.1, 0.1, 0.8], [0, 0, 1]])
    found = agreement_metrics(student, weak, TRUTH)
    # Predictions 0, 0, 1, 2, 2 against 0, 1, 1, 2, 0, of which the first three are right.
    assert found["agreement"] == 3 / 5
    assert found["agreement_when_correct"] == pytest.approx(2 / 3)
    # Both wrong in the same way counts as agreement, in different ways does not.
    assert found["agreement_when_wrong"] == pytest.approx(1 / 2)
    squares = [0, 0.25 + 0.25, 0.09 + 0.36 + 0.09, 0.01 + 0.01 + 0.04, 0.25 + 0.09 + 0.64]
    assert found["misfit"] == pytest.approx(sum(squares) / 2 / 5)


def test_tests_and_intervals_count_right_predictions():
    first_NC, truth_N = sample(6)
    second_NC = softmax(8, 400, 5)
    right = [p.argmax(axis=1) == truth_N for p in (first_NC, second_NC)]
    found = mcnemar(first_NC, second_NC, truth_N)
    assert found["first_only"] == np.sum(right[0] & ~right[1])
    assert found["second_only"] == np.sum(right[1] & ~right[0])
    # Right or wrong is all that matters: the same as binary predictions with this pattern.
    binary = [np.where(r, 0.9, 0.1) for r in right]
    assert pgr_interval(second_NC, first_NC, np.eye(5)[truth_N], truth_N) == pgr_interval(
        binary[1], binary[0], np.ones(400), np.ones(400)
    )


@pytest.mark.parametrize(
    ("p", "truth", "message"),
    [
        ([[0.5, 0.5]], [1], r"C > 2 classes, got shape \(1, 2\)"),
        ([[0.2, 0.2, 0.2]], [0], "rows must sum to 1, row 0 sums to 0.6"),
        ([[0.5, 0.6, -0.1]], [0], "finite and in"),
        ([[math.nan, 0.5, 0.5]], [0], "finite and in"),
        ([[0.2, 0.3, 0.5]], [3], "integers from 0 to 2"),
        ([[0.2, 0.3, 0.5]], [-1], "integers from 0 to 2"),
        ([[0.2, 0.3, 0.5]], [0.5], "integers from 0 to 2"),
        ([[0.2, 0.3, 0.5]], [math.nan], "integers from 0 to 2"),
        ([[0.2, 0.3, 0.5]], [0, 1], r"expected shape \(1,\)"),
        (np.zeros((0, 3)), [], "non-empty"),
        (np.full((1, 1, 3), 1 / 3), [0], "non-empty vector or"),
    ],
)
def test_bad_input_is_refused(p, truth, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(p, truth)


def test_both_models_have_the_same_classes():
    with pytest.raises(ValueError, match=r"p_weak: expected shape \(5, 3\), got \(5,\)"):
        agreement_metrics(P, P[:, 0], TRUTH)


def test_two_classes_are_reduced_to_a_vector():
    p_NC = softmax(9, 20, 2)
    np.testing.assert_array_equal(class_probabilities(p_NC), p_NC[:, 1])
    np.testing.assert_array_equal(class_probabilities(P), P)


@pytest.mark.parametrize("classes", [2, 3, 25])
def test_predictions_are_read_back_as_written(tmp_path, classes):
    import pyarrow.parquet as pq

    p_NC = softmax(10, 30, classes)
    p = class_probabilities(p_NC)
    truth_N = (np.arange(30) % classes).astype(np.float32 if classes == 2 else np.int32)
    columns = {"id": np.arange(30, dtype=np.uint64), "p": p, "label": truth_N[::-1],
               "split": ["validation"] * 10 + ["test"] * 20, "ground_truth": truth_N}  # fmt: skip
    path = tmp_path / "predictions.parquet"
    write_predictions(path, columns)
    for split, rows in (("validation", slice(0, 10)), ("test", slice(10, 30))):
        found = read_predictions(path, split)
        for name in ("id", "p", "label", "ground_truth"):
            np.testing.assert_array_equal(found[name], columns[name][rows])
            assert found[name].dtype == columns[name].dtype
    assert len(read_predictions(path, "none")["p"]) == 0
    kinds = {field.name: str(field.type) for field in pq.read_schema(path)}
    values = ("float", "float", "float")
    if classes > 2:
        values = (f"fixed_size_list<element: float>[{classes}]", "int32", "int32")
    assert tuple(kinds[name] for name in ("p", "label", "ground_truth")) == values
