"""Generate text: completions of prompts in batches, with a cache of keys and values.

If the model fits on one device, `jax.pmap` runs one batch on each device, and each of several
processes completes prompts of its own. A larger model runs as a sharded jit program. Shapes in
names: N prompts, B rows of a batch, T new tokens, k most probable tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from w2s_jax import sharding
from w2s_jax.core import processes, watchdog
from w2s_jax.models import decoding, generation_plan, inference, network
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.decoding import Knobs, Written
from w2s_jax.models.generation_checks import as_ids, as_prompts, check_settings
from w2s_jax.models.generation_plan import BatchLimits, Dispatch
from w2s_jax.models.generation_programs import programs
from w2s_jax.models.sampling import Choice


@dataclass(frozen=True)
class Completions:
    """Completions of one batch.

    Attributes:
      rows_B: int64 index of each completion's prompt.
      sample_B: int32 number of the sample of that prompt.
      tokens_BT: int32 tokens, without the end token; 0 after the last one.
      lengths_B: int32 number of tokens.
      logprobs_BT1: float32 [B, T + 1] log-probabilities of the tokens under the model itself
        (temperature 1, all tokens). Where the end token was generated, its own is at index
        `lengths_B`; entries after that are 0.
      ended_B: bool, whether the end token was generated.
      top_ids_BTk: int32 [B, T, k], the k most probable tokens at each generated position, that of
        the end token included, the most probable first; of equally probable ones the lowest first;
        0 after that. None for `top_k=0`.
      top_logprobs_BTk: float32, their log-probabilities. None for `top_k=0`.
    """

    rows_B: np.ndarray
    sample_B: np.ndarray
    tokens_BT: np.ndarray
    lengths_B: np.ndarray
    logprobs_BT1: np.ndarray
    ended_B: np.ndarray
    top_ids_BTk: np.ndarray | None
    top_logprobs_BTk: np.ndarray | None

    def logprobs(self, row: int) -> np.ndarray:
        """Return the log-probabilities of a row's tokens, and of its end token if generated."""
        return self.logprobs_BT1[row, : self.lengths_B[row] + self.ended_B[row]]


