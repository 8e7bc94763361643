"""The report of `w2s compile` on one program."""

from collections.abc import Mapping

from w2s_jax.perf.aot import costs
from w2s_jax.perf.aot.costs import CompiledProgram
from w2s_jax.perf.aot.programs import Program
from w2s_jax.profiling import devices

GIB = 2**30


def lines(
    program: Program,
    compiled: CompiledProgram,
    seconds: float,
    *,
    needed: int,
    device_kind: str,
    shape: tuple[int, int, int],
) -> list[str]:
    """Return the lines of a program's report.

    Args:
      program, compiled: the program, and the compiler's report on it.
      seconds: compile time.
      needed: bytes per chip while it runs, including arrays that are not its arguments.
      device_kind: kind of the chips.
      shape: shape of the mesh.
    """
    micro, rows, length = program.shape
    batch = f"{micro} x {rows} rows of {length} slots"
    chips = "each chip separately" if program.chips == 1 else f"{program.chips} chips"
    found = [f"{program.title}: {batch}, {chips}, compiled in {seconds:.0f} s"]
    parts = dict(program.parts)
    if compiled.rejection:
        found.append(f"  GiB per chip: {_sizes(parts)}; needs {compiled.peak / GIB:.2f} in total")
        found.append(f"  compiler message: {compiled.rejection}")
    else:
        parts |= {"activations and temporaries": compiled.temporaries, "code": compiled.code}
        found.append(f"  GiB per chip: {_sizes(parts)}; peak {compiled.peak / GIB:.2f}")
    if needed > compiled.peak:
        others = [*program.beside, *(["evaluation during training"] if program.evaluates else [])]
        found.append(f"  with other data in memory: {needed / GIB:.2f} ({', '.join(others)})")
    formula = sum(costs.estimate(program, shape).values()) - sum(program.beside.values())
    error = "" if compiled.rejection else f" ({formula / compiled.peak - 1:+.0%})"
    found.append(f"  memory formula: {formula / GIB:.2f}{error}")
    if compiled.rejection:
        return found
    found.append(f"  collectives: {_collectives(compiled)}")
    peak = devices.peak_flops(device_kind, program.train.compute_dtype)
    bandwidth = devices.bandwidth(device_kind)
    if peak is None or bandwidth is None:
        return found
    least = costs.time_bound(program, compiled.collectives, peak, bandwidth, shape[2])
    found.append(
        f"  {program.flops / 1e12:.3g} model TFLOP; at least {1e3 * least.seconds:.3g} ms, bound "
        f"by {least.by} (compute {1e3 * least.compute:.3g}, memory {1e3 * least.memory:.3g}, "
        f"communication {1e3 * least.communication:.3g}); MFU at most {least.mfu:.1%}"
    )
    return found


def _sizes(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)


def _collectives(compiled: CompiledProgram) -> str:
    each = [
        f"{part.count} {kind} ({part.result_bytes / 2**20:,.1f} MiB)"
        for kind, part in compiled.collectives.items()
    ]
    return ", ".join(each) or "none"
