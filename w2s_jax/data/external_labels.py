"""External labels (from people, a judge, another system) as a supervisor.

A file of rows with an `id`, the document's 64-bit id, and one of

- `p`: P(label 1) of two classes, else a list of the probabilities of all classes
- `p.<class>` for each class: its probability, of classes with names
- `label`: the number or the name of a class
- `text`, of tasks that ask for completions.

Other columns are ignored. Rows are joined by id, never by their order.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from w2s_jax.core.errors import InputError, listed, nearest, shown
from w2s_jax.data.records import read_records
from w2s_jax.data.values import (
    class_of,
    is_unlabelled,
    not_a_class,
    parse_probabilities,
    soft_label_of,
)

_Value = TypeVar("_Value")
#: P(label 1) of two classes, the probabilities of C > 2.
SoftLabel = float | tuple[float, ...]

_DECIMAL, _HEX = re.compile(r"-?[0-9]{1,20}"), re.compile(r"[0-9a-fA-F]{1,16}")
_DOUBLE = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE]\+?[0-9]+)?")
_OF_CLASS = "p."
_IDS = "an integer from 0 to 2^64 - 1, or its decimal or hexadecimal digits as a string"
_AS_TEXT = (
    "tools that read numbers as doubles (JavaScript, jq, spreadsheets, pandas where one is "
    "missing) round ids; keep them as text: '0x' and 16 hexadecimal digits, as `w2s labels` writes "
    "them"
)
# Doubles hold integers below 2^53; of larger ones spreadsheets keep 15 digits.
_EXACT, _PRECISION = 2**53, 1e-14


def read_external_labels(
    path: str | os.PathLike[str], classes: tuple[str, ...] = ()
) -> dict[int, SoftLabel]:
    """Read soft labels by document id from a file of records.

    An id is an integer or a string of digits. Strings that begin with 0x are hexadecimal; the
    others are all decimal, unless one of the file has a letter a to f: then all are hexadecimal.
    Negative ids are those of tools whose integers are signed: -1 is 2^64 - 1. A `p` within 1e-6 of
    [0, 1] is clipped; those of C > 2 classes, whose sum is 1 within 0.001, are divided by it unless
    float32 explains the difference.

    Args:
      path: the file.
      classes: names of the task's classes; (): two classes without names.

    Returns:
      P(label 1) of two classes, else the probabilities of all classes, in their order.

    Raises:
      InputError: an unreadable file; a row without an id, or with one that is not a 64-bit integer
        or occurred before; a row without a label, with several, or with one out of range (such
        as NaN); columns `p.<class>` of some classes only, or of others. Names the file and the row.
    """
    records = read_records(path, ("id", "p", "label", *(f"{_OF_CLASS}{c}" for c in classes)))
    return _by_id([(where, _id(row, where), _p(row, where, classes)) for where, row in records])


def read_external_texts(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read completions by document id from a file of records with `id` and `text`.

    Ids are those of `read_external_labels`. A text may be empty; it is not stripped.

    Raises:
      InputError: an unreadable file; a row with a bad or repeated id; a row without a text. Names
        the file and the row.
    """
    records = read_records(path, ("id", "text"))
    return _by_id([(where, _id(row, where), _text(row, where)) for where, row in records])


def _by_id(rows: Sequence[tuple[str, int | str, _Value]]) -> dict[int, _Value]:
    """Return values by id, from (place, id or its digits, value)."""
    base = 10
    if any(isinstance(id_, str) and not _DECIMAL.fullmatch(id_) for _, id_, _ in rows):
        base = 16
    found: dict[int, _Value] = {}
    for where, raw, value in rows:
        id_ = raw if isinstance(raw, int) else int(raw, base)
        if not -(2**63) <= id_ < 2**64:
            raise InputError(f"{where}: id {shown(raw)} has more than 64 bits; allowed: {_IDS}")
        id_ %= 2**64
        if id_ in found:
            raise InputError(f"{where}: id {raw!r} occurs twice; use one row per document")
        found[id_] = value
    return found


def join_labels(found: Mapping[int, SoftLabel], ids_N: np.ndarray, subject: str) -> np.ndarray:
    """Return the labels of the documents `ids_N`, in their order; other labels are ignored.

    Args:
      found: soft labels by id, from `read_external_labels`.
      ids_N: uint64 document ids.
      subject: what the error begins with.

    Returns:
      Soft labels, float32 [N, C].

    Raises:
      InputError: documents without a label.
    """
    p = np.array(_joined(found, ids_N, subject), np.float32)
    return p if p.ndim == 2 else np.stack([1 - p, p], axis=1)


def join_texts(found: dict[int, str], ids_N: np.ndarray, subject: str) -> list[str]:
    """Return the completions of the documents `ids_N`, in their order; others are ignored.

    Args:
      found: texts by id, from `read_external_texts`.
      ids_N: uint64 document ids.
      subject: what the error begins with.

    Raises:
      InputError: documents without a text.
    """
    return _joined(found, ids_N, subject)


def _joined(found: Mapping[int, _Value], ids_N: np.ndarray, subject: str) -> list[_Value]:
    ids = [int(id_) for id_ in ids_N]
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise InputError(
            f"{subject}: no label for {len(missing)} of {len(ids)} documents (the first: id "
            f"{missing[0]}, in hexadecimal {missing[0]:016x}); {_why_missing(found, missing)}"
        )
    return [found[id_] for id_ in ids]


