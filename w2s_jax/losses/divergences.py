"""Divergences between student and weak labels other than cross-entropy.

f is the student's distribution over the C classes, w the soft label. Where a formula has log w,
w is at least 1e-7, as hard labels would make it infinite.
"""

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jax, jnp
from w2s_jax.losses import tokens
from w2s_jax.losses.common import log_probabilities, weighted_mean
from w2s_jax.losses.registry import register

#: Labels are at least this in a logarithm.
FLOOR = 1e-7

_SMOOTHING = Option(0.0, "e: w is replaced by (1 - e) w + e / C", low=0, high=1)


def _entropy_of_labels(targets_BC: Array) -> Array:
    """-sum_c w_c log w_c, 0 log 0 = 0: float32 [B]."""
    return jnp.sum(jax.scipy.special.entr(targets_BC), axis=-1)


def _cross_entropy(log_p_BC: Array, targets_BC: Array) -> Array:
    return -jnp.sum(targets_BC * log_p_BC, axis=-1)


def _reverse_cross_entropy(log_p_BC: Array, targets_BC: Array) -> Array:
    return -jnp.sum(jnp.exp(log_p_BC) * jnp.log(jnp.maximum(targets_BC, FLOOR)), axis=-1)


def _smoothed(targets_BC: Array, label_smoothing: Array | float) -> Array:
    """(1 - e) w + e / C, float32."""
    uniform = 1.0 / targets_BC.shape[1]
    return (1.0 - label_smoothing) * targets_BC.astype(jnp.float32) + uniform * label_smoothing


@register(
    "kl",
    coupled=False,
    summary="KL(w, f) = CE(f, w) - H(w)",
    source="EleutherAI/w2s, 'kl'",
    on_tokens=tokens.kl,
    top_k_labels=True,
)
def kl(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
) -> Array:
    """Forward divergence KL(w || f) = CE(f, w) - H(w): the gradient is that of `xent`.

    This is 'kl' of EleutherAI's code. It is 0 where the student's distribution is the label.
    """
    del step_fraction
    targets_BC = targets_BC.astype(jnp.float32)
    cross_B = _cross_entropy(log_probabilities(logits_BC), targets_BC)
    return weighted_mean(cross_B - _entropy_of_labels(targets_BC), weights_B)


@register(
    "reverse_kl",
    coupled=False,
    traced=("label_smoothing",),
    summary="KL(f, w)",
    source="reverse KL under noisy labels",
    on_tokens=tokens.reverse_kl,
    top_k_labels=True,
    label_smoothing=_SMOOTHING,
)
def reverse_kl(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    label_smoothing: Array | float,
) -> Array:
    """Reverse divergence KL(f || w) = sum_c f_c (log f_c - log w_c), which seeks one mode.

    `label_smoothing` e replaces w by (1 - e) w + e / C first.
    """
    del step_fraction
    log_p_BC = log_probabilities(logits_BC)
    own_B = jnp.sum(jnp.exp(log_p_BC) * log_p_BC, axis=-1)
    reverse_B = _reverse_cross_entropy(log_p_BC, _smoothed(targets_BC, label_smoothing))
    return weighted_mean(own_B + reverse_B, weights_B)


@register(
    "reverse_xent",
    coupled=False,
    traced=("label_smoothing",),
    summary="-sum_c f_c log w_c",
    source="Wang et al. 2019; Xu et al. 2026 for weak labels",
    label_smoothing=_SMOOTHING,
)
def reverse_xent(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    label_smoothing: Array | float,
) -> Array:
    """Reverse cross-entropy -sum_c f_c log w_c (Wang et al. 2019; Xu et al. 2026 for weak labels).

    An uncertain label (w near 1/C) has almost no gradient. `label_smoothing` as in `reverse_kl`.
    """
    del step_fraction
    targets_BC = _smoothed(targets_BC, label_smoothing)
    reverse_B = _reverse_cross_entropy(log_probabilities(logits_BC), targets_BC)
    return weighted_mean(reverse_B, weights_B)


@register(
    "cace",
    coupled=False,
    traced=("c",),
    summary="CE(f, w) where max w - 1/C >= c, else reverse cross-entropy",
    source="Xu et al. 2026",
    c=Option(0.1, "Certainty of a label from which cross-entropy is taken", low=0, high=0.5),
)
def cace(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    c: Array | float,
) -> Array:
    """Confidence-adaptive cross-entropy (Xu et al. 2026).

    Cross-entropy where the label is certain, max_c w_c - 1/C >= c, reverse cross-entropy elsewhere.
    The paper has two classes, where that is |w - 1/2| >= c. With c = 0 it is `xent`.
    """
    del step_fraction
    targets_BC = targets_BC.astype(jnp.float32)
    log_p_BC = log_probabilities(logits_BC)
    # The largest column, so that 0.4 is as certain as 0.6 after rounding.
    certain_B = jnp.max(targets_BC, axis=-1) - 1.0 / targets_BC.shape[1] >= c
    loss_B = jnp.where(
        certain_B,
        _cross_entropy(log_p_BC, targets_BC),
        _reverse_cross_entropy(log_p_BC, targets_BC),
    )
    return weighted_mean(loss_B, weights_B)
