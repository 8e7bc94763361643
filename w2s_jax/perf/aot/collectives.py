"""Collectives in the text of a compiled program: how many, and how many bytes. Imports no JAX."""

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
    """Of one kind, all that a chip runs in one step.

    Attributes:
      count: how often.
      result_bytes: of the arrays that they give to a chip.
      moved_bytes: what a chip sends, by the best algorithm on a ring of n chips: of an array of b
        bytes that is gathered or scattered b (n - 1) / n, of a reduction twice that.
    """

    count: int = 0
    result_bytes: float = 0.0
    moved_bytes: float = 0.0

    def plus(self, other: "Collectives", times: int = 1) -> "Collectives":
        """Both, the other one `times` over."""
        return Collectives(
            self.count + times * other.count,
            self.result_bytes + times * other.result_bytes,
            self.moved_bytes + times * other.moved_bytes,
        )


_Totals = dict[str, Collectives]
#: The lines of each computation by its name.
_Program = Mapping[str, list[str]]


def collectives(text: str, chips: int) -> Mapping[str, Collectives]:
    """The collectives of one run of a program, by kind, those of loops as often as the loops go.

    A loop whose condition compares a counter with a constant goes that often; any other, as the
    one over the steps of a training block, counts once. Of a conditional's branches the one that
    moves most counts. One that is started and awaited apart counts once.

    Args:
      text: of the compiled program (HLO), partitioned: shapes are those on one chip.
      chips: on how many it runs.
    """
    computations, entry = _computations(text)
    return _total(entry, computations, chips, {})


def _computations(text: str) -> tuple[_Program, str]:
    """The program, and the name of its entry."""
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


def _total(name: str, computations: _Program, chips: int, done: dict[str, _Totals]) -> _Totals:
    """What a computation that runs by itself (no fusion) and all below it have."""
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
            # Start, work beside it and end of an asynchronous one each repeat it, in fusions of
            # their own; those that a program asks for by itself all have one channel.
            channel = re.search(r"channel_id=(\d+)", line)
            if channel is not None and seen.setdefault(channel[1], where) != where:
                continue
            kind, part = _one(line, one, chips, scattered=_is_scatter(line))
            totals[kind] = totals[kind].plus(part)
    done[name] = dict(totals)
    return done[name]


def _fused_lines(
    name: str, computations: _Program, scatter: bool = False
) -> Iterator[tuple[str, str]]:
    """The lines of a computation, and of the fusions and calls in it, each with where it is."""
    for line in computations[name]:
        yield name, f"{line}, {_SCATTER}" if scatter else line
        if " while(" in line or " conditional(" in line:
            continue
        for call in _CALLS.finditer(line):
            if call["name"] in computations:
                yield from _fused_lines(
                    call["name"], computations, "all-reduce-scatter" in call["name"]
                )


#: Marks a reduction of whose result a fusion keeps one chip's part only.
_SCATTER = "of_all_reduce_scatter"


def _is_scatter(line: str) -> bool:
    return line.endswith(_SCATTER)


def _one(
    line: str, found: re.Match[str], chips: int, *, scattered: bool
) -> tuple[str, Collectives]:
    """Kind and size of the collective in a line."""
    kind, arrays = found["kind"], [_bytes(array) for array in _ARRAY.finditer(found["result"])]
    # The result of a start is a tuple of operand and result, and of small things.
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
    """How many chips take part together."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if table := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(table[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"('[^']+')=(\d+)", mesh[1])}
        # A part of an axis is written 'axis':(before)size.
        parts = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    return chips


def _trips(condition: list[str]) -> int:
    """How often a loop goes: up to a constant, or once as far as anybody knows."""
    constants = {
        found["name"]: int(found["value"])
        for line in condition
        if (found := _CONSTANT.search(line))
    }
    roots = [found["bound"] for line in condition if (found := _BELOW.search(line))]
    return constants.get(roots[0], 1) if roots else 1


def _moved(totals: _Totals) -> float:
    return sum(part.moved_bytes for part in totals.values())
