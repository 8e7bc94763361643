"""The training step: forward, fused loss, backward, update and metrics in one jit program.

A program takes one step, or a block of them in a loop on the device. Shapes in names: S steps, M
microbatches, R rows, L slots, m documents a microbatch, K read-outs of a document, B = M * m
documents a batch, C classes, D width.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.losses import LOSSES, Loss
from w2s_jax.models import adapting, attention_cpu, heads, network
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.spec import Hyperparameters, StepSpec
from w2s_jax.training.state import TrainState, float32, state_shardings

Array = jax.Array
#: Arrays, and 'first_keys', for which a program is compiled.
Batch = dict[str, Any]
#: (trained parameters, frozen ones, batch, step fraction, options of the loss that are traced)
#: -> (loss, gradients, accuracy)
Objective = Callable[..., tuple[Array, Any, Array]]
#: (numbers, frozen parameters, state, step, stacks of batches, which stack) -> state
Step = Callable[
    [Hyperparameters, Any, TrainState, Array, tuple[Batch, ...], Array | int], TrainState
]

NO_OPTIONS: Mapping[str, Array] = MappingProxyType({})


def train_step(
    spec: StepSpec, mesh: Mesh, frozen: Any = None
) -> Callable[[TrainState, dict[str, Array]], TrainState]:
    """The compiled step: (state, batches) -> state; the old state's buffers are reused.

    `batches` is the dict of arrays that holds the batch of `state.step` (see `batches`); it
    is compiled for each shape that they come in. `frozen` are the parameters that the state lacks
    (see `models.adapting`). A non-finite loss or gradient freezes the state and sets `failed_step`.
    """
    return functools.partial(_programs(spec.program_key(), mesh)[0], *_bound(spec, mesh, frozen))


def train_block(
    spec: StepSpec, mesh: Mesh, frozen: Any = None
) -> Callable[[TrainState, tuple[Batch, ...], Array, Array], TrainState]:
    """As `train_step`, of many steps: (state, stacks, stack_of_S, stop) -> state.

    Takes the steps from `state.step` up to `stop`, int32, or to the first that fails. `stacks` are
    all dicts of arrays, and `stack_of_S`, int32, says which of them has the batch of each step.
    """
    return functools.partial(_programs(spec.program_key(), mesh)[1], *_bound(spec, mesh, frozen))


def _bound(spec: StepSpec, mesh: Mesh, frozen: Any) -> tuple[Hyperparameters, Any]:
    return jax.device_put(spec.hyperparameters(), sharding.replicated(mesh)), frozen or {}


@functools.lru_cache(maxsize=32)
def _programs(key: StepSpec, mesh: Mesh) -> tuple[Callable, Callable]:
    """(one step, a block of steps), compiled when they are first called."""
    on_any = make_step(key)

    def step(*arguments: Any) -> TrainState:
        with sharding.over(mesh):
            return on_any(*arguments)

    def one(numbers: Hyperparameters, frozen: Any, state: TrainState, batches: Batch) -> TrainState:
        return step(numbers, frozen, state, state.step, (batches,), 0)

    block = functools.partial(run_block, step)
    # Out-shardings are given: without them the compiler may move a moment or replicate it.
    num_texts = None if key.loss is None else key.num_texts
    shardings = state_shardings(key.model, key.train, make_optimizer(key.train), mesh, num_texts)
    compiled = functools.partial(jax.jit, donate_argnums=2, out_shardings=shardings)
    return compiled(one), compiled(block)


def run_block(
    step: Step,
    numbers: Hyperparameters,
    frozen: Any,
    state: TrainState,
    stacks: tuple[Batch, ...],
    stack_of_S: Array,
    stop: Array,
) -> TrainState:
    """Steps up to `stop`, or until no state goes on: there may be several, on a leading axis."""

    def going_on(carry: tuple[Array, TrainState]) -> Array:
        return (carry[0] < stop) & jnp.any(carry[1].failed_step < 0)

    def once(carry: tuple[Array, TrainState]) -> tuple[Array, TrainState]:
        now, state = carry
        return now + 1, step(numbers, frozen, state, now, stacks, stack_of_S[now])

    # Those that have not failed are furthest.
    return jax.lax.while_loop(going_on, once, (jnp.max(state.step), state))[1]


def make_step(key: StepSpec) -> Step:
    """The step as a pure function, not compiled."""
    optimizer = make_optimizer(key.train)
    objective = classification(key) if key.loss is not None else language_model(key)

    def step(
        numbers: Hyperparameters,
        frozen: Any,
        state: TrainState,
        now: Array,
        stacks: tuple[Batch, ...],
        stack: Array | int,
    ) -> TrainState:
        # Gradients are float32 whatever the parameters are, in one microbatch as in many.
        wide = float32(state.params)
        fraction = now.astype(jnp.float32) / numbers.total_steps
        gradients = [
            lambda batches=batches: objective(
                wide, frozen, _batch_at(batches, now), fraction, numbers.loss_options
            )
            for batches in stacks
        ]
        loss, grads, accuracy = (
            gradients[0]() if len(stacks) == 1 else jax.lax.switch(stack, gradients)
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        good = finite & (state.failed_step < 0)
        rate = numbers.rate_S[now]

        def updated(params: Any, moments: Any) -> tuple[Any, Any]:
            directions, moments = optimizer.update(grads, moments, float32(params))
            move = functools.partial(_moved, now, rate, numbers.weight_decay)
            return _with_numbers(move, params, directions), moments

        with jax.named_scope("update"):
            # Not selected by element: so each array is read and written once, in place.
            params, opt_state = jax.lax.cond(
                good, updated, lambda *same: same, state.params, state.opt_state
            )
        row = jnp.stack([loss, norm, rate, accuracy])
        return TrainState(
            params=params,
            opt_state=opt_state,
            step=state.step + good.astype(jnp.int32),
            failed_step=jnp.where((state.failed_step < 0) & ~finite, now, state.failed_step),
            history=state.history.at[now].set(jnp.where(good, row, state.history[now])),
        )

    return step


def _batch_at(batches: Batch, now: Array) -> Batch:
    """The batch of step `now`, its arrays named without S."""
    take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
    index = take(batches["index_S"], now)
    batch = {
        name.replace("_S", "_", 1): jax.tree.map(lambda x: take(x, index), x)
        for name, x in batches.items()
        if name != "index_S"
    }
    return batch


def _with_numbers(fn: Callable, *trees: Any) -> Any:
    """As `jax.tree.map`; `fn` takes the leaf's number first."""
    leaves, treedef = jax.tree.flatten(trees[0])
    others = [jax.tree.leaves(tree) for tree in trees[1:]]
    numbered = enumerate(zip(leaves, *others, strict=True))
    return jax.tree.unflatten(treedef, [fn(number, *parts) for number, parts in numbered])


