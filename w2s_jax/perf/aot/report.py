"""What `w2s compile` prints of a program."""

from collections.abc import Mapping

from w2s_jax.perf.aot import costs
from w2s_jax.perf.aot.costs import Compiled
from w2s_jax.perf.aot.programs import Program
from w2s_jax.profiling import devices

GIB = 2**30


def lines(
    program: Program,
    compiled: Compiled,
    seconds: float,
    *,
    needed: int,
    device_kind: str,
    shape: tuple[int, int, int],
) -> list[str]:
    """A few lines on a program.

    Args:
      program, compiled: what it is, and what the compiler says.
      seconds: that compiling took.
      needed: bytes on a chip with what lies beside it.
      device_kind: of the chips.
      shape: of the mesh.
    """
    micro, rows, length = program.shape
    what = f"{micro} x {rows} rows of {length} slots"
    chips = "each chip by itself" if program.chips == 1 else f"{program.chips} chips"
    found = [f"{program.title}: {what}, {chips}, compiled in {seconds:.0f} s"]
    parts = dict(program.parts)
    if compiled.refused:
        found.append(f"  GiB a chip: {_sizes(parts)}; needs {compiled.peak / GIB:.2f} in all")
        found.append(f"  the compiler: {compiled.refused}")
    else:
        parts |= {"activations and temporaries": compiled.temporaries, "code": compiled.code}
        found.append(f"  GiB a chip: {_sizes(parts)}; peak {compiled.peak / GIB:.2f}")
    if needed > compiled.peak:
        beside = ", ".join(program.beside) or "nothing"
        why = f" ({beside}{', evaluation in between' if program.evaluates else ''})"
        found.append(f"  with what lies beside it: {needed / GIB:.2f}{why}")
    formula = sum(costs.estimate(program, shape).values()) - sum(program.beside.values())
    off = "" if compiled.refused else f", {formula / compiled.peak - 1:+.0%}"
    found.append(f"  by formula: {formula / GIB:.2f}{off}")
    if compiled.refused:
        return found
    found.append(f"  collectives: {_collectives(compiled)}")
    peak = devices.peak_flops(device_kind, program.train.compute_dtype)
    bandwidth = devices.bandwidth(device_kind)
    if peak is None or bandwidth is None:
        return found
    least = costs.bound(program, compiled.collectives, peak, bandwidth, shape[2])
    found.append(
        f"  {program.flops / 1e12:.3g} model TFLOP; at least {1e3 * least.seconds:.3g} ms, bound "
        f"by {least.by} (compute {1e3 * least.compute:.3g}, memory {1e3 * least.memory:.3g}, "
        f"communication {1e3 * least.communication:.3g}); MFU at most {least.mfu:.1%}"
    )
    return found


def _sizes(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)


def _collectives(compiled: Compiled) -> str:
    each = [
        f"{part.count} {kind} ({part.result_bytes / 2**20:,.1f} MiB)"
        for kind, part in compiled.collectives.items()
    ]
    return ", ".join(each) or "none"
