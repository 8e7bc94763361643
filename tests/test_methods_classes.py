"""Methods with more than two classes, against closed forms and brute force."""

import numpy as np
import pytest
from scipy.special import softmax

from w2s_jax.methods import activations, confidence_threshold, ensembles, synthetic
from w2s_jax.methods.labels import probabilities_of

CLASSES = 3


def soft_labels(num, classes=CLASSES, seed=0):
    logits = np.random.default_rng(seed).normal(size=(num, classes))
    return softmax(2 * logits, axis=1).astype(np.float32)


def clusters(num=90, seed=0):
    """Features of three distant groups, and the group of each document."""
    rng = np.random.default_rng(seed)
    group_N = np.arange(num) % CLASSES
    centers = 10 * np.eye(CLASSES)
    return centers[group_N] + rng.normal(size=(num, CLASSES)), group_N


def test_the_mean_of_logits_is_a_geometric_mean():
    members = [soft_labels(50, seed=seed) for seed in range(4)]
    weights = np.array([1.0, 2.0, 0.5, -1.0])
    product = np.prod(
        [m.astype(np.float64) ** (w / 4.5) for m, w in zip(members, weights, strict=True)], 0
    )
    wanted = product / product.sum(1, keepdims=True)
    np.testing.assert_allclose(ensembles.mean_logits(members, weights), wanted, rtol=2e-6)


def test_boosting_equals_samme():
    """With Zhu et al.'s codes: 1 for the predicted class, -1 / (K - 1) for each other one."""
    rng = np.random.default_rng(1)
    for classes in (2, 3, 7):
        members = [soft_labels(40, classes, seed) for seed in range(5)]
        alphas, scores_NC = [], np.zeros((40, classes))
        for member in members:
            wrong_N, weights_N = rng.random(40) < 0.3, rng.random(40)
            alpha, next_N = ensembles.adaboost_round(weights_N, wrong_N, classes)
            error = weights_N[wrong_N].sum() / weights_N.sum()
            own = np.log((1 - error) / error) + np.log(classes - 1)
            wanted_N = weights_N * np.exp(own * wrong_N)
            np.testing.assert_allclose(next_N, wanted_N / wanted_N.sum(), rtol=1e-9)
            beta = (classes - 1) ** 2 / classes * own
            code = np.full((40, classes), -1 / (classes - 1))
            code[np.arange(40), member.argmax(1)] = 1
            scores_NC += beta * code
            alphas.append(alpha)
        made_NC = ensembles.vote(members, alphas)
        np.testing.assert_allclose(made_NC, softmax(scores_NC / (classes - 1), axis=1), rtol=1e-5)


@pytest.mark.parametrize("structure", synthetic.STRUCTURES)
def test_synthetic_labels_have_as_many_errors_as_asked(structure):
    rng = np.random.default_rng(2)
    truth_N, weak_NC, strong_NC = (
        rng.integers(0, 3, 300),
        soft_labels(300),
        soft_labels(300, seed=1),
    )
    made_NC = synthetic.synthetic_labels(
        structure,
        truth_N,
        0.4,
        seed=3,
        lengths_N=rng.integers(1, 99, 300),
        strong_soft_NC=strong_NC,
        weak_soft_NC=weak_NC,
        confidence=0.8,
        classes=3,
    )
    np.testing.assert_allclose(np.sort(made_NC, axis=1), [[0.1, 0.1, 0.8]] * 300, rtol=1e-6)
    wrong_N = made_NC.argmax(1) != truth_N
    assert wrong_N.sum() == 120
    # Both other classes occur.
    assert {1, 2} == set(((made_NC.argmax(1) - truth_N) % 3)[wrong_N].tolist())
    confidence_N = strong_NC.max(1)
    if structure == "strong_confident":
        assert confidence_N[wrong_N].min() >= confidence_N[~wrong_N].max()
    if structure == "strong_unconfident":
        assert confidence_N[wrong_N].max() <= confidence_N[~wrong_N].min()


