"""Prefill and decode: programs that complete a batch of prompts with a cache of keys and values.

Shapes in names: R rows, P slots of the prompt, S slots of the cache, T new tokens, D width, V
vocabulary, k most probable tokens.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from w2s_jax import sharding
from w2s_jax.models import cache as caches
from w2s_jax.models import heads, network, sampling
from w2s_jax.models.attention import Reach, reaches, segment_positions
from w2s_jax.models.cache import Cache
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.sampling import Choice, Chosen

Array = jax.Array

# What `forward` casts to the compute dtype; norms and biases are applied in float32.
_CAST = ("kernel", "lora_a", "lora_b", "embedding", "position_embedding", "unembedding")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What a batch's rows are about.

    Attributes:
      tokens_RP: int32 prompts, padded on the left.
      lengths_R: int32 tokens of each prompt, at least 1.
      ids_R2: uint32 halves of the ids, see `sampling.row_keys`.
      samples_R: int32 numbers of the samples.
      used_R: bool; other rows fill the batch.
    """

    tokens_RP: Any
    lengths_R: Any
    ids_R2: Any
    samples_R: Any
    used_R: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Knobs:
    """Numbers that need no program of their own.

    Attributes:
      seed: uint32.
      eos: int32 end token, or -1.
      temperature: float32.
      top_p: float32.
    """

    seed: Any
    eos: Any
    temperature: Any
    top_p: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Written:
    """What a batch's rows have written so far.

    Attributes:
      tokens_RT: int32 tokens, 0 from the end token on.
      lengths_R: int32 numbers of tokens, without the end token.
      ended_R: bool, whether a row needs no more tokens.
      logprobs_RT: float32, including that of the end token and 0 after it; or None.
      top_ids_RTk: int32, like `logprobs_RT`; or None.
      top_logprobs_RTk: float32, like `logprobs_RT`; or None.
    """

    tokens_RT: Array
    lengths_R: Array
    ended_R: Array
    logprobs_RT: Array | None
    top_ids_RTk: Array | None
    top_logprobs_RTk: Array | None


def arithmetic_dtype(compute_dtype: Any) -> Any:
    """Return the dtype in which the programs compute: on CPUs, float32 in place of bfloat16.

    XLA's CPU programs multiply bfloat16 numbers by converting them, here all weights for each
    token. So weights are rounded to bfloat16 but kept as float32, and activations are not rounded.
    """
    return jnp.dtype("float32" if sharding.target_device().platform == "cpu" else compute_dtype)


def prepare(config: ModelConfig, params: Any, compute_dtype: Any, scan: bool) -> Any:
    """Return parameters as the programs want them: cast, and layers stacked or apart.

    Doing it once, instead of in each batch or for each token, is what makes decoding fast. Keeps
    the parameters' shardings; what needs no cast is not copied, if layers are scanned.

    Args:
      config: the model.
      params: its parameters, on devices.
      compute_dtype: the dtype to which weights are rounded, before they are cast to the
        `arithmetic_dtype`.
      scan: whether the programs scan over layers.

    Returns:
      {'layers': a stack of all layers, or a tuple of stacks of one layer, 'rest': the others}.
    """
    program, given, _ = _preparation(config, params, compute_dtype, scan)
    return program(*given)


def abstract_prepared(config: ModelConfig, params: Any, compute_dtype: Any, scan: bool) -> Any:
    """Return the shapes and shardings of the result of `prepare`, given those of parameters."""
    program, given, where = _preparation(config, params, compute_dtype, scan)
    made = jax.eval_shape(program, *given)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), made, where
    )


