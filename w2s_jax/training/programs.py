"""The compiled programs of training: one step, or a block of steps in a loop on the device."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.training.batches import Bucket
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.spec import Hyperparameters, StepSpec
from w2s_jax.training.state import TrainState, state_shardings
from w2s_jax.training.step import train_block, train_step


class Programs(NamedTuple):
    """Compiled programs, which take hyperparameters and frozen parameters first, then:

    step: (state, bucket) -> state. block: (state, buckets, bucket_S, stop) -> state.
    """

    step: Callable[..., TrainState]
    block: Callable[..., TrainState]


@functools.lru_cache(maxsize=32)
def programs(key: StepSpec, mesh: Mesh) -> Programs:
    """Return the programs of a `StepSpec.program_key`; the state's buffers are donated."""

    def step_fn(*arguments: Any) -> TrainState:
        with sharding.over(mesh):
            return train_step(key, *arguments)

    def step(
        hyperparameters: Hyperparameters, frozen: Any, state: TrainState, bucket: Bucket
    ) -> TrainState:
        return step_fn(hyperparameters, frozen, state, state.step, (bucket,), 0)

    # Without out-shardings the compiler might move a moment or replicate it.
    optimizer = make_optimizer(key.train)
    shardings = state_shardings(key.model, key.train, optimizer, mesh, key.head_columns)
    compiled = functools.partial(jax.jit, donate_argnums=2, out_shardings=shardings)
    return Programs(compiled(step), compiled(functools.partial(train_block, step_fn)))


def compile_step(spec: StepSpec, mesh: Mesh, frozen: Any = None) -> Callable[..., TrainState]:
    """Return the compiled step, (state, bucket) -> state, which donates its state.

    It takes the step `state.step`, whose batch `bucket` holds, and is compiled for each shape.

    Args:
      spec: the step.
      mesh: the mesh of all arguments.
      frozen: parameters that the state lacks (see `models.adapting`).
    """
    hyperparameters = sharding.put(spec.hyperparameters(), sharding.replicated(mesh))
    program = programs(spec.program_key(), mesh).step
    return functools.partial(program, hyperparameters, frozen or {})


def compile_block(spec: StepSpec, mesh: Mesh, frozen: Any = None) -> Callable[..., TrainState]:
    """Return many steps, compiled: (state, buckets, bucket_S, stop) -> state.

    They are the steps from `state.step` up to `stop`, int32, or to the first that fails. The bucket
    of each step is `bucket_S`, int32. Arguments as for `compile_step`.
    """
    hyperparameters = sharding.put(spec.hyperparameters(), sharding.replicated(mesh))
    program = programs(spec.program_key(), mesh).block
    return functools.partial(program, hyperparameters, frozen or {})
