"""Losses of pairs of completions of one prompt: `dpo` and `orpo`, with soft preferences.

w is the preference, P(the first completion is the better one); log pi(y) a completion's summed
log-probability, and l its mean over the completion's tokens. Values and gradients are finite for
finite inputs, of certain completions too (l = 0).

Letters in names: B documents of a batch, each with 2 completions.
"""

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jax, jnp
from w2s_jax.losses.common import weighted_mean
from w2s_jax.losses.registry import register_preference

#: A completion's mean log-probability is at most this where its odds are taken.
CERTAIN = -1e-7


def _soft_preference(margin_B: Array, preference_B: Array) -> Array:
    """-[w log sigmoid(margin) + (1 - w) log sigmoid(-margin)], [B]."""
    preference_B = preference_B.astype(jnp.float32)
    first_B, second_B = jax.nn.log_sigmoid(margin_B), jax.nn.log_sigmoid(-margin_B)
    return -(preference_B * first_B + (1.0 - preference_B) * second_B)


def log_ratio_margin(logp_B2: Array, reference_B2: Array, lengths_B2: Array) -> Array:
    """Return D, the difference of the completions' log-ratios to the reference, float32 [B]."""
    del lengths_B2
    ratio_B2 = logp_B2.astype(jnp.float32) - reference_B2.astype(jnp.float32)
    return ratio_B2[:, 0] - ratio_B2[:, 1]


def _mean_logp(logp_B2: Array, lengths_B2: Array) -> Array:
    """Return l, the mean log-probability of a token of each completion, float32 [B, 2]."""
    return logp_B2.astype(jnp.float32) / jnp.maximum(lengths_B2.astype(jnp.float32), 1.0)


def log_odds_margin(logp_B2: Array, reference_B2: Array | None, lengths_B2: Array) -> Array:
    """Return d = logit(e^l1) - logit(e^l2), float32 [B]; the reference is ignored."""
    del reference_B2
    mean_B2 = jnp.minimum(_mean_logp(logp_B2, lengths_B2), CERTAIN)
    # logit(e^l) = l - log(1 - e^l), and 1 - e^l without cancellation is -expm1(l).
    log_odds_B2 = mean_B2 - jnp.log(-jnp.expm1(mean_B2))
    return log_odds_B2[:, 0] - log_odds_B2[:, 1]


@register_preference(
    "dpo",
    margin=log_ratio_margin,
    traced=("beta",),
    uses_reference=True,
    summary="-[w log sigma(beta D) + (1 - w) log sigma(-beta D)], D = log pi(y1) / pi_ref(y1) - "
    "log pi(y2) / pi_ref(y2)",
    source="Rafailov et al. 2023; soft w: Mitchell 2023 (conservative DPO)",
    beta=Option(0.1, "How closely the student keeps to the reference", above=0, high=100),
)
def dpo(
    logp_B2: Array,
    reference_B2: Array,
    lengths_B2: Array,
    preference_B: Array,
    *,
    weights_B: Array | None = None,
    beta: Array | float,
) -> Array:
    """Direct preference optimisation with a soft preference w (w = 1: Rafailov et al. 2023).

    w = 1 - e for every pair is conservative DPO with label noise e. At the reference itself the
    loss is log 2.
    """
    margin_B = beta * log_ratio_margin(logp_B2, reference_B2, lengths_B2)
    return weighted_mean(_soft_preference(margin_B, preference_B), weights_B)


@register_preference(
    "orpo",
    margin=log_odds_margin,
    traced=("odds_weight",),
    summary="-[w l1 + (1 - w) l2] - odds_weight [w log sigma(d) + (1 - w) log sigma(-d)], d = "
    "logit(e^l1) - logit(e^l2)",
    source="Hong et al. 2024 (w = 1)",
    odds_weight=Option(0.1, "lambda: weight of the odds ratio", low=0, high=100),
)
def orpo(
    logp_B2: Array,
    reference_B2: Array | None,
    lengths_B2: Array,
    preference_B: Array,
    *,
    weights_B: Array | None = None,
    odds_weight: Array | float,
) -> Array:
    """Odds ratio preference optimisation with a soft preference w (w = 1: Hong et al. 2024).

    It needs no reference: the likelihood of the better completion is a part of the loss.
    """
    w_B = preference_B.astype(jnp.float32)
    mean_B2 = _mean_logp(logp_B2, lengths_B2)
    likelihood_B = w_B * mean_B2[:, 0] + (1.0 - w_B) * mean_B2[:, 1]
    margin_B = log_odds_margin(logp_B2, reference_B2, lengths_B2)
    terms_B = -likelihood_B + odds_weight * _soft_preference(margin_B, w_B)
    return weighted_mean(terms_B, weights_B)