def _preparation(config: ModelConfig, params: Any, compute_dtype: Any, scan: bool) -> Any:
    """Return the program of `prepare`, its arguments, and where it puts its result."""
    stacks = [params[name] for name in network.STACKS if name in params]
    rest = {name: value for name, value in params.items() if name not in network.STACKS}
    # Layers are not split over devices, so that a part of a stack is sharded like the whole.
    of_stack = jax.tree.map(lambda x: x.sharding, stacks[0])
    where = {
        "layers": of_stack if scan else (of_stack,) * config.num_layers,
        "rest": jax.tree.map(lambda x: x.sharding, rest),
    }
    leaves, treedef = jax.tree.flatten(where)
    dtypes = jnp.dtype(compute_dtype), arithmetic_dtype(compute_dtype)
    return _preparing(*dtypes, scan, treedef, tuple(leaves)), (stacks, rest), where


@functools.lru_cache(maxsize=32)
def _preparing(
    rounded: Any, dtype: Any, scan: bool, treedef: Any, shardings: tuple[Any, ...]
) -> Callable[[list[Any], Any], Any]:
    """Return the program of `prepare`, given the shardings of its result."""

    def cast_one(x: Array) -> Array:
        x = x.astype(dtype)
        if jnp.finfo(rounded).nmant >= jnp.finfo(dtype).nmant:
            return x
        # The compiler may drop a cast to a narrower dtype and back.
        return jax.lax.reduce_precision(x, jnp.finfo(rounded).nexp, jnp.finfo(rounded).nmant)

    def cast(tree: Any) -> Any:
        flat = traverse_util.flatten_dict(tree)
        return traverse_util.unflatten_dict(
            {path: cast_one(x) if path[-1] in _CAST else x for path, x in flat.items()}
        )

    def run(stacks: list[Any], rest: Any) -> Any:
        stacks = [cast(stack) for stack in stacks]
        if scan:
            layers = jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks)
        else:
            layers = tuple(
                jax.tree.map(lambda x, i=i: x[i : i + 1], stack)
                for stack in stacks
                for i in range(jax.tree.leaves(stack)[0].shape[0])
            )
        return {"layers": layers, "rest": cast(rest)}

    return jax.jit(run, out_shardings=jax.tree.unflatten(treedef, shardings))


def _model(config: ModelConfig, prepared: Any) -> tuple[Any, nnx.GraphDef]:
    """Return the model, whose blocks are not meant to be used, and the structure of a block."""
    layers = prepared["layers"]
    blocks = layers[0] if isinstance(layers, tuple) else layers
    model = nnx.merge(network.graphdef(config), prepared["rest"] | {"blocks": blocks})
    return model, nnx.split(model.blocks)[0]


def _at(stacked: Any, number: int) -> Any:
    return jax.tree.map(lambda x: x[number], stacked)


def prefill(
    config: ModelConfig, compute_dtype: Any, slots: int, prepared: Any, rows: Rows
) -> tuple[Any, Array]:
    """Run the model on the prompts.

    Args:
      config: the model.
      compute_dtype: the `arithmetic_dtype`, that of activations and cache.
      slots: S, slots of the cache.
      prepared: the result of `prepare`.
      rows: the batch.

    Returns:
      (the cache: one `Cache` or, like the layers, a tuple of them; logits after the last token of
      each prompt, float32 [R, V]).
    """
    model, graphdef = _model(config, prepared)
    layers, length = prepared["layers"], rows.tokens_RP.shape[1]
    slot_P = jnp.arange(length, dtype=jnp.int32)
    segments_RP = (slot_P[None] >= length - rows.lengths_R[:, None]).astype(jnp.int32)
    positions_RP = segment_positions(segments_RP)
    shared, varied = reaches(config, length)

    def layer(x_RPD: Array, params: Any, own: Reach | None, slots_R1: Array | None = None) -> Any:
        block, reach = nnx.merge(graphdef, params), own or shared
        normed_RPD = block.attention_norm(x_RPD)
        q, k, v = block.attention.project(normed_RPD, positions_RP, reach, slots_R1)
        attended = block.attention.mix(q, k, v, segments_RP, reach, slots_R1)
        if slots_R1 is not None:
            x_RPD, normed_RPD = x_RPD[:, -1:], normed_RPD[:, -1:]
        return sharding.split_rows(block.add(x_RPD, normed_RPD, attended)), (k, v)

    with jax.named_scope("prefill"):
        x_RPD = sharding.split_rows(model.embed(rows.tokens_RP, positions_RP, compute_dtype))
        cache: Any
        if isinstance(layers, tuple):
            cache, last_R1 = [], jnp.full_like(rows.lengths_R, length - 1)[:, None]
            for i, stacked in enumerate(layers):
                own, here = varied[i] if varied else None, last_R1 if i == len(layers) - 1 else None
                x_RPD, (k, v) = layer(x_RPD, _at(stacked, 0), own, here)
                cache.append(caches.of_prompt(k, v, slots))
            cache = tuple(cache)
        else:
            owns = jax.tree.map(lambda *x: jnp.stack(x), *varied) if varied else None
            x_RPD, (k, v) = jax.lax.scan(lambda x, xs: layer(x, *xs), x_RPD, (layers, owns))
            cache = caches.of_prompt(k, v, slots)
        hidden_R1D = model.finish(x_RPD[:, -1:])
        return cache, heads.language_model_logits(config, prepared["rest"], hidden_R1D)[:, 0]


