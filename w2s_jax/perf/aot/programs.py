"""The programs of a run with abstract arguments, and train steps among them.

A program is identified by what it is compiled for: `StepSpec.program_key` or the model, and shapes.
In names: S steps, M microbatches, R rows, L slots, B documents per batch, N documents.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import PretrainSettings, TrainSettings
from w2s_jax.data import packing
from w2s_jax.data.documents import distinct_ids
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.losses import LOSSES
from w2s_jax.models import adapting, budget
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.image_models import ImageConfig
from w2s_jax.perf import workloads
from w2s_jax.perf.aot.abstract import Program as Program
from w2s_jax.perf.aot.abstract import abstract, numbers_per_chip, per_chip, section
from w2s_jax.perf.aot.generation import (
    completed,
    completing,
    distributions,
    most_targets,
    preferences,
)
from w2s_jax.perf.aot.inputs import is_synthetic
from w2s_jax.perf.aot.label_passes import label_passes
from w2s_jax.phases.inputs import num_microbatches, step_spec
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.plan import Plan
from w2s_jax.planning.resolve import Resolved
from w2s_jax.training import sequences
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


def programs_of(
    plan: Plan, resolved: Resolved, mesh: Mesh, memory: int, host: Sequence[Any]
) -> tuple[list[Program], list[str]]:
    """Return the distinct programs of a plan's phases, and the titles of phases without one.

    These are phases that make labels without training, heads on features computed elsewhere, and
    small networks of images.

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
            outside = phase.model.is_features or isinstance(phase.model, ImageConfig)
            if PHASE_KINDS[phase.kind].forward is None or outside:
                left_out.append(phase.title)
                continue
            made = label_passes if phase.completion is None else completing
            passes = made(phase, resolved, mesh, memory, host)
            _add(found, passes)
            if phase.total_steps:
                _add(found, [training_program(phase, resolved, mesh, passes)])
    return list(found.values()), left_out


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


def training_program(
    phase: Phase, resolved: Resolved, mesh: Mesh, passes: Sequence[Program]
) -> Program:
    """Return the train program of a phase: a block of steps, or one step for streamed batches."""
    whole = sharding.replicated(mesh)
    documents = training_documents(phase, resolved)
    buckets, vocabulary = _batches(phase, resolved, documents, mesh)
    spec = step_spec(phase, vocabulary)
    key = spec.program_key()
    state, frozen = _state(phase, spec, documents, mesh)
    if spec.extras.rows:
        assert documents is not None
        top_k = resolved.settings.task.label_top_k
        frozen = frozen | abstract(distributions(documents, top_k), whole)
    if phase.train.adapt == "probe":
        assert documents is not None
        shape = (len(documents), documents.num_texts, phase.model.d_model)
        features = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
        frozen = frozen | {"features_NKD": features}
    hyperparameters = abstract(spec.hyperparameters(), whole)
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
        full = adapting.abstract_trained(phase.train, phase.model, mesh, spec.head_columns)
        beside["embedding of all tokens"] = per_chip(full["backbone"]["embedding"])
    flops, tokens = _training_flops(phase, documents)
    shape = max((_shape(bucket) for bucket in buckets), key=np.prod, default=(1, 1, 1))
    return Program(
        title=phase.title,
        sections=(section(phase),),
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
        trained=numbers_per_chip(state.params),
        loss=None if key.head_columns is None or key.loss is None else key.loss[0],
        targets=most_targets(buckets),
        passes=1 + (phase.train.remat == "block") + _computes_twice(key, phase),
        evaluates=tuple(p.key for p in passes) if phase.eval_every is not None else (),
    )


def _computes_twice(key: StepSpec, phase: Phase) -> bool:
    """Return whether a first pass computes all logits (see `gradient.coupled_gradient`)."""
    if key.head_columns is None or num_microbatches(phase) == 1:
        return False
    assert key.loss is not None
    chosen = LOSSES[key.loss[0]]
    return chosen.coupled or chosen.init_state is not None


def _state(
    phase: Phase, spec: StepSpec, documents: TokenizedDocuments | None, mesh: Mesh
) -> tuple[TrainState, Any]:
    """Return the abstract train state, and the frozen parameters."""
    columns = spec.head_columns
    optimizer, whole = make_optimizer(spec.train), sharding.replicated(mesh)
    params = adapting.abstract_trained(spec.train, spec.model, mesh, columns)
    frozen: Any = {}
    if spec.train.adapt != "probe":
        everything = adapting.abstract_params(spec.train, spec.model, mesh, columns)
        frozen = adapting.split(spec.train, spec.model, everything)[1]
    where = state_shardings(spec.model, spec.train, optimizer, mesh, columns)

    loss_state = ()
    if documents is not None and phase.classifies:
        loss_state = spec.loss_state(documents.targets_NC)
    rows = rounded_up(spec.total_steps)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    state = TrainState(
        params=params,
        opt_state=abstract(
            jax.eval_shape(lambda p: optimizer.init(float32(p)), params), where.opt_state
        ),
        step=number,
        failed_step=number,
        history=jax.ShapeDtypeStruct((rows, len(HISTORY)), jnp.float32, sharding=whole),
        average=abstract(jax.eval_shape(float32, params), where.average) if spec.train.ema else (),
        loss_state=abstract(loss_state, whole),
    )
    return state, frozen


