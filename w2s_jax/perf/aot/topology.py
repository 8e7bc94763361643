"""TPU slices by name, and the environment in which JAX can compile for one. No JAX."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from w2s_jax.core import errors
from w2s_jax.models import budget

#: Available slices by generation: chips along each axis of the torus.
SLICES: Mapping[str, tuple[str, ...]] = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}

#: Chips per host in larger slices.
CHIPS_OF_HOST = 4

#: Generations whose product names count TensorCores, two per chip: v5p-128 has 64 chips.
_BY_CORES = ("v4", "v5p")

#: How to install the compiler.
INSTALL = "pip install 'w2s_jax[tpu]' (or only the compiler: pip install 'libtpu==0.0.42.*')"


@dataclass(frozen=True)
class Topology:
    """A TPU slice.

    Attributes:
      name: JAX's name, such as 'v5e:4x4'.
      generation: such as 'v5e'.
      chips: number of chips; each is one JAX device.
      product_name: such as 'v5e-16'.
      memory: bytes of HBM per chip that programs may use.
      options: further arguments of `topologies.get_topology_desc`.
    """

    name: str
    generation: str
    chips: int
    product_name: str
    memory: int
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)


def names() -> list[str]:
    """Return the names of all slices."""
    return [f"{generation}:{shape}" for generation in SLICES for shape in SLICES[generation]]


def find(name: str) -> Topology:
    """Return a slice by its name ('v5e:4x4') or product name ('v5e-16').

    Raises:
      InputError: the name is unknown; names the nearest one.
    """
    every = {known: _topology(known) for known in names()}
    if name in every:
        return every[name]
    products = {topology.product_name: topology for topology in every.values()}
    if name in products:
        return products[name]
    generation = re.split("[:-]", name)[0]
    if generation not in SLICES:
        hint = errors.did_you_mean(name, [*every, *products])
        raise errors.InputError(
            f"--topology: unknown value {name!r}{hint}; allowed: slices of {', '.join(SLICES)}, "
            "such as v5e:4x4 or v5e-16"
        )
    same = {short: known for short, known in products.items() if known.generation == generation}
    raise errors.unknown("--topology", name, [known.name for known in same.values()] + list(same))


def host_of(topology: Topology) -> Topology:
    """Return the slice of the same generation that consists of one host."""
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
        # Makes the two cores of a chip one device.
        options["chip_config_name"] = "megacore"
    memory = int(budget.DEVICES[f"TPU {generation}"].memory * budget.GIB)
    return Topology(name, generation, chips, f"{generation}-{units}", memory, options)


def check_compiler() -> None:
    """Check that the TPU compiler is installed.

    Raises:
      InputError: it is not.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise errors.InputError(f"--topology needs the TPU compiler; install it with {INSTALL}")


def environment() -> dict[str, str]:
    """Return the environment variables with which any machine can compile for TPUs."""
    return {
        # Compute on the CPU, and let the compiler not look for a TPU.
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # The compiler's log is of no use to users.
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
