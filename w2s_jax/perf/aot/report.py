"""The report of `w2s compile` on one program."""

from collections.abc import Iterator, Mapping
from typing import Any

from w2s_jax.perf.aot import costs
from w2s_jax.perf.aot.clock import Estimate
from w2s_jax.perf.aot.costs import CompiledProgram
from w2s_jax.perf.aot.parts import PARTS, PASSES
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
    rates: devices.Rates | None,
    shape: tuple[int, int, int],
) -> list[str]:
    """Return the lines of a program's report.

    Args:
      program, compiled: the program, and the compiler's report on it.
      seconds: compile time.
      needed: bytes per chip while it runs, including arrays that are not its arguments.
      device_kind: kind of the chips.
      rates: bandwidths of a chip, if known.
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
        temporaries = compiled.temporaries - sum(program.results.values())
        parts |= program.results
        parts |= {"activations and temporaries": temporaries, "code": compiled.code}
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
    found.append(f"  attention: {_ATTENTION[compiled.attention]}")
    peak = devices.peak_flops(device_kind, program.train.compute_dtype)
    if peak is None or rates is None:
        return found
    least = costs.time_bound(program, compiled.collectives, peak, rates, shape[2])
    found.append(
        f"  {program.flops / 1e12:.3g} model TFLOP; at least {1e3 * least.seconds:.3g} ms, bound "
        f"by {least.by} (compute {1e3 * least.compute:.3g}, memory {1e3 * least.memory:.3g}, "
        f"communication {1e3 * least.communication:.3g}); MFU at most {least.mfu:.1%}"
    )
    if compiled.estimate is not None:
        found += _times(program, compiled.estimate, peak)
    return found


_ATTENTION = {"xla": "XLA's operations", "cudnn": "cuDNN's kernel", "splash": "Splash's kernel"}

#: Operations that a report lists.
LONGEST = 10


def _times(program: Program, estimate: Estimate, peak: float) -> Iterator[str]:
    """Yield the lines of a program's estimated time."""
    useful = program.tokens / estimate.seconds / program.chips
    yield (
        f"  compiler's estimate: {1e3 * estimate.seconds:.4g} ms "
        f"({1e3 * estimate.all_hidden:.4g} if other work hid all collectives, "
        f"{1e3 * estimate.no_overlap:.4g} if it hid none), {estimate.fallback_share:.0%} of it by "
        "roofline"
    )
    yield (
        f"  predicted MFU {mfu(program, estimate, peak):.1%}, {useful:,.0f} useful tokens/s a chip"
    )
    titles = ("ms by part", *PASSES, "total", "ideal", "ratio")
    yield f"  {titles[0]:<24}" + "".join(f"{title:>11}" for title in titles[1:])
    parts, passes = estimate.by_part(), [estimate.by_part(name) for name in PASSES]
    for part in PARTS:
        if part in parts:
            seconds, ideal = parts[part]
            each = [of_pass.get(part, (0.0, 0.0))[0] for of_pass in passes]
            row = "".join(f"{1e3 * value:>11.3f}" for value in (*each, seconds, ideal))
            ratio = f"{seconds / ideal:>11.1f}" if ideal > 1e-3 * seconds else f"{'-':>11}"
            yield f"  {part:<24}{row}{ratio}"
    yield f"  outside of products, attention and collectives: {estimate.outside_share:.0%}"
    yield f"  the {LONGEST} operations that take most time (ms, times, shape, part, origin)"
    for timed in estimate.longest(LONGEST):
        shape = timed.op.shapes[0] if timed.op.shapes else None
        size = "" if shape is None else f"{shape.dtype}[{','.join(map(str, shape.sizes))}]"
        origin = timed.origin.removeprefix("jit(train_block)/while/body/")
        yield (
            f"  {1e3 * timed.seconds:9.3f} {timed.times:>5} x {timed.op.name} {size} "
            f"({timed.part}) {_tail(origin, 60)}"
        )


def mfu(program: Program, estimate: Estimate, peak: float) -> float:
    """Return the predicted model FLOPs utilisation: recomputation and padding do not count.

    Args:
      program: the program.
      estimate: its estimated time.
      peak: peak FLOP/s of a chip.
    """
    return program.flops / (program.chips * peak * estimate.seconds)


def record(
    program: Program,
    compiled: CompiledProgram,
    *,
    needed: int,
    device_kind: str,
    shape: tuple[int, int, int],
) -> dict[str, Any]:
    """Return a program's entry of the file of `--json`; times are null where it does not fit.

    Args:
      program, compiled, needed, device_kind, shape: see `lines`.
    """
    estimate = compiled.estimate
    peak = devices.peak_flops(device_kind, program.train.compute_dtype)
    times: dict[str, Any] = dict.fromkeys(
        (
            "estimated_seconds",
            "estimated_seconds_all_hidden",
            "estimated_seconds_no_overlap",
            "predicted_mfu",
            "fallback_share",
        )
    ) | {"parts": {}}
    if estimate is not None and peak is not None:
        times = {
            "estimated_seconds": estimate.seconds,
            "estimated_seconds_all_hidden": estimate.all_hidden,
            "estimated_seconds_no_overlap": estimate.no_overlap,
            "predicted_mfu": mfu(program, estimate, peak),
            "fallback_share": estimate.fallback_share,
            "parts": {
                part: {"seconds": seconds, "ideal_seconds": ideal}
                for part, (seconds, ideal) in estimate.by_part().items()
            },
        }
    return {
        "title": program.title,
        "chips": program.chips,
        "mesh": dict(zip(("data", "fsdp", "tensor"), shape, strict=True)),
        "shape": list(program.shape),
        **times,
        "peak_bytes": needed,
    }


def _tail(text: str, width: int) -> str:
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _sizes(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)


def _collectives(compiled: CompiledProgram) -> str:
    each = [
        f"{part.count} {kind} ({part.result_bytes / 2**20:,.1f} MiB)"
        for kind, part in compiled.collectives.items()
    ]
    return ", ".join(each) or "none"
