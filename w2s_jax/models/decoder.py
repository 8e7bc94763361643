"""The decoder: one NNX module for every decoder-only family, driven by `ModelConfig`.

Parameters are stacked by layer, whether the forward pass scans over layers or unrolls them.
Shapes in names: R rows, L slots, D width.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from w2s_jax import sharding
from w2s_jax.models.attention import Reach, at_slots
from w2s_jax.models.blocks import run_blocks
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.dropout import Dropout
from w2s_jax.models.layers import MLP, Attention, Norm, normal

Array = jax.Array


class Block(nnx.Module):
    """Pre-norm attention and MLP, one after the other or side by side; norms behind, if any."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = Norm(config)
        self.attention = Attention(config, rngs)
        self.attention_post_norm = Norm(config) if config.post_norms else None
        self.mlp_norm = None if config.shared_norm else Norm(config)
        self.mlp = MLP(config, rngs)
        self.mlp_post_norm = Norm(config) if config.post_norms else None

    def __call__(
        self,
        x_RLD: Array,
        segment_ids_RL: Array,
        positions_RL: Array,
        reach: Reach,
        slots_RQ: Array | None = None,
        dropout: Dropout | None = None,
    ) -> Array:
        normed_RLD = self.attention_norm(x_RLD)
        attended_RLD = self.attention(normed_RLD, segment_ids_RL, positions_RL, reach, slots_RQ)
        if slots_RQ is not None:
            x_RLD, normed_RLD = at_slots(x_RLD, slots_RQ), at_slots(normed_RLD, slots_RQ)
        if self.attention_post_norm is not None:
            attended_RLD = self.attention_post_norm(attended_RLD)
        if dropout is not None:
            dropout = dropout if slots_RQ is None else dropout.at(slots_RQ)
            attended_RLD = dropout.within(0)(attended_RLD)
        after_RLD = x_RLD + attended_RLD
        if self.config.parallel_residual:
            if self.mlp_norm is not None:
                normed_RLD = self.mlp_norm(x_RLD)
            out_RLD = self.mlp(normed_RLD)
        else:
            assert self.mlp_norm is not None
            out_RLD = self.mlp(self.mlp_norm(after_RLD))
            out_RLD = out_RLD if self.mlp_post_norm is None else self.mlp_post_norm(out_RLD)
        return after_RLD + (out_RLD if dropout is None else dropout.within(1)(out_RLD))


class Decoder(nnx.Module):
    """Embeddings, blocks (stacked by layer) and the final norm; heads stand in `heads`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        std, vocab, d = config.init_std, config.vocab_size, config.d_model
        self.embedding = normal(rngs, (vocab, d), std, ("vocab", "embed"))
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            self.position_embedding = normal(rngs, (rows, d), std, ("positions", "embed"))

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(layer_rngs: nnx.Rngs) -> Block:
            return Block(config, layer_rngs)

        self.blocks = stack(rngs)
        self.final_norm = Norm(config)
        if not config.tied_embeddings:
            self.unembedding = normal(rngs, (d, vocab), std, ("embed", "vocab"))
        if config.unembedding_bias:
            self.unembedding_bias = nnx.Param(jnp.zeros(vocab), out_sharding=("vocab",))

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
    ) -> Array:
        """The hidden states, of all slots or at `slots_RQ`.

        `tail`: stacks of the blocks that follow `self.blocks`, if any.
        """
        with jax.named_scope("embed"):
            x_RLD = sharding.look_up(self.embedding[...], tokens_RL).astype(compute_dtype)
            if self.config.scaled_embeddings:
                x_RLD *= jnp.asarray(self.config.d_model**0.5, compute_dtype)
            if self.config.positions == "learned":
                slots_RL = positions_RL + self.config.position_offset
                places_RLD = sharding.look_up(self.position_embedding[...], slots_RL)
                x_RLD += places_RLD.astype(compute_dtype)
            if dropout is not None:
                x_RLD = dropout.within(0)(x_RLD)
        graphdef, blocks = nnx.split(self.blocks)
        x_RLD = run_blocks(
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
        )
        with jax.named_scope("final_norm"):
            return self.final_norm(x_RLD)
