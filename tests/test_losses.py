"""Losses against closed forms in float64 numpy; registering one; their configs."""

import functools

import jax
import numpy as np
import pytest

from w2s_jax import config as config_lib
from w2s_jax import errors, losses


def confidence_by_hand(logits_BC, targets_BC, fraction, weights_B, alpha_max, warmup, threshold):
    """The confidence loss in float64 numpy: sort, then hand out the positive mass from the top."""
    logits = logits_BC.astype(np.float64)
    targets = targets_BC.astype(np.float64)
    weights = np.asarray(weights_B, np.float64)
    share = 0.5 if threshold == "half" else (weights @ targets[:, 1]) / weights.sum()
    left = share * weights.sum()
    margins = logits_BC[:, 1] - logits_BC[:, 0]
    positive = np.zeros(len(logits))
    for margin in sorted(set(margins.tolist()), reverse=True):
        tied = margins == margin
        mass = weights[tied].sum()
        if mass > 0:
            positive[tied] = min(1.0, left / mass)
        left = max(0.0, left - mass)
    alpha = alpha_max * min(fraction / warmup, 1.0)
    mixed = (1 - alpha) * targets + alpha * np.stack([1 - positive, positive], 1)
    log_z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    loss_B = -(mixed * (logits - log_z[:, None])).sum(1)
    p = np.exp(logits - log_z[:, None])
    grad = weights[:, None] * (p - mixed) / weights.sum()
    return (weights @ loss_B) / weights.sum(), grad


@functools.partial(jax.jit, static_argnums=4)
def confidence_and_grad(logits, targets, fraction, weights, threshold):
    def loss(x):
        return losses.LOSSES["confidence"](
            x, targets, fraction, weights_B=weights, alpha_max=0.75, threshold=threshold
        )

    return jax.value_and_grad(loss)(logits)


@pytest.mark.parametrize("threshold", ["half", "prior"])
@pytest.mark.parametrize("batch", [2, 7, 32])
@pytest.mark.parametrize("corner", ["plain", "ties", "weights", "hard labels", "huge logits"])
def test_confidence_equals_its_closed_form(batch, threshold, corner):
    rng = np.random.default_rng(batch)
    logits = rng.normal(size=(batch, 2)).astype(np.float32)
    soft = rng.uniform(size=batch).astype(np.float32)
    weights = np.ones(batch, np.float32)
    if corner == "ties":
        logits = np.round(logits)
    if corner == "weights":
        weights = rng.choice([0.0, 0.5, 2.0], size=batch).astype(np.float32)
        weights[0] = 1.0
    if corner == "hard labels":
        soft = np.round(soft)
    if corner == "huge logits":
        logits *= 300
    targets = np.stack([1 - soft, soft], 1)
    for fraction in (0.0, 0.05, 0.2, 0.7):
        value, grad = confidence_and_grad(logits, targets, fraction, weights, threshold)
        expected, expected_grad = confidence_by_hand(
            logits, targets, fraction, weights, 0.75, 0.2, threshold
        )
        np.testing.assert_allclose(value, expected, rtol=3e-6, atol=1e-6)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-6)


def random_batch(batch=16, seed=0):
    rng = np.random.default_rng(seed)
    soft = rng.uniform(size=batch).astype(np.float32)
    return rng.normal(size=(batch, 2)).astype(np.float32), np.stack([1 - soft, soft], 1)


def test_register_adds_a_loss_with_options_and_refuses_a_taken_name():
    @losses.register("test_only", scale=2.0)
    def test_only(logits_BC, targets_BC, step_fraction, *, weights_B=None, scale):
        return scale * losses.soft_cross_entropy(logits_BC, targets_BC, weights_B)

    try:
        logits, targets = random_batch()
        expected = 2.0 * losses.LOSSES["xent"](logits, targets, 0.0)
        np.testing.assert_allclose(losses.LOSSES["test_only"](logits, targets, 0.0), expected)
        assert config_lib.LOSS_OPTIONS["test_only"] == {"scale": 2.0}
        with pytest.raises(errors.InputError, match="test_only"):
            losses.register("test_only")(lambda *_: None)
    finally:
        del losses.LOSSES["test_only"], config_lib.LOSS_OPTIONS["test_only"]
