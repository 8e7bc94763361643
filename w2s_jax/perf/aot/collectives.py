"""Count the collectives in the text of a compiled program, and their bytes. No JAX."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_WIDTHS = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2,
    "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[^\s(]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"(?P<type>[a-z]\w*)\[(?P<sizes>[\d,]*)\]")
_WHILE = re.compile(r" while\(.*condition=%(?P<condition>[^\s,]+), body=%(?P<body>[^\s,]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{(?P<many>[^}]*)\}"
    r"|true_computation=(?P<true>[^\s,]+), false_computation=(?P<false>[^\s,]+)"
)
_CALLS = re.compile(r"(?:calls|to_apply)=%(?P<name>[^\s,]+)")
_CONSTANT = re.compile(r"%(?P<name>\S+) = s32\[\]\S* constant\((?P<value>\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\(%\S+, %(?P<bound>[^\s)]+)\), direction=LT")


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
#: Name -> the computation's lines.
_Computations = Mapping[str, list[str]]


def collectives(text: str, chips: int) -> Mapping[str, Collectives]:
    """Return the collectives of one run of a program, by kind.

    Those in a loop count once per iteration if the condition compares a counter with a constant.
    Other loops, such as the one over the steps of a training block, count as one iteration. Of a
    conditional, the branch that moves most counts. An asynchronous collective counts once.

    Args:
      text: HLO of the compiled, partitioned program (shapes are per chip).
      chips: number of chips that run it.
    """
    computations, entry = _computations(text)
    return _total(entry, computations, chips, {})


def _computations(text: str) -> tuple[_Computations, str]:
    """Return the lines of each computation, and the name of the entry computation."""
    found: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = found.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found, entry


def _total(name: str, computations: _Computations, chips: int, done: dict[str, _Totals]) -> _Totals:
    """Return the collectives of a computation (not a fusion) and all those it calls."""
    if name in done:
        return done[name]
    totals: defaultdict[str, Collectives] = defaultdict(Collectives)
    seen: dict[str, str] = {}
    for where, line in _fused_lines(name, computations):
        if loop := _WHILE.search(line):
            below = _total(loop["body"], computations, chips, done)
            times = _trips(computations[loop["condition"]])
            for kind, part in below.items():
                totals[kind] = totals[kind].plus(part, times)
        elif branches := _BRANCHES.search(line):
            named = branches["many"] or f"{branches['true']}, {branches['false']}"
            each = [
                _total(branch.strip().lstrip("%"), computations, chips, done)
                for branch in named.split(",")
            ]
            for kind, part in max(each, key=_moved).items():
                totals[kind] = totals[kind].plus(part)
        elif one := _COLLECTIVE.search(line):
            # An asynchronous collective appears in several fusions: its start, its end, and the
            # work in between. Explicit collectives of a program all share one channel.
            channel = re.search(r"channel_id=(\d+)", line)
            if channel is not None and seen.setdefault(channel[1], where) != where:
                continue
            kind, part = _parse(line, one, chips, scattered=_is_scatter(line))
            totals[kind] = totals[kind].plus(part)
    done[name] = dict(totals)
    return done[name]


def _fused_lines(
    name: str, computations: _Computations, scatter: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield (name of the computation, line), including the fusions and calls within it."""
    for line in computations[name]:
        yield name, f"{line}, {_SCATTER}" if scatter else line
        if " while(" in line or " conditional(" in line:
            continue
        for call in _CALLS.finditer(line):
            if call["name"] in computations:
                yield from _fused_lines(
                    call["name"], computations, "all-reduce-scatter" in call["name"]
                )


#: Marks an all-reduce in a fusion that keeps only one chip's part of the result.
_SCATTER = "of_all_reduce_scatter"


def _is_scatter(line: str) -> bool:
    return line.endswith(_SCATTER)


def _parse(
    line: str, found: re.Match[str], chips: int, *, scattered: bool
) -> tuple[str, Collectives]:
    """Return the kind and the size of the collective in a line."""
    kind, arrays = found["kind"], [_bytes(array) for array in _ARRAY.finditer(found["result"])]
    # A start returns a tuple of operand, result and small values.
    size = max(arrays) if found["start"] and len(arrays) > 1 else sum(arrays)
    group = _group_size(line, chips)
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


def _bytes(array: re.Match[str]) -> int:
    sizes = [int(size) for size in array["sizes"].split(",") if size]
    return math.prod(sizes) * _WIDTHS.get(array["type"], 0)


def _group_size(line: str, chips: int) -> int:
    """Return the number of chips in each replica group."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if table := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(table[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"('[^']+')=(\d+)", mesh[1])}
        # Part of an axis is written 'axis':(offset)size.
        parts = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    return chips


def _trips(condition: list[str]) -> int:
    """Return the iterations of a loop if its bound is a constant, otherwise 1."""
    constants = {
        found["name"]: int(found["value"])
        for line in condition
        if (found := _CONSTANT.search(line))
    }
    roots = [found["bound"] for line in condition if (found := _BELOW.search(line))]
    return constants.get(roots[0], 1) if roots else 1


def _moved(totals: _Totals) -> float:
    return sum(part.moved_bytes for part in totals.values())
