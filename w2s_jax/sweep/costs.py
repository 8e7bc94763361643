"""Estimated cost of a sweep in device-hours. Imports no JAX."""

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

#: Assumed model FLOP/s utilisation.
MFU = 0.4


@dataclass(frozen=True)
class Hours:
    """Cost of phases on one kind of device.

    Attributes:
      device: name of the device.
      devices: number of devices that hold the largest phase, sharded; None if none do.
      device_hours: of all phases.
    """

    device: str
    devices: int | None
    device_hours: float


def hours(phases: Mapping[str, Phase], resolved: Mapping[str, Resolved], mfu: float) -> list[Hours]:
    """Return the cost of phases on each kind of device with known peak (`profiling.devices`).

    Args:
      phases: by name.
      resolved: phase name -> its input.
      mfu: assumed share of the devices' peak FLOP/s in each phase's compute dtype.
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
