"""Generalized cross-entropy, robust to wrong labels (Zhang & Sabuncu 2018)."""

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jnp
from w2s_jax.losses.common import log_probabilities, weighted_mean
from w2s_jax.losses.registry import register


@register(
    "generalized_xent",
    coupled=False,
    traced=("q",),
    summary="sum_c w_c (1 - f_c^q) / q",
    source="Zhang & Sabuncu 2018",
    q=Option(0.7, "From cross-entropy (to 0) to the mean absolute error (1)", low=0.001, high=1),
)
def generalized_xent(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    q: Array | float,
) -> Array:
    """Generalized cross-entropy sum_c w_c (1 - f_c^q) / q (Zhang & Sabuncu 2018).

    It is between cross-entropy (q to 0) and the mean absolute error (q = 1). The paper has hard
    labels, for which this is (1 - f_y^q) / q.
    """
    del step_fraction
    terms_BC = -jnp.expm1(q * log_probabilities(logits_BC)) / q
    return weighted_mean(jnp.sum(targets_BC.astype(jnp.float32) * terms_BC, axis=-1), weights_B)
