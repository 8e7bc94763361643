"""Populations: phases that differ only in hyperparameters, targets or data order, as one program.

The members' states have a leading axis P, sharded over a mesh of one axis; devices do not
communicate. Each device trains its own members at once ('vmap') or one after another ('loop').
Frozen parameters and batches that all members share are stored once per device. Shapes in names:
P members, S steps, M microbatches, R rows, L slots, B documents per batch, N documents, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from w2s_jax import sharding
from w2s_jax.core import errors
from w2s_jax.data import packing
from w2s_jax.data.packing import PackedBatches
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.training.batch_sources import ResidentBatches
from w2s_jax.training.batches import (
    NO_EXTRAS,
    Batch,
    BatchExtras,
    Bucket,
    feature_bucket,
    packed_buckets,
    padded,
)
from w2s_jax.training.interfaces import Evaluate
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import TrainState
from w2s_jax.training.step import train_block, train_step

#: The mesh axis over which members are sharded.
AXIS = "population"
#: How a device trains its members: at once, or one after another.
MODES = ("vmap", "loop")

# vmap axes: of an array of each member, and of one that all members share.
_OWN: Any = 0
_SHARED: Any = None
#: Axes of buckets whose members have the same data order: each has its own targets.
_SHARED_ORDER = Bucket(Batch(_SHARED, _OWN, _SHARED, _SHARED), _SHARED)
#: Axes of buckets whose members have different data orders ...
_OWN_ORDER = Bucket(Batch(_OWN, _OWN, _OWN, _OWN), _SHARED)
#: ... and of such probes, whose document weights are all 1.
_OWN_PROBE_ORDER = Bucket(Batch(_OWN, _OWN, _SHARED, _SHARED), _SHARED)


@dataclasses.dataclass(frozen=True)
class MemberBatches(ResidentBatches):
    """The batches of all members on the devices.

    Attributes:
      axes: vmap axes of each bucket: 0 for arrays with a leading axis P, None for shared ones.
    """

    axes: Bucket = _SHARED_ORDER


def make_mesh(num_members: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh over the devices (all by default), at most one per member."""
    devices = list(jax.devices() if devices is None else devices)
    return Mesh(np.array(devices[:num_members]), (AXIS,))


def choose_mode(spec: StepSpec, shared_order: bool, backend: str) -> str:
    """Return 'vmap' where training members at once is faster than one after another, else 'loop'.

    On CPUs it is faster for probes on wide features whose members share the data order, since their
    products become one. CPU time per member and step, in microseconds, of 'vmap', 'loop' and single
    runs: 77, 182 and 223 for 256 probes of width 768 (batches of 128), but 63, 28 and 29 at width
    64 and 58, 12 and 20 at width 8; 1.51, 1.48 and 1.60 milliseconds for 8 models of 4,360
    parameters, 23, 20 and 20 for 8 of 61,280. Other backends were not measured; there, small models
    are trained at once.

    Args:
      spec: of a member.
      shared_order: whether all members see the same documents in the same order.
      backend: as `jax.default_backend()`.
    """
    probe = spec.train.adapt == "probe"
    if backend == "cpu":
        return "vmap" if probe and shared_order and spec.model.d_model >= 256 else "loop"
    return "vmap" if probe or spec.model.num_parameters() <= 100_000_000 else "loop"


def require_shared_program(specs: Sequence[StepSpec]) -> None:
    """Refuse members that cannot be trained by one program.

    Raises:
      InputError: if `program_key()` or `total_steps` is not the same for all, or if a member is
        not a classifier.
    """
    for number, spec in enumerate(specs):
        if not may_share(spec):
            raise errors.InputError(
                f"population: member {number} learns tokens; members learn soft labels of classes"
            )
        if shared_program(spec) != shared_program(specs[0]):
            raise errors.InputError(
                f"population: member {number} does not share a program with member 0; members may "
                "differ in learning rate, schedule, weight decay, rates of dropout and averaging, "
                "seed, data order, targets and numeric options of the loss, and need the same "
                "number of steps"
            )


def may_share(spec: StepSpec) -> bool:
    """Return whether a phase may be a member of a population: classifiers only."""
    return spec.head_columns is not None


def shared_program(spec: StepSpec) -> Any:
    """Return the part of a spec that is equal for all members of a population."""
    return spec.program_key(), spec.total_steps


