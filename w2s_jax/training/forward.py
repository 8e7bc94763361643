"""The forward pass of a microbatch: hidden states, class logits, and logits of target tokens.

Shapes in names: R rows, L slots, Q some slots of a row, m documents per microbatch, K texts per
document, C classes, D width, V vocabulary,
J layers.
"""

from typing import Any

import jax
import jax.numpy as jnp

from w2s_jax.models import convolution, heads, network
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.image_models import ImageConfig
from w2s_jax.training.batches import FeatureMicrobatch, Microbatch

Array = jax.Array


def hidden_states(
    model: ModelConfig,
    params: Any,
    micro: Microbatch,
    slots_RQ: Array | None = None,
    /,
    *,
    compute_dtype: str,
    remat: str = "none",
) -> Array:
    """Return hidden states of a microbatch, [R, L, D], or at some slots, [R, Q, D]."""
    return network.forward(
        model,
        params["backbone"],
        micro.tokens_RL,
        micro.segment_ids_RL,
        slots_RQ=slots_RQ,
        dropout=micro.dropout,
        compute_dtype=jnp.dtype(compute_dtype),
        remat=remat,
        first_keys=micro.first_keys,
    )


def class_features(model: ModelConfig, params: Any, micro: Microbatch, **how: str) -> Array:
    """Return the inputs of the class head, [m, K, D]; `how` as in `hidden_states`."""
    if isinstance(model, ImageConfig):
        return convolution.image_features(
            model, params["backbone"], micro.tokens_RL, micro.read_outs_mK, how["compute_dtype"]
        )
    if model.read_out_layers:
        features_mJKD = layer_features(model, params, micro, **how)
        chosen = jnp.asarray(model.read_out_layers) - 1
        return features_mJKD[:, chosen].astype(jnp.float32).mean(1)
    slots_RQ = heads.seen_slots(model, micro.segment_ids_RL, micro.slots_RQ)
    hidden = hidden_states(model, params, micro, slots_RQ, **how)
    return _read_out(model, params, micro, hidden, seen=slots_RQ is not None)


def layer_features(
    model: ModelConfig, params: Any, micro: Microbatch, *, compute_dtype: str, remat: str = "none"
) -> Array:
    """Return what `class_features` would be for each layer alone, [m, J, K, D].

    Layers before the last are read without the final norm (see `network.forward_with_taps`).
    """
    slots_RQ = heads.seen_slots(model, micro.segment_ids_RL, micro.slots_RQ)
    last, before_JmKD = network.forward_with_taps(
        model,
        params["backbone"],
        micro.tokens_RL,
        micro.segment_ids_RL,
        tap=lambda x_RLD: _read_out(model, params, micro, x_RLD),
        slots_RQ=slots_RQ,
        dropout=micro.dropout,
        compute_dtype=jnp.dtype(compute_dtype),
        remat=remat,
        first_keys=micro.first_keys,
    )
    last_1mKD = _read_out(model, params, micro, last, seen=slots_RQ is not None)[None]
    layers_JmKD = last_1mKD if before_JmKD is None else jnp.concatenate([before_JmKD, last_1mKD])
    return jnp.swapaxes(layers_JmKD, 0, 1)


def _read_out(
    model: ModelConfig, params: Any, micro: Microbatch, hidden: Array, *, seen: bool = False
) -> Array:
    """Read hidden states out, [m, K, D]; if `seen`, they are those of `heads.seen_slots` alone."""
    read_out = heads.read_out_of_seen if seen else heads.read_out
    return read_out(model, params["backbone"], hidden, micro.segment_ids_RL, micro.read_outs_mK)


def class_logits(
    model: ModelConfig, params: Any, micro: Microbatch | FeatureMicrobatch, **how: str
) -> Array:
    """Return class logits of a microbatch, float32 [m, C]; of a probe, from `features_NKD`."""
    if isinstance(micro, FeatureMicrobatch):
        features_mKD = params["features_NKD"][micro.documents_m]
    else:
        features_mKD = class_features(model, params, micro, **how)
    return heads.class_logits(params["head"], features_mKD)


def target_logits(model: ModelConfig, params: Any, micro: Microbatch, **how: str) -> Array:
    """Return the logits that predict target tokens, float32 [R, Q, V]; see `Microbatch.targets`.

    Logits of other slots are not computed, and their last block only as far as attention needs it.
    """
    assert micro.targets is not None
    slots_RQ = micro.targets.slots_RQ.astype(jnp.int32)
    hidden_RQD = hidden_states(model, params, micro, slots_RQ, **how)
    return heads.language_model_logits(model, params["backbone"], hidden_RQD)


def text_log_probabilities(
    model: ModelConfig, params: Any, micro: Microbatch, num_texts: int, **how: str
) -> Array:
    """Return the summed log-probability of each text's target tokens, float32 [m * K].

    Args:
      model: the model.
      params: its parameters.
      micro: documents whose targets have `texts_RQ`.
      num_texts: m * K, the texts of the microbatch.
      **how: as in `hidden_states`.
    """
    targets = micro.targets
    assert targets is not None
    logits_RQV = target_logits(model, params, micro, **how)
    with jax.named_scope("text_log_probabilities"):
        log_p_RQV = jax.nn.log_softmax(logits_RQV, axis=-1)
        tokens_RQ1 = targets.tokens_RQ.astype(jnp.int32)[..., None]
        log_p_RQ = jnp.take_along_axis(log_p_RQV, tokens_RQ1, axis=-1)[..., 0]
        return per_text(targets.weights_RQ * log_p_RQ, targets.texts_RQ, num_texts)


def per_text(values_RQ: Array, texts_RQ: Array, num_texts: int) -> Array:
    """Sum values of target tokens by text, [m * K]."""
    return jax.ops.segment_sum(values_RQ.reshape(-1), texts_RQ.reshape(-1), num_texts)
