"""The accelerators' attention kernels, and the choice between them.

cuDNN's fused attention on NVIDIA GPUs and Splash attention on TPUs compute attention without
keeping the scores of all heads [R, H, L, L] in memory. Everything else uses XLA's operations.
Shapes in names: R rows, L slots, H heads, K key/value heads, E head size.
"""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from w2s_jax import sharding
from w2s_jax.core import errors

Array = jax.Array

#: Implementations of attention.
KERNELS = ("xla", "cudnn", "splash")

#: Shorter rows have few scores, and XLA's matmuls over all rows at once are faster.
LEAST_LENGTH = {"gpu": 256, "tpu": 512}

#: Slots per tile of a kernel; Splash attention pads rows to a multiple of it.
TILE = 128

_OF_BACKEND = {"gpu": "cudnn", "tpu": "splash"}
_DTYPES = {"cudnn": ("bfloat16", "float16"), "splash": ("bfloat16", "float32")}

# A user context is part of the jit cache key, so no program is reused across contexts.
_used = jax.make_user_context(default_value=None)


@dataclasses.dataclass(frozen=True)
class Case:
    """The properties that decide which kernel can compute attention.

    Attributes:
      dtype: dtype of queries, keys and values.
      rows, length, heads, kv_heads, head_size: global R, L, H, K and E.
      static_window: whether the window is known when the program is compiled.
      softcap: whether scores are capped.
      shards: numbers of shards of rows and of heads; None if unknown.
    """

    dtype: str
    rows: int
    length: int
    heads: int
    kv_heads: int
    head_size: int
    static_window: bool
    softcap: bool
    shards: tuple[int, int] | None


def refusal(kernel: str, case: Case) -> str | None:
    """Return why a kernel cannot compute a case; None if it can."""
    if kernel == "xla":
        return None
    if case.shards is None:
        return "several devices without a mesh"
    row_shards, head_shards = case.shards
    if case.rows % row_shards or case.heads % head_shards or case.kv_heads % head_shards:
        return (
            f"{case.rows} rows, {case.heads} heads and {case.kv_heads} key/value heads over "
            f"{row_shards} and {head_shards} devices"
        )
    if case.dtype not in _DTYPES[kernel]:
        return f"dtype {case.dtype}; allowed: {', '.join(_DTYPES[kernel])}"
    if kernel == "splash":
        return None if case.static_window else "a window that differs between layers"
    if case.softcap:
        return "a softcap"
    # Above 128 it depends on the GPU's generation; the gradient with a mask needs even lengths.
    if case.head_size > 128 or case.head_size % 8:
        return f"head size {case.head_size}; allowed: multiples of 8 up to 128"
    return f"rows of {case.length} slots; allowed: even lengths" if case.length % 2 else None


def choose(backend: str, case: Case) -> str:
    """Return the kernel for a case on a backend ('cpu', 'gpu', 'tpu', ...; see `backend_of`).

    'splash' on TPUs and 'cudnn' on NVIDIA GPUs, for rows of at least `LEAST_LENGTH` slots that the
    kernel supports (see `refusal`); 'xla' otherwise.
    """
    kernel = _OF_BACKEND.get(backend, "xla")
    if kernel == "xla" or case.length < LEAST_LENGTH[backend] or refusal(kernel, case):
        return "xla"
    return kernel


def row_length_multiple(backend: str) -> int:
    """Return the number whose multiples are row lengths without padding inside a kernel.

    Args:
      backend: as for `choose`.
    """
    return TILE if backend in _OF_BACKEND else 1


def backend_of(device: Any) -> str:
    """Return 'tpu', 'cpu', 'gpu' (NVIDIA since Ampere, with fused attention) or 'other_gpu'."""
    if device.platform != "gpu":
        return device.platform
    # A compiler without a GPU has the name of the device as its version.
    version = device.client.platform_version
    nvidia = "cuda" in version or "NVIDIA" in version
    return "gpu" if nvidia and float(device.compute_capability) >= 8 else "other_gpu"


def using(kernel: str) -> AbstractContextManager[None]:
    """Return a context in which all attention uses one of `KERNELS`; for tests and timing.

    A case that the kernel does not support is an error. On other backends than its own, a Pallas
    kernel is interpreted, which is slow.

    Raises:
      InputError: if the kernel is unknown.
    """
    if kernel not in KERNELS:
        raise errors.unknown("attention kernel", kernel, KERNELS)
    return _used(kernel)