def step(
    config: ModelConfig,
    compute_dtype: Any,
    prepared: Any,
    cache: Any,
    tokens_R: Array,
    first_R: Array,
    slot: Array,
) -> tuple[Any, Array]:
    """Run the model on one more token of each row.

    Args:
      config: the model.
      compute_dtype: dtype of activations and cache.
      prepared: the result of `prepare`.
      cache: keys and values of all tokens before.
      tokens_R: int32 the tokens.
      first_R: int32 the slot of each prompt's first token.
      slot: int32 scalar, the slot of the tokens.

    Returns:
      (the cache with the tokens, logits of the next ones, float32 [R, V]).
    """
    model, graphdef = _model(config, prepared)
    layers = prepared["layers"]
    positions_R1 = (slot - first_R)[:, None]
    whole = cache[0] if isinstance(cache, tuple) else cache
    shared, varied = reaches(config, whole.k_nRKSE.shape[-2])

    def layer(
        x_R1D: Array, own_cache: Cache, params: Any, own: Reach | None, number: Array | None
    ) -> tuple[Array, Cache]:
        block, reach = nnx.merge(graphdef, params), own or shared
        normed_R1D = block.attention_norm(x_R1D)
        q, k, v = block.attention.project(normed_R1D, positions_R1, reach)
        own_cache, k_RKSE, v_RKSE = caches.append(own_cache, number, slot, k[:, 0], v[:, 0])
        mixed_RHE = caches.attend(
            q[:, 0],
            k_RKSE,
            v_RKSE,
            first_R,
            slot,
            reach,
            scale=block.attention.scale,
            softcap=config.attention_softcap,
        )
        attended_R1D = block.attention.out(mixed_RHE[:, None])
        return sharding.split_rows(block.add(x_R1D, normed_R1D, attended_R1D)), own_cache

    with jax.named_scope("decode"):
        x_R1D = sharding.split_rows(model.embed(tokens_R[:, None], positions_R1, compute_dtype))
        if isinstance(layers, tuple):
            after = []
            for i, stacked in enumerate(layers):
                own = varied[i] if varied else None
                x_R1D, own_cache = layer(x_R1D, cache[i], _at(stacked, 0), own, None)
                after.append(own_cache)
            cache = tuple(after)
        else:
            owns = jax.tree.map(lambda *x: jnp.stack(x), *varied) if varied else None
            (x_R1D, cache), _ = jax.lax.scan(
                lambda carry, xs: (layer(carry[0], carry[1], *xs), None),
                (x_R1D, cache),
                (layers, owns, jnp.arange(config.num_layers, dtype=jnp.int32)),
            )
        hidden_R1D = model.finish(x_R1D)
        return cache, heads.language_model_logits(config, prepared["rest"], hidden_R1D)[:, 0]


