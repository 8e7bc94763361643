"""Read-outs and heads: class logits, rewards and next-token logits from hidden states.

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
    columns: int = 2,
    *,
    bias: bool = False,
    seed: int = 0,
) -> dict[str, Array]:
    """Initialise a head, {'kernel': float32 [D, columns]}, replicated on `mesh`.

    It has a column for the logit of each class, or, for pairs, a single one: the reward of a text.

    Args:
      how: 'unembedding' copies the columns of the label tokens from the language-model head
        (Burns et al. 2023, appendix A.1); a reward gets their difference, label 1 minus label 0.
        Not available for encoders. 'zeros' as in the released code. 'uniform' as in the code
        released for vision: from -1 / sqrt(D) to 1 / sqrt(D), the default of torch.nn.Linear.
      config: the model.
      params: its backbone.
      label_tokens: the token that stands for each class.
      mesh: where to put the head.
      columns: the number of classes, or 1 for a reward.
      bias: whether the head also has 'bias', float32 [columns]; 0 unless `how` is 'uniform'.
      seed: of 'uniform'.

    Raises:
      InputError: for 'unembedding' with an encoder.
    """
    bias_C = jnp.zeros(columns, jnp.float32)
    if how == "uniform":
        bound = config.d_model**-0.5
        of_kernel, of_bias = jax.random.split(jax.random.key(seed))
        shape = (config.d_model, columns)
        kernel_DC = jax.random.uniform(of_kernel, shape, jnp.float32, -bound, bound)
        bias_C = jax.random.uniform(of_bias, (columns,), jnp.float32, -bound, bound)
    elif how == "zeros":
        kernel_DC = jnp.zeros((config.d_model, columns), jnp.float32)
    else:
        tokens_C = jnp.asarray(label_tokens)
        kernel_DC = unembedding(config, params)[:, tokens_C].astype(jnp.float32)
        if columns == 1:
            kernel_DC = kernel_DC[:, 1:] - kernel_DC[:, :1]
    head = {"kernel": kernel_DC} | ({"bias": bias_C} if bias else {})
    return {name: sharding.put(value, sharding.replicated(mesh)) for name, value in head.items()}


def abstract_class_head(
    config: ModelConfig, mesh: Mesh, columns: int = 2, *, bias: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes, dtypes and shardings of a head; arguments as in `init_class_head`."""
    shapes: dict[str, tuple[int, ...]] = {"kernel": (config.d_model, columns)}
    if bias:
        shapes["bias"] = (columns,)
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
    """Return the input of the head for each text, as `config.read_out` says.

    Args:
      config: the model.
      backbone_params: its backbone, of which only the pooler is used.
      hidden_RLD: hidden states of packed rows.
      segment_ids_RL: integer segments, 1, 2, ... within a row, 0 for padding.
      read_outs_mK: integer index of each text's last token in the flattened [R * L] slots. An index
        into padding, as for documents of weight 0, gives finite values without meaning.

    Returns:
      hidden_mKD in the dtype of the hidden states: that of the text's 'last' or 'first' token, the
      'mean' over its tokens (summed in float32), or the 'pooler' (a dense layer with tanh) applied
      to the first.
    """
    num_rows, length, width = hidden_RLD.shape
    segment_ids_RL = jnp.asarray(segment_ids_RL, jnp.int32)
    read_outs_mK = jnp.asarray(read_outs_mK)
    with jax.named_scope("read_out"):
        if config.read_out == "mean":
            return _mean(hidden_RLD, segment_ids_RL, read_outs_mK)
        if config.read_out != "last":
            # The position of the last token is its distance from the first.
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
    """Return the slots whose hidden states the head reads, int32 [R, Q], or None for all slots.

    Args:
      config: the model.
      segment_ids_RL: integer segments, 1, 2, ... within a row, 0 for padding.
      slots_RQ: the last slots of each row's segments 1, ..., Q.
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
    """Do the same as `read_out`, given only the hidden states at `seen_slots`."""
    num_rows, segments, width = hidden_RQD.shape
    length = segment_ids_RL.shape[1]
    with jax.named_scope("read_out"):
        # Read-outs of empty documents may point into padding, whose segment is 0.
        segment_mK = segment_ids_RL.reshape(-1)[read_outs_mK].astype(jnp.int32)
        index_mK = read_outs_mK // length * segments + jnp.maximum(segment_mK, 1) - 1
        hidden_mKD = hidden_RQD.reshape(num_rows * segments, width)[index_mK]
        return _pooled(config, backbone_params, hidden_mKD)


def _mean(hidden_RLD: Array, segment_ids_RL: Array, read_outs_mK: Array) -> Array:
    """Return the mean over the segments of `read_outs_mK`, as one product with their masks."""
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
    """Return class logits, float32 [B, C], from the output of `read_out`.

    For a pair they are the rewards (r1, r2) of its texts, so that softmax gives
    P(label 1) = sigmoid(r2 - r1) (Burns et al. 2023, section 4.3) and every loss applies.

    Args:
      head: {'kernel': float32 [D, C]}, optionally with 'bias' (float32 [C]).
      hidden_BKD: hidden states at the read-outs; the axis K may be omitted if it is 1.
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
    """Return next-token logits, float32 [R, L, V]."""
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
