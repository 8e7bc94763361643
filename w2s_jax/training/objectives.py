"""What a training step differentiates: a batch's loss, in one microbatch or exactly in several.

Shapes in names: M microbatches, R rows, L slots, m documents a microbatch, K read-outs of a
document, B = M * m documents a batch, C classes, D width, V vocabulary.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from w2s_jax import config as config_lib
from w2s_jax.losses import LOSSES, Loss
from w2s_jax.models import adapting, attention_cpu, heads, network
from w2s_jax.training.spec import StepSpec

Array = jax.Array
#: Arrays, and 'first_keys', for which a program is compiled.
Batch = dict[str, Any]
#: (trained parameters, frozen ones, batch, step fraction, options of the loss that are traced, its
#: state) -> (loss, gradients, (accuracy, the loss's state behind the batch))
Objective = Callable[..., tuple[Array, Any, tuple[Array, Any]]]

NO_OPTIONS: Mapping[str, Array] = MappingProxyType({})


def microbatch_hidden(
    spec: StepSpec, params: Any, micro: Batch, slots_RQ: Array | None = None
) -> Array:
    """Hidden states of a microbatch, [R, L, D], or at some of the slots, [R, Q, D]."""
    with attention_cpu.seeing(micro.get("first_keys")):
        return network.forward(
            spec.model,
            params["backbone"],
            micro["tokens_RL"],
            micro["segment_ids_RL"],
            slots_RQ=slots_RQ,
            dropout=micro.get("dropout_RL"),
            compute_dtype=jnp.dtype(spec.train.compute_dtype),
            remat=spec.train.remat,
        )


def microbatch_logits(spec: StepSpec, params: Any, micro: Batch) -> Array:
    """Class logits of a microbatch, float32 [m, C]: from its features if `params` has them."""
    if "features_NKD" in params:
        hidden_mKD = params["features_NKD"][micro["documents_m"]]
    else:
        hidden_mKD = microbatch_features(spec, params, micro)
    return heads.class_logits(params["head"], hidden_mKD)


def microbatch_features(spec: StepSpec, params: Any, micro: Batch) -> Array:
    """What the class head sees of each text of a microbatch, [m, K, D]."""
    segment_ids_RL, read_outs_mK = micro["segment_ids_RL"], micro["read_outs_mK"]
    slots_RQ = heads.seen_slots(spec.model, segment_ids_RL, micro["slots_RQ"])
    hidden = microbatch_hidden(spec, params, micro, slots_RQ)
    read_out = heads.read_out if slots_RQ is None else heads.read_out_of_seen
    return read_out(spec.model, params["backbone"], hidden, segment_ids_RL, read_outs_mK)


def _microbatches(batch: Batch) -> tuple[Batch, int]:
    """The arrays of a batch that are split into microbatches, named without M; and M."""
    split = {name.replace("_M", "_", 1): x for name, x in batch.items() if "_M" in name}
    count = jax.tree.leaves(split)[0].shape[0]
    static = {name: batch[name] for name in ("first_keys",) if name in batch}
    return split | static, count


def _take(micros: Batch, index: int) -> Batch:
    return jax.tree.map(lambda x: x[index], micros)


def classification(spec: StepSpec) -> Objective:
    """Loss, gradients and accuracy (against the batch's own labels) of a two-class head.

    With several microbatches, the terms of an uncoupled loss just add up. For a coupled one a first
    pass computes all logits without keeping activations; the loss and its cotangent are computed
    once for the whole batch, so that it stays exact; a second pass sends each microbatch its share
    of the cotangent.
    """
    assert spec.loss is not None
    kind, static = spec.loss
    chosen = LOSSES[kind]

    def logits(params: Any, frozen: Any, micro: Batch) -> Array:
        return microbatch_logits(spec, adapting.join(params, frozen), micro)

    def accumulated(
        params: Any, frozen: Any, batch: Batch, fraction: Array, loss_fn: Callable[..., Array]
    ) -> tuple[Array, Any, Array]:
        micros, count = _microbatches(batch)
        parts = {
            name: batch[name].reshape(count, -1, *batch[name].shape[1:])
            for name in ("targets_BC", "weights_B")
        }
        total = jnp.maximum(jnp.sum(batch["weights_B"]), 1e-9)

        def share(params: Any, micro: Batch, part: Batch) -> tuple[Array, Array]:
            """The microbatch's term of the weighted mean, and its part of the accuracy."""
            logits_mC = logits(params, frozen, micro)
            weight = jnp.sum(part["weights_B"]) / total
            loss = weight * loss_fn(logits_mC, part, fraction)
            return loss, weight * _accuracy(logits_mC, part)

        def add(carry: Any, item: tuple[Batch, Batch]) -> tuple[Any, None]:
            value = jax.value_and_grad(share, has_aux=True)(params, *item)
            return jax.tree.map(jnp.add, carry, value), None

        zeros = ((jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params))
        ((loss, accuracy), grads), _ = jax.lax.scan(add, zeros, (micros, parts))
        return loss, grads, accuracy

    def objective(
        params: Any,
        frozen: Any,
        batch: Batch,
        fraction: Array,
        options: Mapping[str, Array] = NO_OPTIONS,
        loss_state: Any = (),
    ) -> tuple[Array, Any, tuple[Array, Any]]:
        given = config_lib.LOSS_OPTIONS[kind] | dict(static) | dict(options)
        loss_fn = functools.partial(_batch_loss, chosen, given, loss_state)

        def seen(logits_BC: Array) -> tuple[Array, Any]:
            after = _loss_state_after(chosen, given, loss_state, logits_BC, batch)
            return _accuracy(logits_BC, batch), after

        micros, count = _microbatches(batch)
        if count == 1:

            def whole(params: Any) -> tuple[Array, Array]:
                logits_BC = logits(params, frozen, _take(micros, 0))
                return loss_fn(logits_BC, batch, fraction), logits_BC

            (loss, logits_BC), grads = jax.value_and_grad(whole, has_aux=True)(params)
            return loss, grads, seen(logits_BC)
        # What a state becomes depends on the whole batch.
        if not chosen.coupled and chosen.init_state is None:
            loss, grads, accuracy = accumulated(params, frozen, batch, fraction, loss_fn)
            return loss, grads, (accuracy, loss_state)
        logits_MmC = jax.lax.map(lambda micro: logits(params, frozen, micro), micros)
        logits_BC = logits_MmC.reshape(-1, logits_MmC.shape[-1])
        loss, cotangent_BC = jax.value_and_grad(loss_fn)(logits_BC, batch, fraction)

        def accumulate(grads: Any, item: tuple[Batch, Array]) -> tuple[Any, None]:
            micro, cotangent_mC = item
            _, pull = jax.vjp(lambda p: logits(p, frozen, micro), params)
            return jax.tree.map(jnp.add, grads, pull(cotangent_mC)[0]), None

        cotangent_MmC = cotangent_BC.reshape(logits_MmC.shape)
        grads, _ = jax.lax.scan(
            accumulate, jax.tree.map(jnp.zeros_like, params), (micros, cotangent_MmC)
        )
        return loss, grads, seen(logits_BC)

    return objective


def _batch_loss(
    loss: Loss, options: dict[str, Any], state: Any, logits_BC: Array, batch: Batch, fraction: Array
) -> Array:
    with jax.named_scope("loss"):
        return loss(
            logits_BC,
            batch["targets_BC"],
            fraction,
            weights_B=batch["weights_B"],
            state=None if loss.init_state is None else state,
            **options,
        )


def _loss_state_after(
    loss: Loss, options: dict[str, Any], state: Any, logits_BC: Array, batch: Batch
) -> Any:
    if loss.update is None:
        return state
    with jax.named_scope("loss_state"):
        seen: tuple[Array, ...] = (logits_BC, batch["targets_BC"], batch["weights_B"])
        if "places_B" in batch:
            seen = tuple(x[batch["places_B"]] for x in seen)
        logits_BC, targets_BC, weights_B = seen
        return loss.update(state, logits_BC, targets_BC, weights_B=weights_B, **options)


def _accuracy(logits_BC: Array, batch: Batch) -> Array:
    agree_B = (logits_BC[:, 1] > logits_BC[:, 0]) == (batch["targets_BC"][:, 1] > 0.5)
    weights_B = batch["weights_B"]
    return jnp.sum(agree_B * weights_B) / jnp.maximum(jnp.sum(weights_B), 1e-9)


def language_model(spec: StepSpec) -> Objective:
    """Weighted mean next-token loss of a batch, its gradients, and the share predicted right.

    The normaliser (the batch's total weight) is known in advance, so microbatches just add up.
    """

    def objective(
        params: Any,
        frozen: Any,
        batch: Batch,
        fraction: Array,
        options: Mapping[str, Array] = NO_OPTIONS,
        loss_state: Any = (),
    ) -> tuple[Array, Any, tuple[Array, Any]]:
        del fraction, options
        micros, _ = _microbatches(batch)
        weights_MRL = _target_weights(batch)
        total = jnp.maximum(jnp.sum(weights_MRL), 1e-9)

        def partial_loss(params: Any, micro: Batch, weights_RL: Array) -> tuple[Array, Array]:
            params = adapting.join(params, frozen)
            hidden_RLD = microbatch_hidden(spec, params, micro)
            logits_RLV = heads.language_model_logits(spec.model, params["backbone"], hidden_RLD)
            targets_RL = jnp.roll(micro["tokens_RL"].astype(jnp.int32), -1, axis=1)
            nll_RL = optax.softmax_cross_entropy_with_integer_labels(logits_RLV, targets_RL)
            right_RL = jnp.argmax(logits_RLV, axis=-1) == targets_RL
            return jnp.sum(weights_RL * nll_RL) / total, jnp.sum(weights_RL * right_RL) / total

        def accumulate(carry: Any, item: tuple[Batch, Array]) -> tuple[Any, None]:
            value = jax.value_and_grad(partial_loss, has_aux=True)(params, *item)
            return jax.tree.map(jnp.add, carry, value), None

        if weights_MRL.shape[0] == 1:
            value = jax.value_and_grad(partial_loss, has_aux=True)
            (loss, right), grads = value(params, _take(micros, 0), weights_MRL[0])
            return loss, grads, (right, loss_state)
        zeros = ((jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params))
        ((loss, right), grads), _ = jax.lax.scan(accumulate, zeros, (micros, weights_MRL))
        return loss, grads, (right, loss_state)

    return objective


def _target_weights(batch: Batch) -> Array:
    """Weight of predicting the *next* slot from each slot: 0 across segments and in padding."""
    segments_MRL = batch["segment_ids_MRL"].astype(jnp.int32)
    following_MRL = jnp.pad(segments_MRL[..., 1:], ((0, 0), (0, 0), (0, 1)))
    same_MRL = (segments_MRL == following_MRL) & (segments_MRL > 0)
    weights_MRL = batch.get("loss_weights_MRL")
    if weights_MRL is None:
        return same_MRL.astype(jnp.float32)
    return same_MRL * jnp.pad(weights_MRL[..., 1:], ((0, 0), (0, 0), (0, 1)))
