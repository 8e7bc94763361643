"""Heads on the decoder's hidden states: two-class logits, and language-model logits."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.decoder import Params, unembedding

Array = jax.Array


def init_class_head(
    how: str, config: ModelConfig, params: Params, label_tokens: tuple[int, int], mesh: Mesh
) -> dict[str, Array]:
    """A bias-free two-logit head {'kernel': float32 [D, 2]}, replicated on `mesh`.

    Args:
      how: 'unembedding' copies the language-model head's columns of the two label tokens (Burns et
        al. 2023, appendix A.1); 'zeros' as in the released code.
      config, params: the backbone.
      label_tokens: the tokens that spell the labels 0 and 1.
      mesh: where the head goes.
    """
    if how == "zeros":
        kernel_DC = jnp.zeros((config.d_model, 2), jnp.float32)
    else:
        columns = jnp.asarray(label_tokens)
        kernel_DC = unembedding(config, params)[:, columns].astype(jnp.float32)
    return {"kernel": jax.device_put(kernel_DC, sharding.replicated(mesh))}


def abstract_class_head(config: ModelConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of a two-logit head."""
    whole = sharding.replicated(mesh)
    return {"kernel": jax.ShapeDtypeStruct((config.d_model, 2), jnp.float32, sharding=whole)}


def class_logits(head: dict[str, Any], hidden_BD: Array) -> Array:
    """Two-class logits in float32, [B, 2]."""
    with jax.named_scope("class_head"):
        return jnp.einsum(
            "bd,dc->bc",
            hidden_BD,
            head["kernel"].astype(hidden_BD.dtype),
            preferred_element_type=jnp.float32,
        )


def language_model_logits(config: ModelConfig, params: Params, hidden_RLD: Array) -> Array:
    """Next-token logits in float32, [R, L, V]."""
    with jax.named_scope("language_model_head"):
        kernel_DV = unembedding(config, params).astype(hidden_RLD.dtype)
        return jnp.einsum("rld,dv->rlv", hidden_RLD, kernel_DV, preferred_element_type=jnp.float32)
