"""FLOPs of operations of a compiled program, and the bytes that they move. No JAX."""

import math
import re
from collections.abc import Iterator, Mapping

from w2s_jax.perf.aot.hlo import ArrayShape, Module, Operation

_DIMENSIONS = re.compile(r"dim_labels=(?P<lhs>\w+)_(?P<rhs>\w+)->(?P<out>\w+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{(?P<dims>[\d,]*)\}")

# Operations that read only a part of their first operand.
_SLICES = ("dynamic-slice", "slice", "gather")
# Operations that change nothing but the view of their operand.
_VIEWS = ("bitcast", "get-tuple-element")
# Operations of a fusion that only carry a collective on beside the fusion's own work.
_CARRIED = (
    "tuple", "parameter", "custom-call", "all-gather", "all-reduce", "reduce-scatter",
    "all-to-all", "collective-permute",
)  # fmt: skip


def product_flops(module: Module, op: Operation, computation: str) -> float:
    """Return the FLOPs of the matrix products of an operation, 2 per multiply-add.

    Args:
      module, op: the program, and its operation.
      computation: the computation to which the operation belongs.
    """
    return sum(
        _product_flops(inner, module.named(where))
        for where, inner in _products(module, op, computation)
    )


def _products(module: Module, op: Operation, computation: str) -> Iterator[tuple[str, Operation]]:
    if op.opcode in ("convolution", "dot"):
        yield computation, op
    elif op.opcode in ("fusion", "call") and (called := module.called(op)) is not None:
        for inner in module.computations[called]:
            yield from _products(module, inner, called)


def hbm_bytes(module: Module, op: Operation, computation: str) -> float:
    """Return the bytes that an operation moves between main memory and the chip.

    Of operands that a fusion only slices, and of results that it only updates in place, the slices
    count.

    Args:
      module, op: the program, and its operation.
      computation: the computation to which the operation belongs.
    """
    named = module.named(computation)
    called = module.called(op) if op.opcode == "fusion" else None
    if called is None:
        read = [shape for name in op.operands for shape in _shapes(named, name)]
        if op.opcode in _SLICES:
            read = list(op.shapes)
        written = list(op.shapes)
        if op.opcode == "dynamic-update-slice":
            read = written = list(_shapes(named, op.operands[1]))
        return float(sum(shape.bytes for shape in (*read, *written) if shape.in_hbm))
    total = 0.0
    for number, name in enumerate(op.operands):
        shapes = _shapes(named, name)
        if len(shapes) == 1 and shapes[0].in_hbm:
            parts = _reads(module, called, number)
            total += shapes[0].bytes if None in parts else sum(part for part in parts if part)
    root, inner = module.root(called), module.named(called)
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for shape, result in zip(op.shapes, results, strict=False):
        if shape.in_hbm:
            total += _written(module, called, result, shape)
    return total


def _reads(module: Module, called: str, number: int) -> list[int | None]:
    """Return the bytes that each user of a fusion's operand reads; None: all of it."""
    named = module.named(called)
    parameters = [
        op for op in named.values() if op.opcode == "parameter" and int(op.literal) == number
    ]
    found: list[int | None] = []
    for user, name in _users(named, parameters[0].name) if parameters else []:
        inner, first = module.called(user), user.operands[0] == name
        if user.opcode == "fusion" and inner is not None:
            for place, operand in enumerate(user.operands):
                found += _reads(module, inner, place) if operand == name else []
        elif user.opcode in _SLICES and first:
            found.append(user.shapes[0].bytes)
        elif user.opcode not in _CARRIED and not (user.opcode == "dynamic-update-slice" and first):
            found.append(None)
    return found


def _written(module: Module, called: str, result: Operation, shape: ArrayShape) -> int:
    """Return the bytes of a fusion's result that it writes."""
    named = module.named(called)
    while result.opcode in _VIEWS and result.operands[0] in named:
        result = named[result.operands[0]]
    inner = module.called(result) if result.opcode == "fusion" else None
    if inner is not None and module.root(inner).opcode != "tuple":
        return _written(module, inner, module.root(inner), shape)
    if result.opcode == "dynamic-update-slice":
        return sum(update.bytes for update in _shapes(named, result.operands[1]))
    return 0 if result.opcode in _CARRIED else shape.bytes


def _shapes(named: Mapping[str, Operation], name: str) -> tuple[ArrayShape, ...]:
    return named[name].shapes if name in named else ()


def _users(named: Mapping[str, Operation], name: str) -> list[tuple[Operation, str]]:
    """Return the operations that use a value, each with the name of the value or of its view."""
    found: list[tuple[Operation, str]] = []
    for op in named.values():
        if name in op.operands:
            found += _users(named, op.name) if op.opcode in _VIEWS else [(op, name)]
    return found


def _product_flops(op: Operation, named: Mapping[str, Operation]) -> float:
    out = op.shapes[0].elements
    lhs = _shapes(named, op.operands[0])
    if not lhs:
        return 0.0
    sizes = lhs[0].sizes
    if op.opcode == "dot":
        found = _CONTRACTED.search(op.attributes)
        dims = [int(d) for d in found["dims"].split(",") if d] if found else []
        return 2.0 * out * math.prod(sizes[d] for d in dims)
    labels = _DIMENSIONS.search(op.attributes)
    if labels is None:
        return 0.0
    contracted = sizes[labels["lhs"].index("f")]
    return 2.0 * out * contracted * _window(op, sizes, labels)


def _window(op: Operation, lhs: tuple[int, ...], labels: re.Match[str]) -> float:
    """Return the mean number of terms per output that the window of a convolution adds.

    The compiler writes dimensions of products as windows with padding and dilation, where most
    positions fall outside of the operand.
    """
    window = re.search(r"window=\{([^}]*)\}", op.attributes)
    if window is None:
        return 1.0
    parts = dict(part.split("=") for part in window[1].split())
    sizes = [int(n) for n in parts["size"].split("x")]
    rank = len(sizes)

    def each(name: str, default: int) -> list[int]:
        return [int(n) for n in parts[name].split("x")] if name in parts else [default] * rank

    stride, lhs_dilate, rhs_dilate = each("stride", 1), each("lhs_dilate", 1), each("rhs_dilate", 1)
    pads = [
        tuple(map(int, p.split("_"))) for p in parts.get("pad", "x".join(["0_0"] * rank)).split("x")
    ]
    terms = 1.0
    for i in range(rank):
        given = lhs[labels["lhs"].index(str(i))]
        wide = (given - 1) * lhs_dilate[i] + 1
        padded = pads[i][0] + wide + pads[i][1]
        reach = (sizes[i] - 1) * rhs_dilate[i] + 1
        outputs = (padded - reach) // stride[i] + 1
        valid = sum(
            0 <= (at := o * stride[i] + k * rhs_dilate[i] - pads[i][0]) < wide
            and at % lhs_dilate[i] == 0
            for o in range(outputs)
            for k in range(sizes[i])
        )
        terms *= valid / max(outputs, 1)
    return terms
