"""Count the collectives of a compiled program, and their bytes. No JAX."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from w2s_jax.perf.aot.hlo import Module, Operation

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collectives:
    """All collectives of one kind that a chip runs in one step.

    Attributes:
      count: number of collectives.
      result_bytes: size of their results on a chip.
      moved_bytes: bytes a chip sends, with the best algorithm on a ring of n chips: b (n - 1) / n
        for a gather or scatter of b bytes, twice that for a reduction.
    """

    count: int = 0
    result_bytes: float = 0.0
    moved_bytes: float = 0.0

    def plus(self, other: "Collectives", times: int = 1) -> "Collectives":
        """Return the sum of this and `times` times the other."""
        return Collectives(
            self.count + times * other.count,
            self.result_bytes + times * other.result_bytes,
            self.moved_bytes + times * other.moved_bytes,
        )


_Totals = dict[str, Collectives]


def collectives(module: Module, chips: int) -> Mapping[str, Collectives]:
    """Return the collectives of one run of a program, by kind.

    Those in a loop count once per iteration (see `Module.trips`). Of a conditional, the branch that
    moves most counts. An asynchronous collective counts once.

    Args:
      module: the compiled, partitioned program (shapes are per chip).
      chips: number of chips that run it.
    """
    return _total(module, module.entry, chips, {})


def _total(module: Module, name: str, chips: int, done: dict[str, _Totals]) -> _Totals:
    """Return the collectives of a computation (not a fusion) and all those it calls."""
    if name in done:
        return done[name]
    totals: defaultdict[str, Collectives] = defaultdict(Collectives)

    def add(more: _Totals, times: int = 1) -> None:
        for kind, part in more.items():
            totals[kind] = totals[kind].plus(part, times)

    started: dict[str, str] = {}
    for op in module.computations[name]:
        if op.opcode == "while":
            body = op.attribute("body")
            assert body is not None
            add(_total(module, body, chips, done), module.trips(op))
        elif op.opcode == "conditional":
            each = [_total(module, branch, chips, done) for branch in op.branches]
            add(max(each, key=_moved))
        else:
            for inner, scattered in within(module, op):
                # An asynchronous collective appears in several fusions: its start, its end, and
                # the work in between.
                channel = channel_of(inner) if inner is not op else None
                if channel is not None and started.setdefault(channel, op.name) != op.name:
                    continue
                kind, part = measure(inner, chips, scattered=scattered)
                add({kind: part})
    done[name] = dict(totals)
    return done[name]


def within(module: Module, op: Operation) -> Iterator[tuple[Operation, bool]]:
    """Yield the collectives of an operation and of the fusions in it, but not of loops.

    Each comes with whether it is an all-reduce of which only this chip's part is kept.
    """
    if op.opcode in ("while", "conditional"):
        return
    if op.opcode.removesuffix("-start") in KINDS:
        yield op, False
        return
    called = module.called(op)
    if called is None:
        return
    for inner in module.computations[called]:
        for found, scattered in within(module, inner):
            yield found, scattered or "all-reduce-scatter" in called


def channel_of(op: Operation) -> str | None:
    """Return the channel of a collective: parts of an asynchronous one share it."""
    found = re.search(r"channel_id=(\d+)", op.attributes)
    return found[1] if found else None


def measure(op: Operation, chips: int, *, scattered: bool = False) -> tuple[str, Collectives]:
    """Return the kind of a collective, and its size as one of `Collectives`.

    Args:
      op: the collective.
      chips: number of chips that run the program.
      scattered: see `within`.
    """
    kind, arrays = op.opcode.removesuffix("-start"), [shape.bytes for shape in op.shapes]
    # A start returns a tuple of operand, result and small values.
    starts = op.opcode.endswith("-start") and len(arrays) > 1
    size = max(arrays) if starts else sum(arrays)
    group = len(group_of(op, chips))
    share = (group - 1) / group
    if kind == "all-reduce" and scattered:
        return "reduce-scatter", Collectives(1, size / group, size * share)
    moved = {
        "all-gather": size * share,
        "all-reduce": 2 * size * share,
        "reduce-scatter": size * (group - 1),
        "all-to-all": size * share,
        "collective-permute": float(size),
    }[kind]
    return kind, Collectives(1, float(size), moved)


def group_of(op: Operation, chips: int) -> list[int]:
    """Return the partitions in the first replica group of a collective."""
    text = op.attributes
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return [int(member) for member in listed[1].split(",")]
    if table := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        # The first row of iota(sizes) transposed and reshaped.
        sizes = [int(size) for size in table[3].split(",")]
        order = [int(axis) for axis in table[4].split(",")] if table[4] else range(len(sizes))
        return _first(int(table[2]), sizes, list(order))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        axes = re.findall(r"('[^']+')=(\d+)", mesh[1])
        sizes = [int(size) for _, size in axes]
        strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        steps = {name: stride for (name, _), stride in zip(axes, strides, strict=True)}
        lengths = {name: int(size) for name, size in axes}
        ranges = []
        # Part of an axis is written 'axis':(offset)size, the sizes of the parts before it
        # multiplied to the offset.
        for name, offset, part in re.findall(r"('[^']+')(?::\((\d+)\)(\d+))?", mesh[2]):
            length = int(part) if part else lengths[name]
            before = int(offset) if part else 1
            step = steps[name] * lengths[name] // (before * length)
            ranges.append([step * k for k in range(length)])
        return [sum(places) for places in itertools.product(*ranges)]
    return list(range(chips))


def _first(count: int, sizes: list[int], order: list[int]) -> list[int]:
    """Return the first `count` elements of a transposed iota."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    places = itertools.product(*(range(sizes[axis]) for axis in order))
    return [
        sum(place * strides[axis] for place, axis in zip(one, order, strict=True))
        for one in itertools.islice(places, count)
    ]


def _moved(totals: _Totals) -> float:
    return sum(part.moved_bytes for part in totals.values())
