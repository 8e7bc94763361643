"""Checks of a file of external labels, before anything is computed. Imports no JAX."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from w2s_jax.core import errors
from w2s_jax.core.files import sha256
from w2s_jax.data.external_labels import (
    join_labels,
    join_texts,
    read_external_labels,
    read_external_texts,
)
from w2s_jax.data.tokenize import TokenizedDocuments


def check_external(
    path: str, splits: Mapping[str, TokenizedDocuments], notes: list[str], *, texts: bool
) -> str:
    """Return the sha256 of a file of labels, after checking that it has all that are needed.

    Args:
      path: the file, `weak.labels`.
      splits: the weak model's documents; slice 1 and pretraining text need no labels.
      notes: a line on undecided labels is appended.
      texts: whether the labels are completions, not classes.

    Raises:
      InputError: it cannot be read, or lacks a label.
    """
    joined = _joined_texts(path) if texts else _joined_labels(path, notes)
    for split, documents in splits.items():
        if split not in ("slice1", "pretrain"):
            joined(split, documents.ids_N)
    return sha256(Path(path))


#: (split, ids_N) -> None; raises an error where a document has no label.
_Join = Callable[[str, np.ndarray], None]


def _joined_texts(path: str) -> _Join:
    with _of_the_field():
        found = read_external_texts(path)

    def join(split: str, ids_N: np.ndarray) -> None:
        join_texts(found, ids_N, f"weak.labels: {path}: {split}")

    return join


def _joined_labels(path: str, notes: list[str]) -> _Join:
    with _of_the_field():
        found = read_external_labels(path)

    def join(split: str, ids_N: np.ndarray) -> None:
        soft_NC = join_labels(found, ids_N, f"weak.labels: {path}: {split}")
        undecided = int((soft_NC[:, 1] == 0.5).sum())
        if undecided:
            notes.append(
                f"{split}: {undecided:,} external labels are 0.5; as predictions they count as 0"
            )

    return join


@contextlib.contextmanager
def _of_the_field() -> Iterator[None]:
    try:
        yield
    except errors.InputError as error:
        raise errors.InputError(f"weak.labels: {error}") from error
