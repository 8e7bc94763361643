"""Compiles programs for a slice, and reads what the compiler says of them."""

import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import MeshSettings
from w2s_jax.core import errors
from w2s_jax.core.errors import first_line
from w2s_jax.perf.aot.collectives import collectives
from w2s_jax.perf.aot.costs import Compiled
from w2s_jax.perf.aot.programs import Program
from w2s_jax.perf.aot.topology import Topology

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", re.IGNORECASE)
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)")


def devices_of(topology: Topology) -> list[Any]:
    """The slice's devices, on which nothing can run.

    Raises:
      InputError: this compiler does not know the slice.
    """
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **topology.options
        )
    except Exception as error:  # whatever the compiler's plugin raises
        raise errors.InputError(
            f"--topology: {topology.name}: the compiler has no such slice ({first_line(error)})"
        ) from error
    return list(found.devices)


def mesh_on(devices: list[Any], settings: MeshSettings, topology: Topology) -> Mesh:
    """The mesh of a run on the slice.

    Raises:
      InputError: its axes are no products of those of the torus.
    """
    try:
        return sharding.make_mesh(settings, devices)
    except (NotImplementedError, ValueError) as error:
        if isinstance(error, errors.InputError):
            raise
        raise errors.InputError(
            f"mesh: data={settings.data}, fsdp={settings.fsdp}, tensor={settings.tensor} cannot be "
            f"laid on the torus {topology.name}; allowed: axes that are products of its own"
        ) from error


def compile_program(program: Program, mesh: Mesh) -> tuple[Compiled, float]:
    """What the compiler says of a program, and how many seconds it took.

    Raises:
      RuntimeError: it fails for another reason than memory.
    """
    started = time.monotonic()
    try:
        with sharding.over(mesh):
            compiled = program.function.lower(*program.args).compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise RuntimeError(
                f"{program.title}: the compiler failed: {first_line(error)}"
            ) from error
        given = sum(program.parts.values())
        needed = needed_bytes(text, given)
        refused = Compiled(given, needed - given, 0, {}, refused=first_line(error), peak=needed)
        return refused, time.monotonic() - started
    memory = compiled.memory_analysis()
    arguments, code = memory.argument_size_in_bytes, memory.generated_code_size_in_bytes
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + new
    found = collectives(compiled.as_text(), program.chips)
    peak = arguments + temporaries + code
    return Compiled(arguments, temporaries, code, found, peak=peak), time.monotonic() - started


def needed_bytes(text: str, arguments: int) -> int:
    """Bytes that a refused program needs, from the compiler's message.

    Args:
      text: the message: it says what is used in all, or just by temporaries.
      arguments: bytes of what the program is given.
    """
    if found := _USED.search(text):
        return int(float(found[1]) * _UNITS[found[2]])
    if found := _TEMPORARIES.search(text):
        return arguments + int(float(found[1]) * _UNITS[found[2]])
    return arguments
