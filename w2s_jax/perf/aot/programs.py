"""The programs of a run, with the shapes of all that they take, and no array on any device.

A program is told by what it is compiled for: `StepSpec.program_key` or the model, and shapes. In
names: S steps, M microbatches, R rows, L slots, B documents a batch, N documents.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from w2s_jax import sharding
from w2s_jax.config import PretrainSettings, TrainSettings
from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.losses import LOSSES
from w2s_jax.models import adapting, budget
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.config import ModelConfig
from w2s_jax.perf import workloads
from w2s_jax.perf.aot.inputs import is_synthetic
from w2s_jax.phases.inputs import num_microbatches, step_spec
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.plan import Plan
from w2s_jax.planning.resolve import Resolved
from w2s_jax.training import inference
from w2s_jax.training.batches import feature_arrays, packed_arrays
from w2s_jax.training.inference import soft_labels
from w2s_jax.training.objectives import microbatch_features, microbatch_logits
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import HISTORY, TrainState, float32, rounded_up, state_shardings
from w2s_jax.training.step import programs
from w2s_jax.training.vocabulary import Vocabulary, occurring


@dataclass(frozen=True, eq=False)
class Program:
    """A program of a run.

    Attributes:
      title: of the phases that run it.
      role: whose model it is.
      trains: whether it is a train step; else a label pass.
      key: equal keys, one program.
      function, args: what `lower` is called on, and with.
      parts: bytes on a chip of what it is given, by what it is.
      beside: bytes on a chip of what lies there while it runs and is no argument, by what it is.
      chips: how many run it together.
      train: how the model is trained.
      model: the model, without what its vocabulary was cut to.
      flops: model FLOPs of a run (a step, or a batch), by formula.
      slots: of a batch, all microbatches together.
      shape: M, R and L of the largest batch.
      tokens: of it, of documents.
      trained: how many parameters on a chip are trained.
      loss: its kind; None of a language model.
      passes: forward passes of a run, of which remat and batch-coupled losses make more than one.
      evaluates: the key of the label pass that runs while this one's arguments lie on the chip.
    """

    title: str
    role: str
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
    """The distinct programs of a plan's phases, and what is left out.

    Args:
      plan: of a run.
      resolved: what it is a plan for.
      mesh: of the slice's devices.
      memory: bytes of HBM of a chip.
      host: devices of a slice that is one host of this one: what each chip runs by itself is
        compiled for these, as the compiler takes no part of a larger slice.
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


def _add(found: dict[Any, Program], more: Iterable[Program]) -> None:
    """Adds programs; one that is there already gets the title, and the most that lies beside it."""
    for program in more:
        known = found.get(program.key)
        if known is None:
            found[program.key] = program
            continue
        titles = dict.fromkeys([*known.title.split(", "), program.title])
        found[program.key] = dataclasses.replace(
            known,
            title=", ".join(titles),
            beside=max(known.beside, program.beside, key=lambda parts: sum(parts.values())),
            evaluates=known.evaluates or program.evaluates,
        )


def per_chip(tree: Any) -> int:
    """Bytes of abstract arrays on each chip, by their shardings."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _numbers_per_chip(tree: Any) -> int:
    """Numbers in abstract arrays on each chip."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) for x in jax.tree.leaves(tree)
    )


