"""Losses that let the student trust itself: Burns et al. 2023, and what followed.

f is the student's distribution over the two classes, w the soft label.
"""

import jax
import jax.numpy as jnp

from w2s_jax.losses.common import (
    hardened,
    hardened_share,
    linear_warmup,
    log_probabilities,
    quantile,
    soft_cross_entropy,
    taken,
    weighted_mean,
)
from w2s_jax.losses.registry import register

Array = jax.Array


@register("confidence", traced=("alpha_max", "warmup_fraction"))
def confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    alpha_max: Array | float = 0.5,
    warmup_fraction: Array | float = 0.2,
    threshold: str = "half",
) -> Array:
    """The paper's auxiliary confidence loss (Burns et al. 2023, section 4.3.1 and appendix A.4).

    L = (1 - a) CE(f, w) + a CE(f, f_t) with f_t = 1[f > t] without gradient, which is the
    cross-entropy to (1 - a) w + a f_t. The threshold t is chosen in each batch so that exactly half
    of it is positive ('half'), or the share that the mean weak label gives ('prior'); ties and odd
    batches as in `hardened_share`. a rises linearly from 0 to `alpha_max` over the first
    `warmup_fraction` of training. With alpha_max = 0 it is `xent`.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    targets_BC = targets_BC.astype(jnp.float32)
    mass_B = jnp.ones(logits_BC.shape[0]) if weights_B is None else weights_B.astype(jnp.float32)
    share: Array | float = 0.5
    if threshold == "prior":
        share = weighted_mean(targets_BC[:, 1], mass_B)
    margin_B = jax.lax.stop_gradient(logits_BC[:, 1] - logits_BC[:, 0])
    positive_B = hardened_share(margin_B, share, mass_B)
    hardened_BC = jnp.stack([1.0 - positive_B, positive_B], axis=1)
    alpha = alpha_max * linear_warmup(step_fraction, warmup_fraction)
    mixed_BC = (1.0 - alpha) * targets_BC + alpha * hardened_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)


@register("logconf", traced=("aux_coef", "warmup_fraction"))
def logconf(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    aux_coef: Array | float = 0.5,
    warmup_fraction: Array | float = 0.1,
) -> Array:
    """The confidence loss of the code released with the paper, its jump included.

    The coefficient is aux_coef * step_fraction up to `warmup_fraction` and aux_coef after it (with
    the defaults it jumps from 0.05 to 0.5). The threshold is the quantile (linear interpolation) of
    P(label 0) at the mean weak label; a document at or above it is hardened to 0, one below to 1.
    Documents of weight 0 take no part in either.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    targets_BC = targets_BC.astype(jnp.float32)
    step_fraction = jnp.asarray(step_fraction, jnp.float32)
    coef = aux_coef * jnp.where(step_fraction > warmup_fraction, 1.0, step_fraction)
    p0_B = jax.lax.stop_gradient(jax.nn.softmax(logits_BC, axis=-1)[:, 0])
    level = weighted_mean(targets_BC[:, 1], weights_B)
    threshold = quantile(p0_B, taken(weights_B, p0_B.shape[0]), level)
    positive_B = (p0_B < threshold).astype(jnp.float32)
    hardened_BC = jnp.stack([1.0 - positive_B, positive_B], axis=1)
    mixed_BC = (1.0 - coef) * targets_BC + coef * hardened_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)


@register("product", coupled=False, traced=("alpha", "beta"))
def product(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    alpha: Array | float = 1.0,
    beta: Array | float = 1.0,
) -> Array:
    """Cross-entropy to w^alpha f^beta, renormalised and without gradient (the released code's).

    With alpha = 1 and beta = 0 it is `xent`. Powers are taken in logarithms: where those of the
    original underflow to 0 in both classes it gives NaN, and here the limit is right.
    """
    del step_fraction
    targets_BC = targets_BC.astype(jnp.float32)
    log_p_BC = jax.lax.stop_gradient(log_probabilities(logits_BC))
    # 0^alpha is 0, and 0^0 is 1.
    impossible = jnp.where(alpha > 0, -jnp.inf, 0.0)
    positive_BC = targets_BC >= jnp.finfo(jnp.float32).tiny
    log_w_BC = jnp.log(jnp.where(positive_BC, targets_BC, 1.0))
    power_BC = jnp.where(positive_BC, alpha * log_w_BC, impossible)
    mixed_BC = jax.nn.softmax(power_BC + beta * log_p_BC, axis=-1)
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)


@register("entropy", coupled=False, traced=("coef",))
def entropy(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    coef: Array | float = 0.5,
) -> Array:
    """CE(f, w) + coef H(f): entropy regularisation (Burns et al. 2023, appendix)."""
    del step_fraction
    log_p_BC = log_probabilities(logits_BC)
    entropy_B = -jnp.sum(jnp.exp(log_p_BC) * log_p_BC, axis=-1)
    cross_entropy = soft_cross_entropy(logits_BC, targets_BC, weights_B)
    return cross_entropy + coef * weighted_mean(entropy_B, weights_B)


@register("l2_confidence", coupled=False, traced=("coef",))
def l2_confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    coef: Array | float = 0.5,
) -> Array:
    """CE(f, w) - coef (p - 1/2)^2 with p = P(label 1) (Burns et al. 2023, appendix)."""
    del step_fraction
    logits_BC = logits_BC.astype(jnp.float32)
    # p - 1/2 = tanh(margin / 2) / 2
    squared_B = 0.25 * jnp.tanh(0.5 * (logits_BC[:, 1] - logits_BC[:, 0])) ** 2
    cross_entropy = soft_cross_entropy(logits_BC, targets_BC, weights_B)
    return cross_entropy - coef * weighted_mean(squared_B, weights_B)


@register("adaptive_confidence", coupled=False, traced=("temperature", "warmup_fraction"))
def adaptive_confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    temperature: Array | float = 1.0,
    warmup_fraction: Array | float = 0.25,
) -> Array:
    """L_i = (1 - a_i) CE(f, w) + a_i CE(f, f1): Guo et al. 2024 ("Vision superalignment").

    f1 and w1 are the classes that f and w hold for likelier (1/2 each where these tie), and
    a_i = exp(CE(f, f1) / T) / (exp(CE(f, f1) / T) + exp(CE(f, w1) / T)), without gradient: at most
    1/2, which it is where the student agrees with the label. a_i is multiplied by a factor that
    rises linearly from 0 to 1 over the first `warmup_fraction` of training, as in code in use that
    has the formula (with KL(w || f) for CE(f, w): the gradient is the same).
    """
    targets_BC = targets_BC.astype(jnp.float32)
    log_p_BC = jax.lax.stop_gradient(log_probabilities(logits_BC))
    own_BC = hardened(log_p_BC)
    own_B = -jnp.sum(own_BC * log_p_BC, axis=-1)
    weak_B = -jnp.sum(hardened(targets_BC) * log_p_BC, axis=-1)
    alpha_B = jax.nn.sigmoid((own_B - weak_B) / temperature)
    alpha_B1 = (alpha_B * linear_warmup(step_fraction, warmup_fraction))[:, None]
    mixed_BC = (1.0 - alpha_B1) * targets_BC + alpha_B1 * own_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)
