"""The programs of a run with abstract arguments, without an array on any device.

A program is identified by what it is compiled for: `StepSpec.program_key` or the model, and shapes.
In names: S steps, M microbatches, R rows, L slots, B documents per batch, N documents.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import PretrainSettings, TrainSettings
from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments, soft_labels
from w2s_jax.losses import LOSSES
from w2s_jax.models import adapting, budget, inference
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.config import ModelConfig
from w2s_jax.perf import workloads
from w2s_jax.perf.aot.inputs import is_synthetic
from w2s_jax.phases.inputs import num_microbatches, step_spec
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.plan import Plan
from w2s_jax.planning.resolve import Resolved
from w2s_jax.training import prediction
from w2s_jax.training.batches import (
    Batch,
    Bucket,
    Microbatch,
    bucket_shardings,
    feature_bucket,
    packed_buckets,
)
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.programs import programs
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import HISTORY, TrainState, float32, rounded_up, state_shardings
from w2s_jax.training.vocabulary import Vocabulary, occurring


@dataclass(frozen=True, eq=False)
class Program:
    """A program of a run.

    Attributes:
      title: titles of the phases that run it.
      sections: config sections of the training settings, as 'strong.train'; several if phases of
        several roles run it.
      trains: whether it is a train step; else it is a label pass.
      key: equal keys mean the same program.
      function, args: a jitted function and its abstract arguments, for `lower`.
      parts: bytes per chip of its arguments, by kind.
      beside: bytes per chip of other arrays that are on the chip while it runs, by kind.
      chips: number of chips that run it together.
      train: the training settings.
      model: the model, with its full vocabulary.
      flops: model FLOPs of a run (a step, or a batch), by formula.
      slots: slots of a batch, in all microbatches.
      shape: M, R and L of the largest batch.
      tokens: tokens of documents in a batch.
      trained: number of trained parameters per chip.
      loss: kind of the loss; None for language models.
      passes: forward passes of a run; more than one with remat or batch-coupled losses.
      evaluates: key of the label pass that runs while this program's arguments are on the chip.
    """

    title: str
    sections: tuple[str, ...]
    trains: bool
    key: Any
    function: Any
    args: tuple[Any, ...]
    parts: dict[str, int]
    beside: dict[str, int]
    chips: int
    train: TrainSettings
    model: ModelConfig
    flops: float
    tokens: float
    slots: int
    shape: tuple[int, int, int]
    trained: int = 0
    loss: str | None = None
    passes: int = 1
    evaluates: Any = None


def programs_of(
    plan: Plan, resolved: Resolved, mesh: Mesh, memory: int, host: Sequence[Any]
) -> tuple[list[Program], list[str]]:
    """Return the distinct programs of a plan's phases, and the titles of phases without one.

    Args:
      plan: of a run.
      resolved: the resolved config of the plan.
      mesh: of the slice's devices.
      memory: bytes of HBM of a chip.
      host: the devices of one host, as a slice of its own. Programs that each chip runs alone are
        compiled for these, since the compiler accepts no part of a larger slice.
    """
    found: dict[Any, Program] = {}
    left_out = []
    with sharding.over(mesh):
        for phase in plan.phases:
            if PHASE_KINDS[phase.kind].forward is None:
                left_out.append(phase.title)
                continue
            passes = _label_passes(phase, resolved, mesh, memory, host)
            _add(found, passes)
            if phase.total_steps:
                _add(found, [_training(phase, resolved, mesh, passes)])
    return list(found.values()), left_out


def _section(phase: Phase) -> str:
    """Return the config section of a phase's training settings."""
    role = "strong" if phase.role.startswith("middle") else phase.role
    return f"{role}.{'train' if phase.loss is not None or not phase.total_steps else 'pretrain'}"


def _add(found: dict[Any, Program], more: Iterable[Program]) -> None:
    """Add programs; a known program gets further titles, and the larger `beside`."""
    for program in more:
        known = found.get(program.key)
        if known is None:
            found[program.key] = program
            continue
        titles = dict.fromkeys([*known.title.split(", "), program.title])
        found[program.key] = dataclasses.replace(
            known,
            title=", ".join(titles),
            sections=tuple(dict.fromkeys([*known.sections, *program.sections])),
            beside=max(known.beside, program.beside, key=lambda parts: sum(parts.values())),
            evaluates=known.evaluates or program.evaluates,
        )


def per_chip(tree: Any) -> int:
    """Return the bytes of abstract arrays on each chip, by their shardings."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _numbers_per_chip(tree: Any) -> int:
    """Return the number of elements of abstract arrays on each chip."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) for x in jax.tree.leaves(tree)
    )


