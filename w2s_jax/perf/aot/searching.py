"""Searches for settings with which a run fits on a slice, or takes least time."""

from w2s_jax.perf.aot import search
from w2s_jax.perf.aot.programs import Program
from w2s_jax.perf.aot.slice_compiler import MeshPrograms, SliceCompiler


def advice(compiler: SliceCompiler, run: MeshPrograms) -> list[str]:
    """Return the first overrides with which the run fits by formula; [] if there are none."""
    for program in run.programs:
        if not compiler.fits(program, run):
            options = compiler.smaller(program, run)
            for overrides, other in compiler.alternatives(program, run, options):
                if all(
                    compiler.estimate(p, other) <= compiler.slice.memory for p in other.programs
                ):
                    return overrides
            return []
    return []


def by_memory(compiler: SliceCompiler, run: MeshPrograms) -> tuple[MeshPrograms, list[str]]:
    """Find the first settings, in the order of `search.candidates`, with which the run fits.

    Returns:
      The run's programs with the new settings, and the overrides.
    """
    overrides: list[str] = []
    for title in [program.title for program in run.programs]:
        program = _program_of(title, run)
        if compiler.fits(program, run):
            continue
        print(f"{program.title}: does not fit", flush=True)
        options = compiler.smaller(program, run)
        for more, other in compiler.alternatives(program, run, options):
            new = _program_of(title, other)
            if _too_large(compiler, new, other):
                print(f"  {' '.join(more)}: too large by formula, not compiled", flush=True)
                continue
            fits, needed = compiler.fits(new, other), compiler.needed(new, other) / 2**30
            answer = "fits" if fits else "too large"
            print(f"  {' '.join(more)}: {needed:.2f} GiB, {answer}", flush=True)
            if fits:
                run, overrides = other, [*overrides, *more]
                break
    return run, overrides


def by_time(
    compiler: SliceCompiler, run: MeshPrograms, limit: int
) -> tuple[MeshPrograms, list[str]]:
    """Find the mesh, microbatches and remat policies that take least time by the clock.

    The train step with most FLOPs chooses the mesh; the others only their microbatches and remat
    policy. Of each, the `limit` options that are fastest by `costs.roofline` are compiled, except
    those that are too large by formula.

    Returns:
      The run's programs with the new settings, and the overrides.
    """
    overrides: list[str] = []
    steps = sorted((p for p in run.programs if p.trains), key=lambda p: -p.flops)
    for number, title in enumerate(program.title for program in steps):
        program = _program_of(title, run)
        current = search.current_options(program.train, run.shape)
        options = search.all_options(
            current,
            program.train.batch_size,
            compiler.slice.chips,
            program.model.num_kv_heads,
            mesh=number == 0,
        )
        options.sort(key=lambda one: compiler.roofline(program, one))
        print(f"{program.title}: {len(options)} settings, fastest by formula first", flush=True)
        found = _fastest(compiler, run, title, options, limit)
        if found is not None:
            run, more = found
            overrides += more
    return run, overrides


def _fastest(
    compiler: SliceCompiler,
    run: MeshPrograms,
    title: str,
    options: list[search.MemoryOptions],
    limit: int,
) -> tuple[MeshPrograms, list[str]] | None:
    """Return the run's programs with the fastest options that fit, and the overrides."""
    best: tuple[float, MeshPrograms, list[str]] | None = None
    compiled = too_large = 0
    program = _program_of(title, run)
    for more, other in compiler.alternatives(program, run, options):
        if compiled == limit:
            break
        new = _program_of(title, other)
        if _too_large(compiler, new, other):
            too_large += 1
            continue
        compiled += 1
        fits, needed = compiler.fits(new, other), compiler.needed(new, other) / 2**30
        seconds = compiler.seconds(new, other)
        name = " ".join(more) or "as configured"
        if not fits or seconds is None:
            print(f"  {name}: {needed:.2f} GiB, too large", flush=True)
            continue
        print(
            f"  {name}: {1e3 * seconds:.4g} ms by the compiler's estimate, {needed:.2f} GiB",
            flush=True,
        )
        if best is None or seconds < best[0]:
            best = seconds, other, more
    print(
        f"  {compiled} compiled, {too_large} too large by formula, "
        f"{len(options) - compiled - too_large} left out",
        flush=True,
    )
    return None if best is None else best[1:]


def _too_large(compiler: SliceCompiler, program: Program, run: MeshPrograms) -> bool:
    """Return whether a program needs so much memory by formula that compiling it is in vain."""
    return compiler.estimate(program, run) > 1.5 * compiler.slice.memory


def _program_of(title: str, run: MeshPrograms) -> Program:
    """Return the program of the first phase in `title`; other phases may share it."""
    first = title.split(", ")[0]
    return next(p for p in run.programs if first in p.title.split(", "))
