"""Helpers to build phases: number of steps, checks, parts of specs. Imports no JAX."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from w2s_jax.config import Settings, TrainSettings
from w2s_jax.config.sections import MAX_STEPS
from w2s_jax.core import errors
from w2s_jax.data.packing import steps_per_epoch
from w2s_jax.planning import pool
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.role_inputs import RoleInput

#: Train settings that change memory or speed, but no result.
_EXECUTION_ONLY = ("microbatch_size", "remat", "max_shapes")
#: Train settings that came later: hashed only where they differ from these values.
_LATE = {
    "adapt": "full",
    "param_dtype": "float32",
    "dropout": 0.0,
    "ema": 0.0,
    "label_smoothing": 0.0,
    "head_bias": False,
    "cosine_steps": None,
}


def ceiling_slice(settings: Settings) -> str | None:
    """Return the slice whose ground truth the ceiling learns; None if it has none."""
    split = "slice1" if settings.protocol.halves == "separate" else "slice2"
    return None if pool.lacks_truth(settings, split) else split


def num_steps(field: str, train: TrainSettings, num_documents: int) -> int:
    """Return the number of training steps: `steps`, or that of `epochs` over the documents.

    Raises:
      InputError: these are too many; names the epochs of the settings `field`.
    """
    if train.steps is not None:
        return train.steps
    steps = train.epochs * steps_per_epoch(num_documents, train.batch_size)
    if steps > MAX_STEPS:
        raise errors.InputError(
            f"{field}.epochs: {train.epochs!r} are {steps:.3g} steps; allowed: at most "
            f"{MAX_STEPS:,}"
        )
    return max(1, int(steps))


def require_a_batch(field: str, train: TrainSettings, count: int, split: str) -> None:
    """Check that `count` training documents of a split fill a batch.

    Raises:
      InputError: they do not.
    """
    if count < train.batch_size:
        raise errors.InputError(
            f"{field}.batch_size: {train.batch_size} exceeds the {count} training documents of "
            f"{split}; allowed: at most {count} (or raise task.train_docs)"
        )


def weights_digest(data: RoleInput) -> str | None:
    """Return the digest of a role's pretrained weights; None for an embedded model."""
    return None if data.source is None else data.source.digest


def train_spec(train: TrainSettings) -> dict[str, Any]:
    """Return the train settings that can change a result, except number of steps and seed."""
    fields = {f.name for f in dataclasses.fields(TrainSettings)}
    # Which text is used, and whether it is streamed, shows in the digest of the data.
    skipped = {"epochs", "steps", "streaming", "max_docs", "last_layers", *_EXECUTION_ONLY}
    # Only completions have it (`completion_spec`).
    skipped.add("token_weighting")
    skipped |= {name for name, value in _LATE.items() if getattr(train, name) == value}
    if train.adapt == "last_layers":
        skipped.remove("last_layers")
    if train.adapt == "probe":
        # Features and head are float32.
        skipped |= {"compute_dtype", "param_dtype"}
    return {name: getattr(train, name) for name in sorted(fields - skipped)}


def completion_spec(phase: Phase) -> dict[str, Any]:
    """Return what a phase's spec says of completions; {} in a task with classes."""
    if phase.completion is None:
        return {}
    found: dict[str, Any] = {"completion": dataclasses.asdict(phase.completion)}
    if phase.label_top_k:
        found["label_top_k"] = phase.label_top_k
    if phase.pairs:
        found["pairs"] = True
    if phase.targets == "tokens" and phase.train.token_weighting != "token":
        found["token_weighting"] = phase.train.token_weighting
    return found


def model_spec(phase: Phase, starts: Iterable[str] = ("init",)) -> dict[str, Any]:
    """Return a phase's model, and the digest of its weights unless a parent has them.

    Args:
      phase: the phase.
      starts: keys of `parents`: phases whose own specs have the digest.
    """
    if phase.model.is_features:
        # The digests of the documents include their features.
        return {"model": {"features": phase.model.d_model}}
    model = phase.model.to_dict()
    if phase.weights_digest is None:
        return {"model": model}
    # The name of pretrained weights depends on where they are stored.
    spec: dict[str, Any] = {"model": model | {"name": ""}}
    if phase.parents.keys().isdisjoint(starts):
        spec["weights"] = phase.weights_digest
    return spec
