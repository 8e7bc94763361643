"""The accelerators' attention kernels, and which of them a shape gets.

cuDNN's fused attention on NVIDIA GPUs and Splash attention on TPUs: both compute attention without
keeping the scores of all heads [R, H, L, L] in memory. Everything else gets XLA's form.
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

#: How attention can be computed.
KERNELS = ("xla", "cudnn", "splash")

#: Rows shorter than this have few scores, and XLA's matmuls over all rows at once suit them.
LEAST_LENGTH = {"gpu": 256, "tpu": 512}

#: Slots that a kernel takes at a time; Splash attention pads rows to a multiple of it.
TILE = 128

_OF_BACKEND = {"gpu": "cudnn", "tpu": "splash"}
_DTYPES = {"cudnn": ("bfloat16", "float16"), "splash": ("bfloat16", "float32")}

# Belongs to the key of every compiled program, so that none is reused across contexts.
_used = jax.make_user_context(default_value=None)


@dataclasses.dataclass(frozen=True)
class Case:
    """What the choice of a kernel depends on.

    Attributes:
      dtype: of queries, keys and values.
      rows, length, heads, kv_heads, head_size: R, L, H, K and E, of all devices together.
      static_window: whether the window is known when the program is compiled.
      softcap: whether scores are capped.
      parts: into how many parts the devices split rows and heads; None: unknown.
    """

    dtype: str
    rows: int
    length: int
    heads: int
    kv_heads: int
    head_size: int
    static_window: bool
    softcap: bool
    parts: tuple[int, int] | None


def refusal(kernel: str, case: Case) -> str | None:
    """Why a kernel cannot compute a case; None if it can."""
    if kernel == "xla":
        return None
    if case.parts is None:
        return "several devices, and no mesh that says what each of them holds"
    row_parts, head_parts = case.parts
    if case.rows % row_parts or case.heads % head_parts or case.kv_heads % head_parts:
        return (
            f"{case.rows} rows, {case.heads} heads and {case.kv_heads} key/value heads over "
            f"{row_parts} and {head_parts} devices"
        )
    if case.dtype not in _DTYPES[kernel]:
        return f"dtype {case.dtype}; allowed: {', '.join(_DTYPES[kernel])}"
    if kernel == "splash":
        return None if case.static_window else "a window that differs between layers"
    if case.softcap:
        return "a softcap"
    # Above 128 the GPU's generation decides; the gradient with a mask wants pairs of slots.
    if case.head_size > 128 or case.head_size % 8:
        return f"head size {case.head_size}; allowed: multiples of 8 up to 128"
    return f"rows of {case.length} slots; allowed: even lengths" if case.length % 2 else None


def choose(backend: str, case: Case) -> str:
    """The kernel for a case on a backend ('cpu', 'gpu', 'tpu' or another, see `backend_of`).

    'splash' on TPUs and 'cudnn' on NVIDIA GPUs, for rows of `LEAST_LENGTH` slots or more that the
    kernel does not refuse (see `refusal`); 'xla' everywhere else.
    """
    kernel = _OF_BACKEND.get(backend, "xla")
    if kernel == "xla" or case.length < LEAST_LENGTH[backend] or refusal(kernel, case):
        return "xla"
    return kernel


def row_length_multiple(backend: str) -> int:
    """What the rows' number of slots should be a multiple of, so that kernels compute no padding.

    Args:
      backend: as for `choose`.
    """
    return TILE if backend in _OF_BACKEND else 1


def backend_of(device: Any) -> str:
    """'tpu', 'cpu', or 'gpu' for those that have cuDNN's fused attention: NVIDIA's since Ampere.

    Another GPU is called 'other_gpu'.
    """
    if device.platform != "gpu":
        return device.platform
    nvidia = "cuda" in device.client.platform_version
    return "gpu" if nvidia and float(device.compute_capability) >= 8 else "other_gpu"


def using(kernel: str) -> AbstractContextManager[None]:
    """Within this context all attention uses one of `KERNELS`, or is refused; for tests and timing.

    A Pallas kernel runs on a backend that is not its own too, interpreted and slow.

    Raises:
      InputError: for an unknown kernel.
    """
    if kernel not in KERNELS:
        raise errors.unknown("attention kernel", kernel, KERNELS)
    return _used(kernel)


def chosen(q_RLHE: Array, k_RLKE: Array, *, window: Array | int, softcap: float) -> str:
    """The kernel of `KERNELS` for these arrays, where the caller runs.

    Raises:
      InputError: if `using` demands one that refuses the arrays.
    """
    rows, length, heads, head_size = q_RLHE.shape
    device, parts = sharding.place()
    case = Case(
        dtype=q_RLHE.dtype.name,
        rows=rows,
        length=length,
        heads=heads,
        kv_heads=k_RLKE.shape[2],
        head_size=head_size,
        static_window=not isinstance(window, Array),
        softcap=bool(softcap),
        parts=parts,
    )
    if _used.value is None:
        return choose(backend_of(device), case)
    if why := refusal(_used.value, case):
        raise errors.InputError(f"attention kernel {_used.value!r}: it cannot take {why}")
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
    """`attention` by one of the accelerators' kernels, each device on its own rows and heads."""
    device, parts = sharding.place()
    options: dict[str, Any] = {"window": window, "scale": scale, "causal": causal}
    compute: Callable[..., Array] = _cudnn
    if kernel == "splash":
        compute = _splash
        options |= {"softcap": softcap, "interpret": backend_of(device) != "tpu"}
    local: Callable[..., Array] = functools.partial(compute, **options)
    if parts != (1, 1):
        local = _on_each_device(local, sharding.mesh_around())
    return local(q_RLHE, k_RLKE, v_RLKE, segment_ids_RL)


def _on_each_device(local: Callable[..., Array], mesh: Any) -> Callable[..., Array]:
    split = P(sharding.BATCH_AXES, None, "tensor")
    in_specs = (split, split, split, P(sharding.BATCH_AXES))
    # Pallas kernels do not say along which axes their results vary.
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False)


def within(segment_ids_RL: Array, window: Array | int) -> Array:
    """Whether slot l may see slot m by segment and window, as `attention` says: [R, L, L]."""
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
    """cuDNN's fused attention; segments and windows as a mask, one [R, 1, L, L] for all heads."""
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
    """Splash attention: tiles that the mask leaves empty are skipped, segments masked in the rest.

    The scale is multiplied into the queries, in their dtype.
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
    # A segment that no row has: added slots are seen by each other only.
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
