"""The label pass and evaluation: class logits, features or log-probabilities of documents.

If the model fits on one device, `jax.pmap` runs one batch on each device, and each of several
processes computes documents of its own. A larger model runs as a sharded jit program on the
training mesh. Shapes in names: R rows, L slots, m documents of a batch, K texts per document, D
width, N documents, B documents of the batches of one dispatch, C classes, J layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from w2s_jax import sharding
from w2s_jax.core import processes, watchdog
from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import heads
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.config import ModelConfig
from w2s_jax.training.batches import Microbatch
from w2s_jax.training.forward import (
    class_features,
    class_logits,
    layer_features,
    text_log_probabilities,
)
from w2s_jax.training.sequences import target_counts, target_tokens

Array = jax.Array
#: Whether a pass returns the inputs of a class head, or those of each layer; see `label_pass`.
Features = bool | Literal["layers"]
#: Largest number of documents per device and dispatch; on CPUs, larger batches leave the cache.
CPU_BATCH_SIZE, BATCH_SIZE = 64, 1_024
#: Largest mean number of tokens per device and dispatch (but at least one document).
BATCH_TOKENS = 16_384
#: Largest mean number of logits of target tokens per device and dispatch, of completions.
BATCH_LOGITS = 2**26


@functools.lru_cache(maxsize=64)
def label_pass(
    model: ModelConfig, compute_dtype: str, features: Features, completions: bool = False
) -> Callable[..., Array]:
    """Return the function (parameters, batch) -> class logits, float32 [m, C].

    With `features` it returns the inputs of a class head instead, float32 [m, K, D], or, if it is
    'layers', those that each layer would give, float32 [m, J, K, D]. With `completions` it returns
    the summed log-probability of the target tokens of each text, float32 [m, K].
    """

    def run(params: Any, batch: Microbatch) -> Array:
        if completions:
            shape = batch.read_outs_mK.shape
            logp = text_log_probabilities(
                model, params, batch, shape[0] * shape[1], compute_dtype=compute_dtype
            )
            return logp.reshape(shape)
        if features:
            of = layer_features if features == "layers" else class_features
            return of(model, params, batch, compute_dtype=compute_dtype).astype(jnp.float32)
        return class_logits(model, params, batch, compute_dtype=compute_dtype)

    return run


@functools.lru_cache(maxsize=32)
def _programs(
    model: ModelConfig, compute_dtype: str, features: Features, completions: bool, mesh: Mesh | None
) -> tuple[Callable, Callable]:
    """Return `label_pass` compiled by (pmap over devices, jit).

    With a `mesh`, the second program replicates its result on it, so that each of several processes
    has it. None: there is one process.
    """
    run = label_pass(model, compute_dtype, features, completions)
    if mesh is None:
        return jax.pmap(run, in_axes=(None, 0)), jax.jit(run)
    pmapped = jax.pmap(run, in_axes=(None, 0), devices=jax.local_devices())
    return pmapped, jax.jit(run, out_shardings=sharding.replicated(mesh))


class Predictor:
    """Logits, features or log-probabilities of a fixed set of documents under changing parameters.

    The documents are packed and placed on the devices once, in groups of similar length. A call
    with parameters ({'backbone', 'head'}) returns class logits, float32 [N, C], in the order of the
    documents. Without a head, it returns with `features` the inputs of a class head, float32 [N, K,
    D] ([N, J, K, D] if it is 'layers', those that each layer would give), and with `completions`
    the summed log-probability of each text's target tokens, float32 [N, K] (see `sequences`). Of
    several processes, all must make and call it, and each gets all results.

    Args:
      model: the model.
      documents: the documents to predict.
      mesh: the mesh of a sharded model.
      compute_dtype: dtype of activations.
      batch_size: largest number of documents per device and dispatch (None: by the device).
      per_device: run a batch with all parameters on each device, instead of a sharded program.
      features: see above.
      completions: see above.
    """

    def __init__(
        self,
        model: ModelConfig,
        documents: TokenizedDocuments,
        mesh: Mesh,
        *,
        compute_dtype: str = "float32",
        batch_size: int | None = None,
        per_device: bool = True,
        features: Features = False,
        completions: bool = False,
    ):
        self.num_documents = len(documents)
        if batch_size is None:
            batch_size = CPU_BATCH_SIZE if jax.default_backend() == "cpu" else BATCH_SIZE
        several = processes.count() > 1
        # A single device needs no `pmap`.
        per_device = per_device and jax.device_count() > 1
        self.per_device, self.mesh = per_device, mesh
        self.pmapped, self.jitted = _programs(
            model, compute_dtype, features, completions, mesh if several else None
        )
        devices = jax.local_devices() if per_device else []
        local = Mesh(np.array(devices), ("device",)) if per_device else mesh
        self.params_sharding = NamedSharding(local, P())
        if per_device:
            rows = whole = NamedSharding(local, P("device"))
        else:
            rows, whole = sharding.rows(mesh, leading=0), sharding.replicated(mesh)
        preferences = row_preferences(model)
        attention_length = preferences["attention_length"]
        self.dispatches: list[tuple[np.ndarray, Microbatch]] = []
        self.slots = self.tokens = 0
        vocabulary = model.vocab_size if completions else None
        for group_N in packing.length_groups(documents, attention_length=attention_length):
            order_SB, batches = pack_group(
                documents,
                group_N,
                batch_size,
                count=jax.device_count() if per_device else 1,
                row_multiple=1 if per_device else sharding.row_shards(mesh),
                vocabulary=vocabulary,
                **preferences,
            )
            self.slots += batches.segment_ids_RL.size
            self.tokens += int(np.count_nonzero(batches.segment_ids_RL))
            # Of the batches of one dispatch, this process runs its own.
            step = jax.device_count() if per_device else 1
            own = jax.process_index() * len(devices)
            for s in range(0, len(order_SB), step):
                part: slice | int = slice(s + own, s + own + len(devices)) if per_device else s
                batch = jax.tree.map(lambda x, part=part: x[part], batches)
                placed = sharding.put(batch, batch.shardings(rows, whole))
                self.dispatches.append((order_SB[part].reshape(-1), placed))

    @property
    def real_token_share(self) -> float:
        """The share of the slots that hold a document's token."""
        return self.tokens / self.slots

    def __call__(self, params: Any) -> np.ndarray:
        """Return the logits, or features, of all documents under `params`."""
        run = self.pmapped if self.per_device else self.jitted
        if self.per_device:
            params = sharding.on_local_devices(params, self.params_sharding)
        # All batches are dispatched before the first result is fetched.
        with sharding.over(self.mesh):
            outputs = [(order, run(params, batch)) for order, batch in self.dispatches]
        # Without the axes of documents and devices: classes, or texts and width.
        shape = outputs[0][1].shape[2 if self.per_device else 1 :]
        if self.per_device and processes.count() > 1:
            outputs = _of_all_processes(outputs, shape)
        result = np.zeros((self.num_documents, *shape), np.float32)
        for number, (order, out) in enumerate(outputs):
            # The first one waits for the compiler.
            patience = watchdog.PATIENCE if number == 0 else 1.0
            watchdog.progress(f"label pass, batch {number} of {len(outputs)}", patience)
            result[order[order >= 0]] = jax.device_get(out).reshape(-1, *shape)[order >= 0]
        return result


