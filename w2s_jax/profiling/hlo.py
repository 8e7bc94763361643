"""Dumps of programs: StableHLO, optimised HLO, and the compiler's estimates."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from w2s_jax.core.files import write_json

#: Fields of `memory_analysis` in the dump, in bytes of one device.
MEMORY = (
    "argument_size_in_bytes",
    "output_size_in_bytes",
    "alias_size_in_bytes",
    "temp_size_in_bytes",
    "generated_code_size_in_bytes",
    "peak_memory_in_bytes",
)


def dump(function: Callable, args: tuple[Any, ...], folder: Path, name: str) -> None:
    """Compile `function` for `args` and write the program; runs nothing and donates nothing.

    The files are <name>.stablehlo.mlir (as lowered by JAX), <name>.hlo.txt (optimised) and
    <name>.json (the compiler's estimates of memory and cost, if the backend has any).

    Args:
      function: a function returned by `jax.jit`, possibly in `functools.partial`s.
      args: its arguments: arrays or `jax.ShapeDtypeStruct`s.
      folder: output folder; created if it does not exist.
      name: stem of the files.
    """
    while isinstance(function, functools.partial):
        args, function = (*function.args, *args), function.func
    lowered = function.lower(*args)  # type: ignore[attr-defined]
    compiled = lowered.compile()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.stablehlo.mlir").write_text(lowered.as_text())
    (folder / f"{name}.hlo.txt").write_text(compiled.as_text())
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    record = {
        "memory": {k: getattr(memory, k) for k in MEMORY if hasattr(memory, k)},
        # Names with braces are costs of single operands.
        "cost": {k: v for k, v in sorted(cost.items()) if "{" not in k and math.isfinite(v)},
    }
    write_json(folder / f"{name}.json", record)


def dumping(step: Callable, folder: Path) -> Callable:
    """Wrap `step` so that it dumps its program to `folder` before the first call of each shape.

    The files are named step_0, step_1, ... in the order of first calls.
    """
    seen: set[Any] = set()

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        shapes = tree, tuple((jax.numpy.shape(x), jax.numpy.result_type(x)) for x in leaves)
        if shapes not in seen:
            dump(step, args, folder, f"step_{len(seen)}")
            seen.add(shapes)
        return step(*args)

    return call
