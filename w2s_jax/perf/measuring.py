"""What all benchmarks share: repetitions in turns, their spread, ratios, and the surroundings."""

import resource
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np

Record = dict[str, Any]
#: Runs once, and returns the seconds that it took.
Run = Callable[[], float]


def interleaved(runs: Sequence[Run], repeats: int) -> list[list[float]]:
    """Seconds of each run, `repeats` times: first, second, ..., first, second, ...

    What slows the machine down for a while then meets all of them.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, taken in zip(runs, seconds, strict=True):
            taken.append(run())
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, quartiles, median and largest of some values."""
    names = ("min", "lower_quartile", "median", "upper_quartile", "max")
    quantiles = np.quantile(np.asarray(values, np.float64), (0, 0.25, 0.5, 0.75, 1))
    return dict(zip(names, map(float, quantiles), strict=True))


def paired_ratio(ours: Sequence[float], peer: Sequence[float]) -> Record:
    """How many times our throughput is the peer's, by the seconds of neighbouring repetitions.

    Returns:
      'ratio', the median of peer / ours over the pairs; 'ratio_spread'; and 'ratio_of_fastest', of
      the fastest repetition of each side, which a busy machine changes least.
    """
    ratios = spread([theirs / mine for mine, theirs in zip(ours, peer, strict=True)])
    return {
        "ratio": ratios["median"],
        "ratio_spread": ratios,
        "ratio_of_fastest": min(peer) / min(ours),
    }


def surroundings() -> Record:
    """Backend, devices and versions."""
    import jax

    return {
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "versions": {name: metadata.version(name) for name in ("w2s_jax", "jax", "jaxlib")},
    }


def peak_memory() -> Record:
    """Bytes in use at most so far: on a device if it tells, else of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory": int(stats["peak_bytes_in_use"]), "peak_memory_of": "device"}
    return {"peak_memory": process_peak(), "peak_memory_of": "process"}


def process_peak() -> int:
    """Bytes of memory that this process had resident at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
