"""External labels (from people, a judge, another system) as a supervisor.

A file of rows with an `id`, the document's 64-bit id, and either `p`, P(label 1), or `label`, 0 or
1; other columns are ignored. Rows are joined by id, never by their order.
"""

import math
import os
import re
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, nearest
from w2s_jax.data.records import read_records

_DECIMAL, _HEX = re.compile(r"[0-9]{1,20}"), re.compile(r"[0-9a-fA-F]{1,16}")
_IDS = "an integer from 0 to 2^64 - 1, or its decimal or hexadecimal digits as a string"


def read_external_labels(path: str | os.PathLike[str]) -> dict[int, float]:
    """Read P(label 1) by document id from a .jsonl, .jsonl.gz, .csv or .parquet file.

    An id is an integer or a string of digits. Strings that begin with 0x are hexadecimal; the
    others are all decimal, unless one of the file has a letter a to f: then all are hexadecimal.

    Raises:
      InputError: an unreadable file; a row without an id, or with one that is not a 64-bit integer
        or occurred before; a row without `p` or `label`, with both, or with one out of range (such
        as NaN). Names the file and the row.
    """
    rows = [(where, _id(row, where), _p(row, where)) for where, row in read_records(path)]
    base = 10
    if any(isinstance(id_, str) and not _DECIMAL.fullmatch(id_) for _, id_, _ in rows):
        base = 16
    found: dict[int, float] = {}
    for where, raw, p in rows:
        id_ = raw if isinstance(raw, int) else int(raw, base)
        if id_ >= 2**64:
            raise InputError(f"{where}: id {raw!r} has more than 64 bits; allowed: {_IDS}")
        if id_ in found:
            raise InputError(f"{where}: id {raw!r} occurs twice; use one row per document")
        found[id_] = p
    return found


def join_labels(found: dict[int, float], ids_N: np.ndarray, subject: str) -> np.ndarray:
    """Return the labels of the documents `ids_N`, in their order; other labels are ignored.

    Args:
      found: P(label 1) by id, from `read_external_labels`.
      ids_N: uint64 document ids.
      subject: what the error begins with.

    Returns:
      Soft labels, float32 [N, 2].

    Raises:
      InputError: documents without a label.
    """
    ids = [int(id_) for id_ in ids_N]
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise InputError(
            f"{subject}: no label for {len(missing)} of {len(ids)} documents (the first: id "
            f"{missing[0]}, in hexadecimal {missing[0]:016x}); every document needs a label"
        )
    p_N = np.array([found[id_] for id_ in ids], np.float32)
    return np.stack([1 - p_N, p_N], axis=1)


def _value(row: dict[str, Any], name: str) -> Any:
    """Return the value of a column; None if it is missing or (in CSV) empty."""
    value = row.get(name)
    return None if isinstance(value, str) and not value.strip() else value


def _columns(row: dict[str, Any], name: str) -> str:
    """Return the end of an error about a missing column."""
    match = nearest(name, row)
    hint = f" (should {match!r} be {name!r}?)" if match and match != name else ""
    return f"{hint}; its columns: {', '.join(map(str, row)) or 'none'}"


def _id(row: dict[str, Any], where: str) -> int | str:
    """Return the id as an integer, or as digits whose base is not yet known."""
    value = _value(row, "id")
    if value is None:
        raise InputError(f"{where}: no 'id'{_columns(row, 'id')}")
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        text = value.strip()
        digits = text[2:] if text[:2].lower() == "0x" else text
        if digits is not text and _HEX.fullmatch(digits):
            return int(digits, 16)
        if digits is text and (_DECIMAL.fullmatch(text) or _HEX.fullmatch(text)):
            return text
    raise InputError(f"{where}: id {value!r}; allowed: {_IDS}")


def _p(row: dict[str, Any], where: str) -> float:
    """Return P(label 1) of a row."""
    given = {name: value for name in ("p", "label") if (value := _value(row, name)) is not None}
    if not given:
        raise InputError(f"{where}: neither 'p' nor 'label'{_columns(row, 'label')}")
    if len(given) == 2:
        raise InputError(f"{where}: both 'p' and 'label'; use one of them")
    ((name, value),) = given.items()
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if name == "label" and number not in (0, 1):
        raise InputError(f"{where}: label {value!r}; allowed: 0 or 1")
    # NaN fails every comparison.
    if not 0 <= number <= 1:
        raise InputError(f"{where}: p {value!r}; allowed: 0 to 1")
    return number
