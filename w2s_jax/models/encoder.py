"""The encoder: one NNX module in BERT's form (Devlin et al. 2019), driven by `ModelConfig`.

A token sees its whole text; norms stand behind attention and MLP, and behind the embeddings instead
of a final one. Parameters are stacked by layer as the decoder's are.
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
    """Attention, then MLP, each added to its input and normalised after that."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs)
        self.attention_norm = Norm(config)
        self.mlp = MLP(config, rngs)
        self.mlp_norm = Norm(config)

    def __call__(
        self,
        x_RLD: Array,
        segment_ids_RL: Array,
        positions_RL: Array,
        reach: Reach,
        slots_RQ: Array | None = None,
        dropout: Dropout | None = None,
    ) -> Array:
        attended_RLD = self.attention(x_RLD, segment_ids_RL, positions_RL, reach, slots_RQ)
        if slots_RQ is not None:
            x_RLD = at_slots(x_RLD, slots_RQ)
        if dropout is not None:
            dropout = dropout if slots_RQ is None else dropout.at(slots_RQ)
            attended_RLD = dropout.within(0)(attended_RLD)
        after_RLD = self.attention_norm(x_RLD + attended_RLD)
        out_RLD = self.mlp(after_RLD)
        if dropout is not None:
            out_RLD = dropout.within(1)(out_RLD)
        return self.mlp_norm(after_RLD + out_RLD)


class Pooler(nnx.Module):
    """The parameters of the dense layer over a text's first slot; `heads.read_out` applies it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d = config.d_model
        # A mesh axis can't split both axes: what comes out lies as inside an MLP.
        self.kernel = normal(rngs, (d, d), config.init_std, ("embed", "mlp"))
        self.bias = nnx.Param(jnp.zeros(d), out_sharding=("mlp",))


class Encoder(nnx.Module):
    """Embeddings with their norm and blocks (stacked by layer); heads stand in `heads`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        std, d = config.init_std, config.d_model
        self.embedding = normal(rngs, (config.vocab_size, d), std, ("vocab", "embed"))
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            self.position_embedding = normal(rngs, (rows, d), std, ("positions", "embed"))
        if config.token_types:
            self.token_type_embedding = normal(
                rngs, (config.token_types, d), std, ("positions", "embed")
            )
        self.embedding_norm = Norm(config)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(layer_rngs: nnx.Rngs) -> Block:
            return Block(config, layer_rngs)

        self.blocks = stack(rngs)
        if config.pooler:
            self.pooler = Pooler(config, rngs)

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
            if self.config.positions == "learned":
                slots_RL = positions_RL + self.config.position_offset
                places_RLD = sharding.look_up(self.position_embedding[...], slots_RL)
                x_RLD += places_RLD.astype(compute_dtype)
            if self.config.token_types:
                x_RLD += self.token_type_embedding[...].astype(compute_dtype)[None, :1]
            x_RLD = self.embedding_norm(sharding.split_rows(x_RLD))
            if dropout is not None:
                x_RLD = dropout.within(0)(x_RLD)
        graphdef, blocks = nnx.split(self.blocks)
        return run_blocks(
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
