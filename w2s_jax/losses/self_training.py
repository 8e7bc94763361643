"""Losses that let the student trust itself: Burns et al. 2023 and the code released with it.

f is the student's distribution over the C classes, w the soft label.
"""

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jax, jnp
from w2s_jax.losses import tokens
from w2s_jax.losses.common import (
    hardened,
    hardened_share,
    linear_warmup,
    log_probabilities,
    own_weight,
    quantile,
    soft_cross_entropy,
    taken,
    warmup,
    weighted_mean,
)
from w2s_jax.losses.registry import register
from w2s_jax.losses.transport import transported


def _transported_to_prior(logits_BC: Array, targets_BC: Array, mass_B: Array) -> Array:
    """Return the hard labels whose shares are the mean weak label of each class, [B, C]."""
    prior_C = jax.vmap(weighted_mean, in_axes=(1, None))(targets_BC, mass_B)
    return transported(logits_BC, prior_C, mass_B)


def _hard_labels(logits_BC: Array, targets_BC: Array, mass_B: Array, threshold: str) -> Array:
    """Return f_t of `confidence`, float32 [B, C]."""
    classes = logits_BC.shape[1]
    if threshold == "argmax":
        return hardened(logits_BC)
    if classes > 2 and threshold == "prior":
        return _transported_to_prior(logits_BC, targets_BC, mass_B)
    if classes > 2:
        return transported(logits_BC, jnp.full(classes, 1.0 / classes), mass_B)
    share: Array | float = 0.5
    if threshold == "prior":
        share = weighted_mean(targets_BC[:, 1], mass_B)
    margin_B = jax.lax.stop_gradient(logits_BC[:, 1] - logits_BC[:, 0])
    positive_B = hardened_share(margin_B, share, mass_B)
    return jnp.stack([1.0 - positive_B, positive_B], axis=1)


@register(
    "confidence",
    traced=("alpha_max", "warmup_fraction"),
    summary="CE(f, (1 - a) w + a f_t), f_t = sg(1[f > t]), a = alpha_max * ramp; the threshold t "
    "gives each class the same share of the batch, or that of the mean weak label, or is none",
    source="Burns et al. 2023, section 4.3.1, appendix A.4 (0.75 for the largest students)",
    on_tokens=tokens.confidence,
    balanced_by="threshold",
    alpha_max=own_weight(0.5),
    warmup_fraction=warmup(0.2),
    threshold=Option(
        "half",
        "Share of a batch hardened to each label: 1/C ('half'), or the mean weak label ('prior'); "
        "or each document to its likeliest class ('argmax')",
        choices=("half", "prior", "argmax"),
    ),
)
def confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    alpha_max: Array | float,
    warmup_fraction: Array | float,
    threshold: str,
) -> Array:
    """The paper's auxiliary confidence loss (Burns et al. 2023, section 4.3.1 and appendix A.4).

    L = (1 - a) CE(f, w) + a CE(f, f_t) with f_t = 1[f > t] without gradient, which is the
    cross-entropy to (1 - a) w + a f_t. The threshold t makes exactly half of the batch positive
    ('half'), or the share of the mean weak label ('prior'); see `hardened_share` for ties and odd
    batches. With 'argmax' f_t is 1 for the likeliest class, which ties share. a rises linearly from
    0 to `alpha_max` over the first `warmup_fraction` of training. With alpha_max = 0 it is `xent`.

    Of more than two classes, f_t are the hard labels of the largest sum_bc f_t,bc log f_bc of which
    each class has the share 1/C ('half') or that of its mean weak label ('prior'); see
    `transport.transported`. For two classes that is the threshold.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    targets_BC = targets_BC.astype(jnp.float32)
    mass_B = jnp.ones(logits_BC.shape[0]) if weights_B is None else weights_B.astype(jnp.float32)
    hardened_BC = _hard_labels(logits_BC, targets_BC, mass_B, threshold)
    alpha = alpha_max * linear_warmup(step_fraction, warmup_fraction)
    mixed_BC = (1.0 - alpha) * targets_BC + alpha * hardened_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)


@register(
    "logconf",
    traced=("aux_coef", "warmup_fraction"),
    summary="as `confidence`; a = aux_coef * step up to `warmup_fraction`, then aux_coef; t: "
    "quantile of P(label 0) at the mean weak label",
    source="code released with the paper",
    balanced_by="kind",
    aux_coef=own_weight(0.5),
    warmup_fraction=Option(0.1, "Share of training after which the weight jumps", low=0, high=1),
)
def logconf(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    aux_coef: Array | float,
    warmup_fraction: Array | float,
) -> Array:
    """The confidence loss of the code released with the paper, including its jump.

    The coefficient is aux_coef * step_fraction up to `warmup_fraction` and aux_coef after it (with
    the defaults it jumps from 0.05 to 0.5). The threshold is the quantile (linear interpolation) of
    P(label 0) at the mean weak label; a document at or above it is hardened to 0, one below to 1.
    Documents of weight 0 are left out of both. Of more than two classes, the hard labels are those
    of `confidence` with the threshold 'prior'.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    targets_BC = targets_BC.astype(jnp.float32)
    step_fraction = jnp.asarray(step_fraction, jnp.float32)
    coef = aux_coef * jnp.where(step_fraction > warmup_fraction, 1.0, step_fraction)
    if logits_BC.shape[1] == 2:
        hardened_BC = _below_quantile(logits_BC, targets_BC, weights_B)
    else:
        mass_B = jnp.ones(logits_BC.shape[0]) if weights_B is None else weights_B
        hardened_BC = _transported_to_prior(logits_BC, targets_BC, mass_B)
    mixed_BC = (1.0 - coef) * targets_BC + coef * hardened_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)


