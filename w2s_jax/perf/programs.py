"""The train step and the label pass of this package, run for benchmarks as a phase runs them."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import adapting, heads, network
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.inference import fits_on_one_device
from w2s_jax.perf.measuring import Record, Run
from w2s_jax.perf.workloads import Workload
from w2s_jax.training.batch_sources import ResidentBatches, compile_for, put_batches
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.prediction import Predictor
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import TrainState, init_state
from w2s_jax.training.vocabulary import occurring


@dataclass(frozen=True)
class Program:
    """A benchmark program that can be run repeatedly.

    Attributes:
      run: processes the documents once, and returns the seconds.
      params: the initial parameters, float32, on the host.
      order_SB: row indices of the documents of each batch; None for a label pass.
      facts: properties of its batches, for the record.
      outputs: results of the last run: loss and gradient norm of each step, or class logits.
    """

    run: Run
    params: Any
    order_SB: np.ndarray | None
    facts: Record
    outputs: list[np.ndarray]


def initial_params(workload: Workload, mesh: Mesh) -> Any:
    """Return the initial parameters, {'backbone', 'head'}: the workload's, or random ones.

    The head is random too: with a zero head, the first gradient of the backbone would be zero.
    """
    if workload.params is not None:
        return workload.params(mesh)
    head = random_head(workload.model, head_columns(workload.documents), mesh)
    return {"backbone": network.init_params(workload.model, 0, mesh), "head": head}


def head_columns(documents: TokenizedDocuments) -> int:
    """Return the columns of the class head of documents: one for each class, 1 for pairs."""
    if documents.num_texts > 1:
        return 1
    return 2 if documents.soft_NC is None else documents.soft_NC.shape[1]


def random_head(model: ModelConfig, columns: int, mesh: Mesh) -> Any:
    """Return a class head of small random numbers."""
    kernel = heads.abstract_class_head(model, mesh, columns)["kernel"]
    numbers = 0.02 * np.random.default_rng(0).standard_normal(kernel.shape)
    return {"kernel": jax.device_put(numbers.astype(np.float32), kernel.sharding)}


def packed_batches(workload: Workload, mesh: Mesh) -> packing.PackedBatches:
    """Return an epoch in training order, packed as a phase packs it."""
    train, documents = workload.train, workload.documents
    order_SB = packing.training_order(
        documents.ids_N,
        batch_size=train.batch_size,
        num_steps=packing.steps_per_epoch(len(documents), train.batch_size),
        seed=0,
    )
    return packing.pack(
        documents,
        order_SB,
        num_microbatches=train.batch_size // (train.microbatch_size or train.batch_size),
        row_multiple=sharding.row_shards(mesh),
        max_shapes=train.max_shapes,
        **row_preferences(workload.model),
    )


def put(workload: Workload, packed: packing.PackedBatches, mesh: Mesh) -> ResidentBatches:
    """Place the batches and their soft labels on the devices."""
    extras = spec_of(workload, len(packed.documents_SB)).extras
    return put_batches(packed, workload.documents.targets_NC, mesh, extras)


def fresh_state(workload: Workload, total_steps: int, trained: Any, mesh: Mesh) -> TrainState:
    """Return the state before the first step."""
    spec = spec_of(workload, total_steps)
    return init_state(
        trained,
        make_optimizer(workload.train),
        total_steps,
        mesh,
        average=workload.train.ema > 0,
        loss_state=spec.loss_state(workload.documents.targets_NC),
    )


def spec_of(workload: Workload, total_steps: int) -> StepSpec:
    """Return the specification of the workload's training step."""
    columns = head_columns(workload.documents)
    return StepSpec(workload.model, workload.train, total_steps, workload.loss, columns)


def training(
    workload: Workload,
    mesh: Mesh,
    pack: Callable[[Workload, Mesh], packing.PackedBatches] = packed_batches,
) -> Program:
    """Return training on the batches of an epoch, as the loop does it; the host waits at the end.

    Args:
      workload: the model, its training, and the documents.
      mesh: the mesh.
      pack: packs the batches; by default as a phase does.
    """
    params = initial_params(workload, mesh)
    on_host = jax.device_get(params)
    trained, frozen = adapting.split(workload.train, workload.model, params)
    vocabulary = occurring(workload.documents, workload.model, workload.train)
    if vocabulary is not None:
        trained = vocabulary.cut(trained)
        workload = dataclasses.replace(
            workload,
            model=vocabulary.config(workload.model),
            documents=vocabulary.documents(workload.documents),
        )
    packed = pack(workload, mesh)
    total_steps = len(packed.documents_SB)
    count = workload.steps or total_steps
    batches = put(workload, packed, mesh)
    program = compile_for(batches, spec_of(workload, total_steps), mesh, frozen)
    states = [fresh_state(workload, total_steps, trained, mesh)]
    outputs: list[np.ndarray] = []

    def run() -> float:
        # Only the step, which is the position in the data, is reset; parameters keep changing.
        first = jax.device_put(np.int32(0), sharding.replicated(mesh))
        state = dataclasses.replace(states.pop(), step=first)
        jax.block_until_ready(state)
        started = time.perf_counter()
        state = batches.advance(program, state, 0, count)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        states.append(state)
        outputs[:] = [jax.device_get(state.history)[:count, :2]]
        if int(jax.device_get(state.failed_step)) >= 0:
            raise RuntimeError("a loss or gradient was not finite: nothing was measured")
        return seconds

    sizes = np.array([bucket.tokens_SMRL[0].size for bucket in packed.buckets])
    order_SB = packed.documents_SB[:count]
    slots = int(sizes[packed.bucket_S[:count]].sum())
    facts = {
        "rows": packed.buckets[0].tokens_SMRL.shape[2],
        "row_lengths": [bucket.tokens_SMRL.shape[3] for bucket in packed.buckets],
        "padding_share": 1.0 - int(workload.documents.lengths_N[order_SB].sum()) / slots,
    }
    return Program(run, on_host, order_SB, facts, outputs)


def labelling(workload: Workload, mesh: Mesh) -> Program:
    """Return a label pass over all documents, with the logits on the host.

    The parameters are in the compute dtype, since there are no gradients.
    """
    model, dtype = workload.model, workload.train.compute_dtype
    params = initial_params(workload, mesh)
    on_host = jax.device_get(params)
    params = params | {"backbone": adapting.cast(params["backbone"], dtype)}
    predictor = Predictor(
        model,
        workload.documents,
        mesh,
        compute_dtype=dtype,
        per_device=fits_on_one_device(params, dtype),
    )
    outputs: list[np.ndarray] = []

    def run() -> float:
        jax.block_until_ready(params)
        started = time.perf_counter()
        logits_NC = predictor(params)
        seconds = time.perf_counter() - started
        outputs[:] = [logits_NC]
        if not np.isfinite(logits_NC).all():
            raise RuntimeError("logits were not finite: nothing was measured")
        return seconds

    shapes = [batch.tokens_RL.shape for _, batch in predictor.dispatches]
    facts = {
        "rows": shapes[0][-2],
        "row_lengths": sorted({shape[-1] for shape in shapes}),
        "padding_share": 1.0 - predictor.real_token_share,
    }
    return Program(run, on_host, None, facts, outputs)
