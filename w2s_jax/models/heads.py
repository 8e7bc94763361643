"""Heads on the decoder's hidden states: class logits, rewards, and language-model logits."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.network import Params, unembedding

Array = jax.Array


def init_class_head(
    how: str,
    config: ModelConfig,
    params: Params,
    label_tokens: tuple[int, int],
    mesh: Mesh,
    num_texts: int = 1,
) -> dict[str, Array]:
    """A bias-free head {'kernel': float32 [D, 2 / K]}, replicated on `mesh`.

    Two logits at the read-out of a text (K = 1); one, the reward, at each of a pair's (K = 2).

    Args:
      how: 'unembedding' copies the language-model head's columns of the two label tokens (Burns et
        al. 2023, appendix A.1), of which a reward is the difference (1 less 0); 'zeros' as in the
        released code.
      config, params: the backbone.
      label_tokens: the tokens that spell the labels 0 and 1.
      mesh: where the head goes.
      num_texts: K.
    """
    if how == "zeros":
        kernel_DC = jnp.zeros((config.d_model, 2 // num_texts), jnp.float32)
    else:
        columns = jnp.asarray(label_tokens)
        kernel_DC = unembedding(config, params)[:, columns].astype(jnp.float32)
        if num_texts == 2:
            kernel_DC = kernel_DC[:, 1:] - kernel_DC[:, :1]
    return {"kernel": jax.device_put(kernel_DC, sharding.replicated(mesh))}


def abstract_class_head(
    config: ModelConfig, mesh: Mesh, num_texts: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of a head for documents of `num_texts` texts."""
    shape = (config.d_model, 2 // num_texts)
    whole = sharding.replicated(mesh)
    return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)}


def class_logits(head: dict[str, Any], hidden_BKD: Array) -> Array:
    """Two-class logits in float32, [B, 2], from the hidden states at the read-outs.

    For a pair they are the rewards (r1, r2) of its texts, so that softmax gives
    P(label 1) = sigmoid(r2 - r1) (Burns et al. 2023, section 4.3) and every loss applies.
    `hidden_BKD` may lack the axis K where it is 1.
    """
    with jax.named_scope("class_head"):
        logits = jnp.einsum(
            "...d,dc->...c",
            hidden_BKD,
            head["kernel"].astype(hidden_BKD.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits.reshape(logits.shape[0], -1)


def language_model_logits(config: ModelConfig, params: Params, hidden_RLD: Array) -> Array:
    """Next-token logits in float32, [R, L, V]."""
    with jax.named_scope("language_model_head"):
        kernel_DV = unembedding(config, params).astype(hidden_RLD.dtype)
        logits_RLV = jnp.einsum(
            "rld,dv->rlv", hidden_RLD, kernel_DV, preferred_element_type=jnp.float32
        )
        if config.unembedding_bias:
            logits_RLV += params["unembedding_bias"].astype(jnp.float32)[None, None]
        if config.logit_softcap:
            logits_RLV = config.logit_softcap * jnp.tanh(logits_RLV / config.logit_softcap)
        return logits_RLV
