"""The programs of a run on the meshes of a slice, compiled."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from w2s_jax.core import errors
from w2s_jax.perf.aot import compiler, costs, programs, report, search, topology
from w2s_jax.perf.aot.programs import Program
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import Resolved
from w2s_jax.profiling import devices


@dataclass(frozen=True)
class MeshPrograms:
    """The programs of a run on a mesh.

    Attributes:
      resolved: the run.
      mesh: the mesh, over the devices of a slice.
      programs: the distinct programs of the run.
      left_out: titles of phases that are not compiled.
    """

    resolved: Resolved
    mesh: Any
    programs: list[Program]
    left_out: list[str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The sizes of (data, fsdp, tensor)."""
        data, fsdp, tensor = self.mesh.shape.values()
        return data, fsdp, tensor


class SliceCompiler:
    """Compiles the programs of a run for one slice, each once.

    Args:
      slice_: the slice.
      only: one of `search.ONLY`; None for all programs.
    """

    def __init__(self, slice_: topology.Topology, only: str | None = None):
        self.slice, self.only = slice_, only
        self.devices = compiler.devices_of(slice_)
        self.host = compiler.devices_of(topology.host_of(slice_))
        self.kind = self.devices[0].device_kind
        self.rates = slice_.gpu or devices.chip(self.kind)
        self.done: dict[Any, tuple[Any, float]] = {}

    def programs(self, resolved: Resolved) -> MeshPrograms:
        """Return the programs of a run on its mesh.

        Raises:
          InputError: the run has no program, or none of the kind in `only`.
        """
        mesh = compiler.mesh_on(self.devices, resolved.settings.mesh, self.slice)
        found, left_out = programs.programs_of(
            plan(resolved), resolved, mesh, self.slice.memory, self.host
        )
        if not found:
            raise errors.InputError(
                "the run has no program to compile: all of its models are features or external "
                "labels"
            )
        if self.only is not None:
            found = [program for program in found if program.trains == (self.only == "steps")]
            if not found:
                raise errors.InputError(f"--only: {self.only!r}, but the run has no such program")
        return MeshPrograms(resolved, mesh, found, left_out)

    def compiled(self, program: Program, run: MeshPrograms) -> tuple[Any, float]:
        """Return the compiler's report on a program, and the time it took in seconds."""
        key = (program.key, run.shape)
        if key not in self.done:
            self.done[key] = compiler.compile_program(program, run.mesh, self.slice)
        return self.done[key]

    def needed(self, program: Program, run: MeshPrograms) -> int:
        """Return the bytes per chip while a program runs, according to the compiler."""

        def sizes(other: Program) -> tuple[int, int]:
            report = self.compiled(other, run)[0]
            return report.peak, report.arguments

        if self.compiled(program, run)[0].rejection:
            return sizes(program)[0] + sum(program.beside.values())
        return _with_evaluation(program, run, sizes)

    def formula(self, program: Program, run: MeshPrograms) -> int:
        """Return the bytes per chip while a program runs, according to the formula."""

        def sizes(other: Program) -> tuple[int, int]:
            peak = self.estimate(other, run) - sum(other.beside.values())
            return peak, sum(other.parts.values())

        return _with_evaluation(program, run, sizes)

    def estimate(self, program: Program, run: MeshPrograms) -> int:
        """Return the bytes per chip by formula, without evaluations in between."""
        return sum(costs.estimate(program, run.shape).values())

    def fits(self, program: Program, run: MeshPrograms) -> bool:
        """Return whether a program fits into the memory of a chip."""
        return not self.compiled(program, run)[0].rejection and (
            self.needed(program, run) <= self.slice.memory
        )

    def show(self, program: Program, run: MeshPrograms) -> None:
        """Print the report on a program."""
        compiled, seconds = self.compiled(program, run)
        for line in report.lines(
            program,
            compiled,
            seconds,
            needed=self.needed(program, run),
            device_kind=self.kind,
            rates=self.rates,
            shape=run.shape,
        ):
            print(line, flush=True)

    def record(self, program: Program, run: MeshPrograms) -> dict[str, Any]:
        """Return a program's entry of the file of `--json`."""
        compiled, _ = self.compiled(program, run)
        needed = self.needed(program, run)
        return report.record(
            program, compiled, needed=needed, device_kind=self.kind, shape=run.shape
        )

    def seconds(self, program: Program, run: MeshPrograms) -> float | None:
        """Return the compiler's estimate of the time of a program; None: there is none."""
        estimate = self.compiled(program, run)[0].estimate
        return None if estimate is None else estimate.seconds

    def roofline(self, program: Program, options: search.MemoryOptions) -> float:
        """Return the seconds of a program with other options, by formula."""
        chips = self.slice.chips
        peak = devices.peak_flops(self.kind, program.train.compute_dtype)
        if self.rates is None or peak is None:
            raise errors.InputError(f"--search=time: the rates of {self.kind} are unknown")
        return costs.roofline(
            program,
            (chips // (options.fsdp * options.tensor), options.fsdp, options.tensor),
            peak,
            self.rates,
            remat=options.remat == "block",
            microbatches=program.train.batch_size // options.microbatch_size,
        )

    def alternatives(
        self, program: Program, run: MeshPrograms, options: Iterable[search.MemoryOptions]
    ) -> Iterator[tuple[list[str], MeshPrograms]]:
        """Yield the overrides for each of a program's options, and the run's programs with them.

        Options whose mesh the torus does not have are left out.
        """
        current = search.current_options(program.train, run.shape)
        fill = [] if run.resolved.settings.mesh.data == -1 else ["--config.mesh.data=-1"]
        for one in options:
            settings = run.resolved.settings
            overrides: dict[str, None] = {}
            for section in program.sections:
                settings = search.apply_options(settings, section, one)
                overrides |= dict.fromkeys(one.overrides(section, current))
            try:
                other = self.programs(dataclasses.replace(run.resolved, settings=settings))
            except errors.InputError:
                continue
            yield [*overrides, *fill], other

    def smaller(self, program: Program, run: MeshPrograms) -> Iterator[search.MemoryOptions]:
        """Yield options with which a program needs less memory (see `search.candidates`)."""
        current = search.current_options(program.train, run.shape)
        return search.candidates(current, self.slice.chips, program.model.num_kv_heads)


def _with_evaluation(
    program: Program, run: MeshPrograms, sizes: Callable[[Program], tuple[int, int]]
) -> int:
    """Return the bytes per chip of a program, its other arrays, and evaluations in between.

    Args:
      program: the program.
      run: the run it belongs to.
      sizes: program -> (peak, arguments) in bytes per chip.
    """
    (peak, arguments), beside = sizes(program), sum(program.beside.values())
    for evaluation in run.programs:
        if evaluation.key not in program.evaluates:
            continue
        extra = sizes(evaluation)[0]
        # A label pass on single chips has its own copy of the parameters, and so has one beside
        # which the phase's parameters are.
        if evaluation.chips > 1 and not evaluation.beside:
            extra -= evaluation.parts["parameters"]
        peak = max(peak, arguments + extra)
    return peak + beside
