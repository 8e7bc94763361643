"""The shape of the device mesh, from the config and the number of devices. Imports no JAX.

A shape is (data, fsdp, tensor). `data` and `fsdp` split the rows of a batch, `fsdp` and `tensor`
the parameters.
"""

import math

from w2s_jax.config.schema import MeshSettings
from w2s_jax.core import errors

#: Mesh axes; fields of `MeshSettings` have their names.
MESH_AXES = ("data", "fsdp", "tensor")

Shape = tuple[int, int, int]


def mesh_shape(settings: MeshSettings, num_devices: int) -> Shape:
    """Return the mesh's shape on a number of devices, of which it may leave some out.

    Raises:
      InputError: if it needs more devices, or -1 cannot be filled; with the allowed values.
    """
    sizes = {axis: getattr(settings, axis) for axis in MESH_AXES}
    room = num_devices
    for axis, size in sizes.items():
        if size == -1:
            continue
        if size > room:
            others = " x ".join(f"{a}={n}" for a, n in sizes.items() if a != axis and n > 0)
            raise errors.InputError(
                f"mesh.{axis}: {size} (with {others or 'the others free'}); allowed: at most "
                f"{room} of the {num_devices} devices present"
            )
        room //= size
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if -1 not in sizes.values():
        return (sizes["data"], sizes["fsdp"], sizes["tensor"])
    if num_devices % fixed:
        axis = next(axis for axis, size in sizes.items() if size > 1 and num_devices % size)
        free = next(axis for axis, size in sizes.items() if size == -1)
        raise errors.InputError(
            f"mesh.{axis}: {sizes[axis]} does not divide the {num_devices} devices present, so "
            f"mesh.{free}=-1 cannot fill them; allowed: {_listed(divisors(num_devices))}, or a "
            f"number for mesh.{free}"
        )
    filled = {a: num_devices // fixed if size == -1 else size for a, size in sizes.items()}
    return (filled["data"], filled["fsdp"], filled["tensor"])


def known_shape(settings: MeshSettings) -> Shape | None:
    """Return the mesh's shape if no axis is -1, else None."""
    shape = (settings.data, settings.fsdp, settings.tensor)
    return None if -1 in shape else shape


def hybrid_shapes(shape: Shape, num_slices: int) -> tuple[Shape, Shape]:
    """Return the shapes (within a slice, across slices); `shape` is their product by axis.

    The network between slices is slow, so `data`, which exchanges one gradient per step, crosses it
    first, then `fsdp`; never `tensor`, which exchanges activations in every layer.

    Raises:
      InputError: if data x fsdp is not a multiple of the number of slices.
    """
    data, fsdp, tensor = shape
    across_data = math.gcd(data, num_slices)
    across_fsdp = num_slices // across_data
    if fsdp % across_fsdp:
        raise errors.InputError(
            f"mesh.data: {data} with mesh.fsdp={fsdp}; allowed on {num_slices} slices: data x fsdp "
            f"a multiple of {num_slices}, as mesh.tensor stays within a slice"
        )
    within = (data // across_data, fsdp // across_fsdp, tensor)
    return within, (across_data, across_fsdp, 1)


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    return [n for n in range(1, number + 1) if not number % n]


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of `number` nearest to `wanted`; of two, the smaller one."""
    return min(divisors(number), key=lambda n: (abs(n - wanted), n))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
