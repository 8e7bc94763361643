"""Heads on hidden states: read-outs, class logits, rewards, and language-model logits.

Shapes in names: R rows, L slots, m documents, K read-outs of a document, D width, C classes,
V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.models.attention import segment_positions
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.matmul import contract
from w2s_jax.models.network import Params, unembedding

Array = jax.Array


def init_class_head(
    how: str,
    config: ModelConfig,
    params: Params,
    label_tokens: tuple[int, ...],
    mesh: Mesh,
    num_texts: int = 1,
) -> dict[str, Array]:
    """A bias-free head {'kernel': float32 [D, 2 / K]}, replicated on `mesh`.

    Two logits at the read-out of a text (K = 1); one, the reward, at each of a pair's (K = 2).

    Args:
      how: 'unembedding' copies the language-model head's columns of the two label tokens (Burns et
        al. 2023, appendix A.1), of which a reward is the difference (1 less 0), and which an
        encoder has not; 'zeros' as in the released code.
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
    return {"kernel": sharding.put(kernel_DC, sharding.replicated(mesh))}


def abstract_class_head(
    config: ModelConfig, mesh: Mesh, num_texts: int = 1, *, bias: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of a head for documents of `num_texts` texts."""
    classes = 2 // num_texts
    shapes: dict[str, tuple[int, ...]] = {"kernel": (config.d_model, classes)}
    if bias:
        shapes["bias"] = (classes,)
    whole = sharding.replicated(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
        for name, shape in shapes.items()
    }


def read_out(
    config: ModelConfig,
    backbone_params: Params,
    hidden_RLD: Array,
    segment_ids_RL: Array,
    read_outs_mK: Array,
) -> Array:
    """What heads see of each text, by `config.read_out`: [m, K, D] in the hidden states' dtype.

    Args:
      config, backbone_params: the model; of its parameters only the pooler's are used.
      hidden_RLD: hidden states of packed rows.
      segment_ids_RL: the rows' segments, 1, 2, ... in each (0: padding).
      read_outs_mK: index into the flattened [R * L] slots of each text's last token. One that
        points into padding, as of a document of weight 0, gives finite values without meaning.

    Returns:
      The hidden state of the text's 'last' or 'first' token; the 'mean' of all its tokens', summed
      in float32; or tanh of the 'pooler''s dense layer over the first.
    """
    num_rows, length, width = hidden_RLD.shape
    segment_ids_RL = jnp.asarray(segment_ids_RL, jnp.int32)
    read_outs_mK = jnp.asarray(read_outs_mK)
    with jax.named_scope("read_out"):
        if config.read_out == "mean":
            return _mean(hidden_RLD, segment_ids_RL, read_outs_mK)
        if config.read_out != "last":
            # As many slots before the last one as its position says.
            positions_RL = segment_positions(segment_ids_RL)
            read_outs_mK = read_outs_mK - positions_RL.reshape(-1)[read_outs_mK]
        hidden_mKD = hidden_RLD.reshape(num_rows * length, width)[read_outs_mK]
        return _pooled(config, backbone_params, hidden_mKD)


def _pooled(config: ModelConfig, backbone_params: Params, hidden_mKD: Array) -> Array:
    if config.read_out != "pooler":
        return hidden_mKD
    pooler = backbone_params["pooler"]
    return jnp.tanh(contract("mkd,de->mke", hidden_mKD, pooler["kernel"], pooler["bias"]))


def seen_slots(config: ModelConfig, segment_ids_RL: Array, slots_RQ: Array) -> Array | None:
    """Which slots of the last hidden states a head sees, int32 [R, Q]; None: all of them.

    `slots_RQ` are the last slots of each row's segments 1, ..., Q.
    """
    if config.read_out == "mean":
        return None
    slots_RQ = slots_RQ.astype(jnp.int32)
    if config.read_out == "last":
        return slots_RQ
    positions_RL = segment_positions(segment_ids_RL.astype(jnp.int32))
    return slots_RQ - jnp.take_along_axis(positions_RL, slots_RQ, axis=1)


def read_out_of_seen(
    config: ModelConfig,
    backbone_params: Params,
    hidden_RQD: Array,
    segment_ids_RL: Array,
    read_outs_mK: Array,
) -> Array:
    """As `read_out`, from the hidden states at `seen_slots` alone."""
    num_rows, segments, width = hidden_RQD.shape
    length = segment_ids_RL.shape[1]
    with jax.named_scope("read_out"):
        # Read-outs without a document may point into padding, whose segment is 0.
        segment_mK = segment_ids_RL.reshape(-1)[read_outs_mK].astype(jnp.int32)
        place_mK = read_outs_mK // length * segments + jnp.maximum(segment_mK, 1) - 1
        hidden_mKD = hidden_RQD.reshape(num_rows * segments, width)[place_mK]
        return _pooled(config, backbone_params, hidden_mKD)


def _mean(hidden_RLD: Array, segment_ids_RL: Array, read_outs_mK: Array) -> Array:
    """The mean over the segments that `read_outs_mK` lie in: one product with their masks."""
    num_rows, length, _ = hidden_RLD.shape
    row_mK = read_outs_mK // length
    segment_mK = segment_ids_RL.reshape(-1)[read_outs_mK]
    same_row_mKR = row_mK[..., None] == jnp.arange(num_rows)[None, None]
    same_segment_mKRL = segment_mK[..., None, None] == segment_ids_RL[None, None]
    mask_mKRL = same_row_mKR[..., None] & same_segment_mKRL
    total_mKD = jnp.einsum(
        "mkrl,rld->mkd",
        mask_mKRL.astype(hidden_RLD.dtype),
        hidden_RLD,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    count_mK = jnp.sum(mask_mKRL, axis=(2, 3), dtype=jnp.float32)
    return (total_mKD / count_mK[..., None]).astype(hidden_RLD.dtype)


def class_logits(head: dict[str, Any], hidden_BKD: Array) -> Array:
    """Two-class logits in float32, [B, 2], from what `read_out` gives.

    For a pair they are the rewards (r1, r2) of its texts, so that softmax gives
    P(label 1) = sigmoid(r2 - r1) (Burns et al. 2023, section 4.3) and every loss applies.
    `hidden_BKD` may lack the axis K where it is 1; the head may have a 'bias', float32 [C].
    """
    with jax.named_scope("class_head"):
        logits = jnp.einsum(
            "...d,dc->...c",
            hidden_BKD,
            head["kernel"].astype(hidden_BKD.dtype),
            preferred_element_type=jnp.float32,
        )
        if "bias" in head:
            logits += head["bias"].reshape((1,) * (logits.ndim - 1) + (-1,))
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
