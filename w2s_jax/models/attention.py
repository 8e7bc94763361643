"""Attention and rotary positions: the part of a block between its projections.

Shapes in names: R rows, L slots, Q selected slots, H heads, K key/value heads,
G = H / K, E head size.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from w2s_jax import sharding
from w2s_jax.models import attention_cpu, attention_kernels
from w2s_jax.models.config import ModelConfig

Array = jax.Array


def segment_positions(segment_ids_RL: Array) -> Array:
    """Return positions that restart at 0 with each segment of a row, int32 [R, L]."""
    slot_L = jnp.arange(segment_ids_RL.shape[1], dtype=jnp.int32)[None, :]
    before_RL = jnp.pad(segment_ids_RL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    start_RL = jnp.where(segment_ids_RL != before_RL, slot_L, 0)
    return slot_L - jax.lax.cummax(start_RL, axis=1)


def attention(
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    *,
    window: Array | int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = True,
    first_keys: tuple[int, ...] = (),
) -> Array:
    """Return (grouped-query) attention within segments, [R, L, H, E] in q's dtype.

    Slot l attends to slot m if both are in the same segment and, if `causal`, m <= l, and, with a
    `window`, l - m < window. Padding (segment 0) attends only to padding.

    `attention_kernels.choose` selects the implementation; `attention_reference` is the formula.

    Args:
      q_RLHE, k_RLKE, v_RLKE: queries, keys and values.
      segment_ids_RL: integer ids of the segments of each row; 0 is padding.
      window: number of slots to which a slot attends; 0: no limit.
      scale: factor of the scores; None: 1 / sqrt(E).
      softcap: c > 0 replaces scaled scores by c tanh(score / c), in float32; 0: none.
      causal: whether a slot attends to earlier slots only.
      first_keys: the first slot to which the queries of each chunk may attend, if it is known when
        the program is compiled (see `attention_cpu.attention`); a hint that changes no result.
    """
    with jax.named_scope("attention"):
        kernel = attention_kernels.chosen(q_RLHE, k_RLKE, window=window, softcap=softcap)
        xla = functools.partial(_xla, first_keys=first_keys)
        compute = xla if kernel == "xla" else functools.partial(attention_kernels.run, kernel)
        return compute(
            q_RLHE,
            k_RLKE,
            v_RLKE,
            segment_ids_RL,
            window=window,
            scale=scale,
            softcap=softcap,
            causal=causal,
        )


def row_preferences(config: ModelConfig) -> dict[str, Any]:
    """Return the options of `packing.pack` that suit the attention where the caller runs.

    By FLOPs, attention costs as much as the rest of a block at 12 D slots. On CPUs the softmax
    dominates: measured at width 256, attention costs as much as the rest at about 1.5 D slots.
    """
    backend = attention_kernels.backend_of(sharding.target_device())
    if backend == "cpu" and not config.bidirectional and not config.attention_softcap:
        return {"attention_length": 3 * config.d_model // 2, "chunk": attention_cpu.CHUNK}
    multiple = attention_kernels.row_length_multiple(backend)
    return {"attention_length": 12 * config.d_model, "length_multiple": multiple}


def attention_reference(
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    *,
    window: Array | int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = True,
) -> Array:
    """Return `attention` by its formula softmax(q k) v, with all scores in memory."""
    (rows, length, heads, size), groups = q_RLHE.shape, k_RLKE.shape[2]
    q_RLKGE = q_RLHE.reshape(rows, length, groups, heads // groups, size)
    score = jnp.einsum("rlkge,rmke->rkglm", q_RLKGE, k_RLKE, preferred_element_type=jnp.float32)
    seen_RLL = attention_kernels.within(segment_ids_RL, window)
    if causal:
        seen_RLL &= jnp.tril(jnp.ones((length, length), bool))[None]
    weight = _weights(score, seen_RLL[:, None, None], size, scale, softcap).astype(v_RLKE.dtype)
    out = jnp.einsum("rkglm,rmke->rlkge", weight, v_RLKE, preferred_element_type=jnp.float32)
    return out.reshape(q_RLHE.shape).astype(q_RLHE.dtype)


def _weights(
    score: Array,
    seen: Array,
    size: int,
    scale: float | None,
    softcap: float,
) -> Array:
    """Return the softmax of scaled and capped scores where `seen`, in float32."""
    score = score * (size**-0.5 if scale is None else scale)
    if softcap:
        score = softcap * jnp.tanh(score / softcap)
    return jax.nn.softmax(jnp.where(seen, score, jnp.finfo(jnp.float32).min), axis=-1)


def _xla(
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    *,
    window: Array | int,
    scale: float | None,
    softcap: float,
    causal: bool,
    first_keys: tuple[int, ...],
) -> Array:
    """Return `attention` by XLA's operations: on CPUs, or where a kernel does not fit."""
    if softcap:
        return attention_reference(
            q_RLHE,
            k_RLKE,
            v_RLKE,
            segment_ids_RL,
            window=window,
            scale=scale,
            softcap=softcap,
            causal=causal,
        )
    if sharding.target_device().platform == "cpu":
        factor = q_RLHE.shape[-1] ** -0.5 if scale is None else scale
        rows = (q_RLHE, k_RLKE, v_RLKE, segment_ids_RL)
        window = jnp.asarray(window, jnp.int32)
        return attention_cpu.attention(
            *rows, window, scale=factor, causal=causal, first_keys=first_keys
        )
    seen_RLL = attention_kernels.within(segment_ids_RL, window)
    return jax.nn.dot_product_attention(
        q_RLHE, k_RLKE, v_RLKE, mask=seen_RLL[:, None], is_causal=causal, scale=scale
    )


