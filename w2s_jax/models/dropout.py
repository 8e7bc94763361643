"""Dropout whose masks belong to tokens, so that they are the same however texts are packed.

Shapes in names: R rows, L slots, Q some slots of a row, D width.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from w2s_jax.models.attention import segment_positions

Array = jax.Array

# Whatever the default is: other generators give other numbers to a key that is one of several.
_IMPL = "threefry2x32"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rate", "keys_RL2"], meta_fields=[]
)
@dataclass(frozen=True)
class Dropout:
    """What a forward pass drops (Srivastava et al. 2014); called on activations, it drops.

    Attributes:
      rate: float32 scalar; the share that is set to 0. The rest is divided by 1 - rate.
      keys_RL2: uint32; what decides in each slot.
    """

    rate: Array
    keys_RL2: Array

    def within(self, part: Array | int) -> "Dropout":
        """That of a part of the model: parts of different numbers have masks of their own."""
        keys_RL2 = _folded(self.keys_RL2, jnp.full(self.keys_RL2.shape[:2], part, jnp.uint32))
        return Dropout(self.rate, keys_RL2)

    def at(self, slots_RQ: Array) -> "Dropout":
        """That of some slots of each row."""
        keys_RQ2 = jnp.take_along_axis(self.keys_RL2, slots_RQ[..., None], axis=1)
        return Dropout(self.rate, keys_RQ2)

    def __call__(self, x_RLD: Array) -> Array:
        def bits(key_2: Array) -> Array:
            key = jax.random.wrap_key_data(key_2, impl=_IMPL)
            return jax.random.bits(key, x_RLD.shape[-1:], jnp.uint32)

        with jax.named_scope("dropout"):
            dropped = (self.rate * 2.0**32).astype(jnp.uint32)
            kept_RLD = jax.vmap(jax.vmap(bits))(self.keys_RL2) >= dropped
            # In float32: 1 / (1 - rate) is 0.2% off in bfloat16.
            scaled_RLD = (x_RLD.astype(jnp.float32) / (1 - self.rate)).astype(x_RLD.dtype)
            return jnp.where(kept_RLD, scaled_RLD, 0)


def make_key(seed: Array | int) -> Array:
    """The key of a seed, for `slot_keys`."""
    return jax.random.key(seed, impl=_IMPL)


def slot_keys(key: Array, pieces_RL: Array, segment_ids_RL: Array) -> Array:
    """`Dropout.keys_RL2`, by `key`, the slot's text and its position in it.

    Args:
      key: of a training step.
      pieces_RL: integers that tell texts apart.
      segment_ids_RL: the rows' segments, within which positions count.
    """
    key_RL2 = jnp.broadcast_to(jax.random.key_data(key)[None, None], (*pieces_RL.shape, 2))
    positions_RL = segment_positions(segment_ids_RL.astype(jnp.int32))
    return _folded(_folded(key_RL2, pieces_RL), positions_RL)


@jax.vmap
@jax.vmap
def _folded(key_2: Array, number: Array) -> Array:
    key = jax.random.wrap_key_data(key_2, impl=_IMPL)
    return jax.random.key_data(jax.random.fold_in(key, number))
