"""Peak rates by device kind, utilisation, and the memory there is. Imports no JAX."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_TPU = {
    # `jax.Device.device_kind` -> bfloat16 FLOP/s of a device (of v2, v3 and 7x half a chip).
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
}

# Words of an NVIDIA device's name -> (bfloat16, float32 as TF32) FLOP/s, dense, of the fastest
# variant of that name; the first match counts. V100 has neither format.
_NVIDIA: tuple[tuple[tuple[str, ...], float | None, float], ...] = (
    (("H100", "PCIe"), 756e12, 378e12),
    (("H100", "NVL"), 835e12, 417.5e12),
    (("H100",), 989.4e12, 494.7e12),
    (("H200", "NVL"), 835e12, 417.5e12),
    (("H200",), 989.4e12, 494.7e12),
    (("GH200",), 989.4e12, 494.7e12),
    (("B200",), 2250e12, 1125e12),
    (("GB200",), 2500e12, 1250e12),
    (("A100",), 312e12, 156e12),
    (("A10G",), 70e12, 35e12),
    (("A10",), 125e12, 62.5e12),
    (("L40S",), 362e12, 183e12),
    (("L40",), 181e12, 90.5e12),
    (("L4",), 121e12, 60.5e12),
    (("V100",), None, 15.7e12),
    (("T4",), None, 8.1e12),
)


class Rates(Protocol):
    """Bytes per second of a chip: of its main memory, and sent to others over all links."""

    @property
    def memory(self) -> float: ...

    @property
    def links(self) -> float: ...


@dataclass(frozen=True)
class Chip:
    """Rates of a TPU chip.

    Attributes:
      hertz: clock of a core, in which the compiler states its estimates.
      memory: bytes per second between HBM and the chip.
      link: bytes per second sent to one neighbour over one link.
      num_links: links of a chip.
      wraps_from: length of an axis of a slice from which its ends are linked too.
    """

    hertz: float
    memory: float
    link: float
    num_links: int
    wraps_from: int

    @property
    def links(self) -> float:
        """Bytes per second sent to other chips, over all links together."""
        return self.num_links * self.link

    def wraps(self, size: int) -> bool:
        """Return whether an axis of a slice is a ring."""
        return size >= self.wraps_from


# Bandwidths are from Google Cloud's page of each TPU version, table "key chip specifications".
# Links are stated in bits per second one way (v4 2,400 Gbps, v5e 1,600, v5p 4,800, v6e 3,200), or
# in later versions of the pages in bytes per second both ways. A clock is the peak divided by the
# FLOPs of all matrix units in a cycle: v5e has 4 of 128 x 128, v6e 4 of 256 x 256, v4 and v5p two
# cores with 4 of 128 x 128 each.
_CHIPS = {
    "TPU v4": Chip(1.05e9, 1200e9, 50e9, 6, wraps_from=4),
    "TPU v5 lite": Chip(1.5e9, 819e9, 50e9, 4, wraps_from=16),
    "TPU v5": Chip(1.75e9, 2765e9, 100e9, 6, wraps_from=4),
    "TPU v6 lite": Chip(1.75e9, 1600e9, 100e9, 4, wraps_from=16),
}


def chip(device_kind: str) -> Chip | None:
    """Return the rates of a TPU chip; None if unknown.

    Args:
      device_kind: JAX's name: 'TPU v5 lite'.
    """
    return _CHIPS.get(device_kind)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return the stated dense matmul FLOP/s of one device; None if unknown.

    float32 matmuls are as XLA computes them by default: bfloat16 on TPU, TF32 on NVIDIA.

    Args:
      device_kind: JAX's name: 'TPU v5 lite', 'NVIDIA H200', 'NVIDIA A100-SXM4-40GB'.
      dtype: of the computation, 'bfloat16' or 'float32'.
    """
    if device_kind in _TPU:
        return _TPU[device_kind]
    words = device_kind.replace("-", " ").split()
    for needed, bfloat16, float32 in _NVIDIA:
        if all(word in words for word in needed):
            return bfloat16 if dtype == "bfloat16" else float32
    return None


def utilisation(
    flops_per_second: float, device_kind: str, count: int, dtype: str
) -> dict[str, Any]:
    """Return {'mfu': share of the peak of `count` devices}; None for an unknown peak.

    A share above 1 is an error of the count, the clock or the table: 'mfu' is then None and
    'mfu_note' has the share.
    """
    peak = peak_flops(device_kind, dtype)
    if peak is None:
        return {"mfu": None}
    share = flops_per_second / (count * peak)
    if share <= 1:
        return {"mfu": share}
    note = f"{share:.0%} of the stated peak of {count} x {device_kind}: impossible, not reported"
    return {"mfu": None, "mfu_note": note}


#: Limits of a container's memory, in bytes or 'max': cgroups of version 2 and 1.
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def host_memory(cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that this process may use: all, or its container's; None: unknown.

    Args:
      cgroups: where the limits of containers are mounted.
    """
    found = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _CGROUP_LIMITS:
        with contextlib.suppress(ValueError, OSError):
            found.append(int((cgroups / name).read_text()))
    return min(found, default=None)


def device_memory(device: Any) -> int | None:
    """Return the bytes of memory of a `jax.Device`; of CPUs, the host's; None: unknown."""
    if device.platform == "cpu":
        return host_memory()
    return (device.memory_stats() or {}).get("bytes_limit")
