"""The time of a compiled program by the compiler's estimates. No JAX.

The compilers write the time that they expect into most operations. This module follows the schedule
of the program, adds these up, and lets copies and collectives that run beside them end when they
must. Operations without an estimate, such as kernels, take the time of a roofline. The result is an
estimate, not a measurement.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from w2s_jax.perf.aot.collectives import channel_of, within
from w2s_jax.perf.aot.hlo import ArrayShape, Module, Operation
from w2s_jax.perf.aot.hlo_sizes import hbm_bytes, product_flops
from w2s_jax.perf.aot.parts import COLLECTIVES, COPIES, origin, part_of, pass_of

# Operations that take no time: views, bookkeeping, and reserved memory.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "reshape", "partition-id",
    "replica-id", "after-all", "opt-barrier",
}  # fmt: skip
_FREE_CALLS = {
    "AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound",
    "GatherScatterIndicesBitpacked",
}  # fmt: skip
# Copies between memories that run beside other operations.
_COPY_STARTS = ("copy-start", "slice-start", "dynamic-slice-start")
_COPY_ENDS = ("copy-done", "slice-done", "dynamic-slice-done")
_COPY_ENGINE = "copy engine"


@dataclass(frozen=True)
class Timed:
    """An operation of a program, with its time in all its runs.

    Attributes:
      op: the operation.
      times: how often it runs.
      part, passed: see `parts.PARTS` and `parts.PASSES`.
      origin: JAX's name stack.
      seconds: estimated time; of a collective or copy, only what nothing else hides.
      ideal: the larger of its FLOPs at peak and its bytes at the speed of the main memory.
      alone: the time if nothing ran beside it.
      guessed: whether the time is the roofline's, because the compiler gives none.
      is_product: whether it contains a matrix product or an attention kernel.
    """

    op: Operation
    times: int
    part: str
    passed: str
    origin: str
    seconds: float
    ideal: float
    alone: float
    guessed: bool = False
    is_product: bool = False


@dataclass(frozen=True)
class Estimate:
    """The estimated time of one run of a program, in seconds.

    Attributes:
      operations: all operations that take time.
    """

    operations: tuple[Timed, ...]

    @property
    def seconds(self) -> float:
        """The time of the program as scheduled."""
        return sum(timed.seconds for timed in self.operations)

    @property
    def all_hidden(self) -> float:
        """The time if all collectives ran beside other work."""
        return sum(t.seconds for t in self.operations if t.part != COLLECTIVES)

    @property
    def no_overlap(self) -> float:
        """The time if no collective ran beside other work."""
        return self.all_hidden + sum(t.alone for t in self.operations if t.part == COLLECTIVES)

    @property
    def fallback_share(self) -> float:
        """The share of the time that is the roofline's, because the compiler gives none."""
        guessed = sum(timed.seconds for timed in self.operations if timed.guessed)
        return guessed / self.seconds if self.seconds else 0.0

    @property
    def outside_share(self) -> float:
        """The share of operations that are no products, attention or collectives."""
        outside = sum(
            timed.seconds
            for timed in self.operations
            if not timed.is_product and timed.part not in ("attention kernel", COLLECTIVES)
        )
        return outside / self.seconds if self.seconds else 0.0

    def by_part(self, passed: str | None = None) -> dict[str, tuple[float, float]]:
        """Return (seconds, ideal seconds) of each part that occurs, in one pass or in all."""
        found: dict[str, tuple[float, float]] = {}
        for timed in self.operations:
            if passed in (None, timed.passed):
                seconds, ideal = found.get(timed.part, (0.0, 0.0))
                found[timed.part] = (seconds + timed.seconds, ideal + timed.ideal)
        return found

    def longest(self, count: int) -> list[Timed]:
        """Return the operations that take most time, the longest first."""
        return sorted(self.operations, key=lambda timed: -timed.seconds)[:count]


