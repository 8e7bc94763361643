"""Parts that the kinds of phases share: lengths of training, checks, specs. Imports no JAX."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from w2s_jax.config import Settings, TrainSettings
from w2s_jax.core import errors
from w2s_jax.data.packing import steps_per_epoch
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import RoleInput

#: Train settings that change memory or speed, but no result.
_EXECUTION_ONLY = ("microbatch_size", "remat", "max_shapes")
#: Train settings that came later: hashed only where they differ from these values.
_LATE = {
    "adapt": "full",
    "param_dtype": "float32",
    "dropout": 0.0,
    "ema": 0.0,
    "label_smoothing": 0.0,
}


def ceiling_slice(settings: Settings) -> str:
    """The slice whose ground truth the ceiling learns."""
    return "slice2" if settings.protocol.halves == "shared" else "slice1"


def num_steps(train: TrainSettings, num_documents: int) -> int:
    """Training steps: `steps` if given, else `epochs` over so many documents."""
    if train.steps is not None:
        return train.steps
    return max(1, int(train.epochs * steps_per_epoch(num_documents, train.batch_size)))


def require_a_batch(field: str, train: TrainSettings, count: int, split: str) -> None:
    """Checks that `count` documents of a split fill a batch.

    Raises:
      InputError: if they do not.
    """
    if count < train.batch_size:
        raise errors.InputError(
            f"{field}.batch_size: {train.batch_size} exceeds the {count} training documents of "
            f"{split}; allowed: at most {count} (or raise task.train_docs)"
        )


def weights_digest(data: RoleInput) -> str | None:
    """The digest of a role's pretrained weights; None for an embedded model."""
    return None if data.source is None else data.source.digest


def train_spec(train: TrainSettings) -> dict[str, Any]:
    """The train settings that can change a result, but for the number of steps and the seed."""
    fields = {f.name for f in dataclasses.fields(TrainSettings)}
    # Whether text is streamed shows in the digest of the data.
    skipped = {"epochs", "steps", "streaming", "last_layers", *_EXECUTION_ONLY}
    skipped |= {name for name, value in _LATE.items() if getattr(train, name) == value}
    if train.adapt == "last_layers":
        skipped.remove("last_layers")
    if train.adapt == "probe":
        # Features and head are float32.
        skipped |= {"compute_dtype", "param_dtype"}
    return {name: getattr(train, name) for name in sorted(fields - skipped)}


def model_spec(phase: Phase, starts: Iterable[str] = ("init",)) -> dict[str, Any]:
    """A phase's model, and the digest of its weights unless they come from another phase.

    Args:
      phase: the phase.
      starts: the keys of `parents` whose phases have used the weights already.
    """
    model = phase.model.to_dict()
    if phase.weights_digest is None:
        return {"model": model}
    # The name of pretrained weights depends on where they are stored.
    spec: dict[str, Any] = {"model": model | {"name": ""}}
    if phase.parents.keys().isdisjoint(starts):
        spec["weights"] = phase.weights_digest
    return spec
