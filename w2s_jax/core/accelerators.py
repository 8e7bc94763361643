"""Accelerators that Ray or Slurm gave this process, and whether JAX sees them. Imports no JAX."""

import importlib.util
import os
import socket
import sys
import types
from collections.abc import Mapping, Sequence

from w2s_jax.core import errors

#: Variables that list the GPUs of a process; if one is set, it decides.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
#: Variables of Slurm that list GPUs, and those that count them.
_LISTS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
_NO_LIST = ("", "-1", "NoDevFiles")
_COUNTS = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_NODE", "SLURM_GPUS")


#: Files of NVIDIA's driver; the last is that of Windows Subsystem for Linux.
_DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")


class NotSeen(errors.InputError):
    """JAX does not see the accelerators of this process: exit status 2."""


def given_by_slurm(environment: Mapping[str, str]) -> str | None:
    """Return what shows that Slurm gave this process GPUs, as 'SLURM_STEP_GPUS=0'; or None."""
    if "SLURM_JOB_ID" not in environment:
        return None
    visible = [name for name in _VISIBLE if name in environment]
    # An index 0 is a GPU, a number 0 is none.
    some = [name for name in visible or _LISTS if environment.get(name, "") not in _NO_LIST]
    if not visible:
        some += [name for name in _COUNTS if environment.get(name, "0") not in ("", "0")]
    return f"{some[0]}={environment[some[0]]}" if some else None


def given_by_ray(ids: Mapping[str, Sequence[str]]) -> str | None:
    """Return which accelerators Ray gave a task, as 'GPU 0'; None without any.

    Args:
      ids: as Ray's `get_accelerator_ids` returns them.
    """
    return next((f"{name} {', '.join(own)}" for name, own in ids.items() if own), None)


def ignore_compiler_of_gpus() -> None:
    """Keep JAX from loading its CUDA plugin if that is here as a compiler alone.

    The extra cuda-compiler installs the plugin without CUDA. Where there is no driver either, all
    that it could do is to print that.
    """
    nvidia = importlib.util.find_spec("nvidia")
    folders = nvidia.submodule_search_locations if nvidia is not None else None
    has_cuda = any(os.path.exists(os.path.join(place, "cuda_runtime")) for place in folders or ())
    if folders is None or has_cuda or any(map(os.path.exists, _DRIVERS)):
        return
    plugin = types.ModuleType("jax_plugins.xla_cuda12")
    vars(plugin)["initialize"] = lambda: None
    sys.modules.setdefault(plugin.__name__, plugin)
    # None: an import fails as if the package were not installed, which JAX expects.
    sys.modules.setdefault("jax_cuda12_plugin", None)  # type: ignore[arg-type]


def check(giver: str, given: str | None) -> None:
    """Check that JAX sees an accelerator if there is one; computing on CPUs would be silent.

    JAX_PLATFORMS=cpu is a choice, not a fault.

    Args:
      giver: 'Ray' or 'Slurm'.
      given: what `given_by_ray` or `given_by_slurm` returned.

    Raises:
      NotSeen: JAX sees none.
    """
    if given is None:
        return
    import jax

    chosen = jax.config.jax_platforms  # type: ignore[attr-defined]
    chosen = chosen or os.environ.get("JAX_PLATFORM_NAME", "")
    if chosen and set(chosen.split(",")) <= {"cpu"}:
        return
    reason = "JAX sees only CPUs"
    try:
        if jax.default_backend() != "cpu":
            return
    except RuntimeError as error:
        reason = f"JAX cannot use it ({errors.first_line(error)})"
    raise NotSeen(
        f"{giver} gave this task an accelerator ({given}), but on {socket.gethostname()} {reason}; "
        "install JAX for it there, or set JAX_PLATFORMS=cpu there to compute on CPUs"
    )


def check_slurm() -> None:
    """Check that JAX sees the GPUs that Slurm gave this process, if any.

    Raises:
      NotSeen: it does not.
    """
    check("Slurm", given_by_slurm(os.environ))
