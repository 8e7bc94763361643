"""Populations: phases that differ in numbers, targets or data order only, as one program.

The members' states lie on a leading axis P, split over a mesh of one axis; no device needs another.
Each device trains its own members at once ('vmap') or one after another ('loop'). What all members
share, frozen parameters and batches, is there once a device. Shapes in names: P members, S steps,
M microbatches, R rows, L slots, B documents a batch, N documents, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from w2s_jax import sharding
from w2s_jax.core import errors
from w2s_jax.data import packing
from w2s_jax.data.packing import PackedBatches
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.training import loop
from w2s_jax.training.batches import (
    ResidentBatches,
    feature_arrays,
    filled_up,
    packed_arrays,
    target_arrays,
)
from w2s_jax.training.dispatch import Runner, blocks
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import TrainState
from w2s_jax.training.step import make_step, run_block

#: The mesh axis that members are split over.
AXIS = "population"
#: How a device trains its members: at once, or one after another.
MODES = ("vmap", "loop")


def make_mesh(num_members: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over as many of the devices (all by default) as there are members for."""
    devices = list(jax.devices() if devices is None else devices)
    return Mesh(np.array(devices[:num_members]), (AXIS,))


def choose_mode(spec: StepSpec, shared_order: bool, backend: str) -> str:
    """'vmap' where training members at once is faster than one after another, else 'loop'.

    On CPU it is for probes on wide features in one order for all, whose products become one.
    CPU time a member and step, in microseconds, of 'vmap', 'loop' and single runs: 77, 182 and 223
    for 256 probes of width 768 (batches of 128), but 63, 28 and 29 at width 64 and 58, 12 and 20 at
    width 8; 1.51, 1.48 and 1.60 milliseconds for 8 models of 4,360 parameters, 23, 20 and 20 for 8
    of 61,280. On other backends, where nothing was measured, small models are trained at once.

    Args:
      spec: of a member.
      shared_order: all members see the same documents in the same order.
      backend: as `jax.default_backend()` says it.
    """
    probe = spec.train.adapt == "probe"
    if backend == "cpu":
        return "vmap" if probe and shared_order and spec.model.d_model >= 256 else "loop"
    return "vmap" if probe or spec.model.num_parameters() <= 100_000_000 else "loop"


def stack(states: Sequence[TrainState], mesh: Mesh) -> TrainState:
    """The members' states as one, on the mesh.

    Where they do not divide among the devices, copies of the last one that count as failed fill
    the axis up.
    """
    fill = dataclasses.replace(states[-1], failed_step=np.int32(0))
    states = [*states, *[fill] * _missing(len(states), mesh)]
    return _put_own(jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(states)), mesh)


@jax.jit
def member(tree: Any, index: int) -> Any:
    """What is a member's own of a population's state, or of its parameters."""
    return jax.tree.map(lambda x: x[index], tree)


def evaluate_each(evaluates: Sequence[Callable[[Any], dict[str, Any]]]) -> loop.Evaluate:
    """A `loop.Evaluate` of functions that evaluate one member's parameters."""
    return lambda params: [run(member(params, i)) for i, run in enumerate(evaluates)]


def pack_members(
    documents: TokenizedDocuments,
    order_PSB: np.ndarray,
    *,
    num_microbatches: int = 1,
    max_shapes: int = packing.MAX_SHAPES,
    **preferences: Any,
) -> list[PackedBatches]:
    """Packs members that have an order of their own so that each step has one shape for all.

    Args:
      documents: tokenised documents.
      order_PSB: document row indices of each member's batches.
      num_microbatches: M of each member.
      max_shapes: see `packing.pack`.
      **preferences: of rows; see `packing.pack`.
    """
    members, steps, _ = order_PSB.shape
    packed = packing.pack(
        documents,
        order_PSB.transpose(1, 0, 2).reshape(steps, -1),
        num_microbatches=members * num_microbatches,
        groups=members,
        max_shapes=max_shapes,
        **preferences,
    )
    documents_SPB = packed.documents_SB.reshape(steps, members, -1)
    found = []
    for number in range(members):
        part = np.s_[:, number * num_microbatches : (number + 1) * num_microbatches]
        stacks = tuple(
            dataclasses.replace(
                stack,
                tokens_SMRL=stack.tokens_SMRL[part],
                segment_ids_SMRL=stack.segment_ids_SMRL[part],
                read_outs_SMmK=stack.read_outs_SMmK[part],
                slots_SMRQ=stack.slots_SMRQ[part],
                loss_weights_SMRL=(
                    None if stack.loss_weights_SMRL is None else stack.loss_weights_SMRL[part]
                ),
            )
            for stack in packed.stacks
        )
        found.append(PackedBatches(stacks, documents_SPB[:, number]))
    return found


def put_batches(
    packed: PackedBatches | Sequence[PackedBatches],
    targets_PNC: Sequence[np.ndarray] | None,
    mesh: Mesh,
    *,
    needs: Collection[str] = (),
) -> ResidentBatches:
    """Places the batches of all members.

    Args:
      packed: those that all members share, or those of each (see `pack_members`).
      targets_PNC: each member's float32 soft labels by document; None for language-model training.
      mesh: of `make_mesh`.
      needs: see `batches.put_batches`.
    """
    if isinstance(packed, PackedBatches):
        own_PNC = targets_PNC or []
        arrays = [packed_arrays(packed, own_PNC[0] if own_PNC else None, needs)]
        arrays += [target_arrays(packed, targets_NC) for targets_NC in own_PNC[1:]]
        return _put(arrays, {"targets_SBC"}, filled_up(packed.place_S2[:, 0]), mesh)
    targets = [None] * len(packed) if targets_PNC is None else targets_PNC
    arrays = [packed_arrays(one, of_it, needs) for one, of_it in zip(packed, targets, strict=True)]
    own = set(arrays[0][0]) - {"index_S", "first_keys"}
    return _put(arrays, own, filled_up(packed[0].place_S2[:, 0]), mesh)