class _Timeline:
    """The schedule of one run of a computation, in seconds.

    Attributes:
      now: end of the operations so far.
      busy: total time of asynchronous work, by resource.
      last: the last asynchronous operation of each resource.
      ends: ends of asynchronous operations that nothing has waited for yet.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.busy: dict[str, float] = {}
        self.last: dict[str, Operation] = {}
        self.ends: dict[str, float] = {}
        self._free: dict[str, float] = {}

    def start(self, op: Operation, key: str, resource: str, seconds: float) -> None:
        """Start an asynchronous operation as soon as its resource is free."""
        begin = max(self.now, self._free.get(resource, 0.0))
        self._free[resource] = self.ends[key] = begin + seconds
        self.busy[resource] = self.busy.get(resource, 0.0) + seconds
        self.last[resource] = op

    def wait(self, key: str) -> float:
        """Wait for an asynchronous operation; return the time spent."""
        waited = max(0.0, self.ends.pop(key, self.now) - self.now)
        self.now += waited
        return waited

    def block(self, op: Operation, seconds: float) -> float:
        """Run a collective by itself, once the links are free; return the time spent."""
        links = [end for resource, end in self._free.items() if resource != _COPY_ENGINE]
        waited = max(self.now, *links) - self.now if links else 0.0
        self.now += waited + seconds
        self.busy["all links"] = self.busy.get("all links", 0.0) + seconds
        self.last["all links"] = op
        return waited + seconds


class Clock(ABC):
    """Estimates the time of programs on a kind of chip; `clocks` has one for each kind.

    Args:
      peak: FLOP/s of a chip in matrix products.
      memory: bytes per second of its main memory.
    """

    #: Whether the compiler states the time of collectives.
    states_collectives = False

    def __init__(self, peak: float, memory: float):
        self.peak, self.memory = peak, memory

    @abstractmethod
    def stated(self, op: Operation, *, product: bool) -> float | None:
        """Return the compiler's estimate of an operation in seconds; None: it makes none."""

    @abstractmethod
    def collective(self, op: Operation, *, scattered: bool) -> tuple[float, str]:
        """Return the seconds of a collective alone, and the name of the links that it uses.

        Args:
          op: the collective.
          scattered: see `collectives.within`.
        """

    def estimate(self, module: Module) -> Estimate:
        """Return the estimated time of one run; a loop over steps counts as one step."""
        return Estimate(tuple(self._run(module, module.entry, 1)[0]))

    def _run(self, module: Module, name: str, times: int) -> tuple[list[Timed], float]:
        """Return the operations of a computation that runs `times` times, and the time of a run."""
        found: list[Timed] = []
        line = _Timeline()
        for op in module.computations[name]:
            inner: list[Timed] = []
            seconds, trips = 0.0, 1
            if op.opcode == "while":
                body = op.attribute("body")
                assert body is not None
                trips = module.trips(op)
                inner, seconds = self._run(module, body, times * trips)
            elif op.opcode == "conditional":
                each = [self._run(module, branch, times) for branch in op.branches]
                inner, seconds = max(each, key=lambda one: one[1])
            elif op.opcode == "call" and (called := module.called(op)) is not None:
                inner, seconds = self._run(module, called, times)
            else:
                inner = self._operation(module, name, op, times, line)
            found += inner
            line.now += trips * seconds
        # Links and the copy engine cannot be busy for longer than a run takes. What an iteration
        # leaves for the next one is otherwise hidden.
        over = max(0.0, *(busy - line.now for busy in line.busy.values())) if line.busy else 0.0
        if over:
            slowest = max(line.busy, key=lambda resource: line.busy[resource])
            found.append(self._excess(line.last[slowest], slowest, times, over))
        return found, line.now + over

    def _excess(self, op: Operation, resource: str, times: int, seconds: float) -> Timed:
        part = COPIES if resource == _COPY_ENGINE else COLLECTIVES
        name = op.op_name
        guessed = part != COLLECTIVES or not self.states_collectives
        return Timed(op, times, part, pass_of(name), name, times * seconds, 0.0, 0.0, guessed)

    def _operation(
        self, module: Module, where: str, op: Operation, times: int, line: _Timeline
    ) -> list[Timed]:
        """Advance the timeline by an operation, and return its time, if any."""
        if op.opcode in _COPY_STARTS:
            size = op.shapes[0] if op.opcode == "copy-start" else _smallest(op.shapes)
            line.start(op, op.name, _COPY_ENGINE, size.bytes / self.memory)
            return []
        waited = alone = ideal = 0.0
        if op.opcode in _COPY_ENDS:
            part, waited = COPIES, line.wait(op.operands[0])
            ideal = waited
        elif op.opcode.endswith("-done"):
            part, waited = COLLECTIVES, line.wait(op.operands[0])
        elif inner := list(within(module, op)):
            part = COLLECTIVES
            works, waited, alone = self._collectives(module, op, inner, line)
            if works:
                return self._compute(module, where, op, times, line)
        elif op.opcode in _FREE or op.target in _FREE_CALLS:
            return []
        else:
            return self._compute(module, where, op, times, line)
        if not waited and not alone:
            return []
        name = origin(op, module)
        return [
            Timed(
                op,
                times,
                part,
                pass_of(name),
                name,
                seconds=times * waited,
                ideal=times * ideal,
                alone=times * alone,
                guessed=part != COLLECTIVES or not self.states_collectives,
            )
        ]

    def _compute(
        self, module: Module, where: str, op: Operation, times: int, line: _Timeline
    ) -> list[Timed]:
        flops = product_flops(module, op, where) or kernel_flops(op, module.named(where))
        ideal = max(flops / self.peak, hbm_bytes(module, op, where) / self.memory)
        stated = self.stated(op, product=flops > 0)
        seconds = ideal if stated is None else stated
        line.now += seconds
        if not seconds:
            return []
        name = origin(op, module)
        return [
            Timed(
                op,
                times,
                part_of(op, module),
                pass_of(name),
                name,
                seconds=times * seconds,
                ideal=times * ideal,
                alone=times * seconds,
                guessed=stated is None,
                is_product=flops > 0,
            )
        ]

    def _collectives(
        self,
        module: Module,
        op: Operation,
        inner: Sequence[tuple[Operation, bool]],
        line: _Timeline,
    ) -> tuple[bool, float, float]:
        """Advance the timeline by the collectives of an operation.

        Returns:
          Whether the operation does other work besides, the time spent waiting, and the time that
          the collectives which begin here would take alone.
        """
        targets = {part.target for part in module.within(op)}
        starts = op.opcode.endswith("-start") or "AsyncCollectiveStart" in targets
        starts = starts and '"is_sync":true' not in op.attributes
        busy = op.opcode == "fusion" and self.stated(op, product=False) is not None
        works, waited, alone = False, 0.0, 0.0
        for collective, scattered in inner:
            key = op.name if op.opcode.endswith("-start") else f"channel {channel_of(collective)}"
            if "AsyncCollectiveDone" in targets:
                waited += line.wait(key)
            elif key in line.ends or (busy and not starts):
                works = True  # a fusion that goes on with what another has started
            else:
                seconds, resource = self.collective(collective, scattered=scattered)
                alone += seconds
                if starts:
                    line.start(op, key, resource, seconds)
                else:
                    waited += line.block(op, seconds)
        return works or (starts and busy), waited, alone


