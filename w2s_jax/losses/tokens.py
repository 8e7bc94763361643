"""Losses of completions: the terms of target tokens, of which training takes the weighted mean.

p is the student's distribution over the vocabulary where it predicts a target token, y that token,
and q the supervisor's distribution there, of which its labels have the k most probable tokens. The
forms of `confidence`, `kl` and `reverse_kl` on tokens are ours. Options of these losses that are
about classes do not apply.

Letters in names: R rows, Q target tokens of a row, V vocabulary, k tokens of a stored distribution.
"""

from w2s_jax.core.lazy import Array, jax, jnp
from w2s_jax.losses.common import linear_warmup

#: Probabilities of the supervisor are at least this in a logarithm, as labels of classes are.
FLOOR = 1e-7


def xent(logits_RQV: Array, targets_RQ: Array, step_fraction: Array | float) -> Array:
    """-log p(y): maximum likelihood.

    Args:
      logits_RQV: the student's logits where it predicts a target token.
      targets_RQ: integer target tokens.
      step_fraction: step / total steps; not used.

    Returns:
      float32 [R, Q].
    """
    del step_fraction
    return -_at(_log_softmax(logits_RQV), targets_RQ)


def confidence(
    logits_RQV: Array,
    targets_RQ: Array,
    step_fraction: Array | float,
    *,
    alpha_max: Array | float,
    warmup_fraction: Array | float,
) -> Array:
    """-(1 - a) log p(y) - a log p(y'), y' = sg(argmax p), a = alpha_max * ramp.

    The student's own token takes the place of its hardened class; every token is hardened, so there
    is no threshold. With alpha_max = 0 it is `xent`.

    Args:
      logits_RQV: as of `xent`.
      targets_RQ: as of `xent`.
      step_fraction: step / total steps.
      alpha_max: weight of the student's own tokens after the warm-up.
      warmup_fraction: share of training in which that weight rises.
    """
    log_p_RQV = _log_softmax(logits_RQV)
    own_RQ = jnp.argmax(logits_RQV, axis=-1)
    alpha = alpha_max * linear_warmup(step_fraction, warmup_fraction)
    return -((1.0 - alpha) * _at(log_p_RQV, targets_RQ) + alpha * _at(log_p_RQV, own_RQ))


def kl(
    logits_RQV: Array,
    targets_RQ: Array,
    step_fraction: Array | float,
    *,
    top_ids_RQk: Array,
    top_logprobs_RQk: Array,
) -> Array:
    """KL(q, p) = sum_i q_i (log q_i - log p_i) over the k stored tokens, q renormalised over them.

    p is the student's distribution over the whole vocabulary, so the loss also moves probability to
    the k tokens. It is 0 only where the student's distribution is q.

    Args:
      logits_RQV: as of `xent`.
      targets_RQ: not used.
      step_fraction: not used.
      top_ids_RQk: int32 tokens, distinct.
      top_logprobs_RQk: float32, their log-probabilities under the supervisor; -inf is allowed, but
        not for all.
    """
    del targets_RQ, step_fraction
    q_RQk = jax.nn.softmax(top_logprobs_RQk.astype(jnp.float32), axis=-1)
    log_p_RQk = jnp.take_along_axis(_log_softmax(logits_RQV), top_ids_RQk, axis=-1)
    entropy_RQ = jnp.sum(jax.scipy.special.entr(q_RQk), axis=-1)
    return -jnp.sum(q_RQk * log_p_RQk, axis=-1) - entropy_RQ


def reverse_kl(
    logits_RQV: Array,
    targets_RQ: Array,
    step_fraction: Array | float,
    *,
    top_ids_RQk: Array,
    top_logprobs_RQk: Array,
) -> Array:
    """KL(p', q) = sum_i p'_i (log p'_i - log q_i), p' and q renormalised over the k stored tokens.

    Outside of the k tokens q is not known, and taking it for 0 would make the divergence infinite.
    So p' is p given that the token is one of them: probability of other tokens is not penalised.
    q is at least 1e-7 in the logarithm.

    Args:
      logits_RQV: as of `xent`.
      targets_RQ: not used.
      step_fraction: not used.
      top_ids_RQk: as of `kl`.
      top_logprobs_RQk: as of `kl`.
    """
    del targets_RQ, step_fraction
    q_RQk = jax.nn.softmax(top_logprobs_RQk.astype(jnp.float32), axis=-1)
    logits_RQk = jnp.take_along_axis(logits_RQV.astype(jnp.float32), top_ids_RQk, axis=-1)
    log_p_RQk = jax.nn.log_softmax(logits_RQk, axis=-1)
    return jnp.sum(jnp.exp(log_p_RQk) * (log_p_RQk - jnp.log(jnp.maximum(q_RQk, FLOOR))), axis=-1)


def _log_softmax(logits_RQV: Array) -> Array:
    return jax.nn.log_softmax(logits_RQV.astype(jnp.float32), axis=-1)


def _at(values_RQV: Array, tokens_RQ: Array) -> Array:
    """Return the values of one token at each position, [R, Q]."""
    return jnp.take_along_axis(values_RQV, tokens_RQ[..., None], axis=-1)[..., 0]
