"""Helpers shared by all benchmarks: alternating repetitions, statistics, system info, tables."""

import resource
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

#: One measurement, ready for JSON.
Record = dict[str, Any]
#: Runs once and returns the time it took, in seconds.
Run = Callable[[], float]


def interleaved(runs: Sequence[Run], repeats: int) -> list[list[float]]:
    """Time each run `repeats` times, in turns: first, second, ..., first, second, ...

    A temporary slowdown of the machine then affects all of them.

    Returns:
      For each run, its times in seconds.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, times in zip(runs, seconds, strict=True):
            times.append(run())
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, quartiles, median and maximum."""
    names = ("min", "lower_quartile", "median", "upper_quartile", "max")
    quantiles = np.quantile(np.asarray(values, np.float64), (0, 0.25, 0.5, 0.75, 1))
    return dict(zip(names, map(float, quantiles), strict=True))


def with_quartiles(values: dict[str, float], digits: int) -> str:
    """Return the median and the quartiles of a `spread` as text."""
    low, middle, high = (values[k] for k in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def paired_ratio(ours: Sequence[float], peer: Sequence[float]) -> Record:
    """Return our throughput relative to the peer's, from the times of adjacent repetitions.

    Args:
      ours, peer: seconds, in the order in which they were measured.

    Returns:
      'ratio', the median of peer / ours over the pairs; 'ratio_spread'; and 'ratio_of_fastest',
      computed from the fastest repetition of each side, which a busy machine affects least.
    """
    ratios = spread([theirs / mine for mine, theirs in zip(ours, peer, strict=True)])
    return {
        "ratio": ratios["median"],
        "ratio_spread": ratios,
        "ratio_of_fastest": min(peer) / min(ours),
    }


def surroundings() -> Record:
    """Return the backend, the devices and the package versions."""
    import jax

    return {
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "versions": {name: metadata.version(name) for name in ("w2s_jax", "jax", "jaxlib")},
    }


def peak_memory() -> Record:
    """Return peak memory in bytes: of a device if it reports it, otherwise of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory": int(stats["peak_bytes_in_use"]), "peak_memory_of": "device"}
    return {"peak_memory": process_peak(), "peak_memory_of": "process"}


def process_peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    note: str,
    *,
    text: Collection[str],
) -> None:
    """Print a table and a note that explains its columns.

    Args:
      console: where to print.
      title: the line above the table.
      columns: headers.
      rows: cells.
      note: printed below the table.
      text: the columns that are left-aligned; all others contain numbers.
    """
    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(note, highlight=False)
