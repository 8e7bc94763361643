"""Compare the TPU compiler's estimates with the best possible time of known operations.

    python -m w2s_jax.perf.aot.calibration

Prints a Markdown table: for each generation, the share of the chip's peak rate at which the
compiler expects each operation to run. Shares beyond 1 would be errors of the clock.
"""

from collections.abc import Callable
from typing import Any

from w2s_jax.perf.aot import topology

_Operation = tuple[Callable[..., Any], list[tuple[tuple[int, ...], str]], str]

SLICES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")


def _operations() -> dict[str, _Operation]:
    """Return name -> (function, shapes and dtypes of its arguments, the rate that limits it)."""
    import jax
    import jax.numpy as jnp
    import optax

    def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + 1e-5) * scale + bias).astype(x.dtype)

    def adam(params: Any, grads: Any, mean: Any, square: Any) -> Any:
        state = optax.ScaleByAdamState(count=jnp.int32(3), mu=mean, nu=square)
        updates, state = optax.scale_by_adam().update(grads, state)
        return params - 1e-3 * updates, state.mu, state.nu

    tokens, width = 16384, 2048
    large: tuple[tuple[int, ...], str] = ((64 * 1024, 1024), "float32")
    return {
        "product, 16384 x 1024 x 4096": (
            lambda x, w: x @ w,
            [((tokens, 1024), "bfloat16"), ((1024, 4096), "bfloat16")],
            "peak",
        ),
        "product, 8192 x 8192 x 8192": (
            lambda x, w: x @ w,
            [((8192, 8192), "bfloat16"), ((8192, 8192), "bfloat16")],
            "peak",
        ),
        "product, 512 x 1280 x 5120": (
            lambda x, w: x @ w,
            [((512, 1280), "bfloat16"), ((1280, 5120), "bfloat16")],
            "peak",
        ),
        "LayerNorm, 16384 x 2048": (
            layer_norm,
            [((tokens, width), "bfloat16"), ((width,), "float32"), ((width,), "float32")],
            "memory",
        ),
        "Adam, 64 Mi parameters": (adam, [large] * 4, "memory"),
        "sum of two arrays, 64 Mi": (lambda x, y: x + y, [large] * 2, "memory"),
    }


def shares(slice_name: str) -> dict[str, float]:
    """Return, by operation, the best possible time as a share of the compiler's estimate."""
    import jax

    from w2s_jax.perf.aot import compiler, hlo
    from w2s_jax.perf.aot.clocks import TpuClock
    from w2s_jax.profiling import devices

    device = compiler.devices_of(topology.find(slice_name))[0]
    chip = devices.chip(device.device_kind)
    peak = devices.peak_flops(device.device_kind, "bfloat16")
    assert chip is not None and peak is not None
    clock = TpuClock(chip, peak, [(0, 0)], (1, 1))
    sharding = jax.sharding.SingleDeviceSharding(device)
    found = {}
    for name, (function, shapes, limit) in _operations().items():
        args = [jax.ShapeDtypeStruct(size, dtype, sharding=sharding) for size, dtype in shapes]
        donated = (0, 2, 3) if len(args) == 4 else ()
        lowered = jax.jit(function, donate_argnums=donated).lower(*args)
        text = lowered.compile().as_text()
        assert text is not None
        estimate = clock.estimate(hlo.parse(text))
        results = jax.tree.leaves(jax.eval_shape(function, *args))
        if limit == "peak":
            best = 2 * shapes[0][0][0] * shapes[0][0][1] * shapes[1][0][1] / peak
        else:
            best = sum(x.size * x.dtype.itemsize for x in (*args, *results)) / chip.memory
        found[name] = best / estimate.seconds
    return found


def main() -> int:
    """Print the table."""
    every = {name: shares(name) for name in SLICES}
    print(f"| best possible time / estimate | {' | '.join(n.partition(':')[0] for n in SLICES)} |")
    print("|---" * (len(SLICES) + 1) + "|")
    for operation in every[SLICES[0]]:
        row = " | ".join(f"{every[name][operation]:.2f}" for name in SLICES)
        print(f"| {operation} | {row} |")
    return 0


if __name__ == "__main__":
    topology.run_script(main, topology.find(SLICES[0]))
