"""The training step: the update of parameters by the gradient of a batch, as pure functions.

`forward` has the forward pass and `gradient` the loss and its gradient; `programs` compiles the
steps. Shapes in names: S steps, B documents per batch, C classes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from w2s_jax import sharding
from w2s_jax.training.batches import Bucket
from w2s_jax.training.gradient import Gradient, loss_and_gradient
from w2s_jax.training.optimizer import make_optimizer, round_stochastically
from w2s_jax.training.spec import Hyperparameters, StepSpec
from w2s_jax.training.state import TrainState, float32

Array = jax.Array

# --- update --------------------------------------------------------------------------------------


def apply_update(
    spec: StepSpec,
    hyperparameters: Hyperparameters,
    step: Array,
    rate: Array,
    grads: Any,
    params: Any,
    opt_state: Any,
    average: Any,
) -> tuple[Any, Any, Any]:
    """Return parameters, optimiser state and average after an update with learning rate `rate`."""
    optimizer = make_optimizer(spec.train)
    directions, opt_state = optimizer.update(grads, opt_state, float32(params))
    seed = 0 if hyperparameters.seed is None else hyperparameters.seed
    leaves, tree = jax.tree.flatten(params)
    pairs = zip(leaves, jax.tree.leaves(directions), strict=True)
    moved = []
    for number, (old, direction) in enumerate(pairs):
        wide = old.astype(jnp.float32)
        new = wide + -rate * (direction + hyperparameters.weight_decay * wide)
        if old.dtype == jnp.bfloat16:
            key = jax.random.fold_in(jax.random.key(seed), step)
            new = round_stochastically(new, jax.random.fold_in(key, number))
        moved.append(new)
    params = jax.tree.unflatten(tree, moved)
    if hyperparameters.average_S is not None:
        weight = hyperparameters.average_S[step]
        average = jax.tree.map(
            lambda old, new: (1 - weight) * old + weight * new, average, float32(params)
        )
    return params, opt_state, average


# --- step ----------------------------------------------------------------------------------------


def step_gradient(
    spec: StepSpec,
    hyperparameters: Hyperparameters,
    frozen: Any,
    state: TrainState,
    step: Array,
) -> Callable[[Bucket], Gradient]:
    """Return the function of a bucket that computes the gradient of the step; see `train_step`."""
    params = float32(state.params)  # Gradients are float32 whatever the parameters are.
    step_fraction = step.astype(jnp.float32) / hyperparameters.total_steps

    def gradient(bucket: Bucket) -> Gradient:
        batch = bucket.batch_at(step)
        if hyperparameters.dropout is not None:
            batch = batch.with_dropout(hyperparameters.dropout, hyperparameters.seed, step)
        options = hyperparameters.loss_options
        return loss_and_gradient(
            spec, options, params, frozen, batch, step_fraction, state.loss_state
        )

    return gradient


def train_step(
    spec: StepSpec,
    hyperparameters: Hyperparameters,
    frozen: Any,
    state: TrainState,
    step: Array,
    buckets: Sequence[Bucket],
    bucket: Array | int,
) -> TrainState:
    """Return the state after one step; a pure function, to be compiled.

    A non-finite loss or gradient leaves the state unchanged, and sets `failed_step`.

    Args:
      spec: a `StepSpec.program_key`.
      hyperparameters: the hyperparameters.
      frozen: parameters that the state lacks (see `models.adapting`), {} if there are none.
      state: the state.
      step: int32, the step.
      buckets: the batches by shape.
      bucket: the bucket that holds the batch of the step.
    """
    gradient = step_gradient(spec, hyperparameters, frozen, state, step)
    branches = [functools.partial(gradient, one) for one in buckets]
    loss, grads, right, loss_state = (
        branches[0]() if len(branches) == 1 else jax.lax.switch(bucket, branches)
    )
    with jax.named_scope("gradient_norm"):
        norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    good = finite & (state.failed_step < 0)
    rate = hyperparameters.rate_S[step]

    def updated(params: Any, opt_state: Any, average: Any, _: Any) -> tuple[Any, ...]:
        new = apply_update(spec, hyperparameters, step, rate, grads, params, opt_state, average)
        return *new, loss_state

    with jax.named_scope("update"):
        old = (state.params, state.opt_state, state.average, state.loss_state)
        params, opt_state, average, loss_state = _if_good(good, updated, old)
    row = jnp.stack([loss, norm, rate, right])
    return TrainState(
        params=params,
        opt_state=opt_state,
        step=state.step + good.astype(jnp.int32),
        failed_step=jnp.where((state.failed_step < 0) & ~finite, step, state.failed_step),
        history=state.history.at[step].set(jnp.where(good, row, state.history[step])),
        average=average,
        loss_state=loss_state,
    )


def train_block(
    step_fn: Callable[..., TrainState],
    hyperparameters: Hyperparameters,
    frozen: Any,
    state: TrainState,
    buckets: Sequence[Bucket],
    bucket_S: Array,
    stop: Array,
) -> TrainState:
    """Return the state after the steps up to `stop`, or after the first that fails.

    `step_fn` is `train_step` of a spec, or a vmap of it over members; then the block ends early
    only if all members have failed.
    """

    def goes_on(carry: tuple[Array, TrainState]) -> Array:
        return (carry[0] < stop) & jnp.any(carry[1].failed_step < 0)

    def body(carry: tuple[Array, TrainState]) -> tuple[Array, TrainState]:
        step, state = carry
        bucket = bucket_S[step]
        return step + 1, step_fn(hyperparameters, frozen, state, step, buckets, bucket)

    # Members that have not failed have made most steps.
    return jax.lax.while_loop(goes_on, body, (jnp.max(state.step), state))[1]


def _if_good(good: Array, updated: Callable[..., tuple[Any, ...]], old: tuple[Any, ...]) -> Any:
    """Return `updated(*old)` if `good`, else `old`."""
    if _uses_branches():
        return jax.lax.cond(good, updated, lambda *same: same, *old)
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), updated(*old), old)


def _uses_branches() -> bool:
    """Return whether a choice between arrays is compiled to a branch rather than a select.

    In a branch, CPUs read and write each array once, in place. Accelerators fuse a select into the
    update, and the TPU compiler changes the layout of a branch's operands: copies of 2 GiB per chip
    for GPT-2 XL on 16 chips.
    """
    return sharding.target_device().platform == "cpu"
