"""Run blocks whose parameters are stacked by layer: scanned or unrolled, with rematerialisation.

Shapes in names: R rows, L slots, Q selected slots, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from w2s_jax import sharding
from w2s_jax.models.attention import Reach, reaches
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.dropout import Dropout
from w2s_jax.models.layers import PROJECTED

Array = jax.Array


def run_blocks(
    config: ModelConfig,
    graphdef: nnx.GraphDef,
    stacks: Sequence[Any],
    x_RLD: Array,
    segment_ids_RL: Array,
    positions_RL: Array,
    slots_RQ: Array | None = None,
    dropout: Dropout | None = None,
    *,
    scan: bool,
    remat: str,
    first_keys: tuple[int, ...] = (),
    tap: Callable[[Array], Array] | None = None,
) -> tuple[Array, list[Array]]:
    """Return the output of the last block, [R, L, D], or at `slots_RQ`, [R, Q, D], and taps.

    A stack that is not differentiated needs no backward pass if none of those before it is
    differentiated either.

    Args:
      config: the model.
      graphdef: structure of a block, a module that is called as block(x_RLD, segment_ids_RL,
        positions_RL, reach, slots_RQ, dropout).
      stacks: parameters of blocks, stacked by layer; together `config.num_layers` layers.
      x_RLD: input of the first block.
      segment_ids_RL: int32; 1, 2, ... within a row, 0 for padding.
      positions_RL: int32 positions within the document.
      slots_RQ: slots at which the last block's output is needed (None: all); elsewhere it computes
        only keys and values.
      dropout: dropout of the model, from which that of each block is derived (None: no dropout).
      scan: whether to scan over the layers of a stack instead of unrolling them.
      remat: 'none', 'block' (the backward pass recomputes each block) or 'dots' (it recomputes
        everything except the outputs of projections).
      first_keys: see `attention.attention`.
      tap: a function of the output of each block but the last, [R, L, D], such as what a head reads
        of it. The results are the second value, stacked by layer, in one or several arrays.
    """
    taps: list[Array] = []
    shared, varied = reaches(config, x_RLD.shape[1], first_keys)

    def layer(
        x_RLD: Array,
        params: Any,
        own: Reach | None,
        number: Array | int | None,
        slots_RQ: Array | None = None,
    ) -> Array:
        with jax.named_scope("block"):
            block = nnx.merge(graphdef, params)
            reach = own or shared
            # Number 0 is the embedding.
            of_layer = None if dropout is None or number is None else dropout.within(1 + number)
            after = block(x_RLD, segment_ids_RL, positions_RL, reach, slots_RQ, of_layer)
            return sharding.split_rows(after)

    def step(x_RLD: Array, xs: Any) -> tuple[Array, Array | None]:
        after_RLD = layer(x_RLD, *xs)
        return after_RLD, None if tap is None else tap(after_RLD)

    if remat != "none":
        # The policies for matmuls would keep their float32 results; names keep the cast ones.
        keep = jax.checkpoint_policies.save_only_these_names(PROJECTED)
        policy = keep if remat == "dots" else None
        # Within a scan, the compiler cannot merge the recomputation with the forward pass.
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=not scan)
    first = 0
    x_RLD = sharding.split_rows(x_RLD)
    for stacked in _last_apart(stacks) if scan and slots_RQ is not None else stacks:
        count = jax.tree.leaves(stacked)[0].shape[0]
        owns = varied[first : first + count]
        numbers = None if dropout is None else jnp.arange(first, first + count)
        first += count
        last = first == config.num_layers and slots_RQ is not None
        if scan and not last:
            own = jax.tree.map(lambda *x: jnp.stack(x), *owns) if owns else None
            x_RLD, tapped = jax.lax.scan(step, x_RLD, (stacked, own, numbers))
            if tapped is not None:
                taps.append(tapped if first < config.num_layers else tapped[:-1])
        else:
            for i, params in enumerate(_unstack(stacked, count)):
                here_RQ = slots_RQ if last and i == count - 1 else None
                number = None if numbers is None else numbers[i]
                x_RLD = layer(x_RLD, params, owns[i] if owns else None, number, here_RQ)
                if tap is not None and not (first == config.num_layers and i == count - 1):
                    taps.append(tap(x_RLD)[None])
    return x_RLD, taps


def _last_apart(stacks: Sequence[Any]) -> list[Any]:
    """Return the stacks with the last layer in its own stack."""
    *before, final = stacks
    leaves, treedef = jax.tree.flatten(final)
    count = leaves[0].shape[0]
    if count == 1:
        return list(stacks)
    parts = [jax.lax.split(leaf, (count - 1, 1), axis=0) for leaf in leaves]
    return [*before, *(jax.tree.unflatten(treedef, part) for part in zip(*parts, strict=True))]


def _unstack(stacked: Any, count: int) -> list[Any]:
    """Return the layers of stacked parameters, by `lax.split`: its gradient is a concatenation."""
    leaves, treedef = jax.tree.flatten(stacked)
    parts = [jax.lax.split(leaf, (1,) * count, axis=0) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [part[i][0] for part in parts]) for i in range(count)]
