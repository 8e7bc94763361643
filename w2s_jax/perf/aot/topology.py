"""TPU slices and GPU hosts by name, and the environment to compile for one. No JAX."""

import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from w2s_jax.core import errors
from w2s_jax.models import budget
from w2s_jax.perf.aot import gpus

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
    """A TPU slice, or hosts with GPUs, which count as chips too.

    Attributes:
      name: JAX's name, such as 'v5e:4x4'; or h100:8, h100:2x8 for two hosts.
      generation: such as 'v5e' or 'h100'.
      chips: number of chips; each is one JAX device.
      product_name: such as 'v5e-16'.
      memory: bytes of memory per chip that programs may use.
      options: further arguments of `topologies.get_topology_desc`.
      gpu: the GPU; None for TPUs.
    """

    name: str
    generation: str
    chips: int
    product_name: str
    memory: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gpu: gpus.Gpu | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers in the name: chips along each axis of the torus, or (hosts,) GPUs."""
        return tuple(map(int, self.name.partition(":")[2].split("x")))


def names() -> list[str]:
    """Return the names of all slices."""
    return [f"{generation}:{shape}" for generation in SLICES for shape in SLICES[generation]]


def find(name: str) -> Topology:
    """Return a slice by its name ('v5e:4x4') or product name ('v5e-16'), or GPUs ('h100:8').

    Raises:
      InputError: the name is unknown; names the nearest one.
    """
    if name in gpus.names():
        return _gpus(name)
    every = {known: _topology(known) for known in names()}
    if name in every:
        return every[name]
    products = {topology.product_name: topology for topology in every.values()}
    if name in products:
        return products[name]
    generation = re.split("[:-]", name)[0]
    if generation in gpus.GPUS:
        of_gpu = [known for known in gpus.names() if known.startswith(f"{generation}:")]
        raise errors.unknown("--topology", name, of_gpu)
    if any(kind.lower().startswith(generation.lower()) for kind in budget.DEVICES if generation):
        raise errors.InputError(
            f"--topology: there is no description of the GPU {generation!r} for the compiler; "
            f"allowed: {', '.join(gpus.GPUS)}"
        )
    if generation not in SLICES:
        hint = errors.did_you_mean(name, [*every, *products, *gpus.names()])
        raise errors.InputError(
            f"--topology: unknown value {name!r}{hint}; allowed: slices of {', '.join(SLICES)}, "
            f"such as v5e:4x4 or v5e-16; {', '.join(gpus.GPUS)}, such as h100:8 or h100:2x8"
        )
    same = {short: known for short, known in products.items() if known.generation == generation}
    raise errors.unknown("--topology", name, [known.name for known in same.values()] + list(same))


def host_of(topology: Topology) -> Topology:
    """Return the slice of the same generation that consists of one host."""
    if topology.gpu is not None:
        return _gpus(f"{topology.generation}:{topology.sizes[-1]}")
    return next(
        _topology(f"{topology.generation}:{shape}")
        for shape in SLICES[topology.generation]
        if math.prod(map(int, shape.split("x"))) == min(topology.chips, CHIPS_OF_HOST)
    )


def _topology(name: str) -> Topology:
    generation, _, shape = name.partition(":")
    chips = math.prod(map(int, shape.split("x")))
    units = 2 * chips if generation in _BY_CORES else chips
    options: dict[str, Any] = {}
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if generation == "v4":
        # Makes the two cores of a chip one device.
        options["chip_config_name"] = "megacore"
    memory = int(budget.DEVICES[f"TPU {generation}"].memory * budget.GIB)
    return Topology(name, generation, chips, f"{generation}-{units}", memory, options)


def _gpus(name: str) -> Topology:
    gpu, hosts, count = gpus.parse(name)
    options: dict[str, Any] = {
        "topology": f"1x{hosts}x{count}",
        "target_config": gpus.description(gpu),
    }
    generation = name.partition(":")[0]
    return Topology(name, generation, hosts * count, gpu.kind, gpu.size, options, gpu)


def check_compiler(topology: Topology) -> None:
    """Check that the compiler for a topology is installed.

    Raises:
      InputError: it is not.
    """
    if topology.gpu is not None:
        if gpus.compiler_folder() is None:
            raise errors.InputError(
                f"--topology={topology.name} needs the CUDA compiler; install it with "
                f"{gpus.INSTALL}"
            )
    elif importlib.util.find_spec("libtpu") is None:
        raise errors.InputError(f"--topology needs the TPU compiler; install it with {INSTALL}")


def run_script(main: Callable[[], int], topology: Topology) -> NoReturn:
    """Run a module's `main` in the environment of a topology, and exit with its status.

    JAX reads the environment when it is first imported, which must not have happened yet.
    """
    try:
        check_compiler(topology)
        os.environ |= environment(topology)
        sys.exit(main())
    except errors.W2SError as error:
        print(f"w2s: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def environment(topology: Topology) -> dict[str, str]:
    """Return the environment variables with which any machine can compile for a topology."""
    if topology.gpu is not None:
        return gpus.environment()
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
