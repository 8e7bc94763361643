"""Programs of generation tasks: prefill and decode, and the batches of completions to learn.

In names: N documents, K texts of a document, R rows, P slots of a prompt, U target tokens, k most
probable tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from w2s_jax import sharding
from w2s_jax.data.completions import completions_of, paired, prompts_only
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import adapting, budget, decoding, generation_plan, inference, network
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.decoding import Knobs, Rows
from w2s_jax.models.generation_plan import Dispatch
from w2s_jax.models.generation_programs import programs
from w2s_jax.models.sampling import Choice
from w2s_jax.perf.aot.abstract import Program, per_chip, section
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved
from w2s_jax.training.batches import Bucket, Microbatch, Preferences
from w2s_jax.training.sequences import target_counts

# --- training -------------------------------------------------------------------------------------


def completed(phase: Phase, documents: TokenizedDocuments) -> TokenizedDocuments:
    """Return a phase's training documents as it reads them, with their targets as completions.

    Next-token training reads the prompts alone, and a pair has the target twice.
    """
    if documents.prompt_lengths_P is None:
        return documents
    if phase.loss is None:
        return prompts_only(documents)
    if not phase.pairs:
        return documents
    assert phase.completion is not None
    targets = completions_of(documents)
    return paired(documents, targets, targets, phase.completion.end)


def preferences(phase: Phase, documents: TokenizedDocuments) -> Preferences | None:
    """Return zeros in place of the labels of pairs, whose shapes they have; None without pairs."""
    if not phase.pairs:
        return None
    count = len(documents)
    return Preferences(np.zeros(count, np.float32), np.zeros((count, 2), np.float32))


def distributions(documents: TokenizedDocuments, top_k: int) -> dict[str, Any]:
    """Return the shapes of the table that `sequences.distributions` makes."""
    shape = (int(target_counts(documents).sum()), top_k)
    return {
        "top_ids_Uk": jax.ShapeDtypeStruct(shape, jnp.int32),
        "top_logprobs_Uk": jax.ShapeDtypeStruct(shape, jnp.float32),
    }


def most_targets(buckets: Sequence[Bucket]) -> int:
    """Return the most targets of a row; 0 for batches that are not of completions."""
    microbatches = [bucket.batches.microbatches for bucket in buckets]
    return max(
        (
            micro.targets.slots_RQ.shape[-1]
            for micro in microbatches
            if isinstance(micro, Microbatch) and micro.targets is not None
        ),
        default=0,
    )


# --- completing prompts ---------------------------------------------------------------------------


def completing(
    phase: Phase, resolved: Resolved, mesh: Mesh, memory: int, host: Sequence[Any]
) -> list[Program]:
    """Return prefill and decode of the largest batch of completions that a phase computes.

    Args:
      phase: a phase of a generation task.
      resolved: the run.
      mesh: of the slice's devices.
      memory: bytes of memory of a chip.
      host: the devices of one host. Each runs batches of its own if the model fits on it.
    """
    data = resolved.roles[phase.role]
    names = [phase.inputs[s] for s in ("validation", "test") if s in phase.inputs]
    splits = tuple(dict.fromkeys((*names, *phase.label_splits)))
    if not splits:
        return []
    params = adapting.abstract_params(phase.train, phase.model, mesh, None)
    params = adapting.join(*adapting.split(phase.train, phase.model, params))["backbone"]
    # As `inference.fits_on_one_device` decides on each host.
    needed = inference.bytes_on_one_device(params, phase.train.compute_dtype)
    alone = needed <= memory / 2 and len(host) > 1
    batch = _Batch(phase, params, mesh, tuple(host) if alone else (), memory)
    planned = [
        (dispatch, phase.label_top_k if split in phase.label_splits else 0)
        for split in splits
        for dispatch in batch.plan(data.splits[split])
    ]
    dispatch, top_k = max(planned, key=lambda one: (batch.cache_slots(one[0]), one[1]))
    return batch.programs(dispatch, top_k)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """How a phase completes prompts.

    Attributes:
      phase: the phase.
      params: its abstract parameters, over the mesh.
      mesh: the mesh.
      devices: those of a host that run a batch each; () if the mesh runs a batch together.
      memory: bytes of memory of a chip.
    """

    phase: Phase
    params: Any
    mesh: Mesh
    devices: tuple[Any, ...]
    memory: int

    @property
    def new_tokens(self) -> int:
        assert self.phase.completion is not None
        return self.phase.completion.max_new_tokens

    @property
    def arithmetic(self) -> Any:
        """The dtype of weights, activations and cache on the mesh."""
        return decoding.arithmetic_dtype(self.phase.train.compute_dtype)

    @property
    def shards(self) -> int:
        """Shards of the rows of a batch, as in `models.Generator`."""
        return self.mesh.size if self.devices else sharding.row_shards(self.mesh)

    def plan(self, documents: TokenizedDocuments) -> list[Dispatch]:
        """Return the batches of the prompts of documents; greedy, as labels are."""
        assert documents.prompt_lengths_P is not None
        model = self.phase.model
        return generation_plan.plan(
            documents.prompt_lengths_P.tolist(),
            documents.ids_N,
            num_samples=1,
            new_tokens=self.new_tokens,
            limits=generation_plan.batch_limits(
                model,
                batch_size=generation_plan.BATCH_SIZE,
                cache_bytes=int(self.memory * generation_plan.CACHE_SHARE),
                greedy=True,
                width=self.arithmetic.itemsize,
                tensor=1 if self.devices else self.mesh.shape["tensor"],
                shards=self.shards,
            ),
            multiple=row_preferences(model).get("length_multiple", 1),
        )

    def cache_slots(self, dispatch: Dispatch) -> int:
        """Return the slots of the cache, of all rows."""
        return len(dispatch.rows_B) * (dispatch.slots + self.new_tokens)

    def programs(self, dispatch: Dispatch, top_k: int) -> list[Program]:
        """Return prefill and decode of a batch.

        Args:
          dispatch: the batch, on all devices.
          top_k: most probable tokens that are recorded with each token.
        """
        phase, model, dtype = self.phase, self.phase.model, str(self.arithmetic)
        choice = Choice(greedy=True, nucleus=False, logprobs=True, top_k=top_k)
        prefill, decode = programs(model, dtype, self.new_tokens, choice, self.devices)
        slots, num_rows = dispatch.slots + self.new_tokens, len(dispatch.rows_B)
        if self.devices:
            num_rows //= self.shards
        prepared, of_batch = self._arguments(num_rows, dispatch.slots)
        sizes = {name: _bytes(tree, self.mesh) for name, tree in of_batch.items()}
        # What prefill returns, and decode takes.
        carried = {name: sizes[name] for name in ("cache", "logits")}
        given = {"parameters": _bytes(prepared, self.mesh), "batches": sizes["rows"]}
        if self.devices:
            of_batch = {name: _stacked(tree, len(self.devices)) for name, tree in of_batch.items()}
        useful = num_rows if self.devices else int((dispatch.rows_B >= 0).sum())
        rows = of_batch["rows"]
        first = Program(
            title=f"{phase.title}: prefill",
            sections=(section(phase),),
            trains=False,
            key=self._key("prefill", choice, slots, rows),
            function=prefill,
            args=(slots, prepared, rows),
            parts=given,
            beside=self._beside(),
            chips=1 if self.devices else self.mesh.size,
            train=phase.train,
            model=model,
            flops=useful * self._prefill_flops(dispatch.slots),
            tokens=float(useful * dispatch.slots),
            slots=num_rows * dispatch.slots,
            shape=(1, num_rows, dispatch.slots),
            results=carried,
        )
        then = dataclasses.replace(
            first,
            title=f"{phase.title}: decode",
            key=self._key("decode", choice, slots, rows),
            function=decode,
            args=(prepared, of_batch["cache"], of_batch["logits"], rows, _knobs()),
            parts=given | carried,
            flops=useful * self._decode_flops(dispatch.slots),
            tokens=float(useful * self.new_tokens),
            slots=num_rows * slots,
            shape=(1, num_rows, slots),
            results={},
            new_tokens=self.new_tokens,
        )
        return [first, then]

    def _key(self, name: str, choice: Choice, slots: int, rows: Rows) -> Any:
        """Return a key that equal programs have."""
        train, shapes = self.phase.train, str(jax.tree.map(lambda x: x.shape, rows))
        dtypes = (train.param_dtype, train.compute_dtype)
        # Prefill does not choose tokens.
        return (name, self.phase.model, dtypes, slots, shapes, name == "decode" and choice)

    def _arguments(self, num_rows: int, length: int) -> tuple[Any, dict[str, Any]]:
        """Return abstract parameters, and 'cache', 'logits' and 'rows' of a batch.

        They have the shardings that they have on the mesh, or none.
        """
        model, dtype = self.phase.model, self.phase.train.compute_dtype
        scan = network.scan_by_default(model)
        prepared = decoding.abstract_prepared(model, self.params, dtype, scan)
        rows = _rows(num_rows, length)
        run = functools.partial(decoding.prefill, model, self.arithmetic, length + self.new_tokens)
        cache, logits_RV = jax.eval_shape(run, prepared, rows)
        of_batch = {"cache": cache, "logits": logits_RV, "rows": rows}
        if self.devices:
            return jax.tree.map(functools.partial(_array, None), prepared), of_batch
        axes = sharding.BATCH_AXES
        heads = None if model.num_kv_heads % self.mesh.shape["tensor"] else "tensor"
        # As `sharding.split_rows_and_heads` constrains the cache.
        stack = (None,) * (jax.tree.leaves(cache)[0].ndim - 4)
        specs = {"cache": P(*stack, axes, heads), "logits": P(axes), "rows": P(axes)}
        where = {name: NamedSharding(self.mesh, spec) for name, spec in specs.items()}
        return prepared, {
            name: jax.tree.map(functools.partial(_array, where[name]), tree)
            for name, tree in of_batch.items()
        }

    def _beside(self) -> dict[str, int]:
        """Return the bytes per chip of the phase's own parameters that the programs do not use.

        `decoding.prepare` casts weights to the compute dtype; without a cast it copies nothing. A
        device that runs a batch alone has a copy of parameters that the mesh has in parts.
        """
        cast = jnp.dtype(self.phase.train.param_dtype or "float32") != self.arithmetic
        split = self.mesh.size > self.mesh.shape["data"]
        if cast or (self.devices and split):
            return {"the phase's parameters": per_chip(self.params)}
        return {}

    def _prefill_flops(self, length: int) -> float:
        """Return the model FLOPs of a prompt; logits are those of its last token."""
        model = self.phase.model
        logits = 2.0 * model.d_model * model.vocab_size
        return length * budget.flops_per_token(model, length, last_only=True) + logits

    def _decode_flops(self, length: int) -> float:
        """Return the model FLOPs of a completion, whose first token costs nothing but its choice.

        Its tokens attend to `length + new_tokens / 2` slots on average, as those of a document of
        twice that length do.
        """
        seen = 2 * length + self.new_tokens
        per_token = budget.flops_per_token(self.phase.model, seen, logits=True)
        return (self.new_tokens - 1) * per_token


def _array(where: NamedSharding | None, x: Any) -> jax.ShapeDtypeStruct:
    """Return an abstract array with another sharding, or without one."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _stacked(tree: Any, count: int) -> Any:
    """Return abstract arrays with a leading axis of devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def _bytes(tree: Any, mesh: Mesh) -> int:
    """Return the bytes per chip of abstract arrays; those without sharding are whole."""
    whole = sharding.replicated(mesh)
    return per_chip(jax.tree.map(lambda x: _array(x.sharding or whole, x), tree))


def _rows(num_rows: int, slots: int) -> Rows:
    """Return the abstract rows of a batch, as `models.generation` makes them."""

    def array(dtype: Any, *more: int) -> Any:
        return jax.ShapeDtypeStruct((num_rows, *more), dtype)

    return Rows(
        array(jnp.int32, slots),
        array(jnp.int32),
        array(jnp.uint32, 2),
        array(jnp.int32),
        array(jnp.bool_),
    )


def _knobs() -> Knobs:
    """Return the abstract numbers of a decode program."""

    def number(dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((), dtype)

    return Knobs(*map(number, (jnp.uint32, jnp.int32, jnp.float32, jnp.float32)))