def _of_all_processes(
    outputs: list[tuple[np.ndarray, Any]], shape: tuple[int, ...]
) -> list[tuple[np.ndarray, Any]]:
    """Gather the (documents, values) of all processes, which have equally many, into one pair."""
    from jax.experimental import multihost_utils

    order_B = np.concatenate([order for order, _ in outputs])
    values_B = np.concatenate([jax.device_get(out).reshape(-1, *shape) for _, out in outputs])
    order_PB, values_PB = multihost_utils.process_allgather((order_B, values_B))
    return [(order_PB.reshape(-1), values_PB.reshape(-1, *shape))]


def logits_of_features(params: Any, features_NKD: np.ndarray) -> np.ndarray:
    """Return class logits of features, float32 [N, C]; of `params` only the head is used."""
    return sharding.on_host(_head_logits(params["head"], features_NKD))


_head_logits = jax.jit(heads.class_logits)


def pack_group(
    documents: TokenizedDocuments,
    group_N: np.ndarray,
    batch_size: int,
    *,
    count: int,
    row_multiple: int,
    vocabulary: int | None = None,
    **preferences: Any,
) -> tuple[np.ndarray, Microbatch]:
    """Pack a group of documents into batches of one shape.

    Args:
      documents: all documents.
      group_N: row indices of the group's documents.
      batch_size: largest number of documents of a batch.
      count: the number of batches is a multiple of it.
      row_multiple: the number of rows of a batch is a multiple of it.
      vocabulary: number of logits of a target token; None: batches have no targets.
      **preferences: of rows; see `packing.pack`.

    Returns:
      Row indices of the documents of each batch, int32 [S, m], -1 for none; and the batches, as
      numpy arrays with a leading axis S.
    """
    lengths_N = documents.lengths_N[group_N]
    by_tokens = int(BATCH_TOKENS / lengths_N.mean())
    if vocabulary is not None:
        targets_N = target_counts(documents).sum(1)[group_N]
        by_tokens = min(by_tokens, int(BATCH_LOGITS / max(1, vocabulary * targets_N.mean())))
    # A few documents are spread over all devices rather than batched on the first ones.
    batch_size = max(1, min(batch_size, by_tokens, -(-len(group_N) // count)))
    order_SB = packing.evaluation_order(lengths_N, batch_size=batch_size)
    order_SB = np.where(order_SB >= 0, group_N[order_SB], packing.FILL)
    idle = -len(order_SB) % count
    order_SB = np.pad(order_SB, ((0, idle), (0, 0)), constant_values=packing.FILL)
    packed = packing.pack(
        documents,
        order_SB,
        row_multiple=row_multiple,
        max_shapes=1,
        **preferences,
    )
    (bucket,) = packed.buckets
    # Each batch is one microbatch.
    batches = Microbatch(
        bucket.tokens_SMRL[:, 0],
        bucket.segment_ids_SMRL[:, 0],
        bucket.slots_SMRQ[:, 0],
        bucket.read_outs_SMmK[:, 0],
        first_keys=bucket.first_keys,
    )
    if vocabulary is not None:
        targets = target_tokens(bucket, packed.documents_SB, by_text=True, with_rows=False)
        batches = dataclasses.replace(batches, targets=jax.tree.map(lambda x: x[:, 0], targets))
    return packed.documents_SB, batches


def probabilities(logits_NC: np.ndarray) -> np.ndarray:
    """Return softmax of class logits, float32 [N, C], computed in float64 on the host."""
    from scipy.special import softmax

    return softmax(logits_NC.astype(np.float64), axis=1).astype(np.float32)
