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
    """The mesh that the settings ask for, on that many devices; it may leave some of them out.

    Raises:
      InputError: if it needs more devices, or -1 cannot be filled; with the values that can be.
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
            f"mesh.{axis}: {sizes[axis]} does not divide the {num_devices} devices present, which "
            f"mesh.{free}=-1 is to fill; allowed: {_listed(divisors(num_devices))}, or a number "
            f"for mesh.{free}"
        )
    filled = {a: num_devices // fixed if size == -1 else size for a, size in sizes.items()}
    return (filled["data"], filled["fsdp"], filled["tensor"])


def known_shape(settings: MeshSettings) -> Shape | None:
    """The mesh's shape where the settings alone say it: no axis is filled."""
    shape = (settings.data, settings.fsdp, settings.tensor)
    return None if -1 in shape else shape


def hybrid_shapes(shape: Shape, num_slices: int) -> tuple[Shape, Shape]:
    """(within a slice, across slices): `shape` is their product, axis by axis.

    Slices are joined by a slow network, so `data`, which exchanges one gradient a step, crosses it
    first, then `fsdp`; never `tensor`, which exchanges activations in every layer.

    Raises:
      InputError: if data x fsdp is no multiple of the number of slices.
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
    """Of a number above 0, ascending."""
    return [n for n in range(1, number + 1) if not number % n]


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to `wanted`; of two, the smaller one."""
    return min(divisors(number), key=lambda n: (abs(n - wanted), n))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
