"""What a phase is trained on: its vocabulary, order, batches, targets and features."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import PretrainSettings
from w2s_jax.data import packing
from w2s_jax.data.prompts import with_suffix
from w2s_jax.data.stream import stream_batches
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models.attention import row_preferences
from w2s_jax.phases.context import Context
from w2s_jax.planning.phase import Phase
from w2s_jax.store import artifacts
from w2s_jax.training.batches import (
    ResidentBatches,
    StreamedBatches,
    put_batches,
    put_feature_batches,
)
from w2s_jax.training.inference import soft_labels
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.vocabulary import Vocabulary, occurring


def vocabulary_of(phase: Phase, context: Context) -> Vocabulary | None:
    """The tokens that a classifier is trained on, where that saves something."""
    if phase.loss is None:
        return None
    return occurring(training_documents(phase, context), phase.model, phase.train)


def step_spec(phase: Phase, vocabulary: Vocabulary | None) -> StepSpec:
    """How the phase is trained, step by step, on that vocabulary (None: on all of it)."""
    return StepSpec(
        model=phase.model if vocabulary is None else vocabulary.config(phase.model),
        train=phase.train,
        total_steps=phase.total_steps,
        loss=None if phase.loss is None else (phase.loss.kind, phase.loss.options),
        num_texts=phase.num_texts,
        seed=phase.seed,
    )


def features_of(phase: Phase, context: Context, mesh: Mesh) -> dict[str, Any]:
    """What a probe is trained on, in place of a frozen model; {} of other phases."""
    if phase.train.adapt != "probe":
        return {}
    features_NKD = split_features(
        phase, context, phase.inputs["train"], training_documents(phase, context)
    )
    return {"features_NKD": sharding.put(features_NKD, sharding.replicated(mesh))}


def split_features(
    phase: Phase, context: Context, split: str, documents: TokenizedDocuments | None = None
) -> np.ndarray:
    """What the heads of the phase's model see of a split (or some of it), float32 [N, K, D]."""
    documents = split_documents(phase, context, split) if documents is None else documents
    folder = context.folder(phase.parents["features"])
    return artifacts.load_features(folder, split, documents.ids_N)


def split_documents(phase: Phase, context: Context, split: str) -> TokenizedDocuments:
    """A split as the phase's model reads it."""
    data = context.data(phase)
    documents = data.splits[split]
    if not phase.suffixed:
        return documents
    labels_NC = artifacts.load_labels(
        context.folder(phase.parents["labels"]), split, documents.ids_N
    )
    said_N = (labels_NC[:, 1] > 0.5).astype(np.int64)
    longest = phase.model.max_positions if phase.model.positions == "learned" else None
    tokens_N = np.asarray(data.label_tokens)[said_N]
    return with_suffix(documents, tokens_N, longest, suffix=data.suffix)


def training_documents(phase: Phase, context: Context) -> TokenizedDocuments:
    """What the phase trains on: a split, or those of its documents that the labels are of.

    These may name a document several times: it is then there as often.
    """
    split = phase.inputs["train"]
    documents = split_documents(phase, context, split)
    if phase.subset is None:
        return documents
    labels = context.folder(phase.parents["labels"])
    place = {int(id_): n for n, id_ in enumerate(documents.ids_N)}
    chosen = [place[int(id_)] for id_ in artifacts.labelled_ids(labels, split)]
    return documents.select(np.array(chosen, np.int64))


def documents_of(
    phase: Phase, context: Context, vocabulary: Vocabulary | None
) -> TokenizedDocuments:
    """The training documents, their tokens numbered as in `vocabulary`."""
    documents = training_documents(phase, context)
    return documents if vocabulary is None else vocabulary.documents(documents)


def order_of(phase: Phase, context: Context) -> np.ndarray:
    """Row indices of the documents of each batch, int32 [S, B]."""
    return packing.training_order(
        training_documents(phase, context).ids_N,
        batch_size=phase.train.batch_size,
        num_steps=phase.total_steps,
        seed=phase.seed,
    )


def num_microbatches(phase: Phase) -> int:
    """M: in how many parts a batch is computed."""
    return phase.train.batch_size // (phase.train.microbatch_size or phase.train.batch_size)


def batches_of(
    phase: Phase, context: Context, vocabulary: Vocabulary | None
) -> tuple[ResidentBatches | StreamedBatches, Callable[[], float]]:
    """The phase's batches, and what tells the share of their slots that are not empty."""
    train, mesh, data = phase.train, context.mesh, context.data(phase)
    split = phase.inputs["train"]
    if split in data.streams:
        assert isinstance(train, PretrainSettings) and data.tokenizer is not None
        stream = stream_batches(
            data.streams[split],
            data.tokenizer,
            batch_size=train.batch_size,
            row_length=train.chunk_length,
            seed=phase.seed,
        )
        streamed = StreamedBatches(
            stream,
            num_microbatches(phase),
            phase.total_steps,
            mesh,
            needs=step_spec(phase, vocabulary).needs(),
        )
        return streamed, lambda: streamed.real_token_share
    order_SB = order_of(phase, context)
    if train.adapt == "probe":
        return put_feature_batches(order_SB, training_targets(phase, context), mesh), lambda: 1.0
    packed = packing.pack(
        documents_of(phase, context, vocabulary),
        order_SB,
        num_microbatches=num_microbatches(phase),
        row_multiple=sharding.row_shards(mesh),
        max_shapes=train.max_shapes,
        **row_preferences(phase.model),
    )
    targets_NC = None if phase.loss is None else training_targets(phase, context)
    batches = put_batches(packed, targets_NC, mesh, needs=step_spec(phase, vocabulary).needs())
    return batches, lambda: packed.real_token_share


def training_targets(phase: Phase, context: Context) -> np.ndarray:
    """What the phase learns, float32 [N, 2]: the soft labels, mixed with the uniform ones.

    (1 - epsilon) w + epsilon / 2, epsilon being `label_smoothing` (Szegedy et al. 2016, section 7).
    """
    targets_NC = targets_of(phase, context, "train")
    epsilon = phase.train.label_smoothing
    if not epsilon:
        return targets_NC
    return ((1 - epsilon) * targets_NC + epsilon / targets_NC.shape[1]).astype(np.float32)


def loss_state_of(phase: Phase, context: Context, spec: StepSpec) -> Any:
    """What the phase's loss keeps before the first step; () where it keeps nothing."""
    return () if phase.loss is None else spec.loss_state(training_targets(phase, context))


def targets_of(phase: Phase, context: Context, role: str) -> np.ndarray:
    """Soft labels of a split, float32 [N, 2]: weak ones for a student, else ground truth.

    Where its labels are of the training documents alone, it is evaluated by those that they were
    made from.
    """
    split = phase.inputs[role]
    if role == "train":
        documents = training_documents(phase, context)
    else:
        documents = context.data(phase).splits[split]
    if "labels" in phase.parents:
        labels = phase.parents["labels"]
        while not artifacts.labels_split(context.folder(labels), split):
            parents = artifacts.read_parents(context.folder(labels))
            if "labels" not in parents:
                return soft_labels(documents.targets_N)
            labels = parents["labels"]
        return artifacts.load_labels(context.folder(labels), split, documents.ids_N)
    return soft_labels(documents.targets_N)
