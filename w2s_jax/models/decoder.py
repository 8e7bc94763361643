"""The decoder: one NNX module for every decoder-only family, driven by `ModelConfig`.

Parameters are stacked by layer, whether the forward pass scans over layers or unrolls them.
Shapes in names: R rows, L slots, D width, H heads, K key/value heads, E head size, F MLP width,
V vocabulary, B read-outs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.models.config import ModelConfig

Array = jax.Array
Params = dict[str, Any]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def contract(equation: str, x: Array, kernel: Array) -> Array:
    """einsum in the dtype of `x`, accumulated in float32 (which the fast bfloat16 paths need)."""
    out = jnp.einsum(equation, x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return out.astype(x.dtype)


def segment_positions(segment_ids_RL: Array) -> Array:
    """Positions that restart at 0 with each segment of a row, int32 [R, L]."""
    slot_L = jnp.arange(segment_ids_RL.shape[1], dtype=jnp.int32)[None, :]
    before_RL = jnp.pad(segment_ids_RL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    start_RL = jnp.where(segment_ids_RL != before_RL, slot_L, 0)
    return slot_L - jax.lax.cummax(start_RL, axis=1)


def attention(q_RLHE: Array, k_RLKE: Array, v_RLKE: Array, segment_ids_RL: Array) -> Array:
    """Causal attention within segments, grouped queries allowed; [R, L, H, E] in q's dtype.

    Slot l sees slot m if m <= l and both lie in one segment. Padding (segment 0) sees only padding.
    """
    with jax.named_scope("attention"):
        same_RLL = segment_ids_RL[:, :, None] == segment_ids_RL[:, None, :]
        return jax.nn.dot_product_attention(
            q_RLHE, k_RLKE, v_RLKE, mask=same_RLL[:, None], is_causal=True
        )


def rotary(x_RLHE: Array, positions_RL: Array, theta: float, fraction: float) -> Array:
    """Rotates the leading `fraction` of each head's dimensions, in float32 (half-split form)."""
    size = int(x_RLHE.shape[-1] * fraction) // 2 * 2
    frequency_E = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle_RLE = positions_RL[..., None].astype(jnp.float32) * frequency_E[None, None, :]
    cos, sin = jnp.cos(angle_RLE)[:, :, None, :], jnp.sin(angle_RLE)[:, :, None, :]
    first, second, rest = jnp.split(x_RLHE.astype(jnp.float32), [size // 2, size], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x_RLHE.dtype)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str, ...]) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape), out_sharding=axes)


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.scale = nnx.Param(jnp.ones(config.d_model), out_sharding=("embed",))
        if config.norm == "layernorm":
            self.bias = nnx.Param(jnp.zeros(config.d_model), out_sharding=("embed",))

    def __call__(self, x_RLD: Array) -> Array:
        x = x_RLD.astype(jnp.float32)
        if self.config.norm == "layernorm":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(variance + self.config.norm_epsilon)
        x = x * _broadcast(self.scale[...], x.ndim)
        if self.config.norm == "layernorm":
            x = x + _broadcast(self.bias[...], x.ndim)
        return x.astype(x_RLD.dtype)


def _broadcast(x: Array, ndim: int) -> Array:
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


class Projection(nnx.Module):
    """A kernel applied by an einsum, with an optional bias."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        *,
        std: float,
        bias_axes: int,
    ):
        self.equation = equation
        self.kernel = _normal(rngs, shape, std, axes)
        self.has_bias = bias_axes > 0
        if self.has_bias:
            self.bias = nnx.Param(jnp.zeros(shape[-bias_axes:]), out_sharding=axes[-bias_axes:])

    def __call__(self, x: Array) -> Array:
        out = contract(self.equation, x, self.kernel[...])
        if not self.has_bias:
            return out
        return out + _broadcast(self.bias[...].astype(x.dtype), out.ndim)


class Attention(nnx.Module):
    """Self-attention with its projections."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        d, heads, kv, size = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        std, bias = config.init_std, 2 * config.qkv_bias

        def inward(count: int, axis: str) -> Projection:
            axes = ("embed", axis, "head_dim")
            return Projection(
                rngs, "rld,dhe->rlhe", (d, count, size), axes, std=std, bias_axes=bias
            )

        self.query = inward(heads, "heads")
        self.key = inward(kv, "kv_heads")
        self.value = inward(kv, "kv_heads")
        self.out = Projection(
            rngs,
            "rlhe,hed->rld",
            (heads, size, d),
            ("heads", "head_dim", "embed"),
            std=std / (2 * config.num_layers) ** 0.5,
            bias_axes=int(config.out_bias),
        )

    def __call__(self, x_RLD: Array, segment_ids_RL: Array, positions_RL: Array) -> Array:
        q_RLHE, k_RLKE, v_RLKE = self.query(x_RLD), self.key(x_RLD), self.value(x_RLD)
        if self.config.positions == "rope":
            turn = functools.partial(
                rotary,
                positions_RL=positions_RL,
                theta=self.config.rope_theta,
                fraction=self.config.rope_fraction,
            )
            q_RLHE, k_RLKE = turn(q_RLHE), turn(k_RLKE)
        return self.out(attention(q_RLHE, k_RLKE, v_RLKE, segment_ids_RL))


class MLP(nnx.Module):
    """The feed-forward part of a block, gated or not."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.activation = config.activation
        shape, axes, bias = (config.d_model, config.d_mlp), ("embed", "mlp"), int(config.mlp_bias)
        std = config.init_std
        self.up = Projection(rngs, "rld,df->rlf", shape, axes, std=std, bias_axes=bias)
        self.gate = (
            Projection(rngs, "rld,df->rlf", shape, axes, std=std, bias_axes=bias)
            if config.gated_mlp
            else None
        )
        out_std = std / (2 * config.num_layers) ** 0.5
        self.down = Projection(
            rngs, "rlf,fd->rld", shape[::-1], axes[::-1], std=out_std, bias_axes=bias
        )

    def __call__(self, x_RLD: Array) -> Array:
        with jax.named_scope("mlp"):
            activate = _ACTIVATIONS[self.activation]
            if self.gate is None:
                return self.down(activate(self.up(x_RLD)))
            return self.down(activate(self.gate(x_RLD)) * self.up(x_RLD))


class Block(nnx.Module):
    """Pre-norm attention and MLP, one after the other or side by side."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = Norm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = None if config.shared_norm else Norm(config)
        self.mlp = MLP(config, rngs)

    def __call__(self, x_RLD: Array, segment_ids_RL: Array, positions_RL: Array) -> Array:
        normed_RLD = self.attention_norm(x_RLD)
        attended_RLD = self.attention(normed_RLD, segment_ids_RL, positions_RL)
        after_RLD = x_RLD + attended_RLD
        if self.config.parallel_residual:
            if self.mlp_norm is not None:
                normed_RLD = self.mlp_norm(x_RLD)
            return after_RLD + self.mlp(normed_RLD)
        assert self.mlp_norm is not None
        return after_RLD + self.mlp(self.mlp_norm(after_RLD))


class Decoder(nnx.Module):
    """Embeddings, blocks (stacked by layer) and the final norm; heads stand in `heads`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        std, vocab, d = config.init_std, config.vocab_size, config.d_model
        self.embedding = _normal(rngs, (vocab, d), std, ("vocab", "embed"))
        if config.positions == "learned":
            self.position_embedding = _normal(
                rngs, (config.max_positions, d), std, ("positions", "embed")
            )

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(layer_rngs: nnx.Rngs) -> Block:
            return Block(config, layer_rngs)

        self.blocks = stack(rngs)
        self.final_norm = Norm(config)
        if not config.tied_embeddings:
            self.unembedding = _normal(rngs, (d, vocab), std, ("embed", "vocab"))

    def __call__(
        self,
        tokens_RL: Array,
        segment_ids_RL: Array,
        positions_RL: Array,
        *,
        compute_dtype: Any,
        scan: bool,
        remat: bool,
    ) -> Array:
        with jax.named_scope("embed"):
            x_RLD = self.embedding[...].astype(compute_dtype)[tokens_RL]
            if self.config.positions == "learned":
                x_RLD += self.position_embedding[...].astype(compute_dtype)[positions_RL]
        graphdef, stacked = nnx.split(self.blocks)

        def layer(x_RLD: Array, params: Any) -> Array:
            with jax.named_scope("block"):
                return nnx.merge(graphdef, params)(x_RLD, segment_ids_RL, positions_RL)

        if remat:
            layer = jax.checkpoint(layer)
        if scan:
            x_RLD, _ = jax.lax.scan(lambda x, p: (layer(x, p), None), x_RLD, stacked)
        else:
            for params in _unstack(stacked, self.config.num_layers):
                x_RLD = layer(x_RLD, params)
        with jax.named_scope("final_norm"):
            return self.final_norm(x_RLD)


def _unstack(stacked: Any, count: int) -> list[Any]:
    """The layers of stacked parameters; `lax.split`, whose gradient is one concatenation."""
    leaves, treedef = jax.tree.flatten(stacked)
    parts = [jax.lax.split(leaf, (1,) * count, axis=0) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [part[i][0] for part in parts]) for i in range(count)]


@functools.lru_cache(maxsize=64)
def _structure(config: ModelConfig) -> tuple[Any, Any]:
    """(graphdef, abstract state) of a decoder; no array is made."""
    with nnx.use_eager_sharding(False):
        return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))


def scan_by_default(config: ModelConfig) -> bool:
    """Scanning compiles faster; on CPU unrolled layers train faster, so few layers are unrolled."""
    return jax.default_backend() != "cpu" or config.num_layers > 12


def forward(
    config: ModelConfig,
    params: Params,
    tokens_RL: Array,
    segment_ids_RL: Array | None = None,
    positions_RL: Array | None = None,
    *,
    compute_dtype: Any = None,
    scan: bool | None = None,
    remat: bool = False,
) -> Array:
    """Hidden states after the final norm, [R, L, D].

    Args:
      config: the model.
      params: its parameters as `init_params` returns them.
      tokens_RL: integer token ids.
      segment_ids_RL: documents packed into a row have the ids 1, 2, ...; 0 is padding. None: each
        row is one document.
      positions_RL: position within the document; None: from the segments.
      compute_dtype: of activations and matmul inputs (None: the parameters').
      scan: scan over layers or unroll them (None: by backend and depth); the result is the same.
      remat: recompute each block in the backward pass instead of keeping its activations.

    Returns:
      hidden_RLD in `compute_dtype`.
    """
    tokens_RL = jnp.asarray(tokens_RL)
    if segment_ids_RL is None:
        segment_ids_RL = jnp.ones(tokens_RL.shape, jnp.int32)
    segment_ids_RL = jnp.asarray(segment_ids_RL, jnp.int32)
    if positions_RL is None:
        positions_RL = segment_positions(segment_ids_RL)
    graphdef, state = _structure(config)
    nnx.replace_by_pure_dict(state := jax.tree.map(lambda x: x, state), params)
    model = nnx.merge(graphdef, state)
    return model(
        tokens_RL.astype(jnp.int32),
        segment_ids_RL,
        positions_RL,
        compute_dtype=compute_dtype or params["embedding"].dtype,
        scan=scan_by_default(config) if scan is None else scan,
        remat=remat,
    )


def unembedding(config: ModelConfig, params: Params) -> Array:
    """The language-model head's kernel, [D, V]."""
    return params["embedding"].T if config.tied_embeddings else params["unembedding"]


@functools.lru_cache(maxsize=64)
def abstract_params(config: ModelConfig, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters on `mesh`."""
    with nnx.logical_axis_rules(sharding.RULES):
        _, abstract = nnx.get_abstract_model(lambda: Decoder(config, nnx.Rngs(0)), mesh)
    return nnx.to_pure_dict(abstract)


def init_params(config: ModelConfig, seed: int, mesh: Mesh) -> Params:
    """Fresh float32 parameters, made directly in their shardings; the same bits on any mesh."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_params(config, mesh))

    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.split(Decoder(config, nnx.Rngs(key)))[1])

    with jax.set_mesh(mesh), nnx.logical_axis_rules(sharding.RULES):
        return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))
