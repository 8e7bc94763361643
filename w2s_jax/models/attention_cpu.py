"""Attention in the form that XLA compiles best for CPUs: query chunks, and a gradient of its own.

Scores are formed for a chunk of queries and, if causal, only for the keys up to its end; from the
first one on that its documents have, where that is known when the program is compiled. The
gradient keeps the weights in the compute dtype and asks for the transposes that the fast bfloat16
products need (`matmul.rows_first`).

Shapes in names: R rows, L slots, l the queries of a chunk, m the keys that they may see, H heads,
K key/value heads, G = H / K, E head size; Q = G * l.
"""

import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from w2s_jax.models.matmul import rows_first

Array = jax.Array

#: Queries of a chunk, in rows longer than `UNCUT`, where it is not known what they may see.
CHUNK = 128
UNCUT = 192


@jax.tree_util.register_static
@dataclass(frozen=True)
class FirstKeys:
    """The first slot that any query of each chunk (of `CHUNK` slots) may see, in all rows."""

    slots: tuple[int, ...]


# Belongs to the key of every compiled program, so that none is reused across contexts.
_first_keys = jax.make_user_context(default_value=None)


def seeing(first_keys: FirstKeys | None) -> AbstractContextManager[None]:
    """Within this context causal attention leaves out what no query may see."""
    return _first_keys(first_keys)


#: Added to a score that does not count: its weight is exactly 0 beside that of the slot itself.
_MASKED = -1e30


def attention(
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    window: Array,
    *,
    scale: float,
    causal: bool,
) -> Array:
    """Attention within segments, [R, L, H, E] in q's dtype.

    As `attention.attention`, without a softcap; `window` is an int32 scalar, 0 for none.
    """
    chunks = _chunks(q_RLHE.shape[1], causal, _first_keys.value if causal else None)
    return _attention(scale, causal, chunks, q_RLHE, k_RLKE, v_RLKE, segment_ids_RL, window)


#: First query, behind the last one; first key that they may see, behind the last one.
Chunk = tuple[int, int, int, int]


