"""Attention in the form that XLA compiles best for CPUs: by query chunks, with a custom gradient.

Scores are computed for a chunk of queries and, if causal, only for the keys up to the chunk's end.
Where `first_keys` are known when the program is compiled, earlier keys are skipped too. The
gradient keeps the weights in the compute dtype and requests the transposes that fast bfloat16
products need (`matmul.rows_first`).

Shapes in names: R rows, L slots, l the queries of a chunk, m the keys that they may see, H heads,
K key/value heads, G = H / K, E head size; Q = G * l.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from w2s_jax.models.matmul import rows_first

Array = jax.Array

#: Queries per chunk ...
CHUNK = 128
#: ... and without `first_keys`, shorter rows are one chunk.
UNCUT = 192

#: Added to a masked score: its weight is exactly 0, as the slot itself has a larger score.
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
    first_keys: tuple[int, ...] = (),
) -> Array:
    """Return attention within segments, [R, L, H, E] in q's dtype.

    As `attention.attention`, without a softcap.

    Args:
      q_RLHE, k_RLKE, v_RLKE, segment_ids_RL: see `attention.attention`.
      window: int32 scalar, 0 for none.
      scale: of the scores.
      causal: whether a slot attends to earlier slots only.
      first_keys: for each chunk of `CHUNK` slots, the first slot to which any of its queries may
        attend, in all rows; () if unknown. Only used where attention is causal.
    """
    chunks = _chunks(q_RLHE.shape[1], causal, first_keys if causal else ())
    return _attention(scale, causal, chunks, q_RLHE, k_RLKE, v_RLKE, segment_ids_RL, window)


#: First query, end of the queries, first key, end of the keys.
Chunk = tuple[int, int, int, int]


def _chunks(length: int, causal: bool, first_keys: tuple[int, ...]) -> tuple[Chunk, ...]:
    step = length if not first_keys and length <= UNCUT else CHUNK
    starts = range(0, length, step)
    stops = [min(start + step, length) for start in starts]
    firsts = first_keys or (0,) * len(stops)
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
    """Return exp(scores - max) of a chunk, [R, K, Q, m] in q's dtype, and 1 / its row sums."""
    start, stop, first, last = chunk
    query_l, key_m = jnp.arange(start, stop)[:, None], jnp.arange(first, last)[None, :]
    seen_lm = (window <= 0) | (query_l - key_m < window)
    if causal:
        seen_lm &= key_m <= query_l
    same_Rlm = segment_ids_RL[:, start:stop, None] == segment_ids_RL[:, None, first:last]
    # Added, not selected: the mask is then computed once for all heads and layers.
    mask_Rlm = jnp.where(seen_lm[None] & same_Rlm, 0.0, _MASKED)
    score_RKQm = scale * _product(q_RKQE, k_RKmE, 3, 3)
    shape = score_RKQm.shape
    score = score_RKQm.reshape(*shape[:2], -1, stop - start, last - first) + mask_Rlm[:, None, None]
    weight = jnp.exp(score - jnp.max(score, axis=-1, keepdims=True))
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return weight.astype(q_RKQE.dtype).reshape(shape), (1.0 / total).reshape(*shape[:3], 1)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Contract two axes, batched over rows and key/value heads, accumulating in float32."""
    dimensions = (((a_axis,), (b_axis,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _heads_first(x_RLHE: Array, groups: int) -> Array:
    """Return [R, K, G, L, E], the query heads grouped by key/value head."""
    rows, length, heads, size = x_RLHE.shape
    x = x_RLHE.reshape(rows, length, groups, heads // groups, size)
    return rows_first(x.transpose(0, 2, 3, 1, 4))


def _slots_first(x_RKGLE: Array, dtype: Any) -> Array:
    """Invert `_heads_first`, casting to `dtype`."""
    rows, groups, each, length, size = x_RKGLE.shape
    x = x_RKGLE.astype(dtype).transpose(0, 3, 1, 2, 4)
    return x.reshape(rows, length, groups * each, size)


def _cut(x_RKGLE: Array, chunk: Chunk) -> Array:
    """Return the slots of a chunk, [R, K, Q, E]."""
    part = x_RKGLE[:, :, :, chunk[0] : chunk[1]]
    return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _join(parts: list[Array], each: int) -> Array:
    """Join the chunks' [R, K, Q, E] to [R, K, G, L, E]."""
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
