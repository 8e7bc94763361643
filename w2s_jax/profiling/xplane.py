"""Read the operations that ran on each device from a trace of `jax.profiler`.

A trace is one .xplane.pb per process: planes (a device, the host) of lines (a stream, a thread) of
events.

- GPU: plane `/device:GPU:0`, one line per stream; an event is a kernel, with its HLO operation in
  `hlo_op`.
- TPU: plane `/device:TPU:0`, line `XLA Ops`; an event is an HLO operation, named by its text.
- CPU: plane `/host:CPU`, one line per thread of a pool that all simulated devices share; events of
  operations have `hlo_op`, and their device in `device_ordinal`.

The programs are in the plane `/host:metadata`, from which operations get their opcodes and paths of
named scopes on all devices.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Operations that only run others, which have their own events.
CONTROL_FLOW = ("while", "conditional", "call")

_DEVICE = re.compile(r"/device:(GPU|TPU):\d+$")
#: The start of an HLO instruction's text, or its bare name.
_NAME = re.compile(r"%?([\w.\-]+)")


@dataclass(frozen=True)
class Op:
    """One run of one operation on one device.

    Attributes:
      program: name of its HLO module, with the number of the program in parentheses: a function
        has one program for each shape that it is called with.
      name: its name in the module, or that of a kernel or copy outside any operation.
      opcode: "fusion", "dot", "all-reduce", ...; "" if unknown.
      path: JAX's name stack, such as "jit(step)/jvp(block)/mlp/dot_general"; "" if unknown.
      start_ns, stop_ns: times on a clock that all devices of a process share.
    """

    program: str
    name: str
    opcode: str
    path: str
    start_ns: float
    stop_ns: float


#: (program id, operation) -> (opcode, path); also by program name, for events without an id.
Instructions = dict[tuple[int | str | None, str], tuple[str, str]]


def read(path: Path) -> dict[str, list[Op]]:
    """Return the operations of each device in a .xplane.pb file, without control flow.

    Args:
      path: the file.

    Returns:
      device -> operations sorted by start; devices without operations are left out.
    """
    import jax

    data = path.read_bytes()
    profile = jax.profiler.ProfileData.from_serialized_xspace(data)
    return device_ops(profile.planes, instructions(data))


def device_ops(planes: Iterable[Any], known: Instructions) -> dict[str, list[Op]]:
    """Return the operations of each device in the planes of a `jax.profiler.ProfileData`."""
    found: dict[str, list[Op]] = {}
    for plane in planes:
        on_device = _DEVICE.match(plane.name)
        if not on_device and plane.name != "/host:CPU":
            continue
        lines = list(plane.lines)
        if on_device:
            # Other lines summarise these.
            lines = [line for line in lines if line.name == "XLA Ops"] or [
                line for line in lines if line.name.startswith("Stream")
            ]
        for line in lines:
            for event in line.events:
                stats = dict(event.stats)
                if on_device:
                    device = plane.name.removeprefix("/device:")
                elif "hlo_op" in stats:
                    device = f"CPU:{stats.get('device_ordinal', 0)}"
                else:
                    continue
                op = _op(event, stats, known)
                if op.opcode not in CONTROL_FLOW:
                    found.setdefault(device, []).append(op)
    for ops in found.values():
        ops.sort(key=lambda op: op.start_ns)
    # Device 10 sorts after device 2.
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def _op(event: Any, stats: dict[str, Any], known: Instructions) -> Op:
    name = str(stats.get("hlo_op") or event.name)
    match = _NAME.match(name)
    name = match[1] if match else name
    program, number = str(stats.get("hlo_module", "")), stats.get("program_id")
    opcode, path = known.get((number, name)) or known.get(
        (program, name), ("", str(stats.get("tf_op", "")))
    )
    if number is not None:
        program = f"{program}({number})"
    # A name begins with the opcode unless a pass renamed it.
    opcode = opcode or next((c for c in CONTROL_FLOW if re.fullmatch(rf"{c}(\.\d+)?", name)), "")
    return Op(program, name, opcode, path, event.start_ns, event.end_ns)


# --- the programs in a trace ---------------------------------------------------------------------
# `ProfileData` gives access to events only, so the messages of programs are parsed here. Field
# numbers are those of xplane.proto and hlo.proto.


def instructions(xspace: bytes) -> Instructions:
    """Return opcode and path of all instructions of all programs in a serialised XSpace."""
    found: Instructions = {}
    for plane in _all(memoryview(xspace), 1):
        if _text(plane, 2) != "/host:metadata":
            continue
        for entry in _all(plane, 4):
            metadata = _first(entry, 2)
            number = next(_all(metadata, 1), None)
            for stat in _all(metadata, 5):
                for proto in _all(stat, 6):
                    module = _first(proto, 1)
                    program = _text(module, 1)
                    for name, what in _module_instructions(module):
                        found[program, name] = what
                        if isinstance(number, int):
                            found[number, name] = what
    return found


def _module_instructions(module: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    for computation in _all(module, 3):
        for instruction in _all(computation, 2):
            path = _text(_first(instruction, 7), 2)
            yield _text(instruction, 1), (_text(instruction, 2), path)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _all(message: memoryview, wanted: int) -> Iterator[Any]:
    """Yield the values of a field of a serialised message: int, or memoryview of bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire_type = tag >> 3, tag & 7
        value: int | memoryview
        if wire_type == 0:
            value, at = _varint(message, at)
        else:
            if wire_type == 2:
                size, at = _varint(message, at)
            else:
                size = {1: 8, 5: 4}[wire_type]
            value = message[at : at + size]
            at += size
        if field == wanted:
            yield value


def _first(message: memoryview, field: int) -> memoryview:
    return next(_all(message, field), memoryview(b""))


def _text(message: memoryview, field: int) -> str:
    return bytes(_first(message, field)).decode(errors="replace")
