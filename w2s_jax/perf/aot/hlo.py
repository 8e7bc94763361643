"""Read the text of a compiled program. No JAX.

The text is the optimised, partitioned and scheduled HLO of `jax.stages.Compiled.as_text()`: shapes
are per chip, and the operations of a computation are listed in the order in which they run.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_WIDTHS = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1,
    "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8,
    "f64": 8,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[^\s(]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>\S+) = ")
_ARRAY = re.compile(r"(?P<type>[a-z]\w*)\[(?P<sizes>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations)=\{?%?(?P<name>[^\s,}]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{(?P<many>[^}]*)\}"
    r"|true_computation=%?(?P<true>[^\s,]+), false_computation=%?(?P<false>[^\s,]+)"
)


@dataclass(frozen=True)
class ArrayShape:
    """An array in the program.

    Attributes:
      dtype: HLO's name, such as 'bf16'.
      sizes: the dimensions.
      in_hbm: whether it is in the chip's main memory, rather than in a memory of a core.
    """

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool = True

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """The size in bytes, without padding."""
        return int(self.elements * _WIDTHS.get(self.dtype, 0))


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation of a computation.

    Attributes:
      name, opcode: such as 'fusion.12' and 'fusion'.
      result: the type of the result, as text.
      operands: names of operations of the same computation.
      literal: text between the parentheses of a constant or parameter.
      attributes: the rest of the line.
      is_root: whether its result is that of the computation.
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def shapes(self) -> tuple[ArrayShape, ...]:
        """The arrays of the result."""
        return tuple(
            ArrayShape(
                found["type"],
                tuple(int(size) for size in found["sizes"].split(",") if size),
                # S(1) and up are memories of a core, S(5) the host's.
                "S(" not in (found["layout"] or ""),
            )
            for found in _ARRAY.finditer(self.result)
        )

    @functools.cached_property
    def cycles(self) -> int | None:
        """The TPU compiler's estimate in cycles of a core; None: it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @functools.cached_property
    def op_name(self) -> str:
        """JAX's name stack: the transformations, named scopes and primitive; '' if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @functools.cached_property
    def target(self) -> str:
        """The target of a custom call, otherwise ''."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def index(self) -> int:
        """The index of a get-tuple-element; -1 for others."""
        found = re.search(r"\bindex=(\d+)", self.attributes)
        return int(found[1]) if found else -1

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        found = _BRANCHES.search(self.attributes)
        if found is None:
            return []
        named = found["many"] or f"{found['true']}, {found['false']}"
        return [name.strip().lstrip("%") for name in named.split(",")]

    def attribute(self, name: str) -> str | None:
        """Return the computation named by an attribute ('body', 'condition'), if it has one."""
        found = re.search(rf"\b{name}=%?([^\s,]+)", self.attributes)
        return found[1] if found else None


@dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: name -> operations, in the order of the schedule.
      entry: the name of the computation that runs first.
    """

    computations: Mapping[str, tuple[Operation, ...]]
    entry: str
    _named: dict[str, dict[str, Operation]] = field(default_factory=dict, repr=False)

    def named(self, computation: str) -> Mapping[str, Operation]:
        """Return the operations of a computation by name."""
        if computation not in self._named:
            self._named[computation] = {op.name: op for op in self.computations[computation]}
        return self._named[computation]

    def kernels(self) -> set[str]:
        """Return the targets of all custom calls of the program."""
        return {op.target for ops in self.computations.values() for op in ops if op.target}

    def called(self, op: Operation) -> str | None:
        """Return the computation of a fusion, call or reduction; None for other operations."""
        found = _CALLED.search(op.attributes)
        return found["name"] if found and found["name"] in self.computations else None

    def root(self, computation: str) -> Operation:
        """Return the operation whose result is that of a computation."""
        return next(op for op in self.computations[computation] if op.is_root)

    def within(self, op: Operation) -> Iterator[Operation]:
        """Yield an operation and those of the fusions and calls in it, but not of loops."""
        yield op
        called = self.called(op)
        if called is not None and op.opcode not in ("while", "conditional"):
            for inner in self.computations[called]:
                yield from self.within(inner)

    def trips(self, loop: Operation) -> int:
        """Return the iterations of a `while` that counts to a constant, otherwise 1.

        Loops around a collective product count by the number of parts that an iteration handles.
        The loop over the steps of a training block has a bound that is an argument: it counts as
        one iteration.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition, body = loop.attribute("condition"), loop.attribute("body")
        assert condition is not None and body is not None
        tests = self.named(condition)
        constants = self._constants(condition)
        for op in tests.values():
            if not any(
                inner.opcode == "compare" and "direction=LT" in inner.attributes
                for inner in self.within(op)
            ):
                continue
            bounds = [constants[name] for name in op.operands if name in constants]
            counters = [
                tests[name].index for name in op.operands if name in tests.keys() - constants
            ]
            if len(bounds) == 1 and len(counters) == 1 and bounds[0] > 0:
                return math.ceil(bounds[0] / self._increment(body, counters[0]))
        return 1

    def _constants(self, computation: str) -> dict[str, int]:
        """Return the values of a computation's integer scalars."""
        return {
            op.name: int(op.literal)
            for op in self.computations[computation]
            if op.opcode == "constant" and re.match(r"[su]32\[\]", op.result)
        }

    def _increment(self, body: str, counter: int) -> int:
        """Return by how much a loop's body changes the number at an index of its state."""
        named, constants = self.named(body), self._constants(body)
        root = self.root(body)
        new = named.get(root.operands[counter]) if counter < len(root.operands) else None
        steps = [constants[name] for name in new.operands if name in constants] if new else []
        return max(*steps, 1) if steps else 1


def parse(text: str) -> Module:
    """Read a program.

    Args:
      text: HLO of the compiled program.
    """
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
        elif line == "}":
            current = None
        elif current is not None and _OPERATION.match(line):
            current.append(line)
        elif current:
            # Attributes of kernels contain line breaks.
            current[-1] += line
    return Module(
        {name: tuple(map(_operation, lines)) for name, lines in computations.items()}, entry
    )


def _operation(line: str) -> Operation:
    head = _OPERATION.match(line)
    assert head is not None
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    result, rest = line[start:end], end + 1
    opening = line.index("(", rest)
    closing = _closing(line, opening)
    inside = line[opening + 1 : closing]
    return Operation(
        head["name"],
        line[rest:opening],
        result,
        tuple(name for name in re.findall(r"%([^\s,()]+)", inside)),
        inside,
        line[closing + 1 :],
        head["root"] is not None,
    )


def _closing(line: str, opening: int) -> int:
    """Return the position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(line)):
        if line[position] == "(":
            depth += 1
        elif line[position] == ")":
            depth -= 1
            if depth == 0:
                return position
    return len(line) - 1
