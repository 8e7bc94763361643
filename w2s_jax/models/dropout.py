"""Dropout with a mask per token, so that masks do not depend on how texts are packed.

Shapes in names: R rows, L slots, Q selected slots, D width.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from w2s_jax.models.attention import segment_positions

Array = jax.Array

# Not the default generator: with others, the numbers of a key may depend on the batch it is in.
_IMPL = "threefry2x32"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rate", "keys_RL2"], meta_fields=[]
)
@dataclass(frozen=True)
class Dropout:
    """Dropout of a forward pass (Srivastava et al. 2014), applied by calling it on activations.

    Attributes:
      rate: float32 scalar, the share set to 0. The rest is divided by 1 - rate.
      keys_RL2: uint32, the key of each slot.
    """

    rate: Array
    keys_RL2: Array

    def within(self, part: Array | int) -> "Dropout":
        """Return the dropout of a part of the model; different numbers give different masks."""
        keys_RL2 = _folded(self.keys_RL2, jnp.full(self.keys_RL2.shape[:2], part, jnp.uint32))
        return Dropout(self.rate, keys_RL2)

    def at(self, slots_RQ: Array) -> "Dropout":
        """Return the dropout at selected slots of each row."""
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
    """Return the key of a seed, for `slot_keys`."""
    return jax.random.key(seed, impl=_IMPL)


def slot_keys(key: Array, pieces_RL: Array, segment_ids_RL: Array) -> Array:
    """Return `Dropout.keys_RL2`, derived from a key, the slot's text and its position in the text.

    Args:
      key: the key of a training step.
      pieces_RL: integers that identify texts.
      segment_ids_RL: integer segments, which determine positions.
    """
    key_RL2 = jnp.broadcast_to(jax.random.key_data(key)[None, None], (*pieces_RL.shape, 2))
    positions_RL = segment_positions(segment_ids_RL.astype(jnp.int32))
    return _folded(_folded(key_RL2, pieces_RL), positions_RL)


@jax.vmap
@jax.vmap
def _folded(key_2: Array, number: Array) -> Array:
    key = jax.random.wrap_key_data(key_2, impl=_IMPL)
    return jax.random.key_data(jax.random.fold_in(key, number))