def _chunks(length: int, causal: bool, first_keys: FirstKeys | None) -> tuple[Chunk, ...]:
    step = length if first_keys is None and length <= UNCUT else CHUNK
    starts = range(0, length, step)
    stops = [min(start + step, length) for start in starts]
    firsts = [0] * len(stops) if first_keys is None else first_keys.slots
    lasts = stops if causal else [length] * len(stops)
    return tuple(zip(starts, stops, firsts, lasts, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(
    scale: float,
    causal: bool,
    chunks: tuple[Chunk, ...],
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    window: Array,
) -> Array:
    return _forward(scale, causal, chunks, q_RLHE, k_RLKE, v_RLKE, segment_ids_RL, window)[0]


def _exponentials(
    scale: float,
    causal: bool,
    chunk: Chunk,
    q_RKQE: Array,
    k_RKmE: Array,
    segment_ids_RL: Array,
    window: Array,
) -> tuple[Array, Array]:
    """exp of a chunk's scores less their largest, [R, K, Q, m] in q's dtype, and 1 / its sums."""
    start, stop, first, last = chunk
    query_l, key_m = jnp.arange(start, stop)[:, None], jnp.arange(first, last)[None, :]
    seen_lm = (window <= 0) | (query_l - key_m < window)
    if causal:
        seen_lm &= key_m <= query_l
    same_Rlm = segment_ids_RL[:, start:stop, None] == segment_ids_RL[:, None, first:last]
    # A sum rather than a choice: it is computed once for all heads and layers.
    mask_Rlm = jnp.where(seen_lm[None] & same_Rlm, 0.0, _MASKED)
    score_RKQm = scale * _product(q_RKQE, k_RKmE, 3, 3)
    shape = score_RKQm.shape
    score = score_RKQm.reshape(*shape[:2], -1, stop - start, last - first) + mask_Rlm[:, None, None]
    weight = jnp.exp(score - jnp.max(score, axis=-1, keepdims=True))
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return weight.astype(q_RKQE.dtype).reshape(shape), (1.0 / total).reshape(*shape[:3], 1)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Batched over rows and key/value heads, accumulated in float32."""
    dimensions = (((a_axis,), (b_axis,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _heads_first(x_RLHE: Array, groups: int) -> Array:
    """[R, K, G, L, E]: the heads of each key/value head together."""
    rows, length, heads, size = x_RLHE.shape
    x = x_RLHE.reshape(rows, length, groups, heads // groups, size)
    return rows_first(x.transpose(0, 2, 3, 1, 4))


def _slots_first(x_RKGLE: Array, dtype: Any) -> Array:
    """The inverse of `_heads_first`, in a dtype."""
    rows, groups, each, length, size = x_RKGLE.shape
    x = x_RKGLE.astype(dtype).transpose(0, 3, 1, 2, 4)
    return x.reshape(rows, length, groups * each, size)


def _cut(x_RKGLE: Array, chunk: Chunk) -> Array:
    """The slots of a chunk, [R, K, Q, E]."""
    part = x_RKGLE[:, :, :, chunk[0] : chunk[1]]
    return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _join(parts: list[Array], each: int) -> Array:
    """[R, K, G, L, E] of the chunks' [R, K, Q, E]."""
    split = [x.reshape(*x.shape[:2], each, -1, x.shape[-1]) for x in parts]
    return jnp.concatenate(split, axis=3)


def _forward(
    scale: float,
    causal: bool,
    chunks: tuple[Chunk, ...],
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    window: Array,
) -> tuple[Array, Any]:
    groups = k_RLKE.shape[2]
    q, k, v = (_heads_first(x, groups) for x in (q_RLHE, k_RLKE, v_RLKE))
    kept, outs = [], []
    for chunk in chunks:
        keys = slice(*chunk[2:])
        weight, share = _exponentials(
            scale, causal, chunk, _cut(q, chunk), k[:, :, 0, keys], segment_ids_RL, window
        )
        out = (share * _product(weight, v[:, :, 0, keys], 3, 2)).astype(q.dtype)
        kept.append((weight, share, out))
        outs.append(out)
    out_RLHE = _slots_first(_join(outs, q.shape[2]), q.dtype)
    return out_RLHE, (q, k, v, kept)


def _backward(
    scale: float, causal: bool, chunks: tuple[Chunk, ...], kept: Any, d_out_RLHE: Array
) -> tuple[Any, ...]:
    q, k, v, of_chunks = kept
    dtype, each, length = q.dtype, q.shape[2], q.shape[3]
    d_out = _heads_first(d_out_RLHE, k.shape[1])
    dk_RKLE = dv_RKLE = jnp.zeros((), jnp.float32)
    dq_parts = []
    for chunk, (weight, share, out) in zip(chunks, of_chunks, strict=True):
        first, last = chunk[2:]
        around = ((0, 0), (0, 0), (first, length - last), (0, 0))
        d_part, q_part = _cut(d_out, chunk), _cut(q, chunk)
        wide = share * d_part.astype(jnp.float32)
        # The softmax's own term, sum(d_weight weight), is sum(d_out out) (Dao et al. 2022).
        mean = jnp.sum(wide * out.astype(jnp.float32), axis=-1, keepdims=True)
        d_part = wide.astype(dtype)
        d_weight = _product(d_part, v[:, :, 0, first:last], 3, 3)
        d_score = (scale * weight.astype(jnp.float32) * (d_weight - mean)).astype(dtype)
        dq_parts.append(_product(d_score, k[:, :, 0, first:last], 3, 2))
        weight_T, d_score_T = (rows_first(x.transpose(0, 1, 3, 2)) for x in (weight, d_score))
        dv_RKLE += jnp.pad(_product(weight_T, d_part, 3, 2), around)
        dk_RKLE += jnp.pad(_product(d_score_T, q_part, 3, 2), around)
    dq = _slots_first(_join(dq_parts, each), dtype)
    dk, dv = (_slots_first(x[:, :, None], dtype) for x in (dk_RKLE, dv_RKLE))
    return dq, dk, dv, None, None


_attention.defvjp(_forward, _backward)
