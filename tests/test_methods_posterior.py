"""The posterior of the truth on data from its own model."""

import numpy as np
import pytest
from scipy.special import expit

from w2s_jax.methods.em_posterior import _fitted, posterior
from w2s_jax.methods.labels import soft_labels


def simulated(seed, *, slope=1.5, errors="calibrated", hard=False, scale=1.0, num=4000):
    """Margins, weak soft labels and the truth; and the posterior by the true parameters."""
    rng = np.random.default_rng(seed)
    margin_N = 2 * rng.normal(size=num)
    prior_N = expit(slope * margin_N + 0.2)
    truth_N = rng.random(num) < prior_N
    certainty_N = np.abs(1.5 * rng.normal(size=num)) + 0.05
    rates = {
        "calibrated": (expit(certainty_N), expit(certainty_N)),
        "one-sided": (expit(certainty_N - 0.5), expit(certainty_N + 1)),
        "none": (np.ones(num), np.ones(num)),
    }[errors]
    right_N = rng.random(num) < np.where(truth_N, *rates)
    weak_N = truth_N == right_N
    p_N = weak_N.astype(float) if hard else expit(np.where(weak_N, 1, -1) * scale * certainty_N)
    with np.errstate(divide="ignore"):
        yes, no = (
            np.where(weak_N, rates[0], 1 - rates[0]),
            np.where(weak_N, 1 - rates[1], rates[1]),
        )
    exact_N = prior_N * yes / (prior_N * yes + (1 - prior_N) * no)
    return margin_N, soft_labels(p_N), truth_N, exact_N


def accuracy(soft, truth_N):
    p_N = soft[:, 1] if soft.ndim == 2 else soft
    return np.mean((p_N > 0.5) == truth_N)


@pytest.mark.parametrize("errors", ["calibrated", "one-sided"])
@pytest.mark.parametrize("scale", [1.0, 2.5])  # 2.5: the weak model is overconfident
def test_it_is_better_than_the_weak_labels_and_the_margin(errors, scale):
    margin_N, soft_NC, truth_N, exact_N = simulated(0, errors=errors, scale=scale)
    best = max(accuracy(soft_NC, truth_N), accuracy(expit(margin_N), truth_N))
    two = posterior(margin_N, soft_NC)
    assert two.dtype == np.float32 and two.shape == (4000, 2)
    assert accuracy(two, truth_N) > accuracy(soft_NC, truth_N) + 0.07
    converged_NC = posterior(margin_N, soft_NC, rounds=60)
    assert accuracy(converged_NC, truth_N) > best + 0.03
    # At convergence it is what the true parameters give.
    assert accuracy(exact_N, truth_N) - accuracy(converged_NC, truth_N) < 0.005
    assert np.mean(np.abs(converged_NC[:, 1] - exact_N)) < 0.03


def test_hard_labels_can_be_corrected_too():
    margin_N, soft_NC, truth_N, _ = simulated(1, hard=True)
    assert accuracy(posterior(margin_N, soft_NC), truth_N) > accuracy(soft_NC, truth_N) + 0.03


@pytest.mark.parametrize("hard", [False, True])
def test_clean_labels_stay(hard):
    margin_N, soft_NC, truth_N, _ = simulated(2, errors="none", hard=hard)
    assert accuracy(soft_NC, truth_N) == 1
    assert accuracy(posterior(margin_N, soft_NC), truth_N) > 0.975
    assert accuracy(posterior(margin_N, soft_NC, rounds=60), truth_N) > 0.995


@pytest.mark.parametrize("hard", [False, True])
def test_a_margin_that_says_nothing_leaves_the_labels(hard):
    margin_N, soft_NC, _, _ = simulated(3, slope=0.0, errors="one-sided", hard=hard)
    for empty_N in (margin_N, np.full(4000, 3.0)):
        posterior_NC = posterior(empty_N, soft_NC)
        # Only near ties may turn (the classes are not equally frequent).
        sure_N = np.abs(soft_NC[:, 1] - 0.5) > 0.2
        same_N = (posterior_NC[:, 1] > 0.5) == (soft_NC[:, 1] > 0.5)
        assert same_N[sure_N].mean() > 0.99


def test_scale_place_and_sign_of_the_margin_do_not_matter():
    margin_N, soft_NC, _, _ = simulated(4)
    expected_NC = posterior(margin_N, soft_NC)
    for other_N in (1000 * margin_N + 7, -0.001 * margin_N):
        np.testing.assert_allclose(posterior(other_N, soft_NC), expected_NC, atol=1e-5)
    flipped_NC = posterior(margin_N, soft_NC[:, ::-1])
    np.testing.assert_allclose(flipped_NC[:, ::-1], expected_NC, atol=1e-5)


@pytest.mark.parametrize("p", [0.0, 1.0, 0.5, 0.7])
def test_it_is_finite_at_the_extremes(p):
    margins = [np.zeros(5), np.array([-1e9, 0, 1e9, 1, 2]), np.arange(5.0)]
    for margin_N in margins:
        for rounds in (0, 1, 50):
            posterior_NC = posterior(margin_N, soft_labels(np.full(5, p)), rounds)
            assert np.isfinite(posterior_NC).all()
            np.testing.assert_allclose(posterior_NC.sum(1), 1, atol=1e-6)
    separable_NC = posterior(np.arange(-50.0, 50), soft_labels(np.arange(100) >= 50), 50)
    np.testing.assert_array_equal(separable_NC[:, 1] > 0.5, np.arange(100) >= 50)


def test_no_single_label_is_taken_to_be_certain():
    # All labels agree with margins of their own sign, but for one document the margin is at zero.
    margin_N = np.concatenate([np.linspace(-2, -1, 50), np.linspace(1, 2, 50), [0.0]])
    soft_NC = soft_labels(np.repeat([0.0, 1.0], [50, 51]))
    for rounds in (2, 60):
        assert 0.98 < posterior(margin_N, soft_NC, rounds)[-1, 1] < 0.995


def test_saturated_probabilities_count_as_very_sure_ones():
    margin_N, soft_NC, _, _ = simulated(5, scale=2.5)
    p_N = soft_NC[:, 1]
    saturated_N = np.where(p_N > 0.9976, 1, np.where(p_N < 0.0024, 0, p_N))
    sure_N = p_N.clip(0.0024, 0.9976)
    assert 0.1 < np.mean(saturated_N != sure_N) < 0.5
    expected_NC = posterior(margin_N, soft_labels(sure_N))
    np.testing.assert_allclose(
        posterior(margin_N, soft_labels(saturated_N)), expected_NC, atol=0.003
    )


def test_the_fit_is_the_minimum_that_a_general_optimiser_finds():
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    x_N, target_N, weights_N = rng.normal(2, 3, 50), rng.random(50), rng.random(50)
    z_N = (x_N - x_N.mean()) / x_N.std()

    def objective(ab):
        logits_N = ab[0] * z_N + ab[1]
        loss_N = np.logaddexp(0, logits_N) - target_N * logits_N
        return weights_N @ loss_N + 0.5 * (ab[0] ** 2 + 1e-3 * ab[1] ** 2)

    slope, intercept = minimize(objective, [0.0, 0.0], tol=1e-10).x
    np.testing.assert_allclose(
        _fitted(x_N, target_N, weights_N), slope * z_N + intercept, atol=1e-5
    )


def test_bad_margins_are_refused():
    soft_NC = soft_labels([0.2, 0.8])
    for margin_N in ([1.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="margin_N"):
            posterior(np.array(margin_N), soft_NC)
