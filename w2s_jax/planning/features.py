"""Roles whose model is features of documents: checks, and what identifies them. No JAX."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2s_jax.config import Role, Settings
from w2s_jax.core import errors
from w2s_jax.data.feature_formats import SUFFIXES
from w2s_jax.data.feature_sources import (
    PREFIX,
    FeatureSource,
    SplitFeatures,
    Splits,
    find_features,
)
from w2s_jax.data.task import Task
from w2s_jax.data.tokenize import TokenizedDocuments


def find(settings: Settings) -> dict[str, FeatureSource]:
    """Return role -> source, of the roles whose model is features.

    Raises:
      InputError: there is no such file or function, or the role's settings ask for what only a
        network has.
    """
    found = {}
    for role, own in settings.roles.items():
        with errors.of_field(f"{role}.model"):
            source = find_features(own.model)
        if source is None and Path(own.model).suffix in SUFFIXES and Path(own.model).is_file():
            raise errors.InputError(
                f"{role}.model: {own.model} is a file; if it has features of documents, give "
                f"{PREFIX}{own.model}"
            )
        if source is not None:
            _check_settings(role, own)
            found[role] = source
    return found


def _check_settings(role: str, own: Role) -> None:
    """Refuse settings of a role that features do not have."""
    if own.train.adapt != "probe":
        raise errors.InputError(
            f"{role}.train.adapt: {own.train.adapt!r}, but {own.model} has no network to train, "
            f"only features for a head; allowed: 'probe' (--config.{role}.train.adapt=probe)"
        )
    unused: dict[str, Any] = {
        "pretrain.source": own.pretrain.source,
        "tokenizer": own.tokenizer,
        "read_out": own.read_out,
        "read_out_layers": own.read_out_layers or None,
    }
    for field, value in unused.items():
        if value is not None:
            raise errors.InputError(
                f"{role}.{field}: {value!r}, but {own.model} is features, which read no text; "
                "allowed: None"
            )


def check_task(task: Task, given: Mapping[str, FeatureSource]) -> None:
    """Check that a task has classes, which heads on features predict.

    Raises:
      InputError: it asks for completions.
    """
    for role, source in given.items():
        if task.generates:
            raise errors.InputError(
                f"{role}.model: {source.given} is features, which generate no text; task "
                f"{task.name!r} needs a language model"
            )


def reading(role: str, source: FeatureSource, task: Task) -> FeatureSource:
    """Return `source.reading(task.image)`.

    Raises:
      InputError: the source reads images, and the documents are none; names the role's field.
    """
    try:
        return source.reading(task.image)
    except errors.InputError as error:
        raise errors.InputError(
            f"{role}.model: {error}, but the documents of task {task.name!r} are no images"
        ) from error


def bound(role: str, source: FeatureSource, splits: Splits, num_texts: int) -> SplitFeatures:
    """Return `source.bind(splits, num_texts)`.

    Raises:
      InputError: as `source.bind`; names the role's field.
    """
    with errors.of_field(f"{role}.model"):
        return source.bind(splits, num_texts)


def joined(role: str, own: SplitFeatures, other: SplitFeatures) -> SplitFeatures:
    """Return `own.with_splits(other)`.

    Raises:
      InputError: as `with_splits`; names the role's field.
    """
    with errors.of_field(f"{role}.model"):
        return own.with_splits(other)


def digest(documents: TokenizedDocuments, of_features: str) -> str:
    """Return the sha256 of ids, labels and features: what a split is to a head on them."""
    return hashlib.sha256(f"{documents.digest()}{of_features}".encode()).hexdigest()
