"""The training step: forward, fused loss, backward, update and metrics in one jit program.

Shapes in names: S steps, M microbatches, R rows, L slots, m documents a microbatch, K read-outs of
a document,
B = M * m documents a batch, C classes, D width.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from w2s_jax.config import TrainSettings
from w2s_jax.losses import LOSSES, Loss
from w2s_jax.models import adapting, heads, network
from w2s_jax.models.config import ModelConfig
from w2s_jax.training.optimizer import make_optimizer, make_schedule
from w2s_jax.training.state import TrainState, float32, state_shardings

Array = jax.Array
Batch = dict[str, Array]
#: (trained parameters, frozen ones, batch, step fraction) -> (loss, gradients, accuracy)
Objective = Callable[[Any, Any, Batch, Array], tuple[Array, Any, Array]]


@dataclass(frozen=True)
class StepSpec:
    """All that a step program is compiled for; equal specs share one program.

    `loss` is (kind, options) for a classifier and None for language-model training; `num_texts` is
    K, the texts of a document.
    """

    model: ModelConfig
    train: TrainSettings
    total_steps: int
    loss: tuple[str, tuple[tuple[str, Any], ...]] | None
    num_texts: int = 1

    def program_key(self) -> "StepSpec":
        """The spec without what no program depends on."""
        return dataclasses.replace(
            self, train=dataclasses.replace(self.train, epochs=1.0, steps=None, max_shapes=1)
        )


def train_step(
    spec: StepSpec, mesh: Mesh, frozen: Any = None
) -> Callable[[TrainState, dict[str, Array]], TrainState]:
    """The compiled step: (state, batches) -> state; the old state's buffers are reused.

    `batches` is the dict of arrays that holds the batch of `state.step` (see `batches`); it
    is compiled for each shape that they come in. `frozen` are the parameters that the state lacks
    (see `models.adapting`). A non-finite loss, gradient or update freezes the state and sets
    `failed_step`.
    """
    return functools.partial(_train_step(spec.program_key(), mesh), frozen or {})


@functools.lru_cache(maxsize=32)
def _train_step(spec: StepSpec, mesh: Mesh) -> Callable:
    optimizer = make_optimizer(spec.train, spec.total_steps)
    schedule = make_schedule(spec.train, spec.total_steps)
    objective = classification(spec) if spec.loss is not None else language_model(spec)

    def step(frozen: Any, state: TrainState, batches: dict[str, Array]) -> TrainState:
        take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
        index = take(batches["index_S"], state.step)
        batch = {
            name.replace("_S", "_", 1): take(x, index)
            for name, x in batches.items()
            if name != "index_S"
        }
        fraction = state.step.astype(jnp.float32) / spec.total_steps
        # Gradients are float32 whatever the parameters are, in one microbatch as in many.
        loss, grads, accuracy = objective(float32(state.params), frozen, batch, fraction)
        norm = optax.tree.norm(grads)
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(grads, state.opt_state, float32(state.params))
            params = _updated(state.params, updates, state.step)
        # The update's norm too: a huge learning rate overflows where the gradient does not.
        sizes = jnp.stack([loss, norm, optax.tree.norm(updates)])
        finite = jnp.all(jnp.isfinite(sizes))
        good = finite & (state.failed_step < 0)
        keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))
        row = jnp.stack([loss, norm, jnp.float32(schedule(state.step)), accuracy])
        return TrainState(
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            step=state.step + good.astype(jnp.int32),
            failed_step=jnp.where((state.failed_step < 0) & ~finite, state.step, state.failed_step),
            history=keep(
                jax.lax.dynamic_update_index_in_dim(state.history, row, state.step, 0),
                state.history,
            ),
        )

    # Out-shardings are given: without them the compiler may move a moment or replicate it.
    num_texts = None if spec.loss is None else spec.num_texts
    shardings = state_shardings(spec.model, spec.train, optimizer, mesh, num_texts)
    return jax.jit(step, donate_argnums=1, out_shardings=shardings)


def _updated(params: Any, updates: Any, step: Array) -> Any:
    """Parameters and updates added; bfloat16 ones are rounded up or down at random.

    Updates below 1/512 of a parameter would all be lost if the nearest bfloat16 were taken; so they
    add up in expectation.
    """
    leaves, treedef = jax.tree.flatten(params)
    key = jax.random.fold_in(jax.random.key(0), step)
    added = []
    for number, (old, update) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True)):
        new = old.astype(jnp.float32) + update
        if old.dtype == jnp.bfloat16:
            dice = jax.random.bits(jax.random.fold_in(key, number), new.shape, jnp.uint16)
            bits = jax.lax.bitcast_convert_type(new, jnp.uint32) + dice.astype(jnp.uint32)
            new = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
        added.append(new)
    return jax.tree.unflatten(treedef, added)


def microbatch_hidden(
    spec: StepSpec, params: Any, micro: Batch, slots_RQ: Array | None = None
) -> Array:
    """Hidden states of a microbatch, [R, L, D], or at some of the slots, [R, Q, D]."""
    return network.forward(
        spec.model,
        params["backbone"],
        micro["tokens_RL"],
        micro["segment_ids_RL"],
        slots_RQ=slots_RQ,
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
    return split, next(iter(split.values())).shape[0]


def _take(micros: Batch, index: int) -> Batch:
    return {name: x[index] for name, x in micros.items()}


def classification(spec: StepSpec) -> Objective:
    """Loss, gradients and accuracy (against the batch's own labels) of a two-class head.

    With several microbatches, the terms of an uncoupled loss just add up. For a coupled one a first
    pass computes all logits without keeping activations; the loss and its cotangent are computed
    once for the whole batch, so that it stays exact; a second pass sends each microbatch its share
    of the cotangent.
    """
    assert spec.loss is not None
    kind, options = spec.loss
    loss_fn = functools.partial(_batch_loss, LOSSES[kind], dict(options))

    def logits(params: Any, frozen: Any, micro: Batch) -> Array:
        return microbatch_logits(spec, adapting.join(params, frozen), micro)

    def accumulated(
        params: Any, frozen: Any, batch: Batch, fraction: Array
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
        params: Any, frozen: Any, batch: Batch, fraction: Array
    ) -> tuple[Array, Any, Array]:
        micros, count = _microbatches(batch)
        if count == 1:

            def whole(params: Any) -> tuple[Array, Array]:
                logits_BC = logits(params, frozen, _take(micros, 0))
                return loss_fn(logits_BC, batch, fraction), logits_BC

            (loss, logits_BC), grads = jax.value_and_grad(whole, has_aux=True)(params)
            return loss, grads, _accuracy(logits_BC, batch)
        if not LOSSES[kind].coupled:
            return accumulated(params, frozen, batch, fraction)
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
        return loss, grads, _accuracy(logits_BC, batch)

    return objective


def _batch_loss(
    loss: Loss, options: dict[str, Any], logits_BC: Array, batch: Batch, fraction: Array
) -> Array:
    with jax.named_scope("loss"):
        return loss(
            logits_BC, batch["targets_BC"], fraction, weights_B=batch["weights_B"], **options
        )


def _accuracy(logits_BC: Array, batch: Batch) -> Array:
    agree_B = (logits_BC[:, 1] > logits_BC[:, 0]) == (batch["targets_BC"][:, 1] > 0.5)
    weights_B = batch["weights_B"]
    return jnp.sum(agree_B * weights_B) / jnp.maximum(jnp.sum(weights_B), 1e-9)


def language_model(spec: StepSpec) -> Objective:
    """Weighted mean next-token loss of a batch, its gradients, and the share predicted right.

    The normaliser (the batch's total weight) is known in advance, so microbatches just add up.
    """

    def objective(
        params: Any, frozen: Any, batch: Batch, fraction: Array
    ) -> tuple[Array, Any, Array]:
        del fraction
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
            return loss, grads, right
        zeros = ((jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params))
        ((loss, right), grads), _ = jax.lax.scan(accumulate, zeros, (micros, weights_MRL))
        return loss, grads, right

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