def chosen(q_RLHE: Array, k_RLKE: Array, *, window: Array | int, softcap: float) -> str:
    """Return the kernel of `KERNELS` for these arrays where the caller runs.

    Raises:
      InputError: if the kernel of `using` does not support the arrays.
    """
    rows, length, heads, head_size = q_RLHE.shape
    case = Case(
        dtype=q_RLHE.dtype.name,
        rows=rows,
        length=length,
        heads=heads,
        kv_heads=k_RLKE.shape[2],
        head_size=head_size,
        static_window=not isinstance(window, Array),
        softcap=bool(softcap),
        shards=sharding.row_and_head_shards(),
    )
    if _used.value is None:
        return choose(backend_of(sharding.target_device()), case)
    if why := refusal(_used.value, case):
        raise errors.InputError(f"attention kernel {_used.value!r} does not support {why}")
    return _used.value


def run(
    kernel: str,
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    *,
    window: Array | int,
    scale: float | None,
    softcap: float,
    causal: bool,
) -> Array:
    """Compute `attention` by an accelerator's kernel, each device on its own rows and heads."""
    options: dict[str, Any] = {"window": window, "scale": scale, "causal": causal}
    compute: Callable[..., Array] = _cudnn
    if kernel == "splash":
        compute = _splash
        options |= {"softcap": softcap, "interpret": backend_of(sharding.target_device()) != "tpu"}
    local: Callable[..., Array] = functools.partial(compute, **options)
    if sharding.row_and_head_shards() != (1, 1):
        local = _on_each_device(local, sharding.current_mesh())
    return local(q_RLHE, k_RLKE, v_RLKE, segment_ids_RL)


def _on_each_device(local: Callable[..., Array], mesh: Any) -> Callable[..., Array]:
    split = P(sharding.BATCH_AXES, None, "tensor")
    in_specs = (split, split, split, P(sharding.BATCH_AXES))
    # Pallas kernels do not declare along which axes their results vary.
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False)


def within(segment_ids_RL: Array, window: Array | int) -> Array:
    """Return whether slot l may attend to slot m by segment and window, bool [R, L, L]."""
    same_RLL = segment_ids_RL[:, :, None] == segment_ids_RL[:, None, :]
    if not isinstance(window, Array) and not window:
        return same_RLL
    slot_L = jnp.arange(segment_ids_RL.shape[1], dtype=jnp.int32)
    return same_RLL & (slot_L[:, None] - slot_L[None, :] < window)[None]


def _cudnn(
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    *,
    window: Array | int,
    scale: float | None,
    causal: bool,
) -> Array:
    """cuDNN's fused attention; segments and window become one mask [R, 1, L, L] for all heads."""
    return jax.nn.dot_product_attention(
        q_RLHE,
        k_RLKE,
        v_RLKE,
        mask=within(segment_ids_RL, window)[:, None],
        is_causal=causal,
        scale=scale,
        implementation="cudnn",
    )


def _splash(
    q_RLHE: Array,
    k_RLKE: Array,
    v_RLKE: Array,
    segment_ids_RL: Array,
    *,
    window: int,
    scale: float | None,
    softcap: float,
    causal: bool,
    interpret: bool,
) -> Array:
    """Splash attention, which skips the tiles that the mask empties; segments mask the others.

    The queries are multiplied by the scale and rounded to their dtype.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, length, heads, size = q_RLHE.shape
    q_RLHE = (q_RLHE.astype(jnp.float32) * (size**-0.5 if scale is None else scale)).astype(
        q_RLHE.dtype
    )
    more = -length % TILE
    lanes = -size % (64 if size <= 64 else TILE)
    padding = ((0, 0), (0, more), (0, 0), (0, lanes))
    q_RHLE, k_RKLE, v_RKLE = (jnp.pad(x, padding).swapaxes(1, 2) for x in (q_RLHE, k_RLKE, v_RLKE))
    # No row has segment -1: added slots attend to each other only.
    segment_ids_RL = jnp.pad(segment_ids_RL, ((0, 0), (0, more)), constant_values=-1)
    square = (length + more, length + more)
    causal_or_full = splash.CausalMask if causal else splash.FullMask
    mask: splash.Mask = causal_or_full(square)
    if window:
        mask = splash.LocalMask(square, (window - 1, 0 if causal else None), offset=0)
    block = next(n for n in (4 * TILE, 2 * TILE, TILE) if square[0] % n == 0)
    blocks = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash.make_splash_mha_single_device(
        mask=splash.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )

    def row(q_HLE: Array, k_KLE: Array, v_KLE: Array, segment_ids_L: Array) -> Array:
        segments = splash.SegmentIds(segment_ids_L, segment_ids_L)
        return kernel(q_HLE, k_KLE, v_KLE, segment_ids=segments)

    out_RHLE = jax.vmap(row)(q_RHLE, k_RKLE, v_RKLE, segment_ids_RL)
    return out_RHLE.swapaxes(1, 2)[:, :length, :, :size]
