"""Whether a model runs on each device alone, for passes without gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from w2s_jax.core import processes


def memory_limit() -> int | None:
    """Return the bytes that a local device may allocate, or None if it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def fits_on_one_device(params: Any, compute_dtype: str) -> bool:
    """Return whether a device can run a label pass alone (True if its memory is unknown).

    It can if `bytes_on_one_device` is at most half of its memory. The rest is for activations and
    caches, and for the train state during an evaluation.
    """
    limit = memory_limit()
    fits = limit is None or bytes_on_one_device(params, compute_dtype) <= limit / 2
    return processes.first_says("fits on one device", fits)


def bytes_on_one_device(params: Any, compute_dtype: str) -> int:
    """Return the bytes of all parameters on a device that runs a label pass alone.

    This includes a copy in the compute dtype: parameters are cast before the loop over layers, and
    TPU programs take as much even if they already have that dtype.
    """
    width = jnp.dtype(compute_dtype).itemsize
    return sum(x.size * (x.dtype.itemsize + width) for x in jax.tree.leaves(params))
