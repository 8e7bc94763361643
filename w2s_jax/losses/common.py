"""Parts of several losses: weighted means, thresholds, warm-ups."""

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jax, jnp


def own_weight(default: float) -> Option:
    """Return the option for the weight of the student's own predictions."""
    return Option(
        default, "Weight of the student's own predictions after the warm-up", low=0, high=1
    )


def warmup(default: float) -> Option:
    """Return the option for the length of the warm-up of that weight."""
    return Option(default, "Share of training in which that weight rises", low=0, high=1)


def log_probabilities(logits_BC: Array) -> Array:
    """Return log softmax of the logits, float32 [B, C]."""
    return jax.nn.log_softmax(logits_BC.astype(jnp.float32), axis=-1)


def weighted_mean(values_B: Array, weights_B: Array | None) -> Array:
    """Return sum(weights values) / sum(weights), float32; 0 where all weights are 0."""
    values_B = values_B.astype(jnp.float32)
    if weights_B is None:
        return jnp.mean(values_B)
    weights_B = weights_B.astype(jnp.float32)
    return jnp.sum(weights_B * values_B) / jnp.maximum(jnp.sum(weights_B), 1e-9)


def soft_cross_entropy(logits_BC: Array, targets_BC: Array, weights_B: Array | None) -> Array:
    """Return the weighted mean of -sum_c targets_bc log softmax(logits_b)_c, float32."""
    log_p_BC = log_probabilities(logits_BC)
    return weighted_mean(-jnp.sum(targets_BC.astype(jnp.float32) * log_p_BC, axis=-1), weights_B)


def linear_warmup(step_fraction: Array | float, warmup_fraction: Array | float) -> Array:
    """Return a factor that rises from 0 to 1 over `warmup_fraction` of training; 1 without one."""
    ramp = jnp.asarray(step_fraction, jnp.float32) / jnp.maximum(warmup_fraction, 1e-9)
    return jnp.where(warmup_fraction > 0, jnp.minimum(ramp, 1.0), 1.0)


def taken(weights_B: Array | None, size: int) -> Array:
    """Return a mask of the documents with a weight above 0, bool [size]."""
    return jnp.ones(size, bool) if weights_B is None else weights_B > 0


def hardened_share(scores_B: Array, share: Array | float, weights_B: Array) -> Array:
    """Return 1 for the top `share` of the batch's weight and 0 for the rest, float32 [B].

    The sum of the weights of the top is exactly share * sum(weights). Documents that tie at the
    threshold share the remainder equally, so the result does not depend on their order; with an odd
    batch and a share of one half, the median document gets 1/2.
    """
    mass = share * jnp.sum(weights_B)
    above_B = jnp.sum(weights_B[None, :] * (scores_B[None, :] > scores_B[:, None]), axis=1)
    tied_B = jnp.sum(weights_B[None, :] * (scores_B[None, :] == scores_B[:, None]), axis=1)
    return jnp.clip((mass - above_B) / jnp.maximum(tied_B, 1e-9), 0.0, 1.0)


def hardened(scores_BC: Array) -> Array:
    """Return 1 for the class of the highest score, 0 for others, equal parts for ties, [B, C]."""
    if scores_BC.shape[1] != 2:
        highest_BC = scores_BC == jnp.max(scores_BC, axis=1, keepdims=True)
        shared_BC = highest_BC / jnp.maximum(jnp.sum(highest_BC, axis=1, keepdims=True), 1)
        return jax.lax.stop_gradient(shared_BC.astype(jnp.float32))
    positive_B = 0.5 + 0.5 * jnp.sign(scores_BC[:, 1] - scores_BC[:, 0])
    return jax.lax.stop_gradient(jnp.stack([1.0 - positive_B, positive_B], axis=1))


def quantile(values_B: Array, taken_B: Array, level: Array | float) -> Array:
    """Return the linearly interpolated quantile of the values where `taken_B`, float32.

    Below the middle of two neighbours it is a + t (b - a), above it b - (1 - t) (b - a), which is
    exactly a or b where the position is that of a value.
    """
    ordered_B = jnp.sort(jnp.where(taken_B, values_B, jnp.inf))
    last = jnp.maximum(jnp.sum(taken_B) - 1, 0)
    position = jnp.clip(level, 0.0, 1.0) * last.astype(jnp.float32)
    low = jnp.floor(position).astype(jnp.int32)
    high = jnp.minimum(low + 1, last)
    t = position - low
    a, b = ordered_B[low], ordered_B[high]
    return jnp.where(t < 0.5, a + t * (b - a), b - (1.0 - t) * (b - a))