def _abstract(tree: Any, where: NamedSharding) -> Any:
    """Shapes and dtypes of arrays or numbers, in one sharding."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), np.result_type(x), sharding=where), tree
    )


def _training(phase: Phase, resolved: Resolved, mesh: Mesh, passes: Sequence[Program]) -> Program:
    """The train step of a phase: a block of steps, or one where batches are streamed."""
    whole = sharding.replicated(mesh)
    stacks, documents, vocabulary = _batches(phase, resolved, mesh)
    spec = step_spec(phase, vocabulary)
    key = spec.program_key()
    state, frozen = _state(phase, spec, documents, mesh)
    if phase.train.adapt == "probe":
        assert documents is not None
        shape = (len(documents), documents.num_texts, phase.model.d_model)
        features = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
        frozen = frozen | {"features_NKD": features}
    numbers = _abstract(spec.hyperparameters(), whole)
    rest: tuple[Any, ...]
    if documents is None:
        function, rest = programs(key, mesh)[0], (stacks[0],)
    else:
        count = rounded_up(phase.total_steps)
        stack_of_S = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=whole)
        stop = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        function, rest = programs(key, mesh)[1], (tuple(stacks), stack_of_S, stop)
    args = (numbers, frozen, state, *rest)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), args)
    beside = {}
    trained = per_chip(state.params)
    if phase.select:
        beside["best parameters so far"] = trained
    if vocabulary is not None:
        full = adapting.abstract_trained(phase.train, phase.model, mesh, spec.num_texts)
        beside["embedding of all tokens"] = per_chip(full["backbone"]["embedding"])
    flops, tokens = _training_flops(phase, resolved)
    shape = max((_shape(stack) for stack in stacks), key=np.prod, default=(1, 1, 1))
    return Program(
        title=phase.title,
        role=phase.role,
        trains=True,
        key=(key, str(jax.tree.structure(args)), str(shapes)),
        function=function,
        args=args,
        parts={
            "parameters": trained + per_chip(frozen),
            "optimiser": per_chip(state.opt_state),
            "averages and loss state": per_chip((state.average, state.loss_state)),
            "batches": per_chip(stacks),
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
    """Whether a first pass computes all logits of the batch without keeping activations."""
    if key.loss is None or num_microbatches(phase) == 1:
        return False
    chosen = LOSSES[key.loss[0]]
    return chosen.coupled or chosen.init_state is not None


def _state(
    phase: Phase, spec: StepSpec, documents: TokenizedDocuments | None, mesh: Mesh
) -> tuple[TrainState, Any]:
    """The abstract train state, and the frozen parameters."""
    num_texts = None if phase.loss is None else spec.num_texts
    optimizer, whole = make_optimizer(spec.train), sharding.replicated(mesh)
    params = adapting.abstract_trained(spec.train, spec.model, mesh, num_texts)
    frozen: Any = {}
    if spec.train.adapt != "probe":
        everything = adapting.abstract_params(spec.train, spec.model, mesh, num_texts)
        frozen = adapting.split(spec.train, spec.model, everything)[1]
    where = state_shardings(spec.model, spec.train, optimizer, mesh, num_texts)

    def placed(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
        )

    loss_state = () if documents is None else spec.loss_state(soft_labels(documents.targets_N))
    rows = rounded_up(spec.total_steps)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    state = TrainState(
        params=params,
        opt_state=placed(jax.eval_shape(lambda p: optimizer.init(float32(p)), params),
                         where.opt_state),
        step=number,
        failed_step=number,
        history=jax.ShapeDtypeStruct((rows, len(HISTORY)), jnp.float32, sharding=whole),
        average=placed(jax.eval_shape(float32, params), where.average) if spec.train.ema else (),
        loss_state=_abstract(loss_state, whole),
    )  # fmt: skip
    return state, frozen


def _batches(
    phase: Phase, resolved: Resolved, mesh: Mesh
) -> tuple[list[dict[str, Any]], TokenizedDocuments | None, Vocabulary | None]:
    """A phase's batches, the documents that they are of, and its vocabulary.

    There are no documents where batches are streamed.
    """
    train, whole = phase.train, sharding.replicated(mesh)
    data, split = resolved.roles[phase.role], phase.inputs["train"]
    rows = sharding.rows(mesh, leading=2)
    if split in data.streams:
        assert isinstance(train, PretrainSettings)
        count = num_microbatches(phase)
        parts = sharding.row_shards(mesh)
        num_rows = -(-train.batch_size // count // parts) * parts
        shape = (1, count, num_rows, train.chunk_length)
        arrays = {"tokens_SMRL": np.int32, "segment_ids_SMRL": np.uint16}
        if "pieces_SMRL" in step_spec(phase, None).needs():
            arrays["pieces_SMRL"] = np.int32
        stack = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
            for name, dtype in arrays.items()
        }
        steps = (rounded_up(phase.total_steps),)
        index_S = jax.ShapeDtypeStruct(steps, jnp.int32, sharding=whole)
        return [{"index_S": index_S} | stack], None, None
    documents = data.splits[split]
    if phase.subset is not None:
        documents = documents.select(slice(phase.subset))
    order_SB = packing.training_order(
        documents.ids_N, batch_size=train.batch_size, num_steps=phase.total_steps, seed=phase.seed
    )
    targets_NC = None if phase.loss is None else soft_labels(documents.targets_N)
    if train.adapt == "probe":
        assert targets_NC is not None
        return [_abstract(feature_arrays(order_SB, targets_NC), whole)], documents, None
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
    needs = step_spec(phase, vocabulary).needs()
    stacks = [
        {
            name: _abstract(x, rows if name.endswith(("_SMRL", "_SMRQ")) else whole)
            for name, x in arrays.items()
        }
        for arrays in packed_arrays(packed, targets_NC, needs)
    ]
    return stacks, documents, vocabulary


def _shape(stack: dict[str, Any]) -> tuple[int, int, int]:
    """M, R and L of a stack; of a probe's the documents of a batch."""
    if "tokens_SMRL" in stack:
        return stack["tokens_SMRL"].shape[1:]
    return (1, stack["targets_SBC"].shape[1], 1)


