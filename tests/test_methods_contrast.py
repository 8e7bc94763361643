"""Contrast-consistent search on planted directions, which labels never see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax.methods.contrast_consistent_search import (
    ccs_loss,
    fit_ccs,
    normalised,
    oriented,
    predict_ccs,
)


def planted(seed, num=400, dim=24):
    """Hidden states of two completions: the truth of each, which completion it is, and noise."""
    rng = np.random.default_rng(seed)
    truth_direction_D, which_D = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
    truth_N = rng.random(num) < 0.5
    sign_N = np.where(truth_N, 3.0, -3.0)[:, None]
    plus_ND = rng.normal(size=(num, dim)) + sign_N * truth_direction_D + 20 * which_D
    minus_ND = rng.normal(size=(num, dim)) - sign_N * truth_direction_D - 20 * which_D
    return plus_ND, minus_ND, truth_N, truth_direction_D


def test_normalised_features_have_mean_0_and_deviation_1():
    features_ND = np.random.default_rng(0).normal(3, 5, (50, 4)).astype(np.float32)
    features_ND[:, 2] = 0.1
    out_ND = normalised(features_ND)
    assert out_ND.dtype == np.float32 and not out_ND[:, 2].any()
    np.testing.assert_allclose(out_ND.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(out_ND.std(0)[[0, 1, 3]], 1, atol=1e-5)


def test_the_loss_is_that_of_the_paper():
    rng = np.random.default_rng(1)
    plus_ND, minus_ND = rng.normal(size=(2, 6, 3)).astype(np.float32)
    params = {"kernel": jnp.asarray([0.5, -1.0, 2.0]), "bias": jnp.asarray(0.25)}
    total = 0.0
    for a, b in zip(plus_ND, minus_ND, strict=True):
        p, q = (1 / (1 + np.exp(-(x @ [0.5, -1.0, 2.0] + 0.25))) for x in (a, b))
        total += (p - (1 - q)) ** 2 + min(p, q) ** 2
    assert float(ccs_loss(params, plus_ND, minus_ND)) == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_direction_is_found_without_labels(seed):
    plus_ND, minus_ND, truth_N, direction_D = planted(seed)
    plus_ND, minus_ND = normalised(plus_ND), normalised(minus_ND)
    params = fit_ccs(plus_ND, minus_ND, seed=seed, steps=300)
    assert params["kernel"].shape == (24,) and params["bias"].shape == ()
    cosine = params["kernel"] @ direction_D / np.linalg.norm(params["kernel"])
    assert abs(cosine) > 0.8
    p_N = predict_ccs(params, plus_ND, minus_ND)
    assert p_N.shape == (400,) and p_N.dtype == np.float32
    # Weak labels that are right 65 times in a hundred are enough to tell which end is which.
    weak_N = np.where(np.random.default_rng(9).random(400) < 0.65, truth_N, ~truth_N)
    for either_N in (p_N, 1 - p_N):
        assert np.mean((oriented(either_N, weak_N) > 0.5) == truth_N) > 0.97


def test_predictions_average_both_completions():
    params = {"kernel": np.array([2.0], np.float32), "bias": np.float32(0.5)}
    plus, minus = np.array([[1.0]]), np.array([[-0.25]])
    p, q = 1 / (1 + np.exp(-2.5)), 0.5
    assert predict_ccs(params, plus, minus)[0] == pytest.approx((p + 1 - q) / 2)


def test_of_all_tries_the_one_of_the_least_loss_is_kept():
    plus_ND, minus_ND, _, _ = planted(5, num=60)
    plus_ND, minus_ND = normalised(plus_ND), normalised(minus_ND)
    params = fit_ccs(plus_ND, minus_ND, seed=1, tries=20, steps=2)
    kernels_tD = np.array(jax.random.normal(jax.random.key(1), (20, 24)))
    kernels_tD /= np.linalg.norm(kernels_tD, axis=1, keepdims=True)
    loss_t = [
        float(ccs_loss({"kernel": k, "bias": jnp.zeros(())}, plus_ND, minus_ND)) for k in kernels_tD
    ]
    # Two steps move no kernel far: the one kept is the best start, a little better.
    best = int(np.argmin(loss_t))
    assert int(np.argmax(kernels_tD @ params["kernel"])) == best
    assert float(ccs_loss(params, plus_ND, minus_ND)) < loss_t[best]


def test_orientation_follows_the_weak_labels_of_either_shape():
    p_N = np.array([0.9, 0.8, 0.3, 0.4], np.float32)
    weak_NC = np.array([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.1, 0.9]])
    np.testing.assert_allclose(oriented(p_N, weak_NC), 1 - p_N)
    np.testing.assert_allclose(oriented(p_N, 1 - weak_NC[:, 1]), p_N)
    np.testing.assert_allclose(oriented(p_N, np.array([1, 0, 0, 1])), p_N)
