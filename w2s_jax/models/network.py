"""Functions of a `ModelConfig`: parameters on a mesh, and the forward pass.

Shapes in names: R rows, L slots, Q selected slots, D width, V vocabulary.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import REMATS
from w2s_jax.core import errors
from w2s_jax.models.attention import segment_positions
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.convolution import ConvolutionalNetwork
from w2s_jax.models.decoder import Decoder
from w2s_jax.models.dropout import Dropout
from w2s_jax.models.encoder import Encoder
from w2s_jax.models.image_models import ImageConfig

log = logging.getLogger(__name__)

Array = jax.Array
Params = dict[str, Any]

#: The keys of stacked blocks in the parameters, in the order in which they run.
STACKS = ("blocks", "tail_blocks")

#: Unsplit parameters of at least this size are logged.
UNSPLIT_WARNING_SIZE = 1_000_000

# Folded into the key of adapters, so that they do not change the other parameters.
_ADAPTERS = 1


def _module(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    if isinstance(config, ImageConfig):
        return ConvolutionalNetwork(config, rngs)
    return Encoder(config, rngs) if config.bidirectional else Decoder(config, rngs)


@functools.lru_cache(maxsize=64)
def graphdef(config: ModelConfig) -> nnx.GraphDef:
    """Return the structure of a model, without creating arrays."""
    with nnx.use_eager_sharding(False):
        return nnx.split(nnx.eval_shape(lambda: _module(config, nnx.Rngs(0))))[0]


def scan_by_default(config: ModelConfig) -> bool:
    """Return whether to scan over layers: faster to compile, but slower to train on a CPU."""
    return sharding.target_device().platform != "cpu" or config.num_layers > 12


def forward(
    config: ModelConfig,
    params: Params,
    tokens_RL: Array,
    segment_ids_RL: Array | None = None,
    positions_RL: Array | None = None,
    *,
    slots_RQ: Array | None = None,
    dropout: Dropout | None = None,
    compute_dtype: Any = None,
    scan: bool | None = None,
    remat: str = "none",
    first_keys: tuple[int, ...] = (),
) -> Array:
    """Return the hidden states after the final norm.

    Args:
      config: the model.
      params: backbone parameters from `load`, `init_params` or `split_tail`.
      tokens_RL: integer token ids.
      segment_ids_RL: integers; documents packed into a row have the ids 1, 2, ..., padding has 0.
        None: each row is one document.
      positions_RL: integer positions within the document. None: derived from the segments.
      slots_RQ: integer indices of the slots of each row to return (None: all). The last block then
        computes queries, mixing and MLP only there.
      dropout: dropout of the embeddings and of the outputs of attention and MLP, as in GPT-2
        (None: no dropout).
      compute_dtype: dtype of activations and matmul inputs (None: that of the parameters).
      scan: whether to scan over layers instead of unrolling them (None: by backend and depth). Does
        not change the result.
      remat: what the backward pass recomputes: 'none' keeps all activations, 'block' recomputes
        each block, 'dots' recomputes everything except the outputs of projections.
      first_keys: the first slot that the queries of each chunk attend to in any row, if known at
        compile time (see `attention_cpu.attention`). Does not change the result.

    Returns:
      hidden_RLD, or hidden_RQD at `slots_RQ`, in `compute_dtype`.

    Raises:
      InputError: for an unknown `remat`.
    """
    hidden, _ = _run(
        config,
        params,
        tokens_RL,
        segment_ids_RL,
        positions_RL,
        slots_RQ=slots_RQ,
        dropout=dropout,
        compute_dtype=compute_dtype,
        scan=scan,
        remat=remat,
        first_keys=first_keys,
    )
    return hidden


def forward_with_taps(
    config: ModelConfig,
    params: Params,
    tokens_RL: Array,
    segment_ids_RL: Array | None = None,
    positions_RL: Array | None = None,
    *,
    tap: Callable[[Array], Array],
    **how: Any,
) -> tuple[Array, Array | None]:
    """Return hidden states as `forward` does, and a function of those of all other blocks.

    As in transformers' `hidden_states`, the output of a block before the last one is taken as it
    is; only the last one is followed by the final norm.

    Args:
      config: as for `forward`.
      params: as for `forward`.
      tokens_RL: as for `forward`.
      segment_ids_RL: as for `forward`.
      positions_RL: as for `forward`.
      tap: function of the output of a block, [R, L, D]; only its result is kept.
      **how: the other arguments of `forward`.

    Returns:
      The hidden states of `forward`, and the results of `tap` for the blocks 1, ...,
      `num_layers` - 1, stacked along a new first axis (None if there is one block).
    """
    hidden, taps = _run(config, params, tokens_RL, segment_ids_RL, positions_RL, tap=tap, **how)
    return hidden, jnp.concatenate(taps) if taps else None


def _run(
    config: ModelConfig,
    params: Params,
    tokens_RL: Array,
    segment_ids_RL: Array | None,
    positions_RL: Array | None,
    *,
    compute_dtype: Any = None,
    scan: bool | None = None,
    remat: str = "none",
    **how: Any,
) -> tuple[Array, list[Array]]:
    """Call the model with the arguments of `forward`, and those that are None filled in."""
    if remat not in REMATS:
        raise errors.unknown("remat", remat, REMATS)
    tokens_RL = jnp.asarray(tokens_RL)
    if segment_ids_RL is None:
        segment_ids_RL = jnp.ones(tokens_RL.shape, jnp.int32)
    segment_ids_RL = jnp.asarray(segment_ids_RL, jnp.int32)
    if positions_RL is None:
        positions_RL = segment_positions(segment_ids_RL)
    stacks = [params[name] for name in STACKS if name in params]
    rest = {name: value for name, value in params.items() if name not in STACKS}
    model = nnx.merge(graphdef(config), rest | {"blocks": stacks[0]})
    return model(
        tokens_RL.astype(jnp.int32),
        segment_ids_RL,
        positions_RL,
        tail=stacks[1:],
        compute_dtype=compute_dtype or params["embedding"].dtype,
        scan=scan_by_default(config) if scan is None else scan,
        remat=remat,
        **how,
    )


def unembedding(config: ModelConfig, params: Params) -> Array:
    """Return the kernel of the language-model head, [D, V].

    Raises:
      InputError: for an encoder, which has none.
    """
    if config.bidirectional:
        raise errors.InputError(
            f"{config.name}: is an encoder, which has no unembedding; use a decoder, or initialise "
            "the head with zeros"
        )
    return params["embedding"].T if config.tied_embeddings else params["unembedding"]


@functools.lru_cache(maxsize=64)
def abstract_params(config: ModelConfig, mesh: Mesh) -> Params:
    """Return shapes, dtypes and shardings of the parameters on `mesh`, by `sharding.RULES`.

    An axis that its mesh axis does not divide (50257 tokens over 2) is not split, which is logged
    for parameters of at least `UNSPLIT_WARNING_SIZE` numbers.
    """
    with nnx.use_eager_sharding(False):
        abstract = nnx.split(nnx.eval_shape(lambda: _module(config, nnx.Rngs(0))))[1]
    flat = {}
    for path, param in nnx.to_flat_state(abstract):
        shape, axes = param.shape, param.get_metadata("out_sharding")
        flat[path] = jax.ShapeDtypeStruct(
            shape, param.dtype, sharding=sharding.RULES.sharding(shape, axes, mesh)
        )
        problem = sharding.RULES.explain(shape, axes, mesh)
        if problem and math.prod(shape) >= UNSPLIT_WARNING_SIZE:
            log.warning("%s: %s: %s", config.name, ".".join(map(str, path)), problem)
    return traverse_util.unflatten_dict(flat)


def init_params(
    config: ModelConfig, seed: int, mesh: Mesh, keep: Callable[[str], bool] = lambda path: True
) -> Params:
    """Initialise float32 parameters directly in their shardings, with the same bits on any mesh.

    Args:
      config: the model. Adapters do not change the other parameters.
      seed: seed of the parameters.
      mesh: where to put the parameters.
      keep: selects parameters by flat path ('blocks.mlp.up.kernel'); others are not computed.
    """

    def kept(params: Params) -> Params:
        flat = traverse_util.flatten_dict(params, sep=".")
        return {path: value for path, value in flat.items() if keep(path)}

    def init(key: Array) -> Params:
        rngs = nnx.Rngs(params=key, lora=jax.random.fold_in(key, _ADAPTERS))
        return kept(nnx.to_pure_dict(nnx.split(_module(config, rngs))[1]))

    shardings = {path: a.sharding for path, a in kept(abstract_params(config, mesh)).items()}
    with nnx.use_eager_sharding(False):
        flat = jax.jit(init, out_shardings=shardings)(jax.random.key(seed))
    return traverse_util.unflatten_dict(flat, sep=".")


def split_tail(config: ModelConfig, params: Params, k: int) -> Params:
    """Separate the last `k` blocks, so that they can be trained alone.

    The gradient of `forward` with respect to 'tail_blocks' needs no backward pass through the
    blocks before them.

    Args:
      config: the model.
      params: its parameters, or those of `abstract_params`.
      k: number of blocks to separate.

    Returns:
      `params` with the first layers in 'blocks' (absent if `k` is all) and the last in
      'tail_blocks'.

    Raises:
      InputError: if the model does not have `k` layers.
    """
    n = config.num_layers
    if not 1 <= k <= n:
        raise errors.InputError(f"train.last_layers: {k}; allowed for {config.name}: 1 to {n}")
    parts = {"blocks": (0, n - k), "tail_blocks": (n - k, n)}
    stacks = {
        name: jax.tree.map(functools.partial(_layers, start=start, stop=stop), params["blocks"])
        for name, (start, stop) in parts.items()
        if stop > start
    }
    return {name: value for name, value in params.items() if name not in STACKS} | stacks


def _layers(stacked: Any, *, start: int, stop: int) -> Any:
    """Return some layers of a stacked parameter, with the same sharding."""
    if isinstance(stacked, jax.ShapeDtypeStruct):
        shape = (stop - start, *stacked.shape[1:])
        return jax.ShapeDtypeStruct(shape, stacked.dtype, sharding=stacked.sharding)
    return stacked[start:stop]


def join_tail(params: Params) -> Params:
    """Return parameters with all blocks in one stack: the inverse of `split_tail`."""
    stacks = [params[name] for name in STACKS if name in params]
    blocks = jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks)
    return {name: value for name, value in params.items() if name not in STACKS} | {
        "blocks": blocks
    }