def _training_flops(phase: Phase, resolved: Resolved) -> tuple[float, float]:
    """Model FLOPs and tokens of a step, by formula, for documents of the mean kind."""
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


@functools.lru_cache(maxsize=64)
def _pass(model: ModelConfig, compute_dtype: str, features: bool) -> Callable[..., jax.Array]:
    """What a label pass computes of one batch, as `inference.Predictor` has it."""
    spec = StepSpec(model, TrainSettings(compute_dtype=compute_dtype), 1, None)

    def run(params: Any, micro: dict[str, jax.Array]) -> jax.Array:
        if features:
            return microbatch_features(spec, params, micro).astype(jnp.float32)
        return microbatch_logits(spec, params, micro)

    return run


def _label_passes(
    phase: Phase, resolved: Resolved, mesh: Mesh, memory: int, host: Sequence[Any]
) -> list[Program]:
    """The largest batch of a phase's label passes: the program that takes most memory."""
    if phase.train.adapt == "probe" or PHASE_KINDS[phase.kind].forward == "none":
        return []
    features = PHASE_KINDS[phase.kind].forward == "features"
    texts = phase.num_texts
    params = adapting.abstract_params(phase.train, phase.model, mesh, None if features else texts)
    if not features:
        params = adapting.join(*adapting.split(phase.train, phase.model, params))
    # As `inference.fits_on_one_device` decides it on each host.
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
    """One batch, on each of `local` devices for itself, or on the mesh if there are none."""
    alone = bool(local)
    order_SB, stack = inference.packed_group(
        documents,
        group_N,
        inference.BATCH_SIZE,
        count=max(1, len(local)),
        row_multiple=1 if alone else sharding.row_shards(mesh),
        **row_preferences(phase.model),
    )
    forward = PHASE_KINDS[phase.kind].forward
    run = _pass(phase.model, phase.train.compute_dtype, forward == "features")
    rows, whole = sharding.rows(mesh, leading=0), sharding.replicated(mesh)
    batch = {}
    for name, array, where in (
        ("tokens_RL", stack.tokens_SMRL, rows),
        ("segment_ids_RL", stack.segment_ids_SMRL, rows),
        ("slots_RQ", stack.slots_SMRQ, rows),
        ("read_outs_mK", stack.read_outs_SMmK, whole),
    ):
        one = array.shape[2:]
        shape, place = ((len(local), *one), None) if alone else (one, where)
        batch[name] = jax.ShapeDtypeStruct(shape, array.dtype, sharding=place)
    if alone:
        plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        args = (plain, batch)
        function: Any = jax.pmap(run, in_axes=(None, 0), devices=local)
        on_chip = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(plain))
        of_batch = sum(x.size * x.dtype.itemsize for x in batch.values()) // len(local)
    else:
        args, function = (params, batch), jax.jit(run)
        on_chip, of_batch = per_chip(params), per_chip(batch)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), args)
    flops = workloads.model_flops(phase.model, phase.train, documents, labels=True)
    share = order_SB.shape[1] / len(documents)
    return Program(
        title=f"{phase.title}: {'features' if forward == 'features' else 'labels'}",
        role=phase.role,
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
        slots=int(np.prod(stack.tokens_SMRL.shape[2:])),
        shape=(1, *stack.tokens_SMRL.shape[2:]),
    )
