"""TPU slices by name, and what JAX must be told before it can compile for one. Imports no JAX."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from w2s_jax.core import errors
from w2s_jax.models import budget

#: Slices that are offered, by generation: chips along each axis of the torus.
SLICES: Mapping[str, tuple[str, ...]] = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}

#: Chips of a host of a larger slice.
CHIPS_OF_HOST = 4

#: Generations whose slices are sold by TensorCores, of which a chip has two: v5p-128 has 64 chips.
_BY_CORES = ("v4", "v5p")

#: How to get the compiler.
INSTALL = "pip install 'w2s_jax[tpu]' (or, without the rest of it, pip install 'libtpu==0.0.42.*')"


@dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
      name: as JAX takes it, 'v5e:4x4'.
      generation: 'v5e'.
      chips: how many; JAX sees each as one device.
      sold_as: 'v5e-16'.
      memory: bytes of HBM of a chip that programs may use.
      options: what `topologies.get_topology_desc` takes besides.
    """

    name: str
    generation: str
    chips: int
    sold_as: str
    memory: int
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)


def names() -> list[str]:
    """All slices, as `find` takes them."""
    return [f"{generation}:{shape}" for generation in SLICES for shape in SLICES[generation]]


def find(name: str) -> Topology:
    """The slice 'v5e:4x4', or 'v5e-16' as it is sold.

    Raises:
      InputError: there is none of that name; says the nearest one.
    """
    every = {known: _topology(known) for known in names()}
    if name in every:
        return every[name]
    sold = {topology.sold_as: topology for topology in every.values()}
    if name in sold:
        return sold[name]
    # 'v5e:4x5' is spelt like 'v5e:4x4': the nearest of its generation.
    same = [known for known in (*every, *sold) if re.split("[:-]", known)[0] == name.split(":")[0]]
    match = errors.nearest(name, same or [*every, *sold])
    hint = f" (did you mean {match!r}?)" if match else ""
    raise errors.InputError(
        f"--topology: unknown value {name!r}{hint}; allowed: {', '.join(every)}, or as they are "
        f"sold: {', '.join(sold)}"
    )


def host_of(topology: Topology) -> Topology:
    """The slice of the same generation that is one host of it."""
    return next(
        _topology(f"{topology.generation}:{shape}")
        for shape in SLICES[topology.generation]
        if math.prod(map(int, shape.split("x"))) == min(topology.chips, CHIPS_OF_HOST)
    )


def _topology(name: str) -> Topology:
    generation, _, shape = name.partition(":")
    chips = math.prod(map(int, shape.split("x")))
    units = 2 * chips if generation in _BY_CORES else chips
    options: dict[str, object] = {}
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if generation == "v4":
        # Both cores of a chip are one device.
        options["chip_config_name"] = "megacore"
    memory = int(budget.DEVICES[f"TPU {generation}"].memory * budget.GIB)
    return Topology(name, generation, chips, f"{generation}-{units}", memory, options)


def check_compiler() -> None:
    """Sees that the TPU compiler is installed.

    Raises:
      InputError: it is not; says how to install it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise errors.InputError(f"--topology: the TPU compiler is not installed; {INSTALL}")


def environment() -> dict[str, str]:
    """The variables under which a process on any machine can compile for TPUs."""
    return {
        # The process itself computes on its CPU; for the compiler, no TPU is looked for.
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # Its log is for its authors.
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
