"""Choose the next token: random bits by row, temperature, nucleus, log-probabilities.

Shapes in names: R rows, V vocabulary, k most probable tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclass(frozen=True)
class Choice:
    """What a program that chooses tokens is compiled for.

    Attributes:
      greedy: the most probable token, of equally probable ones the lowest; without random bits.
      nucleus: choose among the most probable tokens only (see `nucleus`).
      logprobs: whether to return the tokens' log-probabilities.
      top_k: number of most probable tokens to return with their log-probabilities.
    """

    greedy: bool
    nucleus: bool
    logprobs: bool
    top_k: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chosen:
    """The tokens of one step.

    Attributes:
      token_R: int32.
      logprob_R: their log-probabilities under the model itself (temperature 1, all tokens),
        float32; None if not asked for.
      top_ids_Rk: the k most probable tokens, int32, of equally probable ones the lowest first; None
        for k = 0.
      top_logprobs_Rk: their log-probabilities, float32; None for k = 0.
    """

    token_R: Array
    logprob_R: Array | None
    top_ids_Rk: Array | None
    top_logprobs_Rk: Array | None


def row_keys(seed: Array, ids_R2: Array, samples_R: Array) -> Array:
    """Return a key for each row that depends on seed, document and sample only.

    Args:
      seed: uint32 scalar.
      ids_R2: uint32, the low and the high half of each document's 64-bit id.
      samples_R: int32 number of the sample of each document.
    """

    def one(id_2: Array, sample: Array) -> Array:
        key = jax.random.key(seed)
        for part in (id_2[0], id_2[1], sample):
            key = jax.random.fold_in(key, part)
        return key

    return jax.vmap(one)(ids_R2, samples_R)


@jax.named_scope("sampling")
def choose(
    choice: Choice, logits_RV: Array, keys_R: Array, number: Array, temperature: Array, top_p: Array
) -> Chosen:
    """Choose one token in each row.

    A sample is the largest of the logits, divided by the temperature, plus Gumbel noise (the
    Gumbel-max trick), whose bits depend on the row's key, the token's number and the token only. So
    they are the same however rows are put into batches and batches onto devices.

    Args:
      choice: how to choose, and what to return.
      logits_RV: float32 next-token logits.
      keys_R: keys of the rows.
      number: int32 scalar, the number of the token.
      temperature: float32 scalar, not used if `choice.greedy`.
      top_p: float32 scalar, only used if `choice.nucleus`.
    """
    if choice.greedy:
        token_R = jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    else:
        tempered_RV = logits_RV / temperature
        if choice.nucleus:
            tempered_RV = jnp.where(nucleus(tempered_RV, top_p), tempered_RV, -jnp.inf)
        token_R = jnp.argmax(tempered_RV + _noise(keys_R, number, logits_RV.shape[1]), axis=-1)
        token_R = token_R.astype(jnp.int32)
    if not (choice.logprobs or choice.top_k):
        return Chosen(token_R, None, None, None)
    total_R1 = jax.nn.logsumexp(logits_RV, axis=-1, keepdims=True)
    logprob_R = None
    if choice.logprobs:
        logprob_R = (jnp.take_along_axis(logits_RV, token_R[:, None], axis=1) - total_R1)[:, 0]
    if not choice.top_k:
        return Chosen(token_R, logprob_R, None, None)
    # Of equal values, the one with the lower index comes first.
    top_Rk, ids_Rk = jax.lax.top_k(logits_RV, choice.top_k)
    return Chosen(token_R, logprob_R, ids_Rk.astype(jnp.int32), top_Rk - total_R1)


def _noise(keys_R: Array, number: Array, vocab_size: int) -> Array:
    """Return Gumbel noise of the rows' token `number`, float32 [R, V]."""

    def one(key: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, number), (vocab_size,), jnp.float32)

    return jax.vmap(one)(keys_R)


def nucleus(logits_RV: Array, top_p: Array) -> Array:
    """Return whether each token is in the nucleus (Holtzman et al. 2020), bool [R, V].

    That is the smallest set of most probable tokens whose probability is at least `top_p`; of
    equally probable tokens, the lower ids are in it first.
    """
    ids_RV = jax.lax.broadcasted_iota(jnp.int32, logits_RV.shape, 1)
    falling_RV, ids_RV = jax.lax.sort((-logits_RV, ids_RV), dimension=1, num_keys=1, is_stable=True)
    probability_RV = jax.nn.softmax(-falling_RV, axis=-1)
    before_RV = jnp.cumsum(probability_RV, axis=-1) - probability_RV
    last_R1 = jnp.maximum(jnp.sum(before_RV < top_p, axis=-1, keepdims=True), 1) - 1
    least_R1 = -jnp.take_along_axis(falling_RV, last_R1, axis=1)
    last_id_R1 = jnp.take_along_axis(ids_RV, last_R1, axis=1)
    own_RV = jax.lax.broadcasted_iota(jnp.int32, logits_RV.shape, 1)
    return (logits_RV > least_R1) | ((logits_RV == least_R1) & (own_RV <= last_id_R1))
