"""What a sweep costs, by formula: model FLOPs of phases, and hours of devices. Imports no JAX."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from w2s_jax.models import budget
from w2s_jax.planning.costs import phase_flops
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved
from w2s_jax.profiling.devices import peak_flops

#: Model FLOP/s utilisation that is planned with where nothing else is said.
MFU = 0.4


@dataclass(frozen=True)
class Hours:
    """What some phases take of one kind of device.

    Attributes:
      device: its name.
      devices: how many hold the largest of the phases, sharded; None: it is too small.
      device_hours: of all phases, at the utilisation that was said.
    """

    device: str
    devices: int | None
    device_hours: float


def hours(phases: Mapping[str, Phase], resolved: Mapping[str, Resolved], mfu: float) -> list[Hours]:
    """What phases take of each kind of device whose peaks are known (`perf.devices`).

    Args:
      phases: by name.
      resolved: what each works on.
      mfu: the share of the devices' peak, in the phase's compute dtype, that is reached.
    """
    by_dtype: defaultdict[str, float] = defaultdict(float)
    largest = 0
    for name, phase in phases.items():
        by_dtype[phase.train.compute_dtype] += phase_flops(phase, resolved[name]).total
        largest = max(largest, memory_estimate(phase, resolved[name])["total"])
    found = []
    for name, device in budget.DEVICES.items():
        peaks = {dtype: peak_flops(name, dtype) for dtype in by_dtype}
        seconds = [flops / (mfu * (peaks[dtype] or np.nan)) for dtype, flops in by_dtype.items()]
        if not np.isnan(seconds).any():
            needed = budget.devices_needed(largest, device)
            found.append(Hours(name, needed, sum(seconds) / 3600))
    return found
