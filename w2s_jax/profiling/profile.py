"""Profiles of training steps: a trace for TensorBoard, and a summary.

The summary is the time of devices by operation, by named scope of the model, and split into
computation, communication and idle time.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_jax.core.files import write_json
from w2s_jax.profiling import xplane
from w2s_jax.profiling.xplane import Op

if TYPE_CHECKING:
    from rich.console import Console

Interval = tuple[float, float]

#: Rows of each table in the terminal; summary.json has all.
ROWS_SHOWN = 12

_COMMUNICATION = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|collective-permute|collective-broadcast|all-to-all"
    r"|ragged-all-to-all|async-collective|send|recv)\b|nccl",
    re.IGNORECASE,
)


class Profiler:
    """Trace of the steps [`start`, `stop`) of a phase; the training loop calls `begin` and `end`.

    The trace, in the layout of TensorBoard's profile plugin, and summary.json are in `folder`.
    """

    def __init__(self, start: int, stop: int, folder: Path, console: "Console"):
        self.start, self.stop = start, stop
        self.folder, self.console = folder, console

    def begin(self) -> None:
        """Wait until all devices are idle, then start the trace."""
        import jax

        jax.block_until_ready(jax.live_arrays())
        shutil.rmtree(self.folder, ignore_errors=True)
        options = jax.profiler.ProfileOptions()
        # An event for each Python call would make large files and slow steps.
        options.python_tracer_level = 0
        jax.profiler.start_trace(self.folder, profiler_options=options)

    def end(self) -> None:
        """Wait until all devices are idle, stop the trace, and write and print its summary."""
        import jax

        # A caller that has fetched a result has waited for one device only.
        jax.block_until_ready(jax.live_arrays())
        jax.profiler.stop_trace()
        path = max(self.folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime_ns)
        summary = {"steps": [self.start, self.stop], **summarize(xplane.read(path))}
        write_json(self.folder / "summary.json", summary)
        print_summary(summary, self.console)
        self.console.print(f"profile: {self.folder}", highlight=False, soft_wrap=True)


# --- intervals -----------------------------------------------------------------------------------


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union as sorted, disjoint, non-empty intervals."""
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if stop <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    """Return the total length of disjoint intervals."""
    return sum(stop - start for start, stop in intervals)


# --- the summary ---------------------------------------------------------------------------------


def summarize(ops_of: Mapping[str, Sequence[Op]]) -> dict[str, Any]:
    """Return the summary of a trace.

    Args:
      ops_of: device -> operations that it ran (see `xplane.read`).

    Returns:
      window_seconds: from the start of the first operation on any device to the end of the last.
      devices: seconds of each device that add up to the window: `compute`, in which an operation
        other than communication ran; `communication`, in which only communication ran; `idle`. And
        `hidden_communication`, the part of `compute` in which communication ran as well.
      scopes: one row per path of named scopes: seconds of the forward and the backward pass, and
        the share of all operations.
      operations: one row per operation: seconds, number of runs, opcode, scope, share.

      Seconds of scopes and operations are summed over all devices, and concurrent operations all
      count. Rows are in descending order of seconds.
    """
    everything = [op for ops in ops_of.values() for op in ops]
    if not everything:
        return {"window_seconds": 0.0, "devices": {}, "scopes": [], "operations": []}
    begin = min(op.start_ns for op in everything)
    end = max(op.stop_ns for op in everything)
    total = sum(op.stop_ns - op.start_ns for op in everything) or 1.0
    return {
        "window_seconds": (end - begin) / 1e9,
        "devices": {name: _split(ops, end - begin) for name, ops in ops_of.items()},
        "scopes": _scopes(everything, total),
        "operations": _operations(everything, total),
    }


def is_communication(op: Op) -> bool:
    """Return whether an operation moves data between devices."""
    # Asynchronous operations have a generic opcode, NCCL kernels none; their names tell.
    return any(_COMMUNICATION.match(text) for text in (op.opcode, op.name))


def scope_of(path: str) -> tuple[str, bool]:
    """Return the named scopes in JAX's name stack, and whether it is of the backward pass.

    `jit(step)/transpose(jvp(block))/mlp/while/body/dot_general` gives ("block/mlp", True). The
    scope of an operation merged from several, such as combined all-reduces, is "(several)".
    """
    if "/(" in path:
        return "(several)", "transpose(" in path
    scopes = []
    # A fused operation lists several paths; the last part of a path is the primitive.
    for part in path.split(";")[0].split("/")[:-1]:
        while wrapped := re.fullmatch(r"(?:jvp|transpose|vmap|checkpoint|remat)\((.*)\)", part):
            part = wrapped[1]
        # Transformations have brackets, einsum's formula has commas.
        if re.fullmatch(r"\w+", part) and not _STRUCTURE.fullmatch(part):
            scopes.append(part)
    return "/".join(scopes), "transpose(" in path


