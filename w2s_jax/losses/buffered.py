"""The confidence losses of EleutherAI's code: its 'logconf' and its 'entropy'.

Unlike in `confidence` and `logconf`, the threshold is taken over the last predictions, including
those of earlier batches, and the labels may be balanced within a batch.
"""

from typing import Any

import numpy as np

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jax, jnp
from w2s_jax.losses.common import (
    linear_warmup,
    own_weight,
    quantile,
    soft_cross_entropy,
    taken,
    warmup,
    weighted_mean,
)
from w2s_jax.losses.registry import register

State = dict[str, Any]


def init_buffer(targets_NC: np.ndarray | None, *, buffer_size: int, **options: Any) -> State:
    """Return an empty buffer: {"p0_Q": float32 [buffer_size], "count": int32 scalar}.

    `p0_Q` has P(label 0) of the last documents, the newest at its end; its last `count` entries are
    filled. Labels and other options are not used.
    """
    del targets_NC, options
    return {"p0_Q": np.zeros(buffer_size, np.float32), "count": np.zeros((), np.int32)}


def update_buffer(
    state: State,
    logits_BC: Array,
    targets_BC: Array,
    *,
    weights_B: Array | None = None,
    **options: Any,
) -> State:
    """Return the buffer with the batch's predictions appended and the oldest ones dropped.

    Documents of weight 0 are left out.
    """
    del targets_BC, options
    p0_B = jax.lax.stop_gradient(jax.nn.softmax(logits_BC.astype(jnp.float32), axis=-1)[:, 0])
    size = state["p0_Q"].shape[0]
    filled_Q = jnp.arange(size) >= size - state["count"]
    taken_all = jnp.concatenate([filled_Q, taken(weights_B, p0_B.shape[0])])
    # A stable sort moves the entries that are taken to the end and keeps their order.
    order = jnp.argsort(taken_all, stable=True)[-size:]
    count = jnp.minimum(jnp.sum(taken_all), size).astype(jnp.int32)
    return {"p0_Q": jnp.concatenate([state["p0_Q"], p0_B])[order], "count": count}


def _balanced(targets_BC: Array, weights_B: Array | None) -> Array:
    """Return the labels with their log-odds shifted to the mean 0 over the batch, [B, C].

    Of more than two classes they are softmax_c(log(w_c + 1e-7) - m_c), with m_c the mean of the
    logarithm over the batch, which is the same for two.
    """
    if targets_BC.shape[1] != 2:
        log_w_BC = jnp.log(targets_BC + 1e-7)
        mean_C = jax.vmap(weighted_mean, in_axes=(1, None))(log_w_BC, weights_B)
        return jax.nn.softmax(log_w_BC - mean_C[None, :], axis=-1)
    # Not 1 - p + 1e-7 of one column, which is compiled as (1 + 1e-7) - p: 1.2e-7 for p = 1.
    log_odds_B = jnp.log(targets_BC[:, 1] + 1e-7) - jnp.log(targets_BC[:, 0] + 1e-7)
    p1_B = jax.nn.sigmoid(log_odds_B - weighted_mean(log_odds_B, weights_B))
    return jnp.stack([1.0 - p1_B, p1_B], axis=1)


