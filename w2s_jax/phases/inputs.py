"""The inputs of a phase: documents, vocabulary, data order, targets, features and batches."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import PretrainSettings
from w2s_jax.data import packing
from w2s_jax.data.completions import prompts_only, weighted_by_document
from w2s_jax.data.documents import distinct_ids
from w2s_jax.data.prompts import with_suffix
from w2s_jax.data.stream import stream_batches
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.models.attention import row_preferences
from w2s_jax.models.inference import fits_on_one_device
from w2s_jax.phases import completed
from w2s_jax.phases.context import Context
from w2s_jax.phases.parameters import Parameters
from w2s_jax.planning.generation import completion_lengths
from w2s_jax.planning.phase import Phase
from w2s_jax.store import artifacts
from w2s_jax.training import sequences
from w2s_jax.training.answer_scores import completion_logprobs
from w2s_jax.training.batch_sources import (
    ResidentBatches,
    StreamedBatches,
    put_batches,
    put_feature_batches,
)
from w2s_jax.training.batches import Preferences
from w2s_jax.training.population import shared_program
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.vocabulary import Vocabulary, occurring


class TrainingInputs:
    """The inputs of a phase's training, each computed when it is first used, and then kept.

    The parents of the phase must be complete.
    """

    def __init__(self, phase: Phase, context: Context):
        self.phase, self.context = phase, context

    @cached_property
    def documents(self) -> TokenizedDocuments:
        """The training documents: a split, or those of its documents that have labels.

        Labels may name a document several times; it is then included as often.
        """
        phase, context, split = self.phase, self.context, self.phase.inputs["train"]
        documents = split_documents(phase, context, split)
        if phase.pairs:
            return self._pairs[0]
        documents = self._labelled(documents)
        if phase.targets == "tokens":
            documents = completed.completed_documents(phase, context, split, documents)
            if phase.train.token_weighting == "document":
                documents = weighted_by_document(documents)
        return documents

    @cached_property
    def _pairs(self) -> tuple[TokenizedDocuments, np.ndarray]:
        """Pairs of completions, and P(the first is better), float32 [N]."""
        split = self.phase.inputs["train"]
        documents = split_documents(self.phase, self.context, split)
        return completed.paired_documents(self.phase, self.context, split, documents)

    def _labelled(self, documents: TokenizedDocuments) -> TokenizedDocuments:
        """Return the documents that have labels; all, where the phase says nothing else."""
        phase, context, split = self.phase, self.context, self.phase.inputs["train"]
        if phase.subset is None:
            return documents
        labels = context.folder(phase.parents["labels"])
        ids_N = artifacts.labelled_ids(labels, split)
        return documents.select(documents.rows_of(ids_N))

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokens to which a classifier's embedding is reduced; None if it is not."""
        if not self.phase.classifies:
            return None
        return occurring(self.documents, self.phase.model, self.phase.train)

    @cached_property
    def spec(self) -> StepSpec:
        """The specification of the training step, on the reduced vocabulary."""
        return step_spec(self.phase, self.vocabulary)

    @cached_property
    def order_SB(self) -> np.ndarray:
        """Row indices of the documents of each batch, int32."""
        ids_N = self.documents.ids_N
        if self.phase.targets != "class":
            ids_N = distinct_ids(ids_N)
        return packing.training_order(
            ids_N,
            batch_size=self.phase.train.batch_size,
            num_steps=self.phase.total_steps,
            seed=self.phase.seed,
        )

    @cached_property
    def targets_NC(self) -> np.ndarray:
        """The targets of training, float32 [N, C]: soft labels, smoothed if so configured."""
        split = self.phase.inputs["train"]
        targets_NC = targets_of(self.phase, self.context, split, self.documents)
        return smoothed(targets_NC, self.phase.train.label_smoothing)

    @property
    def num_microbatches(self) -> int:
        """M: the number of microbatches of a batch."""
        return num_microbatches(self.phase)

    @property
    def group_key(self) -> Any:
        """A key that is equal for phases that may be trained together; None: only alone.

        Such phases share a program, and all inputs but hyperparameters, targets, data order, and
        what their seeds initialise in trained parameters.
        """
        phase, train = self.phase, self.phase.train
        if not phase.classifies:
            return None
        start: Any = phase.parents.get("features") or phase.parents.get("init")
        if start is None and self.context.data(phase).source is None:
            start = phase.seed
        return (
            shared_program(self.spec),
            phase.role,
            phase.inputs["train"],
            start,
            (train.batch_size, train.microbatch_size, train.max_shapes),
            (phase.eval_every, phase.select),
            # Labels that decide the documents, or what is appended to them.
            phase.parents["labels"] if phase.suffixed or phase.subset is not None else None,
        )

    def renumbered_documents(self) -> TokenizedDocuments:
        """Return the training documents with tokens numbered as in `vocabulary`."""
        if self.vocabulary is None:
            return self.documents
        return self.vocabulary.documents(self.documents)

    def loss_state(self) -> Any:
        """Return the initial state of the loss; () if it has none."""
        return self.spec.loss_state(self.targets_NC) if self.phase.classifies else ()

    def tables(self, mesh: Mesh) -> dict[str, Any]:
        """Return what the step looks up by document or token, as frozen parameters.

        They are the features of a probe, or the supervisor's distributions; {} for other phases.
        """
        phase, split = self.phase, self.phase.inputs["train"]
        if phase.train.adapt == "probe":
            features_NKD = split_features(phase, self.context, split, self.documents)
            return {"features_NKD": sharding.put(features_NKD, sharding.replicated(mesh))}
        if not self.spec.extras.rows:
            return {}
        labels = completed.token_labels_of(phase, self.context, split, self.documents)
        assert labels is not None and labels.top_ids_NTk is not None
        assert labels.top_logprobs_NTk is not None
        counts_N = completion_lengths(self.documents)
        kept_NT = np.arange(labels.top_ids_NTk.shape[1]) < counts_N[:, None]
        return sequences.distributions(
            self.documents, labels.top_ids_NTk[kept_NT], labels.top_logprobs_NTk[kept_NT], mesh
        )

    def preferences(self, start: Parameters, mesh: Mesh) -> Preferences | None:
        """Return the labels of pairs, with the reference; None for other phases.

        The reference is what the phase starts from.
        """
        phase = self.phase
        if not phase.pairs:
            return None
        documents, preference_N = self._pairs
        if not self.spec.extras.reference:
            return Preferences(preference_N)
        params = start.joined()
        reference_N2, _ = completion_logprobs(
            phase.model,
            params,
            documents,
            mesh,
            compute_dtype=phase.train.compute_dtype,
            per_device=fits_on_one_device(params["backbone"], phase.train.compute_dtype),
        )
        return Preferences(preference_N, reference_N2)

    def batches(
        self, mesh: Mesh, start: Parameters
    ) -> tuple[ResidentBatches | StreamedBatches, Callable[[], float]]:
        """Return the batches, and a function that returns the share of slots with a token.

        Args:
          mesh: the mesh.
          start: what the phase starts from.
        """
        phase, train = self.phase, self.phase.train
        data, split = self.context.data(phase), phase.inputs["train"]
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
                stream, self.num_microbatches, phase.total_steps, mesh, self.spec.extras
            )
            return streamed, lambda: streamed.real_token_share
        if train.adapt == "probe":
            found = put_feature_batches(
                self.order_SB, self.targets_NC, mesh, table=phase.looks_up_targets
            )
            return found, lambda: 1.0
        packed = packing.pack(
            self.renumbered_documents(),
            self.order_SB,
            num_microbatches=self.num_microbatches,
            row_multiple=sharding.row_shards(mesh),
            max_shapes=train.max_shapes,
            numbers_T=sequences.target_numbers(self.documents) if self.spec.extras.rows else None,
            **row_preferences(phase.model),
        )
        targets_NC = self.targets_NC if phase.classifies else None
        preferences = self.preferences(start, mesh)
        batches = put_batches(packed, targets_NC, mesh, self.spec.extras, preferences)
        return batches, lambda: packed.real_token_share