#: Parts of a name stack that are structure of the program, not named scopes.
_STRUCTURE = re.compile(
    r"while|body|cond|scan|closed_call|core_call|pjit|checkpoint|remat\d?|rematted_computation"
    r"|shard_map|custom_[jv]{2}p_call\w*|branch_\d+_fun"
)


def _split(ops: Sequence[Op], window_ns: float) -> dict[str, float]:
    moving = union((op.start_ns, op.stop_ns) for op in ops if is_communication(op))
    computing = union((op.start_ns, op.stop_ns) for op in ops if not is_communication(op))
    busy = length(union([*moving, *computing]))
    compute, communication = length(computing), busy - length(computing)
    return {
        "compute": compute / 1e9,
        "communication": communication / 1e9,
        "idle": (window_ns - busy) / 1e9,
        "hidden_communication": (length(moving) - communication) / 1e9,
    }


def _scopes(ops: Sequence[Op], total_ns: float) -> list[dict[str, Any]]:
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for op in ops:
        scope, backward = scope_of(op.path)
        sums[scope][backward] += op.stop_ns - op.start_ns
    return [
        {
            "scope": scope,
            "forward_seconds": forward / 1e9,
            "backward_seconds": backward / 1e9,
            "share": (forward + backward) / total_ns,
        }
        for scope, (forward, backward) in sorted(sums.items(), key=lambda x: -sum(x[1]))
    ]


def _operations(ops: Sequence[Op], total_ns: float) -> list[dict[str, Any]]:
    runs: dict[tuple[str, str], list[Op]] = defaultdict(list)
    for op in ops:
        runs[op.program, op.name].append(op)
    rows = []
    for (program, name), same in runs.items():
        nanoseconds = sum(op.stop_ns - op.start_ns for op in same)
        scope, backward = scope_of(same[0].path)
        rows.append(
            {
                "operation": name,
                "program": program,
                "opcode": same[0].opcode,
                "scope": scope,
                "backward": backward,
                "communication": is_communication(same[0]),
                "count": len(same),
                "seconds": nanoseconds / 1e9,
                "share": nanoseconds / total_ns,
            }
        )
    return sorted(rows, key=lambda row: -row["seconds"])


# --- the terminal --------------------------------------------------------------------------------


def print_summary(summary: Mapping[str, Any], console: "Console") -> None:
    """Print the devices, and the largest scopes and operations, of a summary."""
    from rich.table import Table

    def table(title: str, first: int, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for number, column in enumerate(columns):
            justify: Any = "left" if number < first else "right"
            made.add_column(column, justify=justify, overflow="fold")
        return made

    window = summary["window_seconds"]
    if not summary["devices"]:
        console.print("the trace has no operations", highlight=False)
        return
    steps = "steps {}-{}".format(summary["steps"][0], summary["steps"][1] - 1)
    devices = table(
        f"{steps}: {1e3 * window:.2f} ms", 1, "device", "compute", "communication", "idle"
    )
    for name, split in summary["devices"].items():
        parts = (split[part] / window for part in ("compute", "communication", "idle"))
        devices.add_row(name, *(f"{part:.1%}" for part in parts))
    scopes = table("by scope", 1, "scope", "forward ms", "backward ms", "share")
    for row in summary["scopes"][:ROWS_SHOWN]:
        passes = (f"{1e3 * row[f'{p}_seconds']:.2f}" for p in ("forward", "backward"))
        scopes.add_row(row["scope"] or "(none)", *passes, f"{row['share']:.1%}")
    operations = table("by operation", 2, "operation", "scope", "runs", "ms", "share")
    for row in summary["operations"][:ROWS_SHOWN]:
        operations.add_row(
            row["operation"],
            (row["scope"] or "(none)") + (", backward" if row["backward"] else ""),
            str(row["count"]),
            f"{1e3 * row['seconds']:.2f}",
            f"{row['share']:.1%}",
        )
    for made in (devices, scopes, operations):
        console.print(made, highlight=False, markup=False)
