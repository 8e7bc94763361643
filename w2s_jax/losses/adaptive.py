"""A confidence loss with a weight for each document (Guo et al. 2024).

f is the student's distribution over the classes, w the soft label.
"""

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jax, jnp
from w2s_jax.losses.common import (
    hardened,
    linear_warmup,
    log_probabilities,
    soft_cross_entropy,
)
from w2s_jax.losses.registry import register


@register(
    "adaptive_confidence",
    coupled=False,
    traced=("temperature", "warmup_fraction"),
    summary="CE(f, (1 - a) w + a f1), a = ramp * sg(softmax of CE(f, f1) / T against "
    "CE(f, w1) / T); f1, w1: the likeliest classes of f and w",
    source='Guo et al. 2024, "Vision superalignment"',
    temperature=Option(1.0, "T; the higher, the closer a is to 1/2", low=0.001, high=1000),
    warmup_fraction=Option(0.25, "Share of training in which a rises", low=0, high=1),
)
def adaptive_confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    temperature: Array | float,
    warmup_fraction: Array | float,
) -> Array:
    """L_i = (1 - a_i) CE(f, w) + a_i CE(f, f1): Guo et al. 2024 ("Vision superalignment").

    f1 and w1 are the likeliest classes of f and w (shared equally by ties), and
    a_i = exp(CE(f, f1) / T) / (exp(CE(f, f1) / T) + exp(CE(f, w1) / T)), without gradient: at most
    1/2, the value where the student agrees with the label. a_i is multiplied by a factor that rises
    linearly from 0 to 1 over the first `warmup_fraction` of training, as in published
    implementations (which take KL(w || f) for CE(f, w): the gradient is the same).
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
