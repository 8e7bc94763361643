"""The parts that decoders and encoders share: embeddings, and blocks stacked by layer.

Parameters are stacked by layer, whether the forward pass scans over layers or unrolls them.
Shapes in names: R rows, L slots, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from w2s_jax import sharding
from w2s_jax.models.blocks import run_blocks
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.dropout import Dropout
from w2s_jax.models.layers import normal

Array = jax.Array


class Backbone(nnx.Module):
    """Embeddings and blocks; subclasses create `blocks` by `stack_blocks`."""

    blocks: nnx.Module

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        std, d = config.init_std, config.d_model
        self.embedding = normal(rngs, (config.vocab_size, d), std, ("vocab", "embed"))
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            self.position_embedding = normal(rngs, (rows, d), std, ("positions", "embed"))

    def embed(self, tokens_RL: Array, positions_RL: Array, compute_dtype: Any) -> Array:
        """Return the input of the first block, before dropout, [R, L, D]."""
        x_RLD = sharding.look_up(self.embedding[...], tokens_RL).astype(compute_dtype)
        if self.config.scaled_embeddings:
            x_RLD *= jnp.asarray(self.config.d_model**0.5, compute_dtype)
        if self.config.positions == "learned":
            rows_RL = positions_RL + self.config.position_offset
            position_RLD = sharding.look_up(self.position_embedding[...], rows_RL)
            x_RLD += position_RLD.astype(compute_dtype)
        return x_RLD

    def finish(self, x_RLD: Array) -> Array:
        """Return the hidden states, given the output of the last block."""
        return x_RLD

    def __call__(
        self,
        tokens_RL: Array,
        segment_ids_RL: Array,
        positions_RL: Array,
        *,
        tail: Sequence[Any] = (),
        slots_RQ: Array | None = None,
        dropout: Dropout | None = None,
        compute_dtype: Any,
        scan: bool,
        remat: str,
        first_keys: tuple[int, ...] = (),
        tap: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, list[Array]]:
        """Return the hidden states at all slots, [R, L, D], or at `slots_RQ`, [R, Q, D], and taps.

        `tail` holds the stacks of blocks that follow `self.blocks`; for the other arguments see
        `network.forward`.
        """
        with jax.named_scope("embed"):
            x_RLD = self.embed(tokens_RL, positions_RL, compute_dtype)
            if dropout is not None:
                x_RLD = dropout.within(0)(x_RLD)
        graphdef, blocks = nnx.split(self.blocks)
        x_RLD, taps = run_blocks(
            self.config,
            graphdef,
            [blocks, *tail],
            x_RLD,
            segment_ids_RL,
            positions_RL,
            slots_RQ,
            dropout,
            scan=scan,
            remat=remat,
            first_keys=first_keys,
            tap=tap,
        )
        return self.finish(x_RLD), taps


def stack_blocks(
    block: Callable[[ModelConfig, nnx.Rngs], nnx.Module], config: ModelConfig, rngs: nnx.Rngs
) -> nnx.Module:
    """Initialise `config.num_layers` blocks with their parameters stacked along a first axis."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def stack(layer_rngs: nnx.Rngs) -> nnx.Module:
        return block(config, layer_rngs)

    return stack(rngs)
