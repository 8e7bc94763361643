"""Cross-entropy where the student is still uncertain. The state is a statistic of the labels."""

from typing import Any

import numpy as np

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jnp
from w2s_jax.losses.common import log_probabilities, taken, weighted_mean
from w2s_jax.losses.registry import register

State = dict[str, Any]


def init_window(targets_NC: np.ndarray, *, radius: float | None) -> State:
    """Return the radius of the window: `radius`, or the median weak confidence max_c w_c - 1/C.

    Args:
      targets_NC: soft labels of all training documents.
      radius: the option of the loss.

    Returns:
      {"radius": float32 scalar}. The median of an even number of documents is the lower of the two
      in the middle, as in torch.
    """
    if radius is None:
        targets_NC = np.asarray(targets_NC, np.float32)
        if targets_NC.shape[1] == 2:
            confidence_N = np.abs(targets_NC[:, 1] - np.float32(0.5))
        else:
            confidence_N = np.max(targets_NC, axis=1) - np.float32(1 / targets_NC.shape[1])
        confidence_N = np.sort(confidence_N)
        radius = confidence_N[(len(confidence_N) - 1) // 2]
    return {"radius": np.asarray(radius, np.float32)}


def _radius_of_batch(targets_BC: Array, weights_B: Array | None) -> Array:
    """Return the lower median of max_c w_c - 1/C over the documents with a weight above 0."""
    taken_B = taken(weights_B, targets_BC.shape[0])
    if targets_BC.shape[1] == 2:
        confidence_B = jnp.abs(targets_BC[:, 1] - 0.5)
    else:
        confidence_B = jnp.max(targets_BC, axis=1) - 1.0 / targets_BC.shape[1]
    ordered_B = jnp.sort(jnp.where(taken_B, confidence_B, jnp.inf))
    return ordered_B[jnp.maximum(jnp.sum(taken_B) - 1, 0) // 2]


@register(
    "window",
    coupled=False,
    init_state=init_window,
    summary="CE(f, w) where max f < 1/C + radius, else 0",
    source="EleutherAI/w2s, 'window'",
    radius=Option(
        None,
        "How far the student may be from 1/C; None: the median of max w - 1/C over the training "
        "documents",
        low=0,
        high=1,
    ),
)
def window(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    state: State | None = None,
    radius: float | None,
) -> Array:
    """Cross-entropy only where the student is uncertain: max f < 1/C + radius, else 0.

    The sum is divided by the weight of all documents, not of the uncertain ones. This is 'window'
    of EleutherAI's code (two classes), where `radius` None is called "midweak": the median of
    max_c w_c - 1/C over the training documents. A radius above 1 - 1/C makes it `xent`.

    Args:
      logits_BC: logits of the classes.
      targets_BC: soft labels.
      step_fraction: not used.
      weights_B: weights of the documents.
      state: {"radius": float32 scalar} from `init_window`; None: `radius`, or if that is None the
        median of this batch.
      radius: how far from 1/C the student may be.
    """
    del step_fraction
    targets_BC = targets_BC.astype(jnp.float32)
    if state is not None:
        limit = state["radius"]
    else:
        limit = _radius_of_batch(targets_BC, weights_B) if radius is None else radius
    log_p_BC = log_probabilities(logits_BC)
    uncertain_B = jnp.max(jnp.exp(log_p_BC), axis=-1) < 1.0 / targets_BC.shape[1] + limit
    loss_B = -jnp.sum(targets_BC * log_p_BC, axis=-1)
    return weighted_mean(jnp.where(uncertain_B, loss_B, 0.0), weights_B)
