"""The device mesh, and which logical axis of an array lies along which mesh axis."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from w2s_jax import errors
from w2s_jax.config import MeshSettings

#: Mesh axes. `data` and `fsdp` split batch rows; `fsdp` and `tensor` split parameters.
MESH_AXES = ("data", "fsdp", "tensor")

#: Logical axis of a parameter -> mesh axis.
RULES = (
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("vocab", "tensor"),
    ("positions", None),
    ("layers", None),
    ("classes", None),
    ("lora", None),
)

#: Mesh axes along which the rows of a batch are split.
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    settings: MeshSettings | None = None, devices: list[jax.Device] | None = None
) -> Mesh:
    """The mesh of a run over `devices` (all of them by default).

    Raises:
      InputError: if the axes do not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(settings or MeshSettings(), len(devices))
    return mesh_of(shape, devices[: math.prod(shape)])


def mesh_shape(settings: MeshSettings, count: int) -> tuple[int, int, int]:
    """The (data, fsdp, tensor) shape over `count` devices; one axis of -1 takes what is left.

    Raises:
      InputError: if the axes do not fit the number of devices.
    """
    sizes = {axis: getattr(settings, axis) for axis in MESH_AXES}
    fills = [axis for axis, size in sizes.items() if size == -1]
    if len(fills) > 1:
        raise errors.InputError(f"mesh.{fills[1]}: -1 beside mesh.{fills[0]}=-1; allowed: one -1")
    given = math.prod(size for size in sizes.values() if size != -1)
    if given > count:
        axis = max((a for a in MESH_AXES if a not in fills), key=lambda a: sizes[a])
        raise errors.InputError(
            f"mesh.{axis}: {sizes[axis]}; allowed: -1 (fill) or at most the {count} devices "
            "present, of all axes together"
        )
    for axis in fills:
        sizes[axis] = count // given
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def mesh_of(shape: tuple[int, int, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of the given (data, fsdp, tensor) shape."""
    count = int(np.prod(shape))
    devices = list(jax.devices())[:count] if devices is None else devices
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh, *, leading: int) -> NamedSharding:
    """Rows split over `BATCH_AXES`, behind `leading` axes that are whole."""
    return NamedSharding(mesh, P(*(None,) * leading, BATCH_AXES))


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


def fitted(shape: tuple[int, ...], where: NamedSharding) -> NamedSharding:
    """`where` without the mesh axes that do not divide an array's axis (50257 tokens over 2)."""
    sizes = where.mesh.shape
    spec = tuple(where.spec) + (None,) * (len(shape) - len(where.spec))
    fits = [
        axis if axis is not None and not length % _parts(sizes, axis) else None
        for length, axis in zip(shape, spec, strict=True)
    ]
    return NamedSharding(where.mesh, P(*fits))


def _parts(sizes: Mapping[str, int], axis: str | tuple[str, ...]) -> int:
    return math.prod(sizes[name] for name in ((axis,) if isinstance(axis, str) else axis))