def put_feature_batches(
    order_PSB: Sequence[np.ndarray], targets_PNC: Sequence[np.ndarray], mesh: Mesh
) -> ResidentBatches:
    """Places the batches of probes on the same features.

    Args:
      order_PSB: int32 row index of each document, for each member.
      targets_PNC: each member's float32 soft labels by document.
      mesh: of `make_mesh`.
    """
    arrays = [
        (feature_arrays(order_SB, targets_NC),)
        for order_SB, targets_NC in zip(order_PSB, targets_PNC, strict=True)
    ]
    shared = all(order_SB is order_PSB[0] for order_SB in order_PSB)
    own = {"targets_SBC"} | (set() if shared else {"documents_SMm"})
    return _put(arrays, own, filled_up(np.zeros(len(order_PSB[0]), np.int32)), mesh)


def _put(
    arrays: Sequence[Sequence[dict[str, np.ndarray]]],
    own: set[str],
    stack_of_S: np.ndarray,
    mesh: Mesh,
) -> ResidentBatches:
    """Places members' stacks: the arrays named in `own` on an axis P, the first member's others."""
    whole, fill = sharding.replicated(mesh), _missing(len(arrays), mesh)
    stacks = []
    for parts in zip(*arrays, strict=True):
        parts = (*parts, *[parts[-1]] * fill)
        stacks.append(
            {
                name: _put_own(np.stack([part[name] for part in parts]), mesh)
                if name in own
                else jax.device_put(x, whole)
                for name, x in parts[0].items()
            }
        )
    return ResidentBatches(
        tuple(stacks), jax.device_put(stack_of_S, whole), stack_of_S, frozenset(own)
    )


def runner(
    specs: Sequence[StepSpec], mesh: Mesh, frozen: Any, batches: ResidentBatches, how: str
) -> Runner:
    """What trains the members that `specs` describe, in blocks.

    A non-finite loss or gradient freezes its member alone.

    Args:
      specs: one for each member; `program_key()` and `total_steps` are the same for all.
      mesh: of `make_mesh`.
      frozen: parameters that all members share and none trains, whole on each device.
      batches: of `put_batches` or `put_feature_batches` here.
      how: 'vmap' or 'loop'; see `choose_mode`.

    Raises:
      InputError: if they cannot be one program.
    """
    if how not in MODES:
        raise errors.unknown("how", how, MODES)
    key = specs[0].program_key()
    for number, spec in enumerate(specs):
        if spec.program_key() != key or spec.total_steps != specs[0].total_steps:
            raise errors.InputError(
                f"population: member {number} differs from member 0 in more than learning rate, "
                "schedule, weight decay, rates of dropout and averaging, seed, data order, targets "
                "and numeric options of its loss; allowed: members that share a program and have "
                "the same number of steps"
            )
    numbers = [spec.hyperparameters() for spec in specs]
    numbers += [numbers[-1]] * _missing(len(specs), mesh)
    stacked = _put_own(jax.tree.map(lambda *xs: np.stack(xs), *numbers), mesh)
    program = _program(key, mesh, how, batches.own)
    return blocks(functools.partial(program, stacked, frozen or {}), batches, mesh)


@functools.lru_cache(maxsize=32)
def _program(key: StepSpec, mesh: Mesh, how: str, own: frozenset[str]) -> Callable[..., TrainState]:
    """(numbers, frozen, state, stacks, stack_of_S, stop) -> state."""
    step = make_step(key)

    def split(stacks: Any) -> tuple[Any, Any]:
        """What members have of their own, and what they share."""
        return (
            tuple({name: x for name, x in stack.items() if name in own} for stack in stacks),
            tuple({name: x for name, x in stack.items() if name not in own} for stack in stacks),
        )

    def joined(mine: Any, shared: Any) -> Any:
        return tuple(a | b for a, b in zip(mine, shared, strict=True))

    def at_once(
        numbers: Any, frozen: Any, state: Any, mine: Any, shared: Any, places: Any, stop: Any
    ) -> Any:
        axes = joined(jax.tree.map(lambda _: 0, mine), jax.tree.map(lambda _: None, shared))
        all_step = jax.vmap(step, in_axes=(0, None, 0, None, axes, None))
        return run_block(all_step, numbers, frozen, state, joined(mine, shared), places, stop)

    def one_by_one(
        numbers: Any, frozen: Any, state: Any, mine: Any, shared: Any, places: Any, stop: Any
    ) -> Any:
        def one(item: Any) -> Any:
            numbers, state, mine = item
            return run_block(step, numbers, frozen, state, joined(mine, shared), places, stop)

        return jax.lax.map(one, (numbers, state, mine))

    members, whole = PartitionSpec(AXIS), PartitionSpec()
    sharded = jax.shard_map(
        at_once if how == "vmap" else one_by_one,
        mesh=mesh,
        in_specs=(members, whole, members, members, whole, whole, whole),
        out_specs=members,
        check_vma=False,
    )

    def program(
        numbers: Any, frozen: Any, state: Any, stacks: Any, stack_of_S: Any, stop: Any
    ) -> Any:
        return sharded(numbers, frozen, state, *split(stacks), stack_of_S, stop)

    return jax.jit(program, donate_argnums=2)


def _missing(count: int, mesh: Mesh) -> int:
    """How many members are missing to a multiple of the devices."""
    return -count % mesh.devices.size


def _put_own(tree: Any, mesh: Mesh) -> Any:
    """Arrays with a leading axis of members, split over the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))
