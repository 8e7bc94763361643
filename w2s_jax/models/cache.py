"""The cache of keys and values, and attention of one query per row to it.

Prompts are padded on the left, so that all rows of a batch write token t of their completion to the
same slot, and a slot's distance from another is the distance of their positions.

Shapes in names: n layers of a stack, R rows, S slots, P slots of the prompt, H heads, K key/value
heads, G = H / K, E head size.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from w2s_jax import sharding
from w2s_jax.models.attention import Reach

Array = jax.Array

#: Added to a masked score: its weight is exactly 0, as a query's own slot has a larger score.
_MASKED = -1e30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of a stack of layers, each [n, R, K, S, E] in the compute dtype.

    Those of a layer apart have no axis n. With one, XLA's CPU programs write a slot twice, once
    with the axis for the next token and once without it for attention, and so copy the whole cache
    for each token.
    """

    k_nRKSE: Array
    v_nRKSE: Array


def of_prompt(k_nRPKE: Array, v_nRPKE: Array, slots: int) -> Cache:
    """Return a cache of `slots` slots, the first of which hold the keys and values of prompts.

    Of a layer apart, they have no axis n.
    """

    def padded(x_nRPKE: Array) -> Array:
        x_nRKPE = jnp.swapaxes(x_nRPKE, -3, -2)
        free = slots - x_nRKPE.shape[-2]
        x_nRKSE = jnp.pad(x_nRKPE, [(0, 0)] * (x_nRKPE.ndim - 2) + [(0, free), (0, 0)])
        return sharding.split_rows_and_heads(x_nRKSE)

    return Cache(padded(k_nRPKE), padded(v_nRPKE))


def append(
    cache: Cache, layer: Array | None, slot: Array, k_RKE: Array, v_RKE: Array
) -> tuple[Cache, Array, Array]:
    """Write the keys and values of one slot of a layer; None: the cache is of a layer apart.

    Returns:
      The cache, which XLA updates in place, and the layer's keys and values, [R, K, S, E].
    """

    def put(x_nRKSE: Array, new_RKE: Array) -> Array:
        zero = jnp.int32(0)
        if layer is None:
            return jax.lax.dynamic_update_slice_in_dim(x_nRKSE, new_RKE[:, :, None], slot, 2)
        where = (layer, zero, zero, slot, zero)
        return jax.lax.dynamic_update_slice(x_nRKSE, new_RKE[None, :, :, None], where)

    k_nRKSE, v_nRKSE = put(cache.k_nRKSE, k_RKE), put(cache.v_nRKSE, v_RKE)
    if layer is None:
        return Cache(k_nRKSE, v_nRKSE), k_nRKSE, v_nRKSE
    k_RKSE, v_RKSE = (
        jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (k_nRKSE, v_nRKSE)
    )
    return Cache(k_nRKSE, v_nRKSE), k_RKSE, v_RKSE


@jax.named_scope("attention")
def attend(
    q_RHE: Array,
    k_RKSE: Array,
    v_RKSE: Array,
    first_R: Array,
    slot: Array,
    reach: Reach,
    *,
    scale: float | None,
    softcap: float,
) -> Array:
    """Return the attention output of a query at `slot` of each row, [R, H, E] in q's dtype.

    Args:
      q_RHE: the queries.
      k_RKSE, v_RKSE: keys and values of a layer.
      first_R: int32, the first slot of each row's prompt; those before it are padding.
      slot: int32 scalar; later slots are not filled yet.
      reach: the layer's window.
      scale: factor of the scores; None: 1 / sqrt(E).
      softcap: c > 0 replaces scaled scores by c tanh(score / c); 0: none.
    """
    (rows, heads, size), groups = q_RHE.shape, k_RKSE.shape[1]
    key_S = jnp.arange(k_RKSE.shape[2], dtype=jnp.int32)
    seen_RS = (key_S[None] >= first_R[:, None]) & (key_S[None] <= slot)
    if isinstance(reach.window, Array) or reach.window:
        seen_RS &= slot - key_S[None] < reach.window
    q_RKGE = q_RHE.reshape(rows, groups, heads // groups, size)
    score = jnp.einsum("rkge,rkse->rkgs", q_RKGE, k_RKSE, preferred_element_type=jnp.float32)
    score = score * (size**-0.5 if scale is None else scale)
    if softcap:
        score = softcap * jnp.tanh(score / softcap)
    score = score + jnp.where(seen_RS, 0.0, _MASKED)[:, None, None]
    weight = jax.nn.softmax(score, axis=-1).astype(v_RKSE.dtype)
    out = jnp.einsum("rkgs,rkse->rkge", weight, v_RKSE, preferred_element_type=jnp.float32)
    return out.reshape(rows, heads, size).astype(q_RHE.dtype)