def decode(
    config: ModelConfig,
    compute_dtype: Any,
    max_new_tokens: int,
    choice: Choice,
    prepared: Any,
    cache: Any,
    logits_RV: Array,
    rows: Rows,
    knobs: Knobs,
) -> tuple[Any, Written]:
    """Write tokens until all rows have ended or have `max_new_tokens`.

    Args:
      config: the model.
      compute_dtype: dtype of activations and cache.
      max_new_tokens: T, the end token included.
      choice: how tokens are chosen.
      prepared: the result of `prepare`.
      cache: the cache from `prefill`.
      logits_RV: the logits from `prefill`.
      rows: the batch.
      knobs: numbers.

    Returns:
      (the cache, so that a donated one is updated in place, and what was written).
    """
    num_rows, length = rows.tokens_RP.shape
    keys_R = sampling.row_keys(knobs.seed, rows.ids_R2, rows.samples_R)
    run = functools.partial(step, config, compute_dtype, prepared)

    def write(written: Written, logits_RV: Array, number: Array) -> tuple[Written, Array]:
        chosen = sampling.choose(choice, logits_RV, keys_R, number, knobs.temperature, knobs.top_p)
        return _write(written, chosen, number, knobs.eos)

    def goes_on(state: tuple[Any, Written, Array, Array]) -> Array:
        _, written, _, number = state
        return (number < max_new_tokens) & ~jnp.all(written.ended_R)

    def body(state: tuple[Any, Written, Array, Array]) -> tuple[Any, Written, Array, Array]:
        cache, written, tokens_R, number = state
        cache, logits_RV = run(cache, tokens_R, length - rows.lengths_R, length + number - 1)
        written, tokens_R = write(written, logits_RV, number)
        return cache, written, tokens_R, number + 1

    nothing = _nothing(choice, num_rows, max_new_tokens, ~rows.used_R)
    written, tokens_R = write(nothing, logits_RV, jnp.int32(0))
    state = jax.lax.while_loop(goes_on, body, (cache, written, tokens_R, jnp.int32(1)))
    return state[:2]


def _nothing(choice: Choice, num_rows: int, max_new_tokens: int, ended_R: Array) -> Written:
    """Return `Written` before the first token."""

    def empty(*more: int, dtype: Any = jnp.int32) -> Array:
        return jnp.zeros((num_rows, max_new_tokens, *more), dtype)

    k = choice.top_k
    return Written(
        empty(),
        jnp.zeros(num_rows, jnp.int32),
        ended_R,
        empty(dtype=jnp.float32) if choice.logprobs else None,
        empty(k) if k else None,
        empty(k, dtype=jnp.float32) if k else None,
    )


def _write(written: Written, chosen: Chosen, number: Array, eos: Array) -> tuple[Written, Array]:
    """Add the tokens of one step; also return those that the model reads next."""
    alive_R = ~written.ended_R
    ends_R = chosen.token_R == eos
    grows_R = alive_R & ~ends_R
    tokens_R = jnp.where(grows_R, chosen.token_R, 0)

    def put(all_RT: Array | None, new_R: Array | None) -> Array | None:
        if all_RT is None or new_R is None:
            return None
        alive = alive_R.reshape(-1, *(1,) * (new_R.ndim - 1))
        new_R = jnp.where(alive, new_R, jnp.zeros((), new_R.dtype))
        return jax.lax.dynamic_update_index_in_dim(all_RT, new_R, number, 1)

    after = Written(
        jax.lax.dynamic_update_index_in_dim(written.tokens_RT, tokens_R, number, 1),
        written.lengths_R + grows_R,
        written.ended_R | ends_R,
        put(written.logprobs_RT, chosen.logprob_R),
        put(written.top_ids_RTk, chosen.top_ids_Rk),
        put(written.top_logprobs_RTk, chosen.top_logprobs_Rk),
    )
    return after, tokens_R