def _below_quantile(logits_BC: Array, targets_BC: Array, weights_B: Array | None) -> Array:
    """Return the hard labels of `logconf`: 1 where P(label 0) is below the threshold, [B, 2]."""
    p0_B = jax.lax.stop_gradient(jax.nn.softmax(logits_BC, axis=-1)[:, 0])
    level = weighted_mean(targets_BC[:, 1], weights_B)
    threshold = quantile(p0_B, taken(weights_B, p0_B.shape[0]), level)
    positive_B = (p0_B < threshold).astype(jnp.float32)
    return jnp.stack([1.0 - positive_B, positive_B], axis=1)


@register(
    "product",
    coupled=False,
    traced=("alpha", "beta"),
    summary="CE(f, sg(w^alpha f^beta / sum))",
    source="code released with the paper",
    alpha=Option(1.0, "Power of the weak labels", low=0, high=100),
    beta=Option(1.0, "Power of the student's predictions", low=0, high=100),
)
def product(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    alpha: Array | float,
    beta: Array | float,
) -> Array:
    """Cross-entropy to w^alpha f^beta, renormalized and without gradient (released code).

    With alpha = 1 and beta = 0 it is `xent`. Powers are taken in logarithms: where they underflow
    to 0 in all classes, the original gives NaN, and this the limit.
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


@register(
    "entropy",
    coupled=False,
    traced=("coef",),
    summary="CE(f, w) + coef H(f)",
    source="Burns et al. 2023, appendix",
    coef=Option(0.5, "Weight of the student's entropy", low=0, high=100),
)
def entropy(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    coef: Array | float,
) -> Array:
    """CE(f, w) + coef H(f): entropy regularization (Burns et al. 2023, appendix)."""
    del step_fraction
    log_p_BC = log_probabilities(logits_BC)
    entropy_B = -jnp.sum(jnp.exp(log_p_BC) * log_p_BC, axis=-1)
    cross_entropy = soft_cross_entropy(logits_BC, targets_BC, weights_B)
    return cross_entropy + coef * weighted_mean(entropy_B, weights_B)


@register(
    "l2_confidence",
    coupled=False,
    traced=("coef",),
    summary="CE(f, w) - coef/2 sum_c (f_c - 1/C)^2",
    source="Burns et al. 2023, appendix",
    coef=Option(0.5, "Weight of the student's squared confidence", low=0, high=100),
)
def l2_confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    coef: Array | float,
) -> Array:
    """CE(f, w) - coef (p - 1/2)^2 with p = P(label 1) (Burns et al. 2023, appendix).

    Of C classes it is CE(f, w) - coef/2 sum_c (f_c - 1/C)^2, which is the same for two.
    """
    del step_fraction
    logits_BC = logits_BC.astype(jnp.float32)
    if logits_BC.shape[1] == 2:
        # p - 1/2 = tanh(margin / 2) / 2
        squared_B = 0.25 * jnp.tanh(0.5 * (logits_BC[:, 1] - logits_BC[:, 0])) ** 2
    else:
        f_BC = jax.nn.softmax(logits_BC, axis=-1)
        squared_B = 0.5 * jnp.sum((f_BC - 1.0 / f_BC.shape[1]) ** 2, axis=-1)
    cross_entropy = soft_cross_entropy(logits_BC, targets_BC, weights_B)
    return cross_entropy - coef * weighted_mean(squared_B, weights_B)