def training_documents(phase: Phase, resolved: Resolved) -> TokenizedDocuments | None:
    """Return the documents of a phase's training; None if they are streamed.

    Labels are not known: as many documents as have labels are the first ones of the split, and
    completions that a phase learns are the targets.
    """
    data, split = resolved.roles[phase.role], phase.inputs["train"]
    if split in data.streams:
        return None
    documents = data.splits[split]
    if phase.subset is not None:
        documents = documents.select(slice(phase.subset))
    return completed(phase, documents)


def _batches(
    phase: Phase, resolved: Resolved, documents: TokenizedDocuments | None, mesh: Mesh
) -> tuple[tuple[Bucket, ...], Vocabulary | None]:
    """Return a phase's batches of `training_documents`, and its vocabulary."""
    train, whole = phase.train, sharding.replicated(mesh)
    if documents is None:
        return (_streamed(phase, mesh),), None
    order_SB = packing.training_order(
        documents.ids_N if phase.targets == "class" else distinct_ids(documents.ids_N),
        batch_size=train.batch_size,
        num_steps=phase.total_steps,
        seed=phase.seed,
    )
    targets_NC = documents.targets_NC if phase.classifies else None
    if train.adapt == "probe":
        assert targets_NC is not None
        return (abstract(feature_bucket(order_SB, targets_NC), whole),), None
    vocabulary = None
    if phase.classifies and not is_synthetic(resolved):
        vocabulary = occurring(documents, phase.model, train)
    extras = step_spec(phase, vocabulary).extras
    packed = packing.pack(
        documents if vocabulary is None else vocabulary.documents(documents),
        order_SB,
        num_microbatches=num_microbatches(phase),
        row_multiple=sharding.row_shards(mesh),
        max_shapes=train.max_shapes,
        numbers_T=sequences.target_numbers(documents) if extras.rows else None,
        **row_preferences(phase.model),
    )
    made = packed_buckets(packed, targets_NC, extras, preferences(phase, documents))
    return tuple(abstract(bucket, bucket_shardings(bucket, mesh)) for bucket in made), vocabulary


def _streamed(phase: Phase, mesh: Mesh) -> Bucket:
    """Return a batch of text that is read while it is used."""
    train = phase.train
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
    index_S = jax.ShapeDtypeStruct(steps, jnp.int32, sharding=sharding.replicated(mesh))
    return Bucket(Batch(micro), index_S)


def _shape(bucket: Bucket) -> tuple[int, int, int]:
    """Return M, R and L of a bucket; (1, B, 1) for a probe."""
    micro = bucket.batches.microbatches
    if isinstance(micro, Microbatch):
        return micro.tokens_RL.shape[1:]
    return (1, bucket.batches.targets_BC.shape[1], 1)


def _training_flops(phase: Phase, documents: TokenizedDocuments | None) -> tuple[float, float]:
    """Return model FLOPs and tokens of a step, by formula, for documents of mean length."""
    train, model = phase.train, phase.model
    if documents is None:
        assert isinstance(train, PretrainSettings)
        tokens = float(train.batch_size * train.chunk_length)
        return tokens * _next_token_flops(model, train, train.chunk_length), tokens
    share = train.batch_size / len(documents)
    tokens = share * float(documents.lengths_N.sum())
    if train.adapt == "probe":
        return 6.0 * train.batch_size * documents.num_texts * model.d_model * 2, tokens
    if phase.classifies:
        return share * workloads.model_flops(model, train, documents, labels=False), tokens
    lengths_V, counts_V = np.unique(documents.piece_lengths_P, return_counts=True)
    pairs = zip(lengths_V.tolist(), counts_V.tolist(), strict=True)
    total = sum(count * n * _next_token_flops(model, train, n) for n, count in pairs)
    return share * float(total), tokens


def _next_token_flops(model: ModelConfig, train: TrainSettings, length: int) -> float:
    return budget.train_flops_per_token(
        model,
        length,
        train.adapt,
        lora_rank=model.lora_rank or budget.LORA_RANK,
        lora_targets=model.lora_targets or budget.LORA_TARGETS,
        last_layers=train.last_layers,
        logits=True,
    )
