"""The label pass and evaluation: class logits, or features, of documents in a batched pass.

Where the model fits on one device, `jax.pmap` runs one batch on each device, and of several
processes each computes documents of its own; a larger one runs as a sharded jit program on the
training mesh. In names: R rows, L slots, m documents, K texts of a document, D width, N documents,
B documents of a batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from w2s_jax import sharding
from w2s_jax.config import TrainSettings
from w2s_jax.core import processes, watchdog
from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import heads
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.attention_cpu import FirstKeys
from w2s_jax.models.config import ModelConfig
from w2s_jax.training.objectives import microbatch_features, microbatch_logits
from w2s_jax.training.spec import StepSpec

Array = jax.Array
#: Documents a device and dispatch, at most. On CPUs larger batches only leave the caches.
CPU_BATCH_SIZE, BATCH_SIZE = 64, 1_024
BATCH_TOKENS = 16_384  # and so many tokens, or a single document


@functools.lru_cache(maxsize=32)
def _programs(
    model: ModelConfig, compute_dtype: str, features: bool, mesh: Mesh | None
) -> tuple[Callable, Callable]:
    """(pmap over devices, jit) of: parameters, one packed batch -> float32 [m, 2] or [m, K, D].

    `mesh`: on all of whose devices the second one leaves its result, so that each of several
    processes has it; None: of one process, wherever it is computed.
    """
    spec = StepSpec(model, TrainSettings(compute_dtype=compute_dtype), 1, None)

    def run(params: Any, micro: dict[str, Array]) -> Array:
        if features:
            return microbatch_features(spec, params, micro).astype(jnp.float32)
        return microbatch_logits(spec, params, micro)

    if mesh is None:
        return jax.pmap(run, in_axes=(None, 0)), jax.jit(run)
    pmapped = jax.pmap(run, in_axes=(None, 0), devices=jax.local_devices())
    return pmapped, jax.jit(run, out_shardings=sharding.replicated(mesh))


def fits_on_one_device(params: Any, compute_dtype: str) -> bool:
    """Whether each device may run a label pass by itself (True where its memory is unknown).

    It may if `bytes_on_one_device` is at most half of a device's memory: the rest is for what is
    computed, and for the train state that lies there during an evaluation.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    fits = limit is None or bytes_on_one_device(params, compute_dtype) <= limit / 2
    return processes.first_says("fits on one device", fits)


def bytes_on_one_device(params: Any, compute_dtype: str) -> int:
    """What whole parameters take of a device that runs a label pass by itself.

    Besides the parameters a copy in the compute dtype: they are cast before the loop over layers,
    and programs for TPUs take as much more where they have that dtype already.
    """
    width = jnp.dtype(compute_dtype).itemsize
    return sum(x.size * (x.dtype.itemsize + width) for x in jax.tree.leaves(params))


