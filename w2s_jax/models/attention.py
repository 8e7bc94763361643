"""Attention and rotary positions: what a block computes between its projections.

Shapes in names: R rows, L slots, Q some of them, H heads, K key/value heads,
G = H / K, E head size.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from w2s_jax import sharding
from w2s_jax.models import attention_cpu, attention_kernels
from w2s_jax.models.config import ModelConfig

Array = jax.Array


def segment_positions(segment_ids_RL: Array) -> Array:
    """Positions that restart at 0 with each segment of a row, int32 [R, L]."""
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
) -> Array:
    """Attention within segments, grouped queries allowed; [R, L, H, E] in q's dtype.

    Slot l sees slot m if both lie in one segment and, if `causal`, m <= l, and, with a `window`,
    l - m < window.
    Padding (segment 0) sees only padding. Scores are multiplied by `scale` (None: 1 / sqrt(E)) and
    then, with a `softcap` c, become c tanh(score / c), in float32.

    `attention_kernels.choose` says what computes it; `attention_reference` is the same by formula.
    """
    with jax.named_scope("attention"):
        kernel = attention_kernels.chosen(q_RLHE, k_RLKE, window=window, softcap=softcap)
        compute = _xla if kernel == "xla" else functools.partial(attention_kernels.run, kernel)
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
    """How rows are best packed for the attention where the caller runs: see `packing.pack`.

    By the FLOPs of a block, attention costs as much as the rest at 12 D slots. On CPUs it is the
    softmax that takes time: at width 256, by measurement, at about 1.5 D.
    """
    backend = attention_kernels.backend_of(sharding.place()[0])
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
    """The formula of `attention` written out, all scores in memory: softmax(q k) v."""
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
    """The softmax of scaled and capped scores over what is seen, in float32."""
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
) -> Array:
    """`attention` in XLA's own operations: for CPUs, short rows and what the kernels refuse."""
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
    if sharding.place()[0].platform == "cpu":
        factor = q_RLHE.shape[-1] ** -0.5 if scale is None else scale
        rows = (q_RLHE, k_RLKE, v_RLKE, segment_ids_RL)
        return attention_cpu.attention(
            *rows, jnp.asarray(window, jnp.int32), scale=factor, causal=causal
        )
    seen_RLL = attention_kernels.within(segment_ids_RL, window)
    return jax.nn.dot_product_attention(
        q_RLHE, k_RLKE, v_RLKE, mask=seen_RLL[:, None], is_causal=causal, scale=scale
    )


def at_slots(x: Array, slots_RQ: Array) -> Array:
    """Some slots of each row: [R, Q, ...] of [R, L, ...].

    Numbers are picked by a product with zeros and ones, which is exact, and whose gradient is one
    too; that of a gather would be a scatter.
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
    """`attention` of queries at some slots of each row only; [R, Q, H, E] in q's dtype."""
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
    """Radians a position of each rotated pair of dimensions, float32 [rotated / 2].

    `local`: of the layers in `config.local_layers`, where they have a base of their own.
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


def rotary(x_RLHE: Array, positions_RL: Array, frequency_E: Array) -> Array:
    """Rotates the leading dimensions of each head, two for a frequency, in float32 (half-split)."""
    half = frequency_E.shape[0]
    angle_RLE = positions_RL[..., None].astype(jnp.float32) * frequency_E[None, None, :]
    cos, sin = jnp.cos(angle_RLE)[:, :, None, :], jnp.sin(angle_RLE)[:, :, None, :]
    first, second, rest = jnp.split(x_RLHE.astype(jnp.float32), [half, 2 * half], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x_RLHE.dtype)


class Reach(NamedTuple):
    """What attention layers may differ in, while their parameters are one stack.

    Attributes:
      window: slots that a slot sees (0: all before it); an array in layers that differ.
      frequency_E: of rotary positions; None without them.
    """

    window: Array | int
    frequency_E: Array | None


def reaches(config: ModelConfig, length: int) -> tuple[Reach, list[Reach]]:
    """(the `Reach` of all layers, []) or, where they differ, (of the first, of each).

    Those of layers that differ hold arrays of equal shapes, which can be stacked; `length` is the
    rows' number of slots.
    """

    def reach(local: bool) -> Reach:
        rope = config.positions == "rope"
        frequency_E = rotary_frequencies(config, local=local) if rope else None
        if not config.local_layers:
            return Reach(config.window, frequency_E)
        # As layers share a program, those without a window have one that nothing exceeds.
        window = config.window if local and config.window else length
        return Reach(jnp.int32(window), frequency_E)

    if not config.local_layers:
        return reach(local=True), []
    kinds = {local: reach(local) for local in set(config.local_layers)}
    each = [kinds[local] for local in config.local_layers]
    return each[0], each
