"""The clocks of TPUs and GPUs. No JAX."""

import re
from collections.abc import Sequence

from w2s_jax.perf.aot import gpus
from w2s_jax.perf.aot.clock import Clock
from w2s_jax.perf.aot.collectives import group_of, measure
from w2s_jax.perf.aot.hlo import Operation
from w2s_jax.profiling.devices import Chip

#: Seconds of a hop between neighbouring chips (How to Scale Your Model, chapter on TPUs).
HOP = 1e-6


class TpuClock(Clock):
    """The clock of a TPU slice: the compiler's cycles, and collectives over the torus's links.

    Args:
      chip: rates of a chip.
      peak: FLOP/s of a chip in matrix products.
      coordinates: of each chip on the torus, in the order of the program's partitions.
      torus: chips along each axis.
    """

    def __init__(
        self,
        chip: Chip,
        peak: float,
        coordinates: Sequence[tuple[int, ...]],
        torus: Sequence[int],
    ):
        super().__init__(peak, chip.memory)
        self.chip = chip
        self.coordinates, self.torus = tuple(coordinates), tuple(torus)

    def stated(self, op: Operation, *, product: bool) -> float | None:
        return None if op.cycles is None else op.cycles / self.chip.hertz

    def collective(self, op: Operation, *, scattered: bool) -> tuple[float, str]:
        chips = len(self.coordinates)
        _, found = measure(op, chips, scattered=scattered)
        if op.opcode.startswith("collective-permute"):
            pairs = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", op.attributes)]
            hops = max((self._distance(*pair) for pair in pairs), default=1)
            source, target = pairs[0] if pairs else (0, 1)
            resource = "forwards" if (target - source) % chips <= chips // 2 else "backwards"
            return found.moved_bytes / self.chip.link + HOP * hops, resource
        links, hops = 0, 0
        members = [self.coordinates[member] for member in group_of(op, chips)]
        for axis, size in enumerate(self.torus):
            length = len({place[axis] for place in members})
            if length > 1:
                ring = length == size and self.chip.wraps(size)
                links += 2 if ring else 1
                hops += length // 2 if ring else length - 1
        return found.moved_bytes / (max(links, 1) * self.chip.link) + HOP * hops, "all links"

    def _distance(self, one: int, other: int) -> int:
        """Return the number of links between two chips."""
        total = 0
        places = zip(self.coordinates[one], self.coordinates[other], self.torus, strict=True)
        for a, b, size in places:
            away = abs(a - b)
            total += min(away, size - away) if self.chip.wraps(size) else away
        return total


class GpuClock(Clock):
    """The clock of GPUs: the times of XLA's models of an operation.

    Collectives without one take the bytes that a GPU sends, over the links in its host.

    Args:
      gpu: the GPU.
      peak: its FLOP/s in matrix products.
      count: number of GPUs that run the program.
    """

    states_collectives = True

    def __init__(self, gpu: gpus.Gpu, peak: float, count: int):
        super().__init__(peak, gpu.memory)
        self.gpu, self.count = gpu, count

    def stated(self, op: Operation, *, product: bool) -> float | None:
        found = gpus.microseconds(op.attributes, product=product)
        return None if found is None else 1e-6 * found

    def collective(self, op: Operation, *, scattered: bool) -> tuple[float, str]:
        stated = self.stated(op, product=False)
        if stated is None:
            _, found = measure(op, self.count, scattered=scattered)
            stated = found.moved_bytes / self.gpu.links
        return stated, "links"
