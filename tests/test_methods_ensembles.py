"""Ensembles against closed forms and scikit-learn's AdaBoost."""

import math

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.methods.ensembles import adaboost_round, mean_logits, resample, vote
from w2s_jax.methods.labels import soft_labels


def test_a_bootstrap_sample_leaves_out_a_share_of_one_in_e():
    index_N = resample(5000, 7)
    assert index_N.shape == (5000,) and index_N.min() >= 0 and index_N.max() < 5000
    assert 1 - len(set(index_N.tolist())) / 5000 == pytest.approx(math.exp(-1), abs=0.02)
    np.testing.assert_array_equal(index_N, resample(5000, 7))
    assert not np.array_equal(index_N, resample(5000, 8))


def test_mean_logits_is_the_normalised_geometric_mean_of_probabilities():
    rng = np.random.default_rng(0)
    p_mN = rng.uniform(0.05, 0.95, (3, 20))
    weights = np.array([1.0, 2.0, 5.0])
    for w in (None, weights, 10 * weights):
        share = np.full(3, 1 / 3) if w is None else w / w.sum()
        yes = np.prod(p_mN ** share[:, None], axis=0)
        no = np.prod((1 - p_mN) ** share[:, None], axis=0)
        soft_NC = mean_logits([soft_labels(p) for p in p_mN], w)
        assert soft_NC.dtype == np.float32
        np.testing.assert_allclose(soft_NC[:, 1], yes / (yes + no), atol=1e-6)
        np.testing.assert_allclose(mean_logits(list(p_mN), w), soft_NC, atol=1e-6)
    # Worse than chance: its opposite counts.
    np.testing.assert_allclose(mean_logits([p_mN[0]], [-2.0])[:, 1], 1 - p_mN[0], atol=1e-6)


def test_certain_members_stay_finite():
    p_N = mean_logits([[0.0, 1.0, 1.0], [1.0, 1.0, 0.5]])[:, 1]
    assert p_N[0] == pytest.approx(0.5) and 0.99999 < p_N[1] <= 1
    assert p_N[2] == pytest.approx(1 / (1 + 1e-6**0.5), rel=1e-4)


def test_adaboost_closed_form():
    alpha, weights_N = adaboost_round(np.full(10, 0.1), np.arange(10) < 3)
    assert alpha == pytest.approx(0.5 * math.log(7 / 3))
    assert weights_N.sum() == pytest.approx(1)
    # After a round its member is at chance.
    assert weights_N[:3].sum() == pytest.approx(0.5)
    assert len(set(weights_N[:3])) == 1 == len(set(weights_N[3:]))
    for wrong in (np.zeros(10, bool), np.ones(10, bool)):
        alpha, weights_N = adaboost_round(np.ones(10), wrong)
        assert abs(alpha) == pytest.approx(0.5 * math.log(1e6), rel=1e-4)
        np.testing.assert_allclose(weights_N, 0.1)


def test_adaboost_and_its_vote_against_scikit_learn():
    from sklearn.ensemble import AdaBoostClassifier
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(300, 4))
    y_N = (x_ND[:, 0] + x_ND[:, 1] ** 2 + 0.5 * rng.normal(size=300) > 1).astype(int)
    peer = AdaBoostClassifier(DecisionTreeClassifier(max_depth=1), n_estimators=8, random_state=0)
    peer.fit(x_ND, y_N)
    weights_N, alphas, members = np.ones(300), [], []
    for member in peer.estimators_:
        predicted_N = member.predict(x_ND)
        alpha, weights_N = adaboost_round(weights_N, predicted_N != y_N)
        alphas.append(alpha)
        members.append(predicted_N.astype(float))
    # Its weights are of SAMME: without the half.
    np.testing.assert_allclose(2 * np.array(alphas), peer.estimator_weights_, rtol=1e-6)
    soft_NC = vote(members, alphas)
    np.testing.assert_array_equal(soft_NC[:, 1] > 0.5, peer.predict(x_ND) == 1)
    # Its decision function is the difference of the two classes' votes, each of them the other's
    # negative, over the sum of its weights.
    total = peer.estimator_weights_.sum()
    expected_N = 1 / (1 + np.exp(-peer.decision_function(x_ND) * total / 2))
    np.testing.assert_allclose(soft_NC[:, 1], expected_N, atol=1e-5)


def test_a_vote_of_one_gives_its_accuracy_as_confidence():
    alpha, _ = adaboost_round(np.ones(10), np.arange(10) < 3)
    np.testing.assert_allclose(vote([[0.9, 0.2]], [alpha])[:, 1], [0.7, 0.3], atol=1e-6)


def test_bad_members_and_weights_are_refused():
    with pytest.raises(InputError, match="at least one member"):
        mean_logits([])
    with pytest.raises(InputError, match="at least one must not be 0"):
        mean_logits([[0.5]], [0.0])
    with pytest.raises(ValueError, match=r"weights: expected shape \(1,\)"):
        vote([[0.5]], [1.0, 2.0])
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        mean_logits([[0.5, float("nan")]])
