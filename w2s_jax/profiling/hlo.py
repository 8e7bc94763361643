"""What the compiler was given and what it made of it, as files."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from w2s_jax.core.files import write_json

#: The numbers of `memory_analysis` that are kept, in bytes for one device.
MEMORY = (
    "argument_size_in_bytes",
    "output_size_in_bytes",
    "alias_size_in_bytes",
    "temp_size_in_bytes",
    "generated_code_size_in_bytes",
    "peak_memory_in_bytes",
)


def dump(function: Callable, args: tuple[Any, ...], folder: Path, name: str) -> None:
    """Writes the program that `function` would run for `args`; runs and consumes nothing.

    Args:
      function: what `jax.jit` returned, perhaps within `functools.partial`s.
      args: its arguments; arrays, or their `jax.ShapeDtypeStruct`s.
      folder: where to; is made.
      name: of the files: <name>.stablehlo.mlir as JAX lowered it, <name>.hlo.txt as it was
        optimised, and <name>.json with the compiler's estimates of memory and cost, as far as the
        backend has any.
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
        # The numbers of single operands have braces in their names.
        "cost": {k: v for k, v in sorted(cost.items()) if "{" not in k and math.isfinite(v)},
    }
    write_json(folder / f"{name}.json", record)


def dumping(step: Callable, folder: Path) -> Callable:
    """`step`, which writes its program to `folder` before the first call with each shape.

    The files are named step_0, step_1 and so on, in the order of the shapes' first calls.
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
