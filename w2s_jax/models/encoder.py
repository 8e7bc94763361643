"""The encoder: one NNX module with BERT's architecture (Devlin et al. 2019).

A token attends to its whole text. Norms come after attention and MLP, and after the embeddings
instead of at the end.
Shapes in names: R rows, L slots, Q selected slots, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from w2s_jax import sharding
from w2s_jax.models.attention import Reach, at_slots
from w2s_jax.models.backbone import Backbone, stack_blocks
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.dropout import Dropout
from w2s_jax.models.layers import MLP, Attention, Norm, normal

Array = jax.Array


class Block(nnx.Module):
    """Attention, then MLP, each added to its input and then normalised."""

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
    """Parameters of the dense layer on a text's first slot; `heads.read_out` applies it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d = config.d_model
        # A mesh axis cannot split both axes, so the output is sharded like the inside of an MLP.
        self.kernel = normal(rngs, (d, d), config.init_std, ("embed", "mlp"))
        self.bias = nnx.Param(jnp.zeros(d), out_sharding=("mlp",))


class Encoder(Backbone):
    """Embeddings with their norm, and blocks; for the parameters of heads see `heads`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        if config.token_types:
            shape, axes = (config.token_types, config.d_model), ("positions", "embed")
            self.token_type_embedding = normal(rngs, shape, config.init_std, axes)
        self.embedding_norm = Norm(config)
        self.blocks = stack_blocks(Block, config, rngs)
        if config.pooler:
            self.pooler = Pooler(config, rngs)

    def embed(self, tokens_RL: Array, positions_RL: Array, compute_dtype: Any) -> Array:
        """Return the input of the first block: normalised embeddings, before dropout."""
        x_RLD = super().embed(tokens_RL, positions_RL, compute_dtype)
        if self.config.token_types:
            x_RLD += self.token_type_embedding[...].astype(compute_dtype)[None, :1]
        return self.embedding_norm(sharding.split_rows(x_RLD))
