"""Models as functions: parameters on a mesh, and the forward pass of any `ModelConfig`.

Shapes in names: R rows, L slots, D width, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from w2s_jax import errors, sharding
from w2s_jax.models.attention import segment_positions
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.decoder import Decoder
from w2s_jax.models.encoder import Encoder

Array = jax.Array
Params = dict[str, Any]


def _module(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    return Encoder(config, rngs) if config.bidirectional else Decoder(config, rngs)


@functools.lru_cache(maxsize=64)
def _structure(config: ModelConfig) -> tuple[Any, Any]:
    """(graphdef, abstract state) of a model; no array is made."""
    with nnx.use_eager_sharding(False):
        return nnx.split(nnx.eval_shape(lambda: _module(config, nnx.Rngs(0))))


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
    """The language-model head's kernel, [D, V].

    Raises:
      InputError: for an encoder, which has none.
    """
    if config.bidirectional:
        raise errors.InputError(
            f"{config.name}: an encoder, which has no unembedding; allowed: a decoder where there "
            "are next-token logits, and a class head that starts from zeros"
        )
    return params["embedding"].T if config.tied_embeddings else params["unembedding"]


@functools.lru_cache(maxsize=64)
def abstract_params(config: ModelConfig, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters on `mesh`.

    An axis that its mesh axis does not divide (50257 tokens over 2) is not split.
    """
    with nnx.logical_axis_rules(sharding.RULES):
        _, abstract = nnx.get_abstract_model(lambda: _module(config, nnx.Rngs(0)), mesh)
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            a.shape, a.dtype, sharding=sharding.fitted(a.shape, a.sharding)
        ),
        nnx.to_pure_dict(abstract),
    )


def init_params(config: ModelConfig, seed: int, mesh: Mesh) -> Params:
    """Fresh float32 parameters, made directly in their shardings; the same bits on any mesh."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_params(config, mesh))

    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.split(_module(config, nnx.Rngs(key)))[1])

    with jax.set_mesh(mesh), nnx.logical_axis_rules(sharding.RULES):
        return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))
