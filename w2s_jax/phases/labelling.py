"""Phases of kind 'labels': labels made without training a model.

Which function makes them is declared with the methods: `MethodSpec.label_makers`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_jax.config import METHODS
from w2s_jax.data.external_labels import (
    join_labels,
    join_texts,
    read_external_labels,
    read_external_texts,
)
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.metrics import classification
from w2s_jax.models import heads
from w2s_jax.models.inference import fits_on_one_device
from w2s_jax.phases import completed, completions, kept_batches, parameters, prediction
from w2s_jax.phases.context import Context
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.pool import lacks_truth, require_truth
from w2s_jax.planning.role_inputs import RoleInput
from w2s_jax.planning.templates import Prompts
from w2s_jax.profiling import compilation
from w2s_jax.store import artifacts, token_labels
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.store.token_labels import Pairs, TokenLabels
from w2s_jax.training.prediction import Predictor, probabilities

#: split -> (ids_N uint64, soft labels float32 [N, C]): what students learn, and predictions where
#: the split is validation or test.
Labels = dict[str, tuple[np.ndarray, np.ndarray]]
#: The same in a generation task: completions, or pairs of them.
CompletionLabels = dict[str, TokenLabels] | dict[str, Pairs]
#: (work, **options of the phase) -> labels.
LabelMaker = Callable[..., Any]


@dataclass(frozen=True)
class LabelWork:
    """The inputs of a label maker: the phase, and the results of its parents."""

    phase: Phase
    context: Context

    @property
    def data(self) -> RoleInput:
        """The model and the documents of the phase's role."""
        return self.context.data(self.phase)

    def documents(self, split: str) -> TokenizedDocuments:
        """The documents of a split."""
        return self.data.splits[split]

    def truth(self, split: str) -> np.ndarray:
        """Ground truth, the class, float32 [N]; NaN for ties, which only slices have.

        Raises:
          InputError: the documents have no labels.
        """
        require_truth(self.context.settings, split)
        return self.documents(split).truth_N

    def labels(self, split: str, parent: str = "labels") -> np.ndarray:
        """A parent's labels of a split, float32 [N, C]."""
        folder = self.context.folder(self.phase.parents[parent])
        return artifacts.load_labels(folder, split, self.documents(split).ids_N)

    def features(self, split: str) -> np.ndarray:
        """A parent's features of a split's documents, float32 [N, K * D]."""
        folder = self.context.folder(self.phase.parents["features"])
        ids_N = self.documents(split).ids_N
        layers = self.phase.model.read_out_layers
        return artifacts.load_features(folder, split, ids_N, layers).reshape(len(ids_N), -1)

    def of_all(self, split: str, soft_NC: np.ndarray) -> Labels:
        """Labels of all documents of a split."""
        return {split: (self.documents(split).ids_N, soft_NC.astype(np.float32))}

    def of_some(self, split: str, keep_N: np.ndarray) -> Labels:
        """The parent's labels of the documents of a split in a keep mask."""
        return {split: (self.documents(split).ids_N[keep_N], self.labels(split)[keep_N])}

    def token_labels(self, split: str, parent: str = "labels") -> TokenLabels:
        """A parent's completions of a split's documents."""
        folder = self.context.folder(self.phase.parents[parent])
        return token_labels.load(folder, split, self.documents(split).ids_N)

    def targets(self, split: str) -> TokenLabels:
        """The targets of a split's documents, as completions; refused as `truth` is."""
        require_truth(self.context.settings, split)
        ids_N = self.documents(split).ids_N
        documents = completions.documents_of(self.context, split, ids_N)
        return self.given(ids_N, [document.target or "" for document in documents])

    def given(self, ids_N: np.ndarray, texts: Sequence[str]) -> TokenLabels:
        """Texts as completions of documents; their log-probabilities are unknown (NaN)."""
        tokens = completed.encoded(self.phase, self.context, texts)
        lengths_N = np.array([len(tokens_T) for tokens_T in tokens], np.int32)
        # One token more than the longest, as all have an end.
        tokens_NT = np.zeros((len(tokens), int(lengths_N.max(initial=0)) + 1), np.int32)
        for n, tokens_T in enumerate(tokens):
            tokens_NT[n, : len(tokens_T)] = tokens_T
        unknown_NT1 = np.full((len(tokens), tokens_NT.shape[1] + 1), np.nan, np.float32)
        return TokenLabels(ids_N, list(texts), tokens_NT, lengths_N, unknown_NT1)

    def answers(self, labels: TokenLabels) -> list[str]:
        """The answers in completions."""
        return completions.answers_of(self.context, labels.texts)

    def sampled(self, split: str, **sampling: Any) -> TokenLabels:
        """Completions of a split by the phase's model (see `completions.complete`)."""
        return completions.complete(
            self.phase,
            self.context,
            {"backbone": self._backbone},
            split,
            keep=self.context.folder(self.phase.name).path / "completions",
            **sampling,
        )

    @property
    def max_length(self) -> int | None:
        """Tokens that a document may have for the phase's model; None: no limit."""
        model = self.phase.model
        return model.max_positions if model.positions == "learned" else None

    @functools.cached_property
    def _backbone(self) -> Any:
        source, store = self.data.source, self.context.store
        return parameters.backbone(self.phase, source, store, self.context.mesh)

    def model_features(self, documents: TokenizedDocuments) -> np.ndarray:
        """Features of any documents by the phase's model, float32 [N, D]."""
        params = {"backbone": self._backbone}
        return self._predictor(documents, features=True)(params).reshape(len(documents), -1)

    def prompts(self, templates: Sequence[str]) -> list[tuple[Prompts, ...]]:
        """The documents inside each template, of pairs in both orders; () for the bare ones."""
        if templates:
            return [self.data.prompts[name] for name in templates]
        tokens = self.data.label_tokens
        return [(Prompts(self.data.splits, tokens, tuple((token,) for token in tokens)),)]

    def next_token_labels(
        self, documents: TokenizedDocuments, label_tokens: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """Probabilities of the label tokens after any documents, float32 [N, C].

        None: the label tokens of the run's documents.
        """
        head = heads.init_class_head(
            "unembedding",
            self.phase.model,
            self._backbone,
            self.data.label_tokens if label_tokens is None else label_tokens,
            self.context.mesh,
            self.phase.num_classes,
        )
        params = {"backbone": self._backbone, "head": head}
        logits_NC = self._predictor(documents, features=False)(params)
        return probabilities(logits_NC)

    def _predictor(self, documents: TokenizedDocuments, *, features: bool) -> Predictor:
        dtype, model = self.phase.train.compute_dtype, self.phase.model
        if not features:
            # Next tokens follow from the last layer.
            model = dataclasses.replace(model, read_out_layers=())
        return Predictor(
            model,
            documents,
            self.context.mesh,
            compute_dtype=dtype,
            per_device=fits_on_one_device(self._backbone, dtype),
            features=features,
        )

    @property
    def members(self) -> list[str]:
        """The parents that are members of an ensemble, in order."""
        return sorted(
            (name for name in self.phase.parents if name.startswith("member")),
            key=lambda name: int(name.removeprefix("member")),
        )


def make_labels(phase: Phase, context: Context, folder: PhaseFolder) -> dict[str, Any]:
    """Make a phase's labels and store them, with predictions and metrics of validation and test.

    Returns:
      The fields of the phase's result.json.

    Raises:
      TrainingFailed: if some are not finite.
    """
    started, compiled = time.monotonic(), compilation.compile_clock().seconds
    assert phase.method is not None
    kind, options = phase.method
    labels = _label_maker(kind)(LabelWork(phase, context), **dict(options))
    if phase.completion is not None:
        stored = _store_completions(phase, context, folder, labels)
        return stored | _seconds(started, compiled)
    for split, (_, soft_NC) in labels.items():
        prediction.check_finite(phase, soft_NC, f"labels of {split}")
    result: dict[str, Any] = {"labels": artifacts.save_labels(folder, labels)}
    evaluated = {split: labels[split][1] for split in phase.inputs}
    result |= prediction.store(phase, context, folder, evaluated)
    for split, (ids_N, soft_NC) in labels.items():
        truth_N = _truth_of(phase, context, split, ids_N)
        known_N = ~np.isnan(truth_N)
        right_N = classification.predicted_classes(soft_NC[known_N]) == truth_N[known_N]
        accuracy = float(np.mean(right_N)) if len(right_N) else None
        result.setdefault("label_accuracy", {})[split] = accuracy
    return result | _seconds(started, compiled)


def _seconds(started: float, compiled: float) -> dict[str, float]:
    return {
        "seconds": time.monotonic() - started,
        "compile_seconds": compilation.compile_clock().seconds - compiled,
    }


def _store_completions(
    phase: Phase, context: Context, folder: PhaseFolder, labels: CompletionLabels
) -> dict[str, Any]:
    """Store completions, or pairs of them, with predictions of validation and test."""
    pairs = {split: found for split, found in labels.items() if isinstance(found, Pairs)}
    made = {split: found for split, found in labels.items() if isinstance(found, TokenLabels)}
    if pairs:
        token_labels.save_pairs(folder, pairs)
        result: dict[str, Any] = {"labels": token_labels.record_of_pairs(pairs)}
    else:
        token_labels.save(folder, made)
        result = {"labels": token_labels.record(made)}
        evaluated = {split: made[split] for split in phase.inputs}
        result |= completions.store(phase, context, folder, evaluated)
        result["label_accuracy"] = {}
        for split, found in made.items():
            if lacks_truth(context.settings, split):
                result["label_accuracy"][split] = None
                continue
            found = found.select(np.unique(found.ids_N, return_index=True)[1])
            documents = completions.documents_of(context, split, found.ids_N)
            answers = completions.answers_of(context, found.texts)
            right = completions.right(context, answers, documents)
            result["label_accuracy"][split] = float(np.mean(right)) if right else None
    kept_batches.discard(folder.path / "completions")
    return result


def _label_maker(kind: str) -> LabelMaker:
    """The function for a kind of labels: that of a method, or external labels of any run."""
    if kind == "outside":
        return _external
    return next(spec.label_makers[kind] for spec in METHODS.values() if kind in spec.label_makers)


def _truth_of(phase: Phase, context: Context, split: str, ids_N: np.ndarray) -> np.ndarray:
    documents = context.data(phase).splits[split]
    truth = dict(zip(documents.ids_N.tolist(), documents.truth_N, strict=True))
    return np.array([truth[id_] for id_ in ids_N.tolist()], np.float32)


def _external(work: LabelWork) -> Labels | CompletionLabels:
    """Labels from the file `weak.labels` (people, a judge)."""
    path = work.context.settings.weak.labels
    assert path is not None
    if work.phase.completion is not None:
        texts = read_external_texts(path)
        ids = {split: work.documents(split).ids_N for split in work.phase.label_splits}
        return {
            split: work.given(ids_N, join_texts(texts, ids_N, f"{path}: {split}"))
            for split, ids_N in ids.items()
        }
    arrays = work.context.resolved.labels
    made: Labels = {}
    if arrays is not None:
        for split in work.phase.label_splits:
            made |= work.of_all(split, arrays.read(split)[:, 0])
        return made
    task = work.context.resolved.task
    found = read_external_labels(path, () if task is None else task.classes)
    for split in work.phase.label_splits:
        soft_NC = join_labels(found, work.documents(split).ids_N, f"{path}: {split}")
        made |= work.of_all(split, soft_NC)
    return made