class Generator:
    """Completes prompts in batches that are planned in advance.

    Random bits depend on the seed, a prompt's id, the sample's number and the token's number only.
    So in float32 completions are the same for any batch size, order of prompts, mesh and number of
    devices, except where the best two (perturbed) logits are equal up to rounding errors. Of equal
    logits, the token with the lowest id is chosen. Of several processes, all must make the same
    calls, and each gets all results.

    Args:
      config: the model, a decoder.
      mesh: the mesh of a sharded model.
      max_new_tokens: largest number of new tokens, the end token included.
      eos: the end token (None: all completions have `max_new_tokens`).
      temperature: divides the logits; 0: the most probable token.
      top_p: choose only among the smallest set of most probable tokens that has this probability.
      num_samples: completions of each prompt.
      seed: seed of the random bits, below 2**32.
      top_k: number of most probable tokens to record at each position (0: none).
      compute_dtype: dtype of weights, activations and cache; on CPUs, 'bfloat16' rounds weights
        only (see `decoding.arithmetic_dtype`).
      per_device: run a batch with all parameters on each device, instead of a sharded program.
      batch_size: largest number of rows per device (None: by the device and its memory).
      logprobs: whether to compute log-probabilities; else they are 0.

    Raises:
      InputError: for an encoder, or an argument outside of what is allowed.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        max_new_tokens: int,
        eos: int | None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        num_samples: int = 1,
        seed: int = 0,
        top_k: int = 0,
        compute_dtype: str = "float32",
        per_device: bool = True,
        batch_size: int | None = None,
        logprobs: bool = True,
    ):
        check_settings(
            config,
            max_new_tokens=max_new_tokens,
            eos=eos,
            temperature=temperature,
            top_p=top_p,
            num_samples=num_samples,
            seed=seed,
            top_k=top_k,
        )
        self.config, self.mesh, self.max_new_tokens = config, mesh, int(max_new_tokens)
        self.num_samples, self.compute_dtype = int(num_samples), str(jnp.dtype(compute_dtype))
        # A single device needs no `pmap`, and a part of the devices is a user's choice.
        self.per_device = per_device and mesh.size == jax.device_count() > 1
        self.choice = Choice(temperature == 0, top_p < 1, logprobs, int(top_k))
        with sharding.over(mesh):
            self._arithmetic = str(decoding.arithmetic_dtype(compute_dtype))
        self._prefill, self._decode = programs(
            config,
            self._arithmetic,
            self.max_new_tokens,
            self.choice,
            tuple(jax.local_devices()) if self.per_device else (),
            mesh if processes.count() > 1 and not self.per_device else None,
        )
        self._limits = self._batch_limits(batch_size)
        with sharding.over(mesh):
            self._multiple = row_preferences(config).get("length_multiple", 1)
            self._scan = network.scan_by_default(config)
        devices = jax.local_devices() if self.per_device else []
        local = Mesh(np.array(devices), ("device",)) if self.per_device else mesh
        self._whole = NamedSharding(local, P())
        split = P("device") if self.per_device else P(sharding.BATCH_AXES)
        self._split = NamedSharding(local, split)
        knobs = Knobs(
            np.uint32(seed),
            np.int32(-1 if eos is None else eos),
            np.float32(temperature),
            np.float32(top_p),
        )
        self._knobs = sharding.put(knobs, self._whole)

    def _batch_limits(self, batch_size: int | None) -> BatchLimits:
        if batch_size is None:
            cpu = jax.default_backend() == "cpu"
            batch_size = generation_plan.CPU_BATCH_SIZE if cpu else generation_plan.BATCH_SIZE
        limit = inference.memory_limit()
        bound = generation_plan.UNKNOWN_MEMORY
        if limit is not None:
            bound = int(limit * generation_plan.CACHE_SHARE)
        # Processes must make the same batches.
        bound = processes.first_says("bytes for the cache", bound)
        return generation_plan.batch_limits(
            self.config,
            batch_size=batch_size,
            cache_bytes=bound,
            greedy=self.choice.greedy,
            width=jnp.dtype(self._arithmetic).itemsize,
            tensor=1 if self.per_device else self.mesh.shape["tensor"],
            shards=jax.device_count() if self.per_device else sharding.row_shards(self.mesh),
        )

    def plan(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        ids: Sequence[int] | np.ndarray | None = None,
    ) -> list[Dispatch]:
        """Return the batches in which `batches` completes the prompts.

        They depend on the lengths and ids of the prompts, not on their order.

        Args:
          prompts: token ids.
          ids: uint64 [N] (None: positions).

        Raises:
          InputError: as for `generate`.
        """
        checked = as_prompts(self.config, prompts, self.max_new_tokens)
        return self._plan(checked, as_ids(ids, len(checked)))

    def _plan(self, prompts: list[np.ndarray], ids_N: np.ndarray) -> list[Dispatch]:
        return generation_plan.plan(
            [len(prompt) for prompt in prompts],
            ids_N,
            num_samples=self.num_samples,
            new_tokens=self.max_new_tokens,
            limits=self._limits,
            multiple=self._multiple,
        )

    def batches(
        self,
        params: Any,
        prompts: Sequence[Sequence[int] | np.ndarray],
        ids: Sequence[int] | np.ndarray | None = None,
        skip: set[int] | frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completions]]:
        """Yield (the number in `plan`, the completions) of each batch, as it is finished.

        Args:
          params: parameters of the backbone.
          prompts: token ids.
          ids: uint64 [N], on which random bits depend (None: positions).
          skip: numbers of batches that are not wanted.

        Raises:
          InputError: as for `generate`.
        """
        checked = as_prompts(self.config, prompts, self.max_new_tokens)
        ids_N = as_ids(ids, len(checked))
        planned = list(enumerate(self._plan(checked, ids_N)))
        wanted = [(number, dispatch) for number, dispatch in planned if number not in skip]
        if not wanted:
            return
        with sharding.over(self.mesh):
            prepared = decoding.prepare(
                self.config, self._placed(params), jnp.dtype(self.compute_dtype), self._scan
            )
        pending: tuple[int, Dispatch, Written] | None = None
        for number, dispatch in wanted:
            # The next batch is dispatched before the last one is fetched.
            started = number, dispatch, self._start(prepared, checked, ids_N, dispatch)
            if pending is not None:
                yield pending[0], self._fetched(*pending, len(planned))
            pending = started
        assert pending is not None
        yield pending[0], self._fetched(*pending, len(planned))

    def _placed(self, params: Any) -> Any:
        """Return the parameters where the programs want them."""
        if self.per_device:
            return sharding.on_local_devices(params, self._whole)
        mesh_devices = set(self.mesh.devices.flat)
        leaves = jax.tree.leaves(params)
        if all(isinstance(x, jax.Array) and x.sharding.device_set == mesh_devices for x in leaves):
            return params
        target = network.abstract_params(self.config, self.mesh)
        # Layers are not split over devices, so that a part of them is sharded like all.
        blocks = {name: target["blocks"] for name in network.STACKS if name in params}
        where = jax.tree.map(lambda x: x.sharding, target | blocks)
        return sharding.put(params, {name: where[name] for name in params})

    def _start(
        self, prepared: Any, prompts: list[np.ndarray], ids_N: np.ndarray, dispatch: Dispatch
    ) -> Written:
        """Dispatch a batch to the devices of this process."""
        rows = generation_plan.rows_of(prompts, ids_N, dispatch)
        if self.per_device:
            count, own = jax.local_device_count(), jax.process_index() * jax.local_device_count()
            rows = jax.tree.map(
                lambda x: x.reshape(jax.device_count(), -1, *x.shape[1:])[own : own + count], rows
            )
        rows = sharding.put(rows, self._split)
        with sharding.over(self.mesh):
            slots = dispatch.slots + self.max_new_tokens
            cache, logits_RV = self._prefill(slots, prepared, rows)
            return self._decode(prepared, cache, logits_RV, rows, self._knobs)[1]

    def _fetched(
        self, number: int, dispatch: Dispatch, written: Written, count: int
    ) -> Completions:
        """Wait for a batch; return the completions of all processes without those that fill it."""
        # The first one waits for the compiler.
        patience = watchdog.PATIENCE if number == 0 else 1.0
        watchdog.progress(f"generation, batch {number} of {count}", patience)
        host = jax.device_get(written)
        if self.per_device:
            if processes.count() > 1:
                from jax.experimental import multihost_utils

                host = multihost_utils.process_allgather(host, tiled=True)
            host = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), host)
        used_B = dispatch.rows_B != generation_plan.FILL
        host = jax.tree.map(lambda x: np.asarray(x)[used_B], host)
        logprobs_BT = host.logprobs_RT
        if logprobs_BT is None:
            logprobs_BT = np.zeros(host.tokens_RT.shape, np.float32)
        return Completions(
            dispatch.rows_B[used_B],
            dispatch.sample_B[used_B],
            host.tokens_RT,
            host.lengths_R,
            np.pad(logprobs_BT, ((0, 0), (0, 1))),
            host.ended_R,
            host.top_ids_RTk,
            host.top_logprobs_RTk,
        )


def generate(
    config: ModelConfig,
    params: Any,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    max_new_tokens: int,
    eos: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    num_samples: int = 1,
    seed: int = 0,
    ids: Sequence[int] | np.ndarray | None = None,
    mesh: Mesh | None = None,
    return_logprobs: bool = False,
) -> Any:
    """Complete prompts.

    Activations and cache have the dtype of the parameters; on CPUs, always float32.

    Args:
      config: the model, a decoder.
      params: parameters of its backbone, from `load` or `init_params`.
      prompts: token ids, at least one each.
      max_new_tokens: largest number of new tokens, the end token included.
      eos: the end token (None: all completions have `max_new_tokens`).
      temperature: divides the logits; 0: the most probable token.
      top_p: choose only among the smallest set of most probable tokens that has this probability,
        at the given temperature.
      num_samples: completions of each prompt.
      seed: seed of the random bits, below 2**32.
      ids: uint64 ids of the prompts, on which random bits depend (None: positions in the list).
      mesh: where a model runs that does not fit on one device (None: all devices).
      return_logprobs: whether to return log-probabilities.

    Returns:
      New token ids, without the end token: per prompt a list of samples, each a list. With
      `return_logprobs`, (tokens, logprobs): log-probabilities of the tokens under the model itself
      (temperature 1, all tokens), and as the last entry that of the end token, if generated.

    Raises:
      InputError: for an encoder, an empty prompt, a token outside of the vocabulary, a prompt that
        leaves no room for `max_new_tokens` within learned positions, or an argument outside of what
        is allowed.
    """
    compute_dtype = str(params["embedding"].dtype)
    generator = Generator(
        config,
        sharding.make_mesh() if mesh is None else mesh,
        max_new_tokens=max_new_tokens,
        eos=eos,
        temperature=temperature,
        top_p=top_p,
        num_samples=num_samples,
        seed=seed,
        compute_dtype=compute_dtype,
        per_device=inference.fits_on_one_device(params, compute_dtype),
        logprobs=return_logprobs,
    )
    tokens: list[list[list[int]]] = [[[] for _ in range(num_samples)] for _ in prompts]
    logprobs: list[list[list[float]]] = [[[] for _ in range(num_samples)] for _ in prompts]
    for _, batch in generator.batches(params, prompts, ids):
        for i, (row, sample) in enumerate(zip(batch.rows_B, batch.sample_B, strict=True)):
            tokens[row][sample] = batch.tokens_BT[i, : batch.lengths_B[i]].tolist()
            logprobs[row][sample] = batch.logprobs(i).tolist()
    return (tokens, logprobs) if return_logprobs else tokens
