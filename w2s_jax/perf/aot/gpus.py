"""GPUs for which programs can be compiled without one. No JAX.

XLA's GPU compiler takes a description of the device as text. Figures are those of the public
specifications; memory is what a CUDA device of that name reports.
"""

import importlib.machinery
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

# XLA's numbers of element types -> factor on the rate of 16-bit types.
_TYPES = {2: 2.0, 6: 2.0, 10: 1.0, 16: 1.0, 11: 0.5}  # s8, u8, f16, bf16, f32 as TF32


@dataclass(frozen=True)
class Gpu:
    """A GPU model.

    Attributes:
      kind: JAX's `device_kind`.
      size: bytes of device memory.
      memory: bytes per second of it.
      cores: streaming multiprocessors.
      fpus: float32 units of each.
      hertz: highest clock.
      capability: CUDA compute capability.
      matrix_hertz, matrix_ops: clock of the tensor cores, and their 16-bit operations per cycle
        (each SM has 4).
      l2, shared, shared_optin: bytes of the caches: of the device, of an SM, at most of a block.
      num_links, link: NVLink's links, and the bytes per second of each, one way.
    """

    kind: str
    size: int
    memory: int
    cores: int
    fpus: int
    hertz: float
    capability: tuple[int, int]
    matrix_hertz: float
    matrix_ops: int
    l2: int
    shared: int
    shared_optin: int
    num_links: int
    link: float = 25e9

    @property
    def links(self) -> float:
        """Bytes per second that a GPU sends to the others of its host."""
        return self.num_links * self.link


_H100 = Gpu(
    kind="NVIDIA H100 80GB HBM3",
    size=84942979072,
    memory=3352320000000,
    cores=132,
    fpus=128,
    hertz=1.98e9,
    capability=(9, 0),
    matrix_hertz=1.82952e9,
    matrix_ops=512,
    l2=52428800,
    shared=233472,
    shared_optin=232448,
    num_links=18,
)

#: Name in `--topology` -> GPU.
GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(
        kind="NVIDIA A100-SXM4-80GB",
        size=85100068864,
        memory=2039040000000,
        cores=108,
        fpus=64,
        hertz=1.41e9,
        capability=(8, 0),
        matrix_hertz=1.41e9,
        matrix_ops=256,
        l2=41943040,
        shared=167936,
        shared_optin=166912,
        num_links=12,
    ),
    "h100": _H100,
    "h200": replace(_H100, kind="NVIDIA H200", size=151397597184, memory=4800000000000),
    "b200": replace(
        _H100,
        kind="NVIDIA B200",
        size=191514411008,
        memory=7672320000000,
        cores=148,
        hertz=1.965e9,
        capability=(10, 0),
        matrix_hertz=1.83531e9,
        matrix_ops=1024,
        l2=132644864,
        link=50e9,
    ),
}

#: GPUs in a host, and hosts.
COUNTS = (1, 2, 4, 8)
HOSTS = (1, 2, 4, 8, 16, 32, 64)

#: How to install the compiler; it needs no CUDA.
INSTALL = "pip install 'w2s_jax[cuda-compiler]'"


def names() -> list[str]:
    """Return the names of all topologies: h100:8, or h100:2x8 for two hosts."""
    found = []
    for gpu in GPUS:
        found += [f"{gpu}:{count}" for count in COUNTS]
        found += [f"{gpu}:{hosts}x{COUNTS[-1]}" for hosts in HOSTS[1:]]
    return found


def parse(name: str) -> tuple[Gpu, int, int]:
    """Return (GPU, hosts, GPUs of each host) of one of `names`."""
    gpu, _, shape = name.partition(":")
    *hosts, count = (int(size) for size in shape.split("x"))
    return GPUS[gpu], hosts[0] if hosts else 1, count


def description(gpu: Gpu) -> str:
    """Return the compiler's description of a GPU, a `GpuTargetConfigProto` as text."""
    major, minor = gpu.capability
    feature = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    rates = "\n".join(
        f"    rate_infos {{ key: {number} value {{ clock_rate_ghz: {gpu.matrix_hertz / 1e9} "
        f"units_per_core: 4 ops_per_clock: {int(gpu.matrix_ops * factor)} }} }}"
        for number, factor in _TYPES.items()
    )
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block_optin: {gpu.shared_optin}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {gpu.memory}
  l2_cache_size: {gpu.l2}
  clock_rate_ghz: {gpu.hertz / 1e9}
  device_memory_size: {gpu.size}
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
  device_interconnect_info {{ active_links: {gpu.num_links} }}
  matrix_unit_description {{
{rates}
  }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{gpu.kind}"
"""


def compiler_folder() -> Path | None:
    """Return the folder of the CUDA compiler's package; None: it, or JAX's plugin, is missing."""
    # Asks the path, since `accelerators.ignore_compiler_of_gpus` hides the plugin from imports.
    if importlib.machinery.PathFinder.find_spec("jax_cuda12_plugin") is None:
        return None
    nvidia = importlib.util.find_spec("nvidia")
    for place in (nvidia.submodule_search_locations or ()) if nvidia is not None else ():
        folder = Path(place) / "cuda_nvcc"
        if (folder / "bin" / "ptxas").exists():
            return folder
    return None


def environment() -> dict[str, str]:
    """Return the environment variables with which any machine can compile for GPUs."""
    folder = compiler_folder()
    assert folder is not None
    flags = (
        # Nothing can be timed without a GPU.
        "--xla_gpu_autotune_level=0",
        f"--xla_gpu_cuda_data_dir={folder}",
        "--xla_gpu_collect_cost_model_stats=true",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_enable_analytical_sol_latency_estimator=true",
    )
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "XLA_FLAGS": " ".join((os.environ.get("XLA_FLAGS", ""), *flags)).strip(),
    }


# An entry of the compiler's costs of an operation.
_COST = re.compile(
    r'"exec_time_us":(?P<time>[\d.e+-]+),"compute_time_us":(?P<compute>[\d.e+-]+),'
    r'"memory_access_time_us":(?P<memory>[\d.e+-]+),"name":"(?P<model>[^"]*)"'
)


def microseconds(attributes: str, *, product: bool) -> float | None:
    """Return the compiler's estimate of the time of an operation; None: it makes none.

    The speed-of-light model ('sol') counts where there is one. For products all models assume the
    tiling that the compiler takes when it cannot time any, some thirty times slower than a tuned
    one. Of products the arithmetic of the product model and the memory accesses of the general
    model count, whichever takes longer.

    Args:
      attributes: of the operation, as text.
      product: whether the operation contains a matrix product.
    """
    found = re.search(r'"reification_cost":\[(.*?)\]', attributes)
    costs = {cost["model"]: cost for cost in _COST.finditer(found[1] if found else "")}
    if product:
        tensor_cores, general = costs.get("experimental-gemm-cost-model"), costs.get("")
        if tensor_cores is None or general is None:
            return None
        return max(float(tensor_cores["compute"]), float(general["memory"]))
    chosen = costs.get("sol") or costs.get("")
    return float(chosen["time"]) if chosen else None
