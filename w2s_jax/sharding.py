"""The device mesh, and the sharding rules that map logical axes of arrays to its axes."""

import dataclasses
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from w2s_jax.config import MeshSettings
from w2s_jax.config.mesh_shapes import MESH_AXES, Shape, hybrid_shapes, mesh_shape, nearest_divisor
from w2s_jax.core import errors, processes

#: Logical names of an array's axes, in order.
Axes = tuple[str, ...]

#: Mesh axes over which the rows of a batch are sharded.
BATCH_AXES = ("data", "fsdp")


@dataclass(frozen=True)
class ShardingRules:
    """The mesh axis over which each logical axis of a parameter is sharded; None: replicated."""

    embed: str | None = "fsdp"
    mlp: str | None = "tensor"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    vocab: str | None = "tensor"
    head_dim: str | None = None
    positions: str | None = None
    layers: str | None = None
    classes: str | None = None
    lora: str | None = None
    patch: str | None = None
    channels: str | None = None

    def __post_init__(self) -> None:
        for logical, axis in dataclasses.asdict(self).items():
            if axis is not None and axis not in MESH_AXES:
                raise errors.unknown(f"sharding rule for {logical!r}", axis, MESH_AXES)

    def spec(self, axes: Axes) -> P:
        """Return the partition spec of an array by the rules alone, whatever its shape.

        Raises:
          InputError: if a logical axis has no rule, or if two axes of the array would be sharded
            over one mesh axis.
        """
        rules = dataclasses.asdict(self)
        for name in axes:
            if name not in rules:
                raise errors.unknown("logical axis", name, rules)
        split = [rules[name] for name in axes]
        for axis in MESH_AXES:
            taken = [name for name, of_it in zip(axes, split, strict=True) if of_it == axis]
            if len(taken) > 1:
                raise errors.InputError(
                    f"sharding rules: {' and '.join(map(repr, taken))} of one array are both "
                    f"sharded over {axis!r}; shard only one of them"
                )
        return P(*split)

    def sharding(self, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> NamedSharding:
        """Return an array's sharding; an axis that its mesh axis does not divide is not split."""
        whole = {number for number, _ in self._indivisible(shape, axes, mesh)}
        spec = self.spec(axes)
        return NamedSharding(mesh, P(*(None if i in whole else a for i, a in enumerate(spec))))

    def explain(self, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> str:
        """Describe the axes that a rule would split but the mesh does not divide; '' if none."""
        return "; ".join(
            f"{axes[number]!r} of {shape[number]} is not split over mesh.{axis}="
            f"{mesh.shape[axis]}, which does not divide it (nearest that does: "
            f"{nearest_divisor(shape[number], mesh.shape[axis])})"
            for number, axis in self._indivisible(shape, axes, mesh)
        )

    def _indivisible(self, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> list[tuple[int, str]]:
        """Return (index of the array's axis, the mesh axis that does not divide it) pairs."""
        return [
            (number, axis)
            for number, (length, axis) in enumerate(zip(shape, self.spec(axes), strict=True))
            if axis is not None and length % mesh.shape[axis]
        ]


#: The rules that all models use.
RULES = ShardingRules()


def make_mesh(
    settings: MeshSettings | None = None, devices: list[jax.Device] | None = None
) -> Mesh:
    """Return the mesh of a run over `devices` (all of them by default).

    Raises:
      InputError: if the settings do not fit the devices; see `mesh_shapes.mesh_shape`.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(settings or MeshSettings(), len(devices))
    used = devices[: math.prod(shape)]
    idle = {d.process_index for d in devices} - {d.process_index for d in used}
    if idle:
        raise errors.InputError(
            f"mesh.data: {shape[0]} with mesh.fsdp={shape[1]} and mesh.tensor={shape[2]} leaves "
            f"process {min(idle)} without a device; use a mesh of all {len(devices)} devices"
        )
    return mesh_of(shape, used)


def mesh_of(shape: Shape, devices: list[jax.Device] | None = None) -> Mesh:
    """Return a mesh of the given (data, fsdp, tensor) shape.

    Raises:
      InputError: if the devices belong to several slices over which `shape` cannot be laid.
    """
    devices = list(jax.devices())[: math.prod(shape)] if devices is None else devices
    types = (AxisType.Auto,) * 3
    counts = _slice_counts(devices)
    if len(counts) == 1:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    if len(set(counts.values())) > 1:
        raise errors.InputError(
            f"mesh.data: {shape[0]} with mesh.fsdp={shape[1]} and mesh.tensor={shape[2]} takes "
            f"{' and '.join(map(str, counts.values()))} devices of the slices; use the same number "
            "of each"
        )
    within, across = hybrid_shapes(shape, len(counts))
    return Mesh(
        mesh_utils.create_hybrid_device_mesh(within, across, devices), MESH_AXES, axis_types=types
    )


def _slice_counts(devices: list[Any]) -> dict[int, int]:
    """Return the number of devices in each slice; only TPUs have several slices."""
    numbers = [getattr(device, "slice_index", 0) for device in devices]
    return {number: numbers.count(number) for number in sorted(set(numbers))}


def row_shards(mesh: Mesh) -> int:
    """Return the number of shards of a batch's rows."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh, *, leading: int) -> NamedSharding:
    """Return the sharding of rows over `BATCH_AXES`, after `leading` axes that are not split."""
    return NamedSharding(mesh, P(*(None,) * leading, BATCH_AXES))


def put(tree: Any, shardings: Any) -> Any:
    """Place the arrays of a tree, of which every process has an equal copy, on a mesh.

    Args:
      tree: arrays.
      shardings: one sharding for all arrays, or a tree of them of which `tree` is an extension.
    """
    if processes.count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(_put, tree, jax.tree.broadcast(shardings, tree))


def _put(x: Any, where: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, where)
    # `jax.device_put` would make the processes compare their copies.
    host = np.asarray(x)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    # Explicit, like `jax.device_put`, which JAX's transfer guard lets pass.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def on_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return a whole array as numpy, wherever its shards are; every process must call this."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def on_local_devices(tree: Any, local: NamedSharding) -> Any:
    """Replicate the arrays of a tree on this process's devices, which are those of `local`.

    An array on devices of several processes must be on all devices of the mesh.
    """

    def one(x: Any) -> jax.Array:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return jax.device_put(x, local)
        assert isinstance(x.sharding, NamedSharding) and isinstance(x.sharding.mesh, Mesh)
        whole = jax.device_put(x, replicated(x.sharding.mesh))
        copies = {shard.device: shard.data for shard in whole.addressable_shards}
        return jax.make_array_from_single_device_arrays(
            x.shape, local, [copies[device] for device in local.mesh.devices.flat]
        )

    return jax.tree.map(one, tree)


# A user context is part of the jit cache key, so no program is reused across contexts.
_current_mesh = jax.make_user_context(default_value=None)


def over(mesh: Mesh) -> AbstractContextManager[None]:
    """Return a context in which arrays are sharded over `mesh` as this module shards them.

    Kernels need to know: the partitioner can split neither a kernel nor an array with a layout
    constraint.
    """
    return _current_mesh(mesh)


def current_mesh() -> Mesh | None:
    """Return the mesh of `over`; None outside of it."""
    return _current_mesh.value


def target_device() -> jax.Device:
    """Return one of the devices for which the caller is traced."""
    mesh = current_mesh()
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def row_and_head_shards() -> tuple[int, int] | None:
    """Return the numbers of shards of rows and of heads where the caller runs.

    None where they are unknown: with several devices, outside of `over`.
    """
    # Within `jax.pmap` and `jax.shard_map` every device runs a program of its own.
    if jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return 1, 1
    mesh = current_mesh()
    if mesh is None:
        return (1, 1) if jax.device_count() == 1 else None
    return row_shards(mesh), mesh.shape["tensor"]


def split_rows(x: jax.Array) -> jax.Array:
    """Constrain the first axis to be sharded as rows are over the mesh of `over`.

    Without the constraint, the compiler propagates the sharding of the embedding's width to the
    activations, and then gathers the activations of all rows on every device instead of a layer's
    parameters.
    """
    return _constrained(x, P(BATCH_AXES))


def split_rows_and_heads(x_RKSE: jax.Array) -> jax.Array:
    """Constrain rows and key/value heads to be sharded: the first two of the last four axes.

    Heads are not split if `tensor` does not divide them.
    """
    mesh, before = current_mesh(), (None,) * (x_RKSE.ndim - 4)
    if mesh is not None and x_RKSE.shape[-3] % mesh.shape["tensor"]:
        return _constrained(x_RKSE, P(*before, BATCH_AXES))
    return _constrained(x_RKSE, P(*before, BATCH_AXES, "tensor"))


def look_up(table_VD: jax.Array, index_RL: jax.Array) -> jax.Array:
    """Return table_VD[index_RL], [R, L, D], rows sharded over `data` and the width over `fsdp`.

    The width is sharded like the table's, so that `split_rows` is one exchange among the devices
    of `fsdp`. In one step the compiler would gather everything.
    """
    return _constrained(table_VD[index_RL], P("data", None, "fsdp"))


def _constrained(x: jax.Array, spec: P) -> jax.Array:
    """Constrain the sharding of `x` to `spec` where the mesh of `over` divides its shape."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1 or jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return x
    where = NamedSharding(mesh, spec)
    try:
        where.shard_shape(x.shape)
    except ValueError:
        return x  # The mesh does not divide a dimension.
    return jax.lax.with_sharding_constraint(x, where)