def _abstract(tree: Any, shardings: Any) -> Any:
    """Return the shapes and dtypes of arrays, with a tree of shardings that is a prefix of it."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(np.shape(x), np.result_type(x), sharding=s),
        tree,
        jax.tree.broadcast(shardings, tree),
    )


def _training(phase: Phase, resolved: Resolved, mesh: Mesh, passes: Sequence[Program]) -> Program:
    """Return the train program of a phase: a block of steps, or one step for streamed batches."""
    whole = sharding.replicated(mesh)
    buckets, documents, vocabulary = _batches(phase, resolved, mesh)
    spec = step_spec(phase, vocabulary)
    key = spec.program_key()
    state, frozen = _state(phase, spec, documents, mesh)
    if phase.train.adapt == "probe":
        assert documents is not None
        shape = (len(documents), documents.num_texts, phase.model.d_model)
        features = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
        frozen = frozen | {"features_NKD": features}
    hyperparameters = _abstract(spec.hyperparameters(), whole)
    rest: tuple[Any, ...]
    if documents is None:
        function, rest = programs(key, mesh).step, (buckets[0],)
    else:
        count = rounded_up(phase.total_steps)
        bucket_S = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=whole)
        stop = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        function, rest = programs(key, mesh).block, (buckets, bucket_S, stop)
    args = (hyperparameters, frozen, state, *rest)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), args)
    beside = {}
    trained = per_chip(state.params)
    if phase.select:
        beside["best parameters so far"] = trained
    if vocabulary is not None:
        full = adapting.abstract_trained(phase.train, phase.model, mesh, spec.num_texts)
        beside["embedding of all tokens"] = per_chip(full["backbone"]["embedding"])
    flops, tokens = _training_flops(phase, resolved)
    shape = max((_shape(bucket) for bucket in buckets), key=np.prod, default=(1, 1, 1))
    return Program(
        title=phase.title,
        sections=(_section(phase),),
        trains=True,
        key=(key, str(jax.tree.structure(args)), str(shapes)),
        function=function,
        args=args,
        parts={
            "parameters": trained + per_chip(frozen),
            "optimiser": per_chip(state.opt_state),
            "averages and loss state": per_chip((state.average, state.loss_state)),
            "batches": per_chip(buckets),
        },
        beside=beside,
        chips=mesh.devices.size,
        train=phase.train,
        model=phase.model,
        flops=flops,
        tokens=tokens,
        slots=int(np.prod(shape)),
        shape=shape,
        trained=_numbers_per_chip(state.params),
        loss=None if key.loss is None else key.loss[0],
        passes=1 + (phase.train.remat == "block") + _computes_twice(key, phase),
        evaluates=passes[0].key if phase.eval_every is not None and passes else None,
    )


def _computes_twice(key: StepSpec, phase: Phase) -> bool:
    """Return whether a first pass computes all logits (see `gradient.coupled_gradient`)."""
    if key.head_texts is None or num_microbatches(phase) == 1:
        return False
    assert key.loss is not None
    chosen = LOSSES[key.loss[0]]
    return chosen.coupled or chosen.init_state is not None


def _state(
    phase: Phase, spec: StepSpec, documents: TokenizedDocuments | None, mesh: Mesh
) -> tuple[TrainState, Any]:
    """Return the abstract train state, and the frozen parameters."""
    num_texts = None if phase.loss is None else spec.num_texts
    optimizer, whole = make_optimizer(spec.train), sharding.replicated(mesh)
    params = adapting.abstract_trained(spec.train, spec.model, mesh, num_texts)
    frozen: Any = {}
    if spec.train.adapt != "probe":
        everything = adapting.abstract_params(spec.train, spec.model, mesh, num_texts)
        frozen = adapting.split(spec.train, spec.model, everything)[1]
    where = state_shardings(spec.model, spec.train, optimizer, mesh, num_texts)

    loss_state = () if documents is None else spec.loss_state(soft_labels(documents.targets_N))
    rows = rounded_up(spec.total_steps)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    state = TrainState(
        params=params,
        opt_state=_abstract(
            jax.eval_shape(lambda p: optimizer.init(float32(p)), params), where.opt_state
        ),
        step=number,
        failed_step=number,
        history=jax.ShapeDtypeStruct((rows, len(HISTORY)), jnp.float32, sharding=whole),
        average=_abstract(jax.eval_shape(float32, params), where.average) if spec.train.ema else (),
        loss_state=_abstract(loss_state, whole),
    )
    return state, frozen


def _batches(
    phase: Phase, resolved: Resolved, mesh: Mesh
) -> tuple[tuple[Bucket, ...], TokenizedDocuments | None, Vocabulary | None]:
    """Return a phase's batches, their documents (None if streamed), and its vocabulary."""
    train, whole = phase.train, sharding.replicated(mesh)
    data, split = resolved.roles[phase.role], phase.inputs["train"]
    if split in data.streams:
        assert isinstance(train, PretrainSettings)
        count = num_microbatches(phase)
        parts = sharding.row_shards(mesh)
        num_rows = -(-train.batch_size // count // parts) * parts
        rows = functools.partial(
            jax.ShapeDtypeStruct,
            (1, count, num_rows, train.chunk_length),
            sharding=sharding.rows(mesh, leading=2),
        )
        text_ids = rows(np.int32) if step_spec(phase, None).extras.text_ids else None
        micro = Microbatch(rows(np.int32), rows(np.uint16), text_ids_RL=text_ids)
        steps = (rounded_up(phase.total_steps),)
        index_S = jax.ShapeDtypeStruct(steps, jnp.int32, sharding=whole)
        return (Bucket(Batch(micro), index_S),), None, None
    documents = data.splits[split]
    if phase.subset is not None:
        documents = documents.select(slice(phase.subset))
    order_SB = packing.training_order(
        documents.ids_N, batch_size=train.batch_size, num_steps=phase.total_steps, seed=phase.seed
    )
    targets_NC = None if phase.loss is None else soft_labels(documents.targets_N)
    if train.adapt == "probe":
        assert targets_NC is not None
        return (_abstract(feature_bucket(order_SB, targets_NC), whole),), documents, None
    vocabulary = None
    if phase.loss is not None and not is_synthetic(resolved):
        vocabulary = occurring(documents, phase.model, train)
    packed = packing.pack(
        documents if vocabulary is None else vocabulary.documents(documents),
        order_SB,
        num_microbatches=num_microbatches(phase),
        row_multiple=sharding.row_shards(mesh),
        max_shapes=train.max_shapes,
        **row_preferences(phase.model),
    )
    extras = step_spec(phase, vocabulary).extras
    buckets = tuple(
        _abstract(bucket, bucket_shardings(bucket, mesh))
        for bucket in packed_buckets(packed, targets_NC, extras)
    )
    return buckets, documents, vocabulary


def _shape(bucket: Bucket) -> tuple[int, int, int]:
    """Return M, R and L of a bucket; (1, B, 1) for a probe."""
    micro = bucket.batches.microbatches
    if isinstance(micro, Microbatch):
        return micro.tokens_RL.shape[1:]
    return (1, bucket.batches.targets_BC.shape[1], 1)


def _training_flops(phase: Phase, resolved: Resolved) -> tuple[float, float]:
    """Return model FLOPs and tokens of a step, by formula, for documents of mean length."""
    train, model = phase.train, phase.model
    data, split = resolved.roles[phase.role], phase.inputs["train"]
    if split in data.streams:
        assert isinstance(train, PretrainSettings)
        tokens = float(train.batch_size * train.chunk_length)
        return tokens * _next_token_flops(model, train, train.chunk_length), tokens
    documents = data.splits[split]
    share = train.batch_size / len(documents)
    tokens = share * float(documents.lengths_N.sum())
    if train.adapt == "probe":
        return 6.0 * train.batch_size * documents.num_texts * model.d_model * 2, tokens
    if phase.loss is not None:
        return share * workloads.model_flops(model, train, documents, labels=False), tokens
    lengths_V, counts_V = np.unique(documents.piece_lengths_P, return_counts=True)
    pairs = zip(lengths_V.tolist(), counts_V.tolist(), strict=True)
    total = sum(count * n * _next_token_flops(model, train, n) for n, count in pairs)
    return share * float(total), tokens


def _next_token_flops(model: ModelConfig, train: TrainSettings, length: int) -> float:
    return budget.train_flops_per_token(model, length, train.adapt, logits=True)


def _label_passes(
    phase: Phase, resolved: Resolved, mesh: Mesh, memory: int, host: Sequence[Any]
) -> list[Program]:
    """Return the program of a phase's largest label batch, which takes most memory."""
    if phase.train.adapt == "probe" or PHASE_KINDS[phase.kind].forward == "none":
        return []
    features = PHASE_KINDS[phase.kind].forward == "features"
    texts = phase.num_texts
    params = adapting.abstract_params(phase.train, phase.model, mesh, None if features else texts)
    if not features:
        params = adapting.join(*adapting.split(phase.train, phase.model, params))
    # As `inference.fits_on_one_device` decides on each host.
    needed = inference.bytes_on_one_device(params, phase.train.compute_dtype)
    alone = needed <= memory / 2 and len(host) > 1
    data = resolved.roles[phase.role]
    names = [s for s in ("validation", "test") if s in phase.inputs.values()]
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
    run = prediction.label_pass(phase.model, phase.train.compute_dtype, forward == "features")
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
        batch = _abstract(one, one.shardings(rows, whole))
        args, function = (params, batch), jax.jit(run)
        on_chip, of_batch = per_chip(params), per_chip(batch)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), args)
    flops = workloads.model_flops(phase.model, phase.train, documents, labels=True)
    share = order_SB.shape[1] / len(documents)
    return Program(
        title=f"{phase.title}: {'features' if forward == 'features' else 'labels'}",
        sections=(_section(phase),),
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
