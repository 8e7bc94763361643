"""The process behind `w2s compile`: `python -m w2s_jax.perf.aot.main JSON`.

The JSON object has the keys "config", "overrides", "topology", "search", "documents" and "tokens".
A process of its own is needed because JAX reads the environment for the absent TPU at its start.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from w2s_jax.config import Settings
from w2s_jax.config.recipes import load_config
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.perf.aot import search, topology
from w2s_jax.planning.resolve import Resolved


def run(request: dict[str, Any]) -> int:
    """Check the request, then compile in a separate process.

    Args:
      request: see the module.

    Returns:
      The exit status.

    Raises:
      InputError: the slice, the config or a name in it is unknown, or the compiler is missing.
    """
    topology.find(request["topology"])
    for name in ("documents", "tokens"):
        if request[name] is not None and request[name] < 1:
            raise errors.InputError(f"--{name}: {request[name]}; allowed: at least 1")
    validate(load_config(request["config"], request["overrides"]))
    topology.check_compiler()
    command = [sys.executable, "-m", "w2s_jax.perf.aot.main", json.dumps(request)]
    status = subprocess.run(command, env=os.environ | topology.environment()).returncode
    return status if status >= 0 else 1


@dataclass(frozen=True)
class MeshPrograms:
    """The programs of a run on a mesh.

    Attributes:
      resolved: the run.
      mesh: the mesh, over the devices of a slice.
      programs: the distinct `aot.programs.Program`s of the run.
      left_out: titles of phases that are not compiled.
    """

    resolved: Resolved
    mesh: Any
    programs: list[Any]
    left_out: list[str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The sizes of (data, fsdp, tensor)."""
        data, fsdp, tensor = self.mesh.shape.values()
        return data, fsdp, tensor


class SliceCompiler:
    """Compiles the programs of a run for one slice, each once."""

    def __init__(self, slice_: topology.Topology):
        from w2s_jax.perf.aot import compiler

        self.slice = slice_
        self.devices = compiler.devices_of(slice_)
        self.host = compiler.devices_of(topology.host_of(slice_))
        self.done: dict[Any, tuple[Any, float]] = {}

    def programs(self, resolved: Resolved) -> MeshPrograms:
        """Return the programs of a run on its mesh."""
        from w2s_jax.perf.aot import compiler, programs
        from w2s_jax.planning.plan import plan

        mesh = compiler.mesh_on(self.devices, resolved.settings.mesh, self.slice)
        found, left_out = programs.programs_of(
            plan(resolved), resolved, mesh, self.slice.memory, self.host
        )
        return MeshPrograms(resolved, mesh, found, left_out)

    def compiled(self, program: Any, run: MeshPrograms) -> tuple[Any, float]:
        """Return the compiler's report on a program, and the time it took in seconds."""
        from w2s_jax.perf.aot import compiler

        key = (program.key, run.shape)
        if key not in self.done:
            self.done[key] = compiler.compile_program(program, run.mesh)
        return self.done[key]

    def needed(self, program: Any, run: MeshPrograms) -> int:
        """Return the bytes per chip while a program runs, according to the compiler."""

        def sizes(other: Any) -> tuple[int, int]:
            report = self.compiled(other, run)[0]
            return report.peak, report.arguments

        if self.compiled(program, run)[0].rejection:
            return sizes(program)[0] + sum(program.beside.values())
        return _with_evaluation(program, run, sizes)

    def formula(self, program: Any, run: MeshPrograms) -> int:
        """Return the bytes per chip while a program runs, according to the formula."""

        def sizes(other: Any) -> tuple[int, int]:
            peak = self.estimate(other, run) - sum(other.beside.values())
            return peak, sum(other.parts.values())

        return _with_evaluation(program, run, sizes)

    def estimate(self, program: Any, run: MeshPrograms) -> int:
        """Return the bytes per chip by formula, without evaluations in between."""
        from w2s_jax.perf.aot import costs

        return sum(costs.estimate(program, run.shape).values())

    def fits(self, program: Any, run: MeshPrograms) -> bool:
        """Return whether a program fits into the memory of a chip."""
        return not self.compiled(program, run)[0].rejection and (
            self.needed(program, run) <= self.slice.memory
        )

    def show(self, program: Any, run: MeshPrograms) -> None:
        """Print the report on a program."""
        from w2s_jax.perf.aot import report

        compiled, seconds = self.compiled(program, run)
        needed, kind = self.needed(program, run), self.devices[0].device_kind
        for line in report.lines(
            program, compiled, seconds, needed=needed, device_kind=kind, shape=run.shape
        ):
            print(line, flush=True)

    def alternatives(
        self, program: Any, run: MeshPrograms
    ) -> Iterator[tuple[list[str], MeshPrograms]]:
        """Yield overrides to try for a program, and the run's programs with them."""
        role = "strong" if program.role.startswith("middle") else program.role
        section = f"{role}.{'pretrain' if program.loss is None and program.trains else 'train'}"
        current = search.current_options(program.train, run.shape)
        fill = [] if run.resolved.settings.mesh.data == -1 else ["--config.mesh.data=-1"]
        for options in search.candidates(current, self.slice.chips, program.model.num_kv_heads):
            settings = search.apply_options(run.resolved.settings, section, options)
            try:
                other = self.programs(dataclasses.replace(run.resolved, settings=settings))
            except errors.InputError:
                continue  # the torus does not have this mesh
            yield options.overrides(section, current) + fill, other


