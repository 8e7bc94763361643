"""Phases of kind 'labels': labels made without training a model.

Which function makes them is declared with the methods: `MethodSpec.label_makers`.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_jax.config import METHODS
from w2s_jax.data.external_labels import join_labels, read_external_labels
from w2s_jax.data.tokenize import TokenizedDocuments, hard_labels
from w2s_jax.metrics import classification
from w2s_jax.models import heads
from w2s_jax.models.inference import fits_on_one_device
from w2s_jax.phases import parameters, prediction
from w2s_jax.phases.context import Context
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import RoleInput
from w2s_jax.profiling import compilation
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training.prediction import Predictor, probabilities

#: split -> (ids_N uint64, soft labels float32 [N, 2]): what students learn, and predictions where
#: the split is validation or test.
Labels = dict[str, tuple[np.ndarray, np.ndarray]]
#: (work, **options of the phase) -> labels.
LabelMaker = Callable[..., Labels]


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
        """Ground truth, 0 or 1, float32 [N]; NaN for ties, which only slices have."""
        return hard_labels(self.documents(split).labels_N)

    def labels(self, split: str, parent: str = "labels") -> np.ndarray:
        """A parent's labels of a split, float32 [N, 2]."""
        folder = self.context.folder(self.phase.parents[parent])
        return artifacts.load_labels(folder, split, self.documents(split).ids_N)

    def features(self, split: str) -> np.ndarray:
        """A parent's features of a split's documents, float32 [N, K * D]."""
        folder = self.context.folder(self.phase.parents["features"])
        ids_N = self.documents(split).ids_N
        return artifacts.load_features(folder, split, ids_N).reshape(len(ids_N), -1)

    def of_all(self, split: str, soft_NC: np.ndarray) -> Labels:
        """Labels of all documents of a split."""
        return {split: (self.documents(split).ids_N, soft_NC.astype(np.float32))}

    def of_some(self, split: str, keep_N: np.ndarray) -> Labels:
        """The parent's labels of the documents of a split in a keep mask."""
        return {split: (self.documents(split).ids_N[keep_N], self.labels(split)[keep_N])}

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

    def next_token_labels(self, documents: TokenizedDocuments) -> np.ndarray:
        """Probabilities of the two label tokens after any documents, float32 [N, 2]."""
        zero, one = self.data.label_tokens
        head = heads.init_class_head(
            "unembedding", self.phase.model, self._backbone, (zero, one), self.context.mesh
        )
        params = {"backbone": self._backbone, "head": head}
        logits_NC = self._predictor(documents, features=False)(params)
        return probabilities(logits_NC)

    def _predictor(self, documents: TokenizedDocuments, *, features: bool) -> Predictor:
        dtype = self.phase.train.compute_dtype
        return Predictor(
            self.phase.model,
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
    for split, (_, soft_NC) in labels.items():
        prediction.check_finite(phase, soft_NC, f"labels of {split}")
    artifacts.save_labels(folder, labels)
    sizes = {split: len(ids_N) for split, (ids_N, _) in labels.items()}
    result: dict[str, Any] = {"labels": {"kind": "class", "splits": sizes}}
    evaluated = {split: labels[split][1] for split in phase.inputs}
    result |= prediction.store(phase, context, folder, evaluated)
    for split, (ids_N, soft_NC) in labels.items():
        truth_N = _truth_of(phase, context, split, ids_N)
        known_N = ~np.isnan(truth_N)
        result.setdefault("label_accuracy", {})[split] = classification.classification_metrics(
            soft_NC[known_N, 1], truth_N[known_N]
        )["accuracy"]
    return result | {
        "seconds": time.monotonic() - started,
        "compile_seconds": compilation.compile_clock().seconds - compiled,
    }


def _label_maker(kind: str) -> LabelMaker:
    """The function for a kind of labels: that of a method, or external labels of any run."""
    if kind == "outside":
        return _external
    return next(spec.label_makers[kind] for spec in METHODS.values() if kind in spec.label_makers)


def _truth_of(phase: Phase, context: Context, split: str, ids_N: np.ndarray) -> np.ndarray:
    documents = context.data(phase).splits[split]
    truth = dict(zip(documents.ids_N.tolist(), hard_labels(documents.labels_N), strict=True))
    return np.array([truth[id_] for id_ in ids_N.tolist()], np.float32)


def _external(work: LabelWork) -> Labels:
    """Labels from the file `weak.labels` (people, a judge)."""
    path = work.context.settings.weak.labels
    assert path is not None
    found = read_external_labels(path)
    made: Labels = {}
    for split in work.phase.label_splits:
        soft_NC = join_labels(found, work.documents(split).ids_N, f"{path}: {split}")
        made |= work.of_all(split, soft_NC)
    return made