def inputs_of(phase: Phase, context: Context) -> TrainingInputs:
    """Return the inputs of a phase's training, which the context keeps until `release`."""
    if phase.name not in context.training_inputs:
        context.training_inputs[phase.name] = TrainingInputs(phase, context)
    return context.training_inputs[phase.name]


def release(phase: Phase, context: Context) -> None:
    """Free the inputs of a phase, which is trained."""
    context.training_inputs.pop(phase.name, None)


def step_spec(phase: Phase, vocabulary: Vocabulary | None) -> StepSpec:
    """Return the specification of a phase's training step on a vocabulary (None: the model's)."""
    return StepSpec(
        model=phase.model if vocabulary is None else vocabulary.config(phase.model),
        train=phase.train,
        total_steps=phase.total_steps,
        loss=None if phase.loss is None else (phase.loss.kind, phase.loss.options),
        columns=phase.head_columns,
        seed=phase.seed,
        targets=phase.targets,
    )


def num_microbatches(phase: Phase) -> int:
    """Return M, the number of microbatches of a phase's batches."""
    return phase.train.batch_size // (phase.train.microbatch_size or phase.train.batch_size)


def split_documents(phase: Phase, context: Context, split: str) -> TokenizedDocuments:
    """Return a split as the phase's model reads it."""
    data = context.data(phase)
    documents = data.splits[split]
    if phase.loss is None and documents.prompt_lengths_P is not None:
        # Next-token training reads the prompts alone: their completions are what is to be labelled.
        return prompts_only(documents)
    if not phase.suffixed:
        return documents
    labels = context.folder(phase.parents["labels"])
    targets_NC = artifacts.load_labels(labels, split, documents.ids_N)
    said_N = predicted_classes(targets_NC)
    longest = phase.model.max_positions if phase.model.positions == "learned" else None
    tokens_N = np.asarray(data.label_tokens)[said_N]
    return with_suffix(documents, tokens_N, longest, suffix=data.suffix)


def split_features(
    phase: Phase, context: Context, split: str, documents: TokenizedDocuments | None = None
) -> np.ndarray:
    """Return the features of a split, or of some of its documents, float32 [N, K, D]."""
    documents = split_documents(phase, context, split) if documents is None else documents
    folder = context.folder(phase.parents["features"])
    return artifacts.load_features(folder, split, documents.ids_N)


def targets_of(
    phase: Phase, context: Context, split: str, documents: TokenizedDocuments
) -> np.ndarray:
    """Return the soft labels of documents of a split, float32 [N, C].

    They are those of the phase that `Phase.label_sources` names for the split, or ground truth.
    """
    if split not in phase.label_sources:
        return documents.targets_NC
    folder = context.folder(phase.label_sources[split])
    return artifacts.load_labels(folder, split, documents.ids_N)


def smoothed(targets_NC: np.ndarray, epsilon: float) -> np.ndarray:
    """Return (1 - epsilon) w + epsilon / C for soft labels w, float32 [N, C].

    Label smoothing (Szegedy et al. 2016, section 7).
    """
    if not epsilon:
        return targets_NC
    return ((1 - epsilon) * targets_NC + epsilon / targets_NC.shape[1]).astype(np.float32)
