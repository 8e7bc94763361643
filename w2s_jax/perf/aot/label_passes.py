"""Label passes and features: forward passes over batches of documents, as abstract programs."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import adapting, inference
from w2s_jax.models.attention import row_preferences
from w2s_jax.perf import workloads
from w2s_jax.perf.aot.abstract import Program, abstract, per_chip, section
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved
from w2s_jax.training import prediction


def label_passes(
    phase: Phase, resolved: Resolved, mesh: Mesh, memory: int, host: Sequence[Any]
) -> list[Program]:
    """Return the program of a phase's largest label batch, which takes most memory."""
    if phase.train.adapt == "probe" or PHASE_KINDS[phase.kind].forward == "none":
        return []
    features = PHASE_KINDS[phase.kind].forward == "features"
    columns = None if features else phase.head_columns
    params = adapting.abstract_params(phase.train, phase.model, mesh, columns)
    if not features:
        params = adapting.join(*adapting.split(phase.train, phase.model, params))
    # As `inference.fits_on_one_device` decides on each host.
    needed = inference.bytes_on_one_device(params, phase.train.compute_dtype)
    alone = needed <= memory / 2 and len(host) > 1
    data = resolved.roles[phase.role]
    names = [phase.inputs[s] for s in ("validation", "test") if s in phase.inputs]
    made = [
        _label_pass(phase, data.splits[split], group_N, params, mesh, host if alone else [])
        for split in dict.fromkeys((*names, *phase.label_splits))
        for group_N in packing.length_groups(
            data.splits[split],
            attention_length=row_preferences(phase.model)["attention_length"],
        )
    ]
    return [max(made, key=lambda program: program.slots)]


def _label_pass(
    phase: Phase,
    documents: TokenizedDocuments,
    group_N: np.ndarray,
    params: Any,
    mesh: Mesh,
    local: Sequence[Any],
) -> Program:
    """Return the program of one batch on each of the `local` devices, or on the mesh if none."""
    alone = bool(local)
    order_SB, batches = prediction.pack_group(
        documents,
        group_N,
        prediction.BATCH_SIZE,
        count=max(1, len(local)),
        row_multiple=1 if alone else sharding.row_shards(mesh),
        **row_preferences(phase.model),
    )
    forward = PHASE_KINDS[phase.kind].forward
    features = "layers" if phase.all_layers else forward == "features"
    run = prediction.label_pass(phase.model, phase.train.compute_dtype, features)
    rows, whole = sharding.rows(mesh, leading=0), sharding.replicated(mesh)
    if alone:
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((len(local), *x.shape[1:]), x.dtype), batches
        )
        plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        args = (plain, batch)
        function: Any = jax.pmap(run, in_axes=(None, 0), devices=local)
        on_chip = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(plain))
        of_batch = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)) // len(local)
    else:
        one = jax.tree.map(lambda x: x[0], batches)
        batch = abstract(one, one.shardings(rows, whole))
        args, function = (params, batch), jax.jit(run)
        on_chip, of_batch = per_chip(params), per_chip(batch)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), args)
    flops = workloads.model_flops(phase.model, phase.train, documents, labels=True)
    share = order_SB.shape[1] / len(documents)
    return Program(
        title=f"{phase.title}: {'features' if forward == 'features' else 'labels'}",
        sections=(section(phase),),
        trains=False,
        key=(phase.model, phase.train.compute_dtype, forward, str(shapes)),
        function=function,
        args=args,
        parts={"parameters": on_chip, "batches": of_batch},
        beside={},
        chips=1 if alone else mesh.devices.size,
        train=phase.train,
        model=phase.model,
        flops=share * flops,
        tokens=share * float(documents.lengths_N.sum()),
        slots=int(np.prod(batches.tokens_RL.shape[1:])),
        shape=(1, *batches.tokens_RL.shape[1:]),
    )
