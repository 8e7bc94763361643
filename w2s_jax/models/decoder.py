"""The decoder: one NNX module for all decoder-only families, configured by `ModelConfig`.

Shapes in names: R rows, L slots, Q selected slots, D width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from w2s_jax.models.attention import Reach, at_slots
from w2s_jax.models.backbone import Backbone, stack_blocks
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.dropout import Dropout
from w2s_jax.models.layers import MLP, Attention, Norm, normal

Array = jax.Array


class Block(nnx.Module):
    """Pre-norm attention and MLP, sequential or parallel, with optional post-norms."""

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
            dropout = None if dropout is None else dropout.at(slots_RQ)
        return self.add(x_RLD, normed_RLD, attended_RLD, dropout)

    def add(
        self,
        x_RLD: Array,
        normed_RLD: Array,
        attended_RLD: Array,
        dropout: Dropout | None = None,
    ) -> Array:
        """Return the block's output: everything that follows attention.

        Args:
          x_RLD: the block's input.
          normed_RLD: the input of its attention.
          attended_RLD: the output of its attention.
          dropout: dropout of the block (None: no dropout).
        """
        if self.attention_post_norm is not None:
            attended_RLD = self.attention_post_norm(attended_RLD)
        if dropout is not None:
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


class Decoder(Backbone):
    """Embeddings, blocks and the final norm; for the parameters of heads see `heads`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.blocks = stack_blocks(Block, config, rngs)
        self.final_norm = Norm(config)
        if not config.tied_embeddings:
            shape, axes = (config.d_model, config.vocab_size), ("embed", "vocab")
            self.unembedding = normal(rngs, shape, config.init_std, axes)
        if config.unembedding_bias:
            self.unembedding_bias = nnx.Param(jnp.zeros(config.vocab_size), out_sharding=("vocab",))

    def finish(self, x_RLD: Array) -> Array:
        """Apply the final norm."""
        with jax.named_scope("final_norm"):
            return self.final_norm(x_RLD)