class Predictor:
    """Class logits, or features, of a fixed set of documents under changing parameters.

    The documents are packed and placed on the devices once, those of similar length together;
    calling it with parameters ({'backbone', 'head'}) returns float32 [N, 2] in the order of the
    documents; with `features` it returns what a class head would see, float32 [N, K, D], and needs
    no head.

    Args:
      model: the model.
      documents: what is to be predicted.
      mesh: of a sharded model.
      compute_dtype: of activations.
      batch_size: documents a device and dispatch, at most (None: by the devices).
      per_device: `pmap` over devices, each with all parameters, instead of a sharded program.
      features: see above.

    With several processes all make one and call it, and each gets all results.
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
        features: bool = False,
    ):
        self.num_documents = len(documents)
        if batch_size is None:
            batch_size = CPU_BATCH_SIZE if jax.default_backend() == "cpu" else BATCH_SIZE
        several = processes.count() > 1
        # One device needs no `pmap`.
        per_device = per_device and jax.device_count() > 1
        self.per_device, self.mesh = per_device, mesh
        self.pmapped, self.jitted = _programs(
            model, compute_dtype, features, mesh if several else None
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
        self.dispatches: list[tuple[np.ndarray, dict[str, Array]]] = []
        self.slots = self.tokens = 0
        for group_N in packing.length_groups(documents, attention_length=attention_length):
            order_SB, stack = packed_group(
                documents,
                group_N,
                batch_size,
                count=jax.device_count() if per_device else 1,
                row_multiple=1 if per_device else sharding.row_shards(mesh),
                **preferences,
            )
            self.slots += stack.segment_ids_SMRL.size
            self.tokens += int(np.count_nonzero(stack.segment_ids_SMRL))
            arrays = {
                "tokens_RL": (stack.tokens_SMRL, rows),
                "segment_ids_RL": (stack.segment_ids_SMRL, rows),
                "slots_RQ": (stack.slots_SMRQ, rows),
                "read_outs_mK": (stack.read_outs_SMmK, whole),
            }
            # Of the batches that run at once, those of this process.
            step = jax.device_count() if per_device else 1
            own = jax.process_index() * len(devices)
            for s in range(0, len(order_SB), step):
                part: slice | int = slice(s + own, s + own + len(devices)) if per_device else s
                placed = {
                    name: sharding.put(x[:, 0][part], place) for name, (x, place) in arrays.items()
                }
                if stack.first_keys:
                    placed["first_keys"] = FirstKeys(stack.first_keys)
                self.dispatches.append((order_SB[part].reshape(-1), placed))

    @property
    def real_token_share(self) -> float:
        """Share of the slots that hold a document's token."""
        return self.tokens / self.slots

    def __call__(self, params: Any) -> np.ndarray:
        run = self.pmapped if self.per_device else self.jitted
        if self.per_device:
            params = sharding.on_local_devices(params, self.params_sharding)
        # All batches are dispatched before the first result is fetched.
        with sharding.over(self.mesh):
            outputs = [(order, run(params, micro)) for order, micro in self.dispatches]
        # Behind the documents, and the devices: logits, or texts and width.
        shape = outputs[0][1].shape[2 if self.per_device else 1 :]
        if self.per_device and processes.count() > 1:
            outputs = _of_all_processes(outputs, shape)
        result = np.zeros((self.num_documents, *shape), np.float32)
        for number, (order, out) in enumerate(outputs):
            # The first comes after compiling.
            patience = watchdog.PATIENCE if number == 0 else 1.0
            watchdog.progress(f"label pass, batch {number} of {len(outputs)}", patience)
            result[order[order >= 0]] = jax.device_get(out).reshape(-1, *shape)[order >= 0]
        return result


def _of_all_processes(
    outputs: list[tuple[np.ndarray, Any]], shape: tuple[int, ...]
) -> list[tuple[np.ndarray, Any]]:
    """One (documents, values) with those of all processes, each of which has as many."""
    from jax.experimental import multihost_utils

    order_B = np.concatenate([order for order, _ in outputs])
    values_B = np.concatenate([jax.device_get(out).reshape(-1, *shape) for _, out in outputs])
    order_PB, values_PB = multihost_utils.process_allgather((order_B, values_B))
    return [(order_PB.reshape(-1), values_PB.reshape(-1, *shape))]


def logits_of_features(params: Any, features_NKD: np.ndarray) -> np.ndarray:
    """Class logits of a head on features, float32 [N, 2]; `params` needs no more than the head."""
    return sharding.on_host(_head_logits(params["head"], features_NKD))


_head_logits = jax.jit(heads.class_logits)


def packed_group(
    documents: TokenizedDocuments,
    group_N: np.ndarray,
    batch_size: int,
    *,
    count: int,
    row_multiple: int,
    **preferences: Any,
) -> tuple[np.ndarray, packing.Stack]:
    """Batches of one shape with the documents of a group; their number is a multiple of `count`."""
    lengths_N = documents.lengths_N[group_N]
    by_tokens = int(BATCH_TOKENS / lengths_N.mean())
    # Few documents are spread over all devices rather than batched on the first ones.
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
    (stack,) = packed.stacks
    return packed.documents_SB, stack


def probabilities(logits_NC: np.ndarray) -> np.ndarray:
    """Softmax of class logits, float32 [N, 2], computed in float64 on the host."""
    from scipy.special import softmax

    return softmax(logits_NC.astype(np.float64), axis=1).astype(np.float32)


def soft_labels(labels_N: np.ndarray) -> np.ndarray:
    """[P(label 0), P(label 1)] from ground truth or P(label 1), float32 [N, 2]."""
    labels_N = labels_N.astype(np.float32)
    return np.stack([1.0 - labels_N, labels_N], axis=1)