@register(
    "buffered_confidence",
    traced=("aux_coef", "warmup_fraction"),
    init_state=init_buffer,
    update=update_buffer,
    summary="CE(f, (1 - a) w + a f_t), a = aux_coef * ramp; t: quantile of P(label 0) over the "
    "last `buffer_size` predictions, this batch's included, at the mean weak label",
    source="EleutherAI/w2s, 'logconf'",
    two_classes=True,
    aux_coef=own_weight(0.5),
    warmup_fraction=warmup(0.1),
    buffer_size=Option(32, "Predictions that the threshold is taken over", low=1, high=65536),
    balance_batch=Option(
        False, "Shift the labels' log-odds in a batch to the mean 0; the threshold is the median"
    ),
)
def buffered_confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    state: State | None = None,
    aux_coef: Array | float,
    warmup_fraction: Array | float,
    buffer_size: int,
    balance_batch: bool,
) -> Array:
    """L = CE(f, (1 - a) w + a f_t), with f_t from a threshold over the last predictions.

    f_t = 1[P(label 0) < t], without gradient: t is the quantile (linear interpolation) of P(label
    0) over the last `buffer_size` predictions, those of this batch included, at the mean weak
    label; at 1/2 with `balance_batch`, or if only one document takes part. A document at or above t
    is hardened to 0. a rises linearly from 0 to `aux_coef` over the first `warmup_fraction` of
    training. `logconf` of EleutherAI's code, which counts the warm-up in steps (100).

    Args:
      logits_BC: logits of two classes.
      targets_BC: soft labels.
      step_fraction: step / total steps.
      weights_B: weights of the documents; those of weight 0 enter neither threshold nor buffer.
      state: a buffer from `init_buffer` or `update_buffer`; None: an empty one.
      aux_coef: weight of the student's own predictions after the warm-up; 0: `xent`.
      warmup_fraction: length of the warm-up.
      buffer_size: number of predictions that the threshold is taken over.
      balance_batch: shift the log-odds of the labels of the batch to the mean 0.
    """
    logits_BC, targets_BC = logits_BC.astype(jnp.float32), targets_BC.astype(jnp.float32)
    if state is None:
        state = init_buffer(None, buffer_size=buffer_size)
    level: Array | float = 0.5
    if balance_batch:
        targets_BC = _balanced(targets_BC, weights_B)
    else:
        several = jnp.sum(taken(weights_B, targets_BC.shape[0])) > 1
        level = jnp.where(several, weighted_mean(targets_BC[:, 1], weights_B), 0.5)
    latest = update_buffer(state, logits_BC, targets_BC, weights_B=weights_B)
    filled_Q = jnp.arange(buffer_size) >= buffer_size - latest["count"]
    threshold = quantile(latest["p0_Q"], filled_Q, level)
    p0_B = jax.lax.stop_gradient(jax.nn.softmax(logits_BC, axis=-1)[:, 0])
    positive_B = (p0_B < threshold).astype(jnp.float32)
    hardened_BC = jnp.stack([1.0 - positive_B, positive_B], axis=1)
    coef = aux_coef * linear_warmup(step_fraction, warmup_fraction)
    mixed_BC = (1.0 - coef) * targets_BC + coef * hardened_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)


@register(
    "soft_buffered_confidence",
    traced=("aux_coef", "warmup_fraction"),
    summary="CE(f, (1 - a) w + a sg(f)), a = aux_coef * ramp",
    source="EleutherAI/w2s, 'entropy'",
    aux_coef=own_weight(0.5),
    warmup_fraction=warmup(0.1),
    balance_batch=Option(False, "Shift the labels' log-odds in a batch to the mean 0"),
)
def soft_buffered_confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    aux_coef: Array | float,
    warmup_fraction: Array | float,
    balance_batch: bool,
) -> Array:
    """`buffered_confidence` with the student's distribution f itself in place of f_t.

    This is `entropy` of EleutherAI's code, which fills the same buffer and never reads it; here
    there is no threshold and no state. The target has no gradient, so the gradient is 1 - a times
    that of `xent` (to the balanced labels, with `balance_batch`).
    """
    logits_BC, targets_BC = logits_BC.astype(jnp.float32), targets_BC.astype(jnp.float32)
    if balance_batch:
        targets_BC = _balanced(targets_BC, weights_B)
    p_BC = jax.lax.stop_gradient(jax.nn.softmax(logits_BC, axis=-1))
    coef = aux_coef * linear_warmup(step_fraction, warmup_fraction)
    mixed_BC = (1.0 - coef) * targets_BC + coef * p_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)