def stack(states: Sequence[TrainState], mesh: Mesh) -> TrainState:
    """Stack the members' states on the mesh.

    If the number of members is not a multiple of the devices, copies of the last state fill it up;
    they count as failed.
    """
    fill = dataclasses.replace(states[-1], failed_step=np.int32(0))
    states = [*states, *[fill] * _missing(len(states), mesh)]
    return _put_members(jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(states)), mesh)


@jax.jit
def member(tree: Any, index: int) -> Any:
    """Return a member's part of a population's state or parameters."""
    return jax.tree.map(lambda x: x[index], tree)


def evaluate_each(evaluates: Sequence[Callable[[Any], dict[str, Any]]]) -> Evaluate:
    """Return an `Evaluate` from functions that evaluate one member's parameters each."""
    return lambda params: [run(member(params, i)) for i, run in enumerate(evaluates)]


def pack_members(
    documents: TokenizedDocuments,
    order_PSB: np.ndarray,
    *,
    num_microbatches: int = 1,
    max_shapes: int = packing.MAX_SHAPES,
    **preferences: Any,
) -> list[PackedBatches]:
    """Pack members that have different orders so that each step has one shape for all.

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
        buckets = tuple(
            dataclasses.replace(
                bucket,
                tokens_SMRL=bucket.tokens_SMRL[part],
                segment_ids_SMRL=bucket.segment_ids_SMRL[part],
                read_outs_SMmK=bucket.read_outs_SMmK[part],
                slots_SMRQ=bucket.slots_SMRQ[part],
                loss_weights_SMRL=(
                    None if bucket.loss_weights_SMRL is None else bucket.loss_weights_SMRL[part]
                ),
            )
            for bucket in packed.buckets
        )
        found.append(PackedBatches(buckets, documents_SPB[:, number]))
    return found


def put_batches(
    packed: PackedBatches | Sequence[PackedBatches],
    targets_PNC: Sequence[np.ndarray],
    mesh: Mesh,
    extras: BatchExtras = NO_EXTRAS,
) -> MemberBatches:
    """Place the batches of all members.

    Args:
      packed: batches that all members share, or those of each (see `pack_members`).
      targets_PNC: each member's float32 soft labels by document.
      mesh: of `make_mesh`.
      extras: the optional arrays to include (see `StepSpec.extras`).
    """
    shared = isinstance(packed, PackedBatches)
    packed_P = [packed] * len(targets_PNC) if isinstance(packed, PackedBatches) else packed
    members = [
        packed_buckets(one, targets_NC, extras)
        for one, targets_NC in zip(packed_P, targets_PNC, strict=True)
    ]
    axes = _SHARED_ORDER if shared else _OWN_ORDER
    return _put(members, axes, padded(packed_P[0].bucket_S), mesh)


def put_feature_batches(
    order_PSB: Sequence[np.ndarray],
    targets_PNC: Sequence[np.ndarray],
    mesh: Mesh,
    *,
    table: bool = False,
) -> MemberBatches:
    """Place the batches of probes on the same features.

    Args:
      order_PSB: int32 row index of each document, for each member.
      targets_PNC: each member's float32 soft labels by document.
      mesh: of `make_mesh`.
      table: whether batches look their targets up (see `Bucket.targets_NC`).
    """
    members = [
        (feature_bucket(order_SB, targets_NC, table=table),)
        for order_SB, targets_NC in zip(order_PSB, targets_PNC, strict=True)
    ]
    shared = all(order_SB is order_PSB[0] for order_SB in order_PSB)
    axes = _SHARED_ORDER if shared else _OWN_PROBE_ORDER
    if table:
        of_batches = dataclasses.replace(axes.batches, targets_BC=_SHARED)
        axes = dataclasses.replace(axes, batches=of_batches, targets_NC=_OWN)
    return _put(members, axes, padded(np.zeros(len(order_PSB[0]), np.int32)), mesh)


def _put(
    members: Sequence[tuple[Bucket, ...]], axes: Bucket, bucket_S: np.ndarray, mesh: Mesh
) -> MemberBatches:
    """Place members' buckets: by `axes`, stacked on an axis P, or the first member's for all."""
    whole, fill = sharding.replicated(mesh), _missing(len(members), mesh)

    def placed(axis: int | None, *arrays: np.ndarray) -> jax.Array:
        if axis is None:
            return jax.device_put(arrays[0], whole)
        return _put_members(np.stack([*arrays, *[arrays[-1]] * fill]), mesh)

    buckets = tuple(_map_axes(placed, axes, *parts) for parts in zip(*members, strict=True))
    return MemberBatches(buckets, jax.device_put(bucket_S, whole), bucket_S, axes)


def compile_block(
    specs: Sequence[StepSpec], mesh: Mesh, frozen: Any, batches: MemberBatches, mode: str
) -> Callable[..., TrainState]:
    """Return many steps of all members, compiled: (state, buckets, bucket_S, stop) -> state.

    A non-finite loss or gradient freezes its member alone. The state is donated.

    Args:
      specs: one per member, with the same `shared_program`.
      mesh: of `make_mesh`.
      frozen: parameters that all members share and none trains, replicated on the mesh.
      batches: of `put_batches` or `put_feature_batches` here.
      mode: 'vmap' or 'loop'; see `choose_mode`.

    Raises:
      InputError: if the mode is unknown, or the members cannot share a program.
    """
    if mode not in MODES:
        raise errors.unknown("mode", mode, MODES)
    require_shared_program(specs)
    hyperparameters = [spec.hyperparameters() for spec in specs]
    hyperparameters += [hyperparameters[-1]] * _missing(len(specs), mesh)
    stacked = _put_members(jax.tree.map(lambda *xs: np.stack(xs), *hyperparameters), mesh)
    program = _program(specs[0].program_key(), mesh, mode, batches.axes)
    return functools.partial(program, stacked, frozen or {})


@functools.lru_cache(maxsize=32)
def _program(key: StepSpec, mesh: Mesh, mode: str, axes: Bucket) -> Callable[..., TrainState]:
    """Return (hyperparameters, frozen, state, buckets, bucket_S, stop) -> state, compiled."""
    step_fn = functools.partial(train_step, key)
    block = vmapped_block if mode == "vmap" else looped_block
    members, whole = PartitionSpec(AXIS), PartitionSpec()

    def program(
        hyperparameters: Any, frozen: Any, state: Any, buckets: Any, bucket_S: Any, stop: Any
    ) -> Any:
        bucket_specs = jax.tree.map(
            lambda axis: whole if axis is None else members, axes, is_leaf=_is_none
        )
        sharded = jax.shard_map(
            functools.partial(block, step_fn, axes),
            mesh=mesh,
            in_specs=(members, whole, members, (bucket_specs,) * len(buckets), whole, whole),
            out_specs=members,
            check_vma=False,
        )
        return sharded(hyperparameters, frozen, state, buckets, bucket_S, stop)

    return jax.jit(program, donate_argnums=2)


def vmapped_block(
    step_fn: Callable[..., TrainState],
    axes: Bucket,
    hyperparameters: Any,
    frozen: Any,
    state: Any,
    buckets: Any,
    bucket_S: Any,
    stop: Any,
) -> Any:
    """Run `train_block` for all members at once."""
    in_axes = (0, None, 0, None, (axes,) * len(buckets), None)
    all_members = jax.vmap(step_fn, in_axes=in_axes)
    return train_block(all_members, hyperparameters, frozen, state, buckets, bucket_S, stop)


def looped_block(
    step_fn: Callable[..., TrainState],
    axes: Bucket,
    hyperparameters: Any,
    frozen: Any,
    state: Any,
    buckets: Any,
    bucket_S: Any,
    stop: Any,
) -> Any:
    """Run `train_block` for one member after another."""
    own = [_map_axes(lambda axis, x: None if axis is None else x, axes, b) for b in buckets]

    def one(item: Any) -> Any:
        hyperparameters, state, own = item
        joined = [
            jax.tree.map(lambda mine, all_: all_ if mine is None else mine, *both, is_leaf=_is_none)
            for both in zip(own, buckets, strict=True)
        ]
        return train_block(step_fn, hyperparameters, frozen, state, joined, bucket_S, stop)

    return jax.lax.map(one, (hyperparameters, state, own))


def _map_axes(fn: Callable[..., Any], axes: Bucket, *buckets: Bucket) -> Bucket:
    """Map `fn(axis, *arrays)` over the arrays of buckets; `axes` is a prefix of their tree."""
    every = jax.tree.broadcast(axes, buckets[0], is_leaf=_is_none)

    def present(axis: int | None, *arrays: Any) -> Any:
        return None if arrays[0] is None else fn(axis, *arrays)

    return jax.tree.map(present, every, *buckets, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


def _missing(count: int, mesh: Mesh) -> int:
    """Return the number of members missing to a multiple of the devices."""
    return -count % mesh.devices.size


def _put_members(tree: Any, mesh: Mesh) -> Any:
    """Shard arrays with a leading axis P over the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))
