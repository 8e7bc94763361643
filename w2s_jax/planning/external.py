"""Checks of a file of external labels, before anything is computed. Imports no JAX."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
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
from w2s_jax.data.feature_files import FeatureFiles
from w2s_jax.data.feature_sources import SplitFeatures, Splits
from w2s_jax.data.task import Task
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import Tokenizer
from w2s_jax.data.values import FLOAT32_ROUNDING, ROUNDING, SUM_TOLERANCE

#: Endings of files of labels that are arrays, not records.
ARRAYS = (".npz", ".npy", ".safetensors")


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


def is_array(path: str) -> bool:
    """Return whether a file of labels is one of arrays: `ids` and `p`."""
    return Path(path).suffix in ARRAYS


def bound_labels(path: str, documents: Splits, task: Task, notes: list[str]) -> SplitFeatures:
    """Return the class probabilities in a file of arrays, float32 [N, 1, C].

    Args:
      path: the file, `weak.labels`; it has `ids` and `p` [N, C], like a file of features.
      documents: those that need labels, by split.
      task: whose classes are the columns, in their order.
      notes: a line on undecided labels is appended.

    Raises:
      InputError: it cannot be read, lacks a label, or has rows that are no probabilities; or the
        task asks for completions.
    """
    if task.generates:
        raise errors.InputError(
            f"weak.labels: {path} has probabilities of classes, but task {task.name!r} asks for "
            "completions; give rows of 'id' and 'text' (.jsonl, .csv or .parquet)"
        )
    location = Path(path).expanduser()
    if not location.exists():
        raise errors.InputError(f"weak.labels: {path}: no such file")
    files = FeatureFiles(path, location.name, [location], array="p", what="probabilities")
    with errors.of_field("weak.labels"):
        bound = files.bind(documents)
    given = f"weak.labels: {path}"
    count = task.num_classes
    if bound.width != count:
        raise errors.InputError(
            f"{given}: {bound.width} probabilities per row; allowed: {count}, those of "
            f"{errors.listed(task.classes or (0, 1))}"
        )

    def read(split: str) -> np.ndarray:
        p_NC = bound.read(split)[:, 0]
        return normalised(p_NC, documents[split], f"{given}: {split}")[:, None]

    for split in documents:
        _note_undecided(split, read(split)[:, 0], notes)
    return SplitFeatures(bound.name, count, bound.digests, read)


def digest_of(labels: SplitFeatures) -> str:
    """Return the sha256 of the labels of all splits."""
    return hashlib.sha256(repr(sorted(labels.digests.items())).encode()).hexdigest()


def normalised(p_NC: np.ndarray, documents: Sequence[Document], subject: str) -> np.ndarray:
    """Return probabilities with the sum 1, as `values.parse_probabilities` does row by row.

    Args:
      p_NC: float32.
      documents: those of the rows.
      subject: what errors begin with.

    Raises:
      InputError: a number is not within 1e-6 of [0, 1], or a sum not within 0.001 of 1.
    """
    total_N = p_NC.sum(axis=1, dtype=np.float64)
    outside_N = (p_NC < -ROUNDING).any(axis=1) | (p_NC > 1 + ROUNDING).any(axis=1)
    bad_N = outside_N | (np.abs(total_N - 1) > SUM_TOLERANCE)
    if bad_N.any():
        n = int(bad_N.argmax())
        raise errors.InputError(
            f"{subject}: {int(bad_N.sum()):,} of {len(bad_N):,} rows are no probabilities, which "
            f"are from 0 to 1 with the sum 1, within {SUM_TOLERANCE} (the first: "
            f"{documents[n].name}, from {p_NC[n].min():g} to {p_NC[n].max():g} with the sum "
            f"{total_N[n]:g})"
        )
    p_NC = p_NC.clip(0, 1)
    rounded_N = np.abs(total_N - 1) <= FLOAT32_ROUNDING * p_NC.shape[1]
    return np.where(rounded_N[:, None], p_NC, p_NC / total_N[:, None]).astype(np.float32)


#: (split, ids_N) -> None; raises an error where a document has no label.
_Join = Callable[[str, np.ndarray], None]


def _joined_texts(path: str, tokenizers: Sequence[Tokenizer | None]) -> _Join:
    with errors.of_field("weak.labels"):
        found = read_external_texts(path)
        different = {tokenizer.digest: tokenizer for tokenizer in tokenizers if tokenizer}
        for tokenizer in different.values():
            _check_spelling(path, found, tokenizer)

    def join(split: str, ids_N: np.ndarray) -> None:
        join_texts(found, ids_N, f"weak.labels: {path}: {split}")

    return join


def _joined_labels(path: str, classes: tuple[str, ...], notes: list[str]) -> _Join:
    with errors.of_field("weak.labels"):
        found = read_external_labels(path, classes)

    def join(split: str, ids_N: np.ndarray) -> None:
        soft_NC = join_labels(found, ids_N, f"weak.labels: {path}: {split}")
        _note_undecided(split, soft_NC, notes)

    return join


def _note_undecided(split: str, soft_NC: np.ndarray, notes: list[str]) -> None:
    best_N2 = np.sort(soft_NC, axis=1)[:, -2:]
    undecided = int((best_N2[:, 0] == best_N2[:, 1]).sum())
    if undecided:
        what = "0.5" if soft_NC.shape[1] == 2 else "undecided"
        first = "0" if soft_NC.shape[1] == 2 else "the first of the likeliest classes"
        notes.append(
            f"{split}: {undecided:,} external labels are {what}; as predictions they count as "
            f"{first}"
        )


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
