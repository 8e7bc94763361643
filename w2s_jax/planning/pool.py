"""Runs on an unlabelled pool: which documents lack ground truth, and what needs it. No JAX."""

import dataclasses
from collections.abc import Iterable

from w2s_jax.config import METHODS, Settings
from w2s_jax.core import errors
from w2s_jax.data.loading import LoadedTask


def with_pool(settings: Settings, loaded: LoadedTask) -> Settings:
    """Return the settings with the pool that the layout of the task's files implies.

    Raises:
      InputError: `task.unlabelled_docs` without a pool.
    """
    task = settings.task
    if loaded.pool is None and task.unlabelled_docs is not None:
        raise errors.InputError(
            f"task.unlabelled_docs: {task.unlabelled_docs}, but there is no unlabelled pool; set "
            "task.unlabelled to a split or a file, or leave it at None"
        )
    return dataclasses.replace(settings, task=dataclasses.replace(task, unlabelled=loaded.pool))


def lacks_truth(settings: Settings, split: str) -> bool:
    """Return whether the documents of a split have no ground truth: those of the pool."""
    pool = settings.task.unlabelled is not None
    return pool and split.startswith("slice") and split != "slice1"


def labelled(settings: Settings, splits: Iterable[str]) -> list[str]:
    """Return the splits whose documents have ground truth."""
    return [split for split in splits if not lacks_truth(settings, split)]


def require_truth(settings: Settings, split: str) -> None:
    """Refuse to use the ground truth of a split that has none.

    Raises:
      InputError: it has none.
    """
    if lacks_truth(settings, split):
        raise errors.InputError(
            f"task.unlabelled: {settings.task.unlabelled!r}: {split} has no ground truth, which a "
            "method uses"
        )


def check(settings: Settings) -> None:
    """Check that the methods of a run do without the ground truth that its documents lack.

    Raises:
      InputError: one does not.
    """
    if settings.task.unlabelled is None:
        return
    halves = settings.protocol.halves
    for method in settings.methods:
        needed = METHODS[method.kind].truth_of
        if needed == "ceiling" and halves != "separate":
            raise errors.InputError(
                f"method.name: {method.kind!r} needs a ceiling, and with "
                f"protocol.halves={halves!r} the documents of task.unlabelled, which have "
                "no labels, would be its training documents; set protocol.halves=separate"
            )
        if needed == "slice2":
            able = (name for name, spec in METHODS.items() if spec.truth_of != "slice2")
            raise errors.InputError(
                f"method.name: {method.kind!r} needs the ground truth of the student's documents, "
                f"which task.unlabelled does not have; allowed: {', '.join(able)}"
            )
