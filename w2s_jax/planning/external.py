"""Checks of a file of external labels, before anything is computed. Imports no JAX."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from w2s_jax.core import errors
from w2s_jax.core.files import sha256
from w2s_jax.data.completions import check_spelling
from w2s_jax.data.documents import Document
from w2s_jax.data.external_labels import (
    join_labels,
    join_texts,
    read_external_labels,
    read_external_texts,
)
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import Tokenizer


def check_external(
    path: str,
    splits: Mapping[str, TokenizedDocuments],
    notes: list[str],
    *,
    tokenizers: Sequence[Tokenizer | None] | None = None,
    classes: tuple[str, ...] = (),
) -> str:
    """Return the sha256 of a file of labels, after checking that it has all that are needed.

    Args:
      path: the file, `weak.labels`.
      splits: the weak model's documents; slice 1 and pretraining text need no labels.
      notes: a line on undecided labels is appended.
      tokenizers: of the models that read the labels, where these are completions; None for classes.
      classes: of the task.

    Raises:
      InputError: it cannot be read, lacks a label, or has a text that a tokenizer cannot spell.
    """
    if tokenizers is None:
        joined = _joined_labels(path, classes, notes)
    else:
        joined = _joined_texts(path, tokenizers)
    for split, documents in splits.items():
        if split not in ("slice1", "pretrain"):
            joined(split, documents.ids_N)
    return sha256(Path(path))


#: (split, ids_N) -> None; raises an error where a document has no label.
_Join = Callable[[str, np.ndarray], None]


def _joined_texts(path: str, tokenizers: Sequence[Tokenizer | None]) -> _Join:
    with _of_the_field():
        found = read_external_texts(path)
        different = {tokenizer.digest: tokenizer for tokenizer in tokenizers if tokenizer}
        for tokenizer in different.values():
            _check_spelling(path, found, tokenizer)

    def join(split: str, ids_N: np.ndarray) -> None:
        join_texts(found, ids_N, f"weak.labels: {path}: {split}")

    return join


def _joined_labels(path: str, classes: tuple[str, ...], notes: list[str]) -> _Join:
    with _of_the_field():
        found = read_external_labels(path, classes)

    def join(split: str, ids_N: np.ndarray) -> None:
        soft_NC = join_labels(found, ids_N, f"weak.labels: {path}: {split}")
        best_N2 = np.sort(soft_NC, axis=1)[:, -2:]
        undecided = int((best_N2[:, 0] == best_N2[:, 1]).sum())
        if undecided:
            what = "0.5" if soft_NC.shape[1] == 2 else "undecided"
            first = "0" if soft_NC.shape[1] == 2 else "the first of the likeliest classes"
            notes.append(
                f"{split}: {undecided:,} external labels are {what}; as predictions they count as "
                f"{first}"
            )

    return join


def _check_spelling(path: str, found: Mapping[int, str], tokenizer: Tokenizer) -> None:
    documents = [
        Document(id=id_, text="", target=text, where=f"{path}, id {id_:#018x}")
        for id_, text in found.items()
    ]
    try:
        tokens_T, lengths_N = tokenizer.encode_batch(list(found.values()))
    except errors.InputError:
        for document in documents:
            try:
                tokenizer.encode_batch([document.target or ""])
            except errors.InputError as error:
                reason = str(error).removeprefix("task.tokenizer: ")
                raise errors.InputError(f"{document.name}: {reason}") from error
        raise
    check_spelling(documents, tokenizer, tokens_T, lengths_N)


@contextlib.contextmanager
def _of_the_field() -> Iterator[None]:
    try:
        yield
    except errors.InputError as error:
        raise errors.InputError(f"weak.labels: {error}") from error