def _smallest(shapes: Sequence[ArrayShape]) -> ArrayShape:
    """Return the array that a slice-start copies: the smaller one of its operand and result."""
    return min((shape for shape in shapes if len(shape.sizes) > 1), key=lambda shape: shape.bytes)


def kernel_flops(op: Operation, named: Mapping[str, Operation]) -> float:
    """Return the FLOPs of an attention kernel; 0 for other operations.

    Counts half of the scores, as in one causal document a row: two products of the forward pass,
    three of the gradient of q, four of those of k and v. The heads of a kernel fill the 128 lanes
    of a matrix unit or waste them, so each head counts as a multiple of 128.
    """
    if op.opcode != "custom-call" or op.target != "tpu_custom_call":
        return 0.0
    inputs = [s for name in op.operands if name in named for s in named[name].shapes]
    heads = [s.sizes for s in inputs if len(s.sizes) == 4 and s.dtype in ("bf16", "f32")]
    if len(heads) < 3:
        return 0.0
    (rows, count, length, size), keys = heads[0], heads[1]
    products = 2
    if "dkv" in op.name or "dkv" in op.op_name:
        products = 4
    elif "dq" in op.name or "dq" in op.op_name:
        products = 3
    lanes = math.ceil(size / 128) * 128
    return products * 2.0 * rows * count * length * keys[-2] * lanes / 2
