"""The training step: forward, fused loss, backward, update and metrics in one jit program.

A program takes one step, or a block of them in a loop on the device. Shapes in names: S steps, M
microbatches, R rows, L slots.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.models import dropout
from w2s_jax.training.objectives import Batch, classification, language_model
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.spec import Hyperparameters, StepSpec
from w2s_jax.training.state import TrainState, float32, state_shardings

Array = jax.Array
#: (numbers, frozen parameters, state, step, stacks of batches, which stack) -> state
Step = Callable[
    [Hyperparameters, Any, TrainState, Array, tuple[Batch, ...], Array | int], TrainState
]

#: In the place of a step's number, for the key of what is dropped. No step has it.
_DROPOUT = 2**32 - 1


def train_step(
    spec: StepSpec, mesh: Mesh, frozen: Any = None
) -> Callable[[TrainState, dict[str, Array]], TrainState]:
    """The compiled step: (state, batches) -> state; the old state's buffers are reused.

    `batches` is the dict of arrays that holds the batch of `state.step` (see `batches`); it
    is compiled for each shape that they come in. `frozen` are the parameters that the state lacks
    (see `models.adapting`). A non-finite loss or gradient freezes the state and sets `failed_step`.
    """
    return functools.partial(programs(spec.program_key(), mesh)[0], *_bound(spec, mesh, frozen))


def train_block(
    spec: StepSpec, mesh: Mesh, frozen: Any = None
) -> Callable[[TrainState, tuple[Batch, ...], Array, Array], TrainState]:
    """As `train_step`, of many steps: (state, stacks, stack_of_S, stop) -> state.

    Takes the steps from `state.step` up to `stop`, int32, or to the first that fails. `stacks` are
    all dicts of arrays, and `stack_of_S`, int32, says which of them has the batch of each step.
    """
    return functools.partial(programs(spec.program_key(), mesh)[1], *_bound(spec, mesh, frozen))


def _bound(spec: StepSpec, mesh: Mesh, frozen: Any) -> tuple[Hyperparameters, Any]:
    return sharding.put(spec.hyperparameters(), sharding.replicated(mesh)), frozen or {}


@functools.lru_cache(maxsize=32)
def programs(key: StepSpec, mesh: Mesh) -> tuple[Callable, Callable]:
    """(one step, a block of steps), compiled when they are first called.

    They take `Hyperparameters` and the frozen parameters, {} if there are none, before what
    `train_step` and `train_block` say. `key` is a `StepSpec.program_key`.
    """
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

        def gradient(batches: Batch) -> tuple[Array, Any, tuple[Array, Any]]:
            batch = _with_dropout(numbers, now, _batch_at(batches, now))
            return objective(wide, frozen, batch, fraction, numbers.loss_options, state.loss_state)

        gradients = [functools.partial(gradient, batches) for batches in stacks]
        loss, grads, (accuracy, loss_state) = (
            gradients[0]() if len(stacks) == 1 else jax.lax.switch(stack, gradients)
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        good = finite & (state.failed_step < 0)
        rate = numbers.rate_S[now]

        def updated(params: Any, moments: Any, average: Any, _: Any) -> tuple[Any, ...]:
            directions, moments = optimizer.update(grads, moments, float32(params))
            seed = 0 if numbers.seed is None else numbers.seed
            move = functools.partial(_moved, now, rate, numbers.weight_decay, seed=seed)
            params = _with_numbers(move, params, directions)
            if numbers.average_S is not None:
                average = _averaged(numbers.average_S[now], average, params)
            return params, moments, average, loss_state

        with jax.named_scope("update"):
            old = (state.params, state.opt_state, state.average, state.loss_state)
            params, opt_state, average, loss_state = _if_good(good, updated, old)
        row = jnp.stack([loss, norm, rate, accuracy])
        return TrainState(
            params=params,
            opt_state=opt_state,
            step=state.step + good.astype(jnp.int32),
            failed_step=jnp.where((state.failed_step < 0) & ~finite, now, state.failed_step),
            history=state.history.at[now].set(jnp.where(good, row, state.history[now])),
            average=average,
            loss_state=loss_state,
        )

    return step


def _if_good(good: Array, updated: Callable[..., tuple[Any, ...]], old: tuple[Any, ...]) -> Any:
    """updated(*old) if `good`, else `old`."""
    if _branches():
        return jax.lax.cond(good, updated, lambda *same: same, *old)
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), updated(*old), old)


def _branches() -> bool:
    """Whether a choice between arrays is a branch here, not made element by element.

    In a branch CPUs read and write each array once, in place. Accelerators fuse the choice into the
    update, and TPUs' compiler gives what goes into a branch a layout of its own: copies of 2 GiB a
    chip for GPT-2 XL over 16 of them.
    """
    return sharding.place()[0].platform == "cpu"


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


def _with_dropout(numbers: Hyperparameters, now: Array, batch: Batch) -> Batch:
    """The batch with 'dropout_MRL' for its microbatches, if anything is dropped."""
    if numbers.dropout is None:
        return batch
    key = jax.random.fold_in(dropout.make_key(numbers.seed), _DROPOUT)
    keys_of = functools.partial(dropout.slot_keys, jax.random.fold_in(key, now))
    keys_MRL2 = jax.vmap(keys_of)(batch["pieces_MRL"], batch["segment_ids_MRL"])
    rate_M = jnp.broadcast_to(numbers.dropout, keys_MRL2.shape[:1])
    rest = {name: x for name, x in batch.items() if name != "pieces_MRL"}
    return rest | {"dropout_MRL": dropout.Dropout(rate_M, keys_MRL2)}


def _averaged(weight: Array, average: Any, params: Any) -> Any:
    return jax.tree.map(
        lambda old, new: (1 - weight) * old + weight * new, average, float32(params)
    )


def _with_numbers(fn: Callable, *trees: Any) -> Any:
    """As `jax.tree.map`; `fn` takes the leaf's number first."""
    leaves, treedef = jax.tree.flatten(trees[0])
    others = [jax.tree.leaves(tree) for tree in trees[1:]]
    numbered = enumerate(zip(leaves, *others, strict=True))
    return jax.tree.unflatten(treedef, [fn(number, *parts) for number, parts in numbered])


def _moved(
    now: Array,
    rate: Array,
    weight_decay: Array,
    number: int,
    old: Array,
    direction: Array,
    *,
    seed: Array | int = 0,
) -> Array:
    """old - rate (direction + weight_decay old); bfloat16 is rounded up or down at random.

    Updates below 1/512 of a parameter would all be lost if the nearest bfloat16 were taken; so they
    add up in expectation.
    """
    wide = old.astype(jnp.float32)
    new = wide + -rate * (direction + weight_decay * wide)
    if old.dtype == jnp.bfloat16:
        key = jax.random.fold_in(jax.random.key(seed), now)
        dice = jax.random.bits(jax.random.fold_in(key, number), new.shape, jnp.uint16)
        bits = jax.lax.bitcast_convert_type(new, jnp.uint32) + dice.astype(jnp.uint32)
        new = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return new
