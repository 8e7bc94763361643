"""Compile programs for a slice, and read the compiler's reports."""

import re
import time
from typing import Any

from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import MeshSettings
from w2s_jax.core import errors
from w2s_jax.core.errors import first_line
from w2s_jax.perf.aot import hlo
from w2s_jax.perf.aot.clock import Estimate
from w2s_jax.perf.aot.clocks import GpuClock, TpuClock
from w2s_jax.perf.aot.collectives import collectives
from w2s_jax.perf.aot.costs import CompiledProgram
from w2s_jax.perf.aot.programs import Program
from w2s_jax.perf.aot.topology import Topology
from w2s_jax.profiling import devices

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", re.IGNORECASE)
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)")


def devices_of(topology: Topology) -> list[Any]:
    """Return the slice's devices. Programs can be compiled for them, but not run.

    Raises:
      InputError: the compiler does not support the slice.
    """
    from jax.experimental import topologies

    platform: dict[str, Any] = {"platform": "tpu", "topology_name": topology.name}
    if topology.gpu is not None:
        platform = {"platform": "cuda"}
    try:
        found = topologies.get_topology_desc(**platform, **topology.options)
    except Exception as error:  # the plugin may raise anything
        raise errors.InputError(
            f"--topology: the compiler does not support {topology.name} ({first_line(error)})"
        ) from error
    return list(found.devices)


def mesh_on(devices: list[Any], settings: MeshSettings, topology: Topology) -> Mesh:
    """Return the mesh of a run on the slice.

    Raises:
      InputError: the mesh cannot be mapped to the torus of the slice.
    """
    try:
        return sharding.make_mesh(settings, devices)
    except (NotImplementedError, ValueError) as error:
        if isinstance(error, errors.InputError):
            raise
        raise errors.InputError(
            f"mesh: data={settings.data}, fsdp={settings.fsdp}, tensor={settings.tensor} cannot be "
            f"mapped to {topology.name}; use sizes that are products of its dimensions"
        ) from error


def compile_program(
    program: Program, mesh: Mesh, topology: Topology
) -> tuple[CompiledProgram, float]:
    """Compile a program for the devices of `mesh`, which are those of `topology`.

    Returns:
      The compiler's report, and the time in seconds.

    Raises:
      RuntimeError: the compiler fails for another reason than memory.
    """
    started = time.monotonic()
    try:
        with sharding.over(mesh):
            compiled = program.function.lower(*program.args).compile()
    except RuntimeError as error:  # JaxRuntimeError is one
        text = str(error)
        if "cuDNN" in text:
            raise errors.InputError(
                f"{program.title}: the attention is cuDNN's; to compile it, install its package: "
                "pip install nvidia-cudnn-cu12 (700 MB)"
            ) from error
        if "RESOURCE_EXHAUSTED" not in text:
            raise RuntimeError(
                f"{program.title}: the compiler failed: {first_line(error)}"
            ) from error
        given = sum(program.parts.values())
        needed = needed_bytes(text, given)
        rejected = CompiledProgram(
            given, needed - given, 0, {}, rejection=first_line(error), peak=needed
        )
        return rejected, time.monotonic() - started
    memory = compiled.memory_analysis()
    arguments, code = memory.argument_size_in_bytes, memory.generated_code_size_in_bytes
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + new
    seconds = time.monotonic() - started
    module = hlo.parse(compiled.as_text())
    report = CompiledProgram(
        arguments,
        temporaries,
        code,
        collectives(module, program.chips),
        _estimate(module, program, mesh, topology),
        attention=_attention(module),
        peak=arguments + temporaries + code,
    )
    return report, seconds


def _attention(module: hlo.Module) -> str:
    """Return the kernel of `attention_kernels.KERNELS` that a program uses."""
    kernels = module.kernels()
    if "tpu_custom_call" in kernels:
        return "splash"
    return "cudnn" if any("fmha" in kernel for kernel in kernels) else "xla"


def _estimate(
    module: hlo.Module, program: Program, mesh: Mesh, topology: Topology
) -> Estimate | None:
    """Return the estimated time of a program; None where the rates of the chip are unknown."""
    partitions = list(mesh.devices.flat)
    kind = partitions[0].device_kind
    peak = devices.peak_flops(kind, program.train.compute_dtype)
    if peak is None:
        return None
    if topology.gpu is not None:
        return GpuClock(topology.gpu, peak, program.chips).estimate(module)
    chip = devices.chip(kind)
    if chip is None:
        return None
    if program.chips == 1:
        partitions = partitions[:1]
    places = [tuple(device.coords)[: len(topology.sizes)] for device in partitions]
    return TpuClock(chip, peak, places, topology.sizes).estimate(module)


def needed_bytes(text: str, arguments: int) -> int:
    """Return the bytes that a rejected program needs, from the compiler's message.

    Args:
      text: the message, which states the total or only the temporaries.
      arguments: bytes of the program's arguments.
    """
    if found := _USED.search(text):
        return int(float(found[1]) * _UNITS[found[2]])
    if found := _TEMPORARIES.search(text):
        return arguments + int(float(found[1]) * _UNITS[found[2]])
    return arguments
