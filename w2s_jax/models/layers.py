"""Layers of decoders and encoders: projections, norms, attention, MLP.

Shapes in names: R rows, L slots, D width, H heads, K key/value heads, E head size, F MLP width.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from w2s_jax.models.attention import (
    Reach,
    at_slots,
    attention,
    attention_at,
    rotary,
)
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.matmul import contract

Array = jax.Array

#: Checkpoint name of the outputs of projections, for rematerialisation (see `blocks.run_blocks`).
PROJECTED = "projected"

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str, ...]) -> nnx.Param:
    """Return a normally distributed parameter whose axes are named for the sharding rules."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape), out_sharding=axes)


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over the last axis (the width, or a head), computed in float32."""

    def __init__(self, config: ModelConfig, axis: str = "embed"):
        self.config = config
        size = config.d_model if axis == "embed" else config.head_dim
        start = jnp.zeros(size) if config.unit_offset else jnp.ones(size)
        self.scale = nnx.Param(start, out_sharding=(axis,))
        if config.norm == "layernorm":
            self.bias = nnx.Param(jnp.zeros(size), out_sharding=(axis,))

    @jax.named_scope("norm")
    def __call__(self, x_RLD: Array) -> Array:
        # With one axis of rows, the gradients of scale and bias are sums over a single axis; sums
        # over two axes are slow on CPUs.
        x = x_RLD.reshape(-1, x_RLD.shape[-1]).astype(jnp.float32)
        if self.config.norm == "layernorm":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(variance + self.config.norm_epsilon)
        scale = self.scale[...].astype(jnp.float32)
        x = x * (1 + scale if self.config.unit_offset else scale)[None]
        if self.config.norm == "layernorm":
            x = x + self.bias[...][None]
        return x.astype(x_RLD.dtype).reshape(x_RLD.shape)


class Projection(nnx.Module):
    """A kernel applied by an einsum, with an optional bias and an optional low-rank adapter.

    y = x W + (alpha / rank) (x A) B + bias (Hu et al. 2022, section 4.1). A B is never computed, as
    it and its gradient would have the size of W. A is initialised as in PEFT, uniformly within
    1 / sqrt(inputs), and B with zeros, so that a fresh adapter changes nothing.
    """

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        name: str,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        *,
        std: float,
        bias_axes: int,
    ):
        self.equation = equation
        self.kernel = normal(rngs, shape, std, axes)
        self.has_bias = bias_axes > 0
        if self.has_bias:
            self.bias = nnx.Param(jnp.zeros(shape[-bias_axes:]), out_sharding=axes[-bias_axes:])
        self.has_adapter = config.lora_rank > 0 and name in config.lora_targets
        if self.has_adapter:
            rank, self.lora_scale = config.lora_rank, config.lora_alpha / config.lora_rank
            x_axes, kernel_axes, out_axes = equation.replace("->", ",").split(",")
            rows, inputs = x_axes[:2], x_axes[2:]
            self.down = f"{x_axes},{inputs}a->{rows}a"
            self.up = f"{rows}a,a{kernel_axes[len(inputs) :]}->{out_axes}"
            into, outof = shape[: len(inputs)], shape[len(inputs) :]
            bound = math.prod(into) ** -0.5
            # A separate stream, so that kernels are the same with and without adapters.
            start = jax.random.uniform(rngs.lora(), (*into, rank), minval=-bound, maxval=bound)
            self.lora_a = nnx.Param(start, out_sharding=(*axes[: len(inputs)], "lora"))
            self.lora_b = nnx.Param(
                jnp.zeros((rank, *outof)), out_sharding=("lora", *axes[len(inputs) :])
            )

    @jax.named_scope("projection")
    def __call__(self, x: Array) -> Array:
        bias = self.bias[...] if self.has_bias else None
        out = contract(self.equation, x, self.kernel[...], bias)
        if self.has_adapter:
            low = checkpoint_name(contract(self.down, x, self.lora_a[...]), PROJECTED)
            out = out + contract(self.up, self.lora_scale * low, self.lora_b[...])
        return checkpoint_name(out, PROJECTED)


class Attention(nnx.Module):
    """Self-attention with its projections."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        d, heads, kv, size = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        std, bias = config.init_std, 2 * config.qkv_bias

        def inward(name: str, count: int, axis: str) -> Projection:
            shape, axes = (d, count, size), ("embed", axis, "head_dim")
            return Projection(
                config, rngs, name, "rld,dhe->rlhe", shape, axes, std=std, bias_axes=bias
            )

        self.query = inward("attention.query", heads, "heads")
        self.key = inward("attention.key", kv, "kv_heads")
        self.value = inward("attention.value", kv, "kv_heads")
        self.out = Projection(
            config,
            rngs,
            "attention.out",
            "rlhe,hed->rld",
            (heads, size, d),
            ("heads", "head_dim", "embed"),
            std=std / (2 * config.num_layers) ** 0.5,
            bias_axes=int(config.out_bias),
        )

        self.query_norm = Norm(config, "head_dim") if config.qk_norm else None
        self.key_norm = Norm(config, "head_dim") if config.qk_norm else None

    def __call__(
        self,
        x_RLD: Array,
        segment_ids_RL: Array,
        positions_RL: Array,
        reach: Reach,
        slots_RQ: Array | None = None,
    ) -> Array:
        """Return the projected attention output at all slots, or at `slots_RQ`."""
        projected = self.project(x_RLD, positions_RL, reach, slots_RQ)
        return self.mix(*projected, segment_ids_RL, reach, slots_RQ)

    def project(
        self,
        x_RLD: Array,
        positions_RL: Array,
        reach: Reach,
        slots_RQ: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Return queries (at all slots or at `slots_RQ`), keys and values, after rotation."""
        q_RLHE = self.query(x_RLD if slots_RQ is None else at_slots(x_RLD, slots_RQ))
        k_RLKE, v_RLKE = self.key(x_RLD), self.value(x_RLD)
        if self.query_norm is not None and self.key_norm is not None:
            q_RLHE, k_RLKE = self.query_norm(q_RLHE), self.key_norm(k_RLKE)
        if reach.frequency_E is not None:
            asked = positions_RL if slots_RQ is None else at_slots(positions_RL, slots_RQ)
            q_RLHE = rotary(q_RLHE, asked, reach.frequency_E)
            k_RLKE = rotary(k_RLKE, positions_RL, reach.frequency_E)
        return q_RLHE, k_RLKE, v_RLKE

    def mix(
        self,
        q_RLHE: Array,
        k_RLKE: Array,
        v_RLKE: Array,
        segment_ids_RL: Array,
        reach: Reach,
        slots_RQ: Array | None = None,
    ) -> Array:
        """Return the projected attention output of the queries, given what `project` returns."""
        mix = functools.partial(attention, first_keys=reach.first_keys)
        if slots_RQ is not None:
            mix = functools.partial(attention_at, slots_RQ)
        mixed_RLHE = mix(
            q_RLHE,
            k_RLKE,
            v_RLKE,
            segment_ids_RL,
            window=reach.window,
            scale=self.scale,
            softcap=self.config.attention_softcap,
            causal=not self.config.bidirectional,
        )
        return self.out(mixed_RLHE)

    @property
    def scale(self) -> float | None:
        """The factor of the scores (None: 1 / sqrt(head_dim))."""
        return self.config.query_scalar**-0.5 if self.config.query_scalar else None


class MLP(nnx.Module):
    """The feed-forward part of a block, gated or not."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.activation = config.activation
        shape, axes, std = (config.d_model, config.d_mlp), ("embed", "mlp"), config.init_std

        def inward(name: str) -> Projection:
            bias = int(config.mlp_bias)
            return Projection(
                config, rngs, name, "rld,df->rlf", shape, axes, std=std, bias_axes=bias
            )

        self.up = inward("mlp.up")
        self.gate = inward("mlp.gate") if config.gated_mlp else None
        self.down = Projection(
            config,
            rngs,
            "mlp.down",
            "rlf,fd->rld",
            shape[::-1],
            axes[::-1],
            std=std / (2 * config.num_layers) ** 0.5,
            bias_axes=int(config.mlp_bias),
        )

    def __call__(self, x_RLD: Array) -> Array:
        with jax.named_scope("mlp"):
            up_RLF = self.up(x_RLD)
            if self.gate is None:
                return self.down(_activate(self.activation, up_RLF))
            return self.down(_activate(self.activation, self.gate(x_RLD)) * up_RLF)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activate(name: str, x: Array) -> Array:
    """Apply an activation in float32; the backward pass keeps only `x`."""
    return _ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)


def _activate_backward(name: str, x: Array, out: Array) -> tuple[Array]:
    # Without the barrier, the compiler would keep float32 intermediates of the forward pass.
    x = jax.lax.optimization_barrier(x)
    _, pull = jax.vjp(_ACTIVATIONS[name], x.astype(jnp.float32))
    return (pull(out.astype(jnp.float32))[0].astype(x.dtype),)


_activate.defvjp(lambda name, x: (_activate(name, x), x), _activate_backward)
