"""Predictions, labels and features that a phase computes with its parameters."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from w2s_jax.core import errors, processes
from w2s_jax.metrics import classification
from w2s_jax.models.inference import fits_on_one_device
from w2s_jax.phases import parameters
from w2s_jax.phases.context import Context
from w2s_jax.phases.inputs import split_documents, split_features, targets_of
from w2s_jax.phases.parameters import Parameters
from w2s_jax.planning.phase import Phase
from w2s_jax.profiling import compilation
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training.prediction import Predictor, logits_of_features, probabilities


def predictor(
    phase: Phase, context: Context, split: str, params: Any
) -> Callable[[Any], np.ndarray]:
    """Return a function of parameters (like `params`) to a split's class logits, float32 [N, C]."""
    if phase.train.adapt == "probe":
        features_NKD = split_features(phase, context, split)
        return functools.partial(logits_of_features, features_NKD=features_NKD)
    return Predictor(
        phase.model,
        split_documents(phase, context, split),
        context.mesh,
        compute_dtype=phase.train.compute_dtype,
        per_device=fits_on_one_device(params, phase.train.compute_dtype),
    )


def if_not_finite(phase: Phase) -> str:
    """Return what a user can do where a phase meets a non-finite number."""
    part = "probe" if phase.train.adapt == "probe" else "train"
    section = f"{phase.role}.{'pretrain' if phase.kind == 'pretrain' else part}"
    advice = f"lower {section}.learning_rate ({phase.train.learning_rate:g})"
    if phase.train.clip_norm is None:
        advice += f" or set {section}.clip_norm"
    if not jax.config.values["jax_debug_nans"]:
        advice += "; --debug_nans names the operation"
    return advice


def check_finite(phase: Phase, values: np.ndarray, what: str) -> None:
    """Refuse values of documents [N, ...] that are not finite.

    Raises:
      TrainingFailed: if there are some.
    """
    bad = int((~np.isfinite(values)).any(axis=tuple(range(1, values.ndim))).sum())
    if bad:
        raise errors.TrainingFailed(
            f"{phase.title}: {what} of {bad} of {len(values)} documents are not finite; "
            f"{if_not_finite(phase)}"
        )


def predict(
    phase: Phase, context: Context, folder: PhaseFolder, parts: Parameters
) -> dict[str, Any]:
    """Predict validation, test and label splits; store predictions and labels; return a record.

    The record has the metrics of validation and test and, if the phase labels splits, their sizes.
    """
    documents_of = context.data(phase).splits
    splits = [s for s in ("validation", "test") if s in phase.inputs]
    params = parts.joined()
    p = {}
    for split in dict.fromkeys((*splits, *phase.label_splits)):
        logits_NC = predictor(phase, context, split, params)(params)
        check_finite(phase, logits_NC, "logits")
        p[split] = probabilities(logits_NC)
    result = store(phase, context, folder, {split: p[split] for split in splits})
    if phase.label_splits:
        labels = {s: (documents_of[s].ids_N, p[s]) for s in phase.label_splits}
        result["labels"] = artifacts.save_labels(folder, labels)
    return result


def store(
    phase: Phase, context: Context, folder: PhaseFolder, p: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Store predictions, split -> float32 [N, C], and return their metrics."""
    documents_of = context.data(phase).splits
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "split", "p", "label", "ground_truth")
    }
    result: dict[str, Any] = {"metrics": {}}
    if not p:
        return {}
    for split in p:
        documents = documents_of[split]
        columns["id"].append(documents.ids_N)
        columns["split"] += [split] * len(documents)
        shown = classification.class_probabilities(p[split])
        truth_N = documents.truth_N
        result["metrics"][split] = classification.classification_metrics(shown, truth_N)
        targets_NC = targets_of(phase, context, split, documents)
        two = shown.ndim == 1
        columns["p"].append(shown)
        columns["label"].append(targets_NC[:, 1] if two else targets_NC.argmax(1).astype(np.int32))
        columns["ground_truth"].append(truth_N if two else truth_N.astype(np.int32))
    merged = {k: v if k == "split" else np.concatenate(v) for k, v in columns.items()}
    processes.on_first(
        "predictions", lambda: artifacts.write_predictions(folder.predictions, merged)
    )
    return result


def compute_features(phase: Phase, context: Context, folder: PhaseFolder) -> dict[str, Any]:
    """Store the features of a frozen model: the inputs of its class heads."""
    started, compiled = time.monotonic(), compilation.compile_clock().seconds
    data, mesh = context.data(phase), context.mesh
    backbone = parameters.backbone(phase, data.source, context.store, mesh)
    found = {}
    for split in phase.label_splits:
        run = Predictor(
            phase.model,
            data.splits[split],
            mesh,
            compute_dtype=phase.train.compute_dtype,
            per_device=fits_on_one_device(backbone, phase.train.compute_dtype),
            features=True,
        )
        features_NKD = run({"backbone": backbone})
        check_finite(phase, features_NKD, "features")
        found[split] = (data.splits[split].ids_N, features_NKD)
    return _kept(phase, context, folder, found, backbone) | {
        "seconds": time.monotonic() - started,
        "compile_seconds": compilation.compile_clock().seconds - compiled,
    }


def store_features(phase: Phase, context: Context, folder: PhaseFolder) -> dict[str, Any]:
    """Store features that were computed elsewhere, of the documents of the phase."""
    data = context.data(phase)
    assert data.features is not None
    found = {
        split: (data.splits[split].ids_N, data.features.read(split)) for split in phase.label_splits
    }
    return _kept(phase, context, folder, found, None)


def _kept(
    phase: Phase,
    context: Context,
    folder: PhaseFolder,
    found: dict[str, tuple[np.ndarray, np.ndarray]],
    backbone: Any,
) -> dict[str, Any]:
    """Store features by split, with a head to start from, and return their sizes."""
    head = parameters.features_head(phase, backbone, context.mesh)
    artifacts.save_features(folder, found, head)
    sizes = {split: len(ids_N) for split, (ids_N, _) in found.items()}
    shape = next(iter(found.values()))[1].shape[1:]
    return {"features": {"splits": sizes, "shape": list(shape)}}
