"""The train state and its shardings."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import TrainSettings
from w2s_jax.models import adapting
from w2s_jax.models.config import ModelConfig

#: Columns of `TrainState.history`.
HISTORY = ("loss", "gradient_norm", "learning_rate", "accuracy")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a training step changes; all of it is checkpointed.

    Attributes:
      params: the trained part of {'backbone': ..., 'head': ...}; language models have no head.
      opt_state: optax state, float32, sharded like the parameters.
      step: int32, number of updates so far; also the position in the data.
      failed_step: int32, the step whose loss or gradient was not finite, or -1. After it the state
        no longer changes.
      history: float32 [rounded_up(total steps), len(HISTORY)], one row per step.
      average: average of the parameters after each step (see `spec.average_weights`), float32,
        sharded like them, initially equal to them; () without an average.
      loss_state: state of the loss between batches, a pytree of arrays; () if it has none.
    """

    params: Any
    opt_state: Any
    step: Any
    failed_step: Any
    history: Any
    average: Any = ()
    loss_state: Any = ()


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    total_steps: int,
    mesh: Mesh,
    *,
    average: bool = False,
    loss_state: Any = (),
) -> TrainState:
    """Return the state before the first step, the optimiser's moments sharded like `params`.

    Args:
      params: the trained parameters.
      optimizer: of `make_optimizer`.
      total_steps: number of steps of the phase.
      mesh: the mesh of `params`.
      average: whether to keep an average of the parameters.
      loss_state: see `StepSpec.loss_state`; it is replicated.
    """
    rows = rounded_up(total_steps)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    shardings = _opt_state_shardings(optimizer, abstract, mesh)
    opt_state = jax.jit(lambda p: optimizer.init(float32(p)), out_shardings=shardings)(params)
    small = {
        "step": np.int32(0),
        "failed_step": np.int32(-1),
        "history": np.zeros((rows, len(HISTORY)), np.float32),
        "loss_state": loss_state,
    }
    # The step donates its state, so no buffer may be in it twice.
    copies = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params) if average else ()
    small = sharding.put(small, sharding.replicated(mesh))
    return TrainState(params, opt_state, average=copies, **small)


def result_of(state: TrainState) -> Any:
    """Return the result of training: the average in the parameters' dtypes, or the parameters."""
    if state.average == ():
        return state.params
    return jax.tree.map(lambda x, like: x.astype(like.dtype), state.average, state.params)


def rounded_up(count: int) -> int:
    """Round a number of steps up to one of few sizes, so that phases share programs.

    The sizes are 16 and, for each power of two above, 8 sizes: less than an eighth is added.
    """
    grid = 1 << max(0, (count - 1).bit_length() - 4)
    return max(16, -(-count // grid) * grid)


def float32(tree: Any) -> Any:
    """Cast arrays to float32, the optimiser's dtype."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def state_shardings(
    config: ModelConfig,
    train: TrainSettings,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    columns: int | None,
) -> TrainState:
    """Return a `TrainState` of the shardings of a model's train state on `mesh`.

    `columns` are those of the class head; None without a head.
    """
    whole = sharding.replicated(mesh)
    abstract = adapting.abstract_trained(train, config, mesh, columns)
    like_params = jax.tree.map(lambda x: x.sharding, abstract)
    return TrainState(
        params=like_params,
        opt_state=_opt_state_shardings(optimizer, abstract, mesh),
        step=whole,
        failed_step=whole,
        history=whole,
        average=like_params if train.ema > 0 else (),
        # A prefix: it applies to all arrays in it.
        loss_state=whole,
    )


def _opt_state_shardings(
    optimizer: optax.GradientTransformation, abstract_params: Any, mesh: Mesh
) -> Any:
    """Shard moments like their parameters; replicate counts and Adafactor's factors."""
    whole = sharding.replicated(mesh)
    abstract = jax.eval_shape(lambda p: optimizer.init(float32(p)), abstract_params)
    return optax.tree_map_params(
        optimizer,
        lambda moment, param: param.sharding if moment.shape == param.shape else whole,
        abstract,
        abstract_params,
        transform_non_params=lambda _: whole,
    )