def _why_missing(found: Mapping[int, _Value], missing: list[int]) -> str:
    """Return the end of an error: the ids of the file look rounded, or documents are missing."""
    missing_M, found_N = np.array(missing, np.uint64), np.sort(np.array([*found], np.uint64))
    if not len(found_N):
        return "every document needs a label"
    after_M = np.searchsorted(found_N, missing_M).clip(1, max(1, len(found_N) - 1))
    # Ids are hashes, so two are this near only if one is the other, rounded.
    near_M = [found_N[after_M - 1], found_N[after_M % len(found_N)]]
    gaps_M = [np.maximum(other_M, missing_M) - np.minimum(other_M, missing_M) for other_M in near_M]
    nearest_M = np.where(gaps_M[0] < gaps_M[1], *near_M)
    rounded_M = np.minimum(*gaps_M) <= missing_M * _PRECISION
    rounded_M &= missing_M >= _EXACT
    if 2 * rounded_M.sum() < len(missing):
        return "every document needs a label"
    m = int(rounded_M.argmax())
    return (
        f"{rounded_M.sum()} ids of the file are rounded ({missing_M[m]} to {nearest_M[m]}): "
        f"{_AS_TEXT}"
    )


def _value(row: dict[str, Any], name: str) -> Any:
    """Return the value of a column; None if it is missing or (in CSV) empty."""
    value = row.get(name)
    return None if isinstance(value, str) and not value.strip() else value


def _columns(row: dict[str, Any], name: str) -> str:
    """Return the end of an error about a missing column."""
    match = nearest(name, row)
    hint = f" (should {match!r} be {name!r}?)" if match and match != name else ""
    return f"{hint}; its columns: {listed(row)}"


def _id(row: dict[str, Any], where: str) -> int | str:
    """Return the id as an integer, or as digits whose base is not yet known."""
    value = _value(row, "id")
    if value is None:
        raise InputError(f"{where}: no 'id'{_columns(row, 'id')}")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip()
        digits = text[2:] if text[:2].lower() == "0x" else text
        if digits is not text and _HEX.fullmatch(digits):
            return int(digits, 16)
        if digits is text and (_DECIMAL.fullmatch(text) or _HEX.fullmatch(text)):
            return text
    if isinstance(value, float) or (isinstance(value, str) and _DOUBLE.fullmatch(value.strip())):
        raise InputError(f"{where}: id {shown(value)} is a double: {_AS_TEXT}")
    raise InputError(f"{where}: id {shown(value)}; allowed: {_IDS}")


def _text(row: dict[str, Any], where: str) -> str:
    """Return the text of a row."""
    text = row.get("text")
    if "text" not in row:
        raise InputError(f"{where}: no 'text'{_columns(row, 'text')}")
    if not isinstance(text, str):
        raise InputError(f"{where}: 'text' is not text: {shown(text)}")
    return text


def _p(row: dict[str, Any], where: str, classes: tuple[str, ...]) -> SoftLabel:
    """Return the soft label of a row."""
    given = {name: value for name in ("p", "label") if (value := _value(row, name)) is not None}
    of_classes = [name for name in row if name.startswith(_OF_CLASS)] if classes else []
    # Of two classes, such columns were ignored before they had a meaning.
    if of_classes and (len(classes) > 2 or not given):
        if given:
            raise InputError(f"{where}: both {next(iter(given))!r} and {of_classes[0]!r}; use one")
        return _p_of_classes(row, where, classes, of_classes)
    if not given:
        empty = next((name for name in ("p", "label") if name in row), None)
        if empty:
            raise InputError(f"{where}: {empty!r} is empty; every row needs a label")
        of_each = ", nor 'p.<class>'" if len(classes) > 2 else ""
        raise InputError(f"{where}: neither 'p' nor 'label'{of_each}{_columns(row, 'label')}")
    if len(given) == 2:
        raise InputError(f"{where}: both 'p' and 'label'; use one of them")
    ((name, value),) = given.items()
    if name == "p":
        return soft_label_of(value, f"{where}: p", classes)
    label = None if is_unlabelled(value) else class_of(value, classes)
    if label is None:
        raise InputError(f"{where}: label {not_a_class(value, classes)}")
    if len(classes) <= 2:
        return float(label)
    return tuple(float(n == label) for n in range(len(classes)))


def _p_of_classes(
    row: dict[str, Any], where: str, classes: tuple[str, ...], columns: Sequence[str]
) -> SoftLabel:
    """Return the soft label of a row with columns `p.<class>`."""
    names = [f"{_OF_CLASS}{name}" for name in classes]
    missing = [name for name in names if name not in columns]
    others = [name for name in columns if name not in names]
    if missing or others:
        problem = f"no {listed(map(repr, missing))}" if missing else f"{others[0]!r} is no class"
        raise InputError(f"{where}: {problem}; columns of the classes are {listed(names)}")
    p_C = parse_probabilities([row[name] for name in names], f"{where}: p", classes)
    return p_C[1] if len(classes) == 2 else p_C