def at_slots(x: Array, slots_RQ: Array) -> Array:
    """Return some slots of each row, [R, Q, ...] of [R, L, ...].

    Floats are selected by an (exact) product with a one-hot matrix, whose gradient is a product
    too; the gradient of a gather would be a scatter.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.take_along_axis(x, slots_RQ, axis=1)
    picked_RQL = jax.nn.one_hot(slots_RQ, x.shape[1], dtype=x.dtype)
    return jnp.einsum(
        "rql,rl...->rq...",
        picked_RQL,
        x,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    ).astype(x.dtype)


def attention_at(
    slots_RQ: Array,
    q_RQHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    *,
    window: Array | int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = True,
) -> Array:
    """Return `attention` for the queries at some slots of each row, [R, Q, H, E] in q's dtype."""
    with jax.named_scope("attention"):
        (rows, asked, heads, size), groups = q_RQHE.shape, k_RLKE.shape[2]
        own_RQ = at_slots(segment_ids_RL, slots_RQ)
        ahead_RQL = slots_RQ[:, :, None] - jnp.arange(segment_ids_RL.shape[1])[None, None, :]
        seen_RQL = own_RQ[:, :, None] == segment_ids_RL[:, None, :]
        if causal:
            seen_RQL &= ahead_RQL >= 0
        if isinstance(window, Array) or window:
            seen_RQL &= ahead_RQL < window
        q_RQKGE = q_RQHE.reshape(rows, asked, groups, heads // groups, size)
        score = jnp.einsum("rqkge,rmke->rkgqm", q_RQKGE, k_RLKE, preferred_element_type=jnp.float32)
        seen = seen_RQL[:, None, None]
        weight = _weights(score, seen, size, scale, softcap).astype(v_RLKE.dtype)
        out = jnp.einsum("rkgqm,rmke->rqkge", weight, v_RLKE, preferred_element_type=jnp.float32)
        return out.reshape(q_RQHE.shape).astype(q_RQHE.dtype)


def rotary_frequencies(config: ModelConfig, *, local: bool = False) -> Array:
    """Return radians per position of each rotated pair of dimensions, float32 [rotated / 2].

    `local` selects the frequencies of `config.local_layers`, which may have their own base.
    """
    size = int(config.head_dim * config.rope_fraction) // 2 * 2
    own = local and config.local_rope_theta > 0
    theta = config.local_rope_theta if own else config.rope_theta
    frequency = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    if own or config.rope_scaling == "none":
        return frequency
    slow = frequency / config.rope_factor
    if config.rope_scaling == "linear":
        return slow
    turns = config.rope_original_length * frequency / (2 * jnp.pi)
    low, high = config.rope_low_factor, config.rope_high_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * slow + kept * frequency


@jax.named_scope("rotary")
def rotary(x_RLHE: Array, positions_RL: Array, frequency_E: Array) -> Array:
    """Rotate the leading dimensions of each head, two per frequency, in float32 (half-split)."""
    half = frequency_E.shape[0]
    angle_RLE = positions_RL[..., None].astype(jnp.float32) * frequency_E[None, None, :]
    cos, sin = jnp.cos(angle_RLE)[:, :, None, :], jnp.sin(angle_RLE)[:, :, None, :]
    first, second, rest = jnp.split(x_RLHE.astype(jnp.float32), [half, 2 * half], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x_RLHE.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reach:
    """The slots to which an attention layer attends; layers of one stack may differ in it.

    Attributes:
      window: number of slots to which a slot attends (0: no limit); an array in layers that differ.
      frequency_E: frequencies of rotary positions; None without them.
      first_keys: see `attention`.
    """

    window: Array | int
    frequency_E: Array | None
    first_keys: tuple[int, ...] = field(default=(), metadata={"static": True})


def reaches(
    config: ModelConfig, length: int, first_keys: tuple[int, ...] = ()
) -> tuple[Reach, list[Reach]]:
    """Return (the `Reach` of all layers, []) or, where layers differ, (the first, one per layer).

    Layers that differ have arrays of equal shapes, which can be stacked.

    Args:
      config: the model.
      length: L, slots of a row.
      first_keys: see `attention`.
    """

    def reach(local: bool) -> Reach:
        rope = config.positions == "rope"
        frequency_E = rotary_frequencies(config, local=local) if rope else None
        if not config.local_layers:
            return Reach(config.window, frequency_E, first_keys)
        # Layers share a program, so those without a window get one as long as the row.
        window = config.window if local and config.window else length
        return Reach(jnp.int32(window), frequency_E, first_keys)

    if not config.local_layers:
        return reach(local=True), []
    kinds = {local: reach(local) for local in set(config.local_layers)}
    each = [kinds[local] for local in config.local_layers]
    return each[0], each
