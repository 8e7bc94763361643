"""The compiled programs of generation: prefill and decode, on each device alone or sharded."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.models import decoding
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.decoding import Knobs, Rows, Written
from w2s_jax.models.sampling import Choice


@functools.lru_cache(maxsize=32)
def programs(
    config: ModelConfig,
    compute_dtype: str,
    max_new_tokens: int,
    choice: Choice,
    devices: tuple[Any, ...],
    result_mesh: Mesh | None = None,
) -> tuple[Callable, Callable]:
    """Return prefill (slots, parameters, rows) and decode (parameters, cache, logits, rows, knobs).

    Args:
      config: the model.
      compute_dtype: dtype of activations and cache.
      max_new_tokens: most tokens of a completion, the end token included.
      choice: how tokens are chosen.
      devices: each runs a batch of its own, by `jax.pmap`; () for programs over a mesh, by
        `jax.jit`.
      result_mesh: over whose devices a sharded program's result is replicated, so that each of
        several processes has it.
    """
    fixed = (config, jnp.dtype(compute_dtype))

    def prefill(slots: int, prepared: Any, rows: Rows) -> Any:
        return decoding.prefill(*fixed, slots, prepared, rows)

    def decode(
        prepared: Any, cache: Any, logits_RV: jax.Array, rows: Rows, knobs: Knobs
    ) -> tuple[Any, Written]:
        return decoding.decode(
            *fixed, max_new_tokens, choice, prepared, cache, logits_RV, rows, knobs
        )

    if devices:
        return (
            jax.pmap(
                prefill, in_axes=(None, None, 0), static_broadcasted_argnums=0, devices=devices
            ),
            jax.pmap(decode, in_axes=(None, 0, 0, 0, None), donate_argnums=1, devices=devices),
        )
    where = None if result_mesh is None else (None, sharding.replicated(result_mesh))
    return (
        jax.jit(prefill, static_argnums=0),
        jax.jit(decode, donate_argnums=1, out_shardings=where),
    )