def _moved(
    now: Array, rate: Array, weight_decay: Array, number: int, old: Array, direction: Array
) -> Array:
    """old - rate (direction + weight_decay old); bfloat16 is rounded up or down at random.

    Updates below 1/512 of a parameter would all be lost if the nearest bfloat16 were taken; so they
    add up in expectation.
    """
    wide = old.astype(jnp.float32)
    new = wide + -rate * (direction + weight_decay * wide)
    if old.dtype == jnp.bfloat16:
        key = jax.random.fold_in(jax.random.key(0), now)
        dice = jax.random.bits(jax.random.fold_in(key, number), new.shape, jnp.uint16)
        bits = jax.lax.bitcast_convert_type(new, jnp.uint32) + dice.astype(jnp.uint32)
        new = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return new


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

    def loss_of(options: Mapping[str, Array]) -> Callable[..., Array]:
        return functools.partial(_batch_loss, LOSSES[kind], {**dict(static), **options})

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
    ) -> tuple[Array, Any, Array]:
        loss_fn = loss_of(options)
        micros, count = _microbatches(batch)
        if count == 1:

            def whole(params: Any) -> tuple[Array, Array]:
                logits_BC = logits(params, frozen, _take(micros, 0))
                return loss_fn(logits_BC, batch, fraction), logits_BC

            (loss, logits_BC), grads = jax.value_and_grad(whole, has_aux=True)(params)
            return loss, grads, _accuracy(logits_BC, batch)
        if not LOSSES[kind].coupled:
            return accumulated(params, frozen, batch, fraction, loss_fn)
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
        params: Any,
        frozen: Any,
        batch: Batch,
        fraction: Array,
        options: Mapping[str, Array] = NO_OPTIONS,
    ) -> tuple[Array, Any, Array]:
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
