"""The device mesh, and which logical axis of an array lies along which mesh axis."""

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

#: Logical axes of an array, from the first to the last.
Axes = tuple[str, ...]

#: Mesh axes along which the rows of a batch are split.
BATCH_AXES = ("data", "fsdp")


@dataclass(frozen=True)
class ShardingRules:
    """The mesh axis along which each logical axis of a parameter is split; None: it is whole."""

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

    def __post_init__(self) -> None:
        for logical, axis in dataclasses.asdict(self).items():
            if axis is not None and axis not in MESH_AXES:
                raise errors.unknown(f"sharding rule for {logical!r}", axis, MESH_AXES)

    def spec(self, axes: Axes) -> P:
        """Which mesh axis each axis of an array is split along, whatever their lengths.

        Raises:
          InputError: for a logical axis that has no rule, or if two axes of the array would be
            split along one mesh axis.
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
                    f"sharding rules: {' and '.join(map(repr, taken))} of one array are both split "
                    f"along {axis!r}; allowed: one of them"
                )
        return P(*split)

    def sharding(self, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> NamedSharding:
        """Where an array lies; an axis whose length its mesh axis does not divide is whole."""
        whole = {number for number, _ in self._indivisible(shape, axes, mesh)}
        spec = self.spec(axes)
        return NamedSharding(mesh, P(*(None if i in whole else a for i, a in enumerate(spec))))

    def explain(self, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> str:
        """Which axes are not split though a rule says so, and what would divide them; or ''."""
        return "; ".join(
            f"{axes[number]!r} of {shape[number]} is not split over mesh.{axis}="
            f"{mesh.shape[axis]}, which does not divide it (nearest that does: "
            f"{nearest_divisor(shape[number], mesh.shape[axis])})"
            for number, axis in self._indivisible(shape, axes, mesh)
        )

    def _indivisible(self, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> list[tuple[int, str]]:
        """(which axis of the array, the mesh axis that does not divide it)."""
        return [
            (number, axis)
            for number, (length, axis) in enumerate(zip(shape, self.spec(axes), strict=True))
            if axis is not None and length % mesh.shape[axis]
        ]


#: The rules of all models.
RULES = ShardingRules()


def make_mesh(
    settings: MeshSettings | None = None, devices: list[jax.Device] | None = None
) -> Mesh:
    """The mesh of a run over `devices` (all of them by default).

    Raises:
      InputError: if the settings don't fit the devices; see `mesh_shapes.mesh_shape`.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(settings or MeshSettings(), len(devices))
    used = devices[: math.prod(shape)]
    idle = {d.process_index for d in devices} - {d.process_index for d in used}
    if idle:
        raise errors.InputError(
            f"mesh.data: {shape[0]} with mesh.fsdp={shape[1]} and mesh.tensor={shape[2]} leaves "
            f"process {min(idle)} without a device; allowed: a mesh of all {len(devices)} devices"
        )
    return mesh_of(shape, used)


def mesh_of(shape: Shape, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of the given (data, fsdp, tensor) shape.

    Raises:
      InputError: if the devices are of several slices and `shape` cannot be laid over them.
    """
    devices = list(jax.devices())[: math.prod(shape)] if devices is None else devices
    types = (AxisType.Auto,) * 3
    counts = _slice_counts(devices)
    if len(counts) == 1:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    if len(set(counts.values())) > 1:
        raise errors.InputError(
            f"mesh.data: {shape[0]} with mesh.fsdp={shape[1]} and mesh.tensor={shape[2]} takes "
            f"{' and '.join(map(str, counts.values()))} devices of the slices; allowed: the same "
            "number of each"
        )
    within, across = hybrid_shapes(shape, len(counts))
    return Mesh(
        mesh_utils.create_hybrid_device_mesh(within, across, devices), MESH_AXES, axis_types=types
    )


def _slice_counts(devices: list[Any]) -> dict[int, int]:
    """How many of the devices each slice has; only TPUs have several."""
    numbers = [getattr(device, "slice_index", 0) for device in devices]
    return {number: numbers.count(number) for number in sorted(set(numbers))}


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh, *, leading: int) -> NamedSharding:
    """Rows split over `BATCH_AXES`, behind `leading` axes that are whole."""
    return NamedSharding(mesh, P(*(None,) * leading, BATCH_AXES))


def put(tree: Any, where: NamedSharding) -> Any:
    """The arrays of a tree, which all processes have alike, in their places on a mesh."""
    if processes.count() == 1:
        return jax.device_put(tree, where)
    return jax.tree.map(lambda x: _put(x, where), tree)


def _put(x: Any, where: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, where)
    # `jax.device_put` would have all processes compare what they have.
    host = np.asarray(x)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    # As explicit as `jax.device_put`, which JAX's guards let pass.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def on_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """A whole array, wherever its shards lie; with several processes all call this."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def on_local_devices(tree: Any, local: NamedSharding) -> Any:
    """The arrays of a tree, whole on each of this process's devices, which are those of `local`.

    Arrays that lie on devices of several processes must lie on all of them.
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


# Belongs to the key of every compiled program, so that none is reused across contexts.
_mesh_around = jax.make_user_context(default_value=None)


def over(mesh: Mesh) -> AbstractContextManager[None]:
    """Within this context arrays are split over `mesh` as this module splits them.

    Kernels ask: compilers can split neither a kernel nor what a layout was demanded of.
    """
    return _mesh_around(mesh)


def mesh_around() -> Mesh | None:
    """The mesh of `over`; None outside of it."""
    return _mesh_around.value


def place() -> tuple[jax.Device, tuple[int, int] | None]:
    """(a device of those that run the caller, the parts into which they split rows and heads).

    The parts are None where that is unknown: with several devices, outside of `over`.
    """
    mesh = mesh_around()
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    # Within `jax.pmap` and `jax.shard_map` every device runs a program of its own.
    if jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return device, (1, 1)
    if mesh is None:
        return device, (1, 1) if jax.device_count() == 1 else None
    return device, (row_shards(mesh), mesh.shape["tensor"])


def split_rows(x: jax.Array) -> jax.Array:
    """The array, its first axis demanded to be split as rows are over the mesh of `over`.

    Left to itself, the compiler lets an embedding that is split along its width split activations
    so, and then gathers those of all rows on every device instead of a layer's parameters.
    """
    return _demanded(x, P(BATCH_AXES))


def look_up(table_VD: jax.Array, index_RL: jax.Array) -> jax.Array:
    """table_VD[index_RL], [R, L, D]: rows over `data` alone, the width over `fsdp` as the table's.

    `split_rows` is then one exchange among the devices of `fsdp`; in one step the compiler would
    find no way but to gather everything.
    """
    return _demanded(table_VD[index_RL], P("data", None, "fsdp"))


def _demanded(x: jax.Array, spec: P) -> jax.Array:
    """`x` so split over the mesh of `over`, where there is one that can split it."""
    mesh = mesh_around()
    if mesh is None or mesh.size == 1 or jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return x
    where = NamedSharding(mesh, spec)
    try:
        where.shard_shape(x.shape)
    except ValueError:
        return x  # a size that the mesh does not divide
    return jax.lax.with_sharding_constraint(x, where)