def test_synthetic_labels_repeat_the_weak_models_errors():
    truth_N, weak_NC = np.random.default_rng(4).integers(0, 3, 200), soft_labels(200)
    rate = float(np.mean(weak_NC.argmax(1) != truth_N))
    made_NC = synthetic.synthetic_labels(
        "weak", truth_N, rate, seed=0, weak_soft_NC=weak_NC, classes=3
    )
    np.testing.assert_array_equal(made_NC.argmax(1), weak_NC.argmax(1))


def test_the_most_confident_of_each_class_are_kept():
    soft_NC = soft_labels(101)
    for share in (0.1, 0.5, 0.77):
        keep_N = confidence_threshold.most_confident(soft_NC, share)
        predicted_N, confidence_N = soft_NC.argmax(1), soft_NC.max(1)
        assert keep_N.sum() == round(101 * share)
        for c in range(3):
            own_N = predicted_N == c
            exact = own_N.sum() * keep_N.sum() / 101
            assert abs((keep_N & own_N).sum() - exact) < 1
            assert confidence_N[own_N & keep_N].min() >= confidence_N[own_N & ~keep_N].max()


def test_two_classes_are_rounded_half_up_for_the_second():
    for num, share, seed in ((6, 0.5, 0), (7, 0.4, 1), (10, 0.3, 2), (9, 0.9, 3)):
        soft_NC = soft_labels(num, 2, seed)
        keep_N = confidence_threshold.most_confident(soft_NC, share)
        ones_N, kept = soft_NC[:, 1] > 0.5, min(num, max(2, round(num * share)))
        assert (keep_N & ones_N).sum() == int(np.floor(kept * ones_N.sum() / num + 0.5))
        assert keep_N.sum() == kept


def test_neighbours_average_soft_labels():
    features_ND, _ = clusters()
    soft_NC = soft_labels(90)
    made_NC = activations.neighbours(features_ND, soft_NC, k=4)
    for n in (0, 17, 89):
        distance_N = np.linalg.norm(features_ND - features_ND[n], axis=1)
        distance_N[n] = np.inf
        wanted_C = soft_NC[np.argsort(distance_N)[:4]].mean(0)
        np.testing.assert_allclose(made_NC[n], wanted_C, rtol=1e-6)


def test_a_regression_on_two_classes_is_the_multinomial_one():
    """A multinomial regression of two classes has two opposite rows, each half as penalised."""
    features_ND, _ = clusters()
    soft_NC = soft_labels(90, 2)
    two_N = activations.regress(features_ND, probabilities_of(soft_NC), features_ND)
    many_NC = activations.regress_classes(features_ND, soft_NC.astype(np.float64), features_ND)
    np.testing.assert_allclose(many_NC[:, 1], two_N, atol=0.02)
    np.testing.assert_allclose(many_NC.sum(1), 1, rtol=1e-6)


def test_a_regression_never_predicts_a_class_without_labels():
    features_ND, group_N = clusters()
    soft_NC = np.eye(4)[group_N]
    made_NC = activations.regress_classes(features_ND, soft_NC, features_ND)
    assert (made_NC[:, 3] == 0).all() and (made_NC.argmax(1) == group_N).all()
    only = np.tile([0.0, 1.0, 0.0], (90, 1))
    np.testing.assert_array_equal(activations.regress_classes(features_ND, only, features_ND), only)


@pytest.mark.parametrize("judge", activations.JUDGES)
def test_flipped_labels_are_the_most_suspicious(judge):
    features_ND, group_N = clusters()
    flipped_N = np.arange(90) % 10 == 7
    soft_NC = np.eye(3, dtype=np.float32)[np.where(flipped_N, (group_N + 1) % 3, group_N)]
    options = {} if judge == "logistic" else {"k": 10}
    score_N = activations.suspicious(judge, features_ND, soft_NC, **options)
    assert score_N[flipped_N].min() > score_N[~flipped_N].max()
    judged_NC = activations.neighbours(features_ND, soft_NC, k=10)
    made_NC = activations.relabel_suspicious(score_N, judged_NC, soft_NC, share=0.1)
    np.testing.assert_array_equal(made_NC.argmax(1), group_N)


def test_probabilities_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        probabilities_of([[0.5, 0.6, -0.1]])