def _with_evaluation(
    program: Any, run: MeshPrograms, sizes: Callable[[Any], tuple[int, int]]
) -> int:
    """Return the bytes per chip of a program, its other arrays, and evaluations in between.

    Args:
      program: the program.
      run: the run it belongs to.
      sizes: program -> (peak, arguments) in bytes per chip.
    """
    (peak, arguments), beside = sizes(program), sum(program.beside.values())
    evaluation = next((p for p in run.programs if p.key == program.evaluates), None)
    if evaluation is not None:
        extra = sizes(evaluation)[0]
        # A label pass on single chips has its own copy of the parameters.
        if evaluation.chips > 1:
            extra -= evaluation.parts["parameters"]
        peak = max(peak, arguments + extra)
    return peak + beside


def main(request: dict[str, Any]) -> int:
    """Compile all programs of a run and print what they need.

    Args:
      request: see the module.

    Returns:
      The exit status: 0 if the run fits, otherwise 1.
    """
    from w2s_jax.perf.aot import inputs

    slice_ = topology.find(request["topology"])
    settings: Settings = validate(load_config(request["config"], request["overrides"]))
    resolved = inputs.find_inputs(settings, request["documents"], request["tokens"])
    compiler = SliceCompiler(slice_)
    run = compiler.programs(resolved)
    data, fsdp, tensor = run.shape
    print(
        f"{slice_.name} ({slice_.product_name}): {slice_.chips} chips of "
        f"{slice_.memory / 2**30:.2f} GiB; mesh data={data} fsdp={fsdp} tensor={tensor}"
    )
    print(resolved.notes[0])
    if run.left_out:
        print(f"not compiled (labels made without training): {', '.join(run.left_out)}")
    overrides: list[str] = []
    if request["search"]:
        run, overrides = _search(compiler, run)
    # The largest program decides, so it comes first.
    for program in sorted(run.programs, key=lambda p: -compiler.estimate(p, run)):
        compiler.show(program, run)
    fits = all(compiler.fits(program, run) for program in run.programs)
    needed = max(compiler.needed(program, run) for program in run.programs)
    if overrides:
        print(f"overrides: {' '.join(overrides)}")
    advice = () if fits or request["search"] else _advice(compiler, run)
    if request["search"] and not fits:
        print("none of the settings tried fits")
    print(search.verdict(fits, needed, slice_.memory, advice))
    return 0 if fits else 1


def _advice(compiler: SliceCompiler, run: MeshPrograms) -> list[str]:
    """Return the first overrides with which the run fits by formula; [] if there are none."""
    for program in run.programs:
        if not compiler.fits(program, run):
            for overrides, other in compiler.alternatives(program, run):
                if all(
                    compiler.estimate(p, other) <= compiler.slice.memory for p in other.programs
                ):
                    return overrides
            return []
    return []


def _search(compiler: SliceCompiler, run: MeshPrograms) -> tuple[MeshPrograms, list[str]]:
    """Find the first settings, in the order of `search.candidates`, with which the run fits.

    Programs that need more than 1.5 times the memory by formula are not compiled.

    Returns:
      The run's programs with the new settings, and the overrides.
    """
    overrides: list[str] = []
    for title in [program.title for program in run.programs]:
        program = _program_of(title, run)
        if compiler.fits(program, run):
            continue
        print(f"{program.title}: does not fit", flush=True)
        for more, other in compiler.alternatives(program, run):
            new = _program_of(title, other)
            if compiler.estimate(new, other) > 1.5 * compiler.slice.memory:
                print(f"  {' '.join(more)}: too large by formula, not compiled", flush=True)
                continue
            fits, needed = compiler.fits(new, other), compiler.needed(new, other) / 2**30
            answer = "fits" if fits else "too large"
            print(f"  {' '.join(more)}: {needed:.2f} GiB, {answer}", flush=True)
            if fits:
                run, overrides = other, [*overrides, *more]
                break
    return run, overrides


def _program_of(title: str, run: MeshPrograms) -> Any:
    """Return the program of the first phase in `title`; other phases may share it."""
    first = title.split(", ")[0]
    return next(p for p in run.programs if first in p.title.split(", "))


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except (errors.W2SError, RuntimeError) as error:
        print(f"w2s: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))
