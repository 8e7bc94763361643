"""Read and check fields of records, for the `expand` functions of tasks."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.core.errors import InputError, shown, unknown
from w2s_jax.data.task import Candidate
from w2s_jax.data.values import is_missing, is_unlabelled, label_text

# Values of label fields without a label.
UNLABELLED = {"": -1, "-1": -1}


class EmptyText(InputError):
    """A record without a text that every task needs; `task.empty` says what to do with it."""


def empty_text(record: Mapping[str, Any], field_name: str, where: str) -> EmptyText:
    """Return the error about a field that holds no text."""
    return EmptyText(f"{where}: field {field_name!r}: empty document: {shown(record[field_name])}")


def text_of(
    record: Mapping[str, Any], field_name: str, where: str, *, may_be_empty: bool = False
) -> str:
    """Return the text in a field of a record, stripped.

    Raises:
      EmptyText: the field is blank or missing (None, NaN) although `may_be_empty` is False.
      InputError: the field is not text.
    """
    value = record[field_name]
    if not isinstance(value, str) and not is_missing(value):
        raise InputError(f"{where}: field {field_name!r}: not text: {shown(value)}")
    text = "" if is_missing(value) else value.strip()
    if not text and not may_be_empty:
        raise empty_text(record, field_name, where)
    return text


def verbatim(record: Mapping[str, Any], field_name: str, where: str) -> str:
    """Return the text in a field of a record as it is, which may be blank; '' if it is missing.

    Raises:
      InputError: the field is not text.
    """
    value = record[field_name]
    if not isinstance(value, str) and not is_missing(value):
        raise InputError(f"{where}: field {field_name!r}: not text: {shown(value)}")
    return "" if is_missing(value) else value


def one_of(
    record: Mapping[str, Any], field_name: str, where: str, values: Mapping[str, int]
) -> int:
    """Look up a field, which is one of a few integers or words, in `values`.

    Integers equal their text (as in CSV) and 1.0 equals 1; case is ignored. If `values` has -1, so
    do all spellings of a missing label (see `values.is_unlabelled`).

    Raises:
      InputError: the value of the field is not in `values`.
    """
    value = record[field_name]
    known = {key.casefold(): number for key, number in values.items()}
    number = known.get(label_text(value))
    if number is None and is_unlabelled(value) and -1 in known.values():
        number = -1
    if number is None:
        raise unknown(f"{where}: field {field_name!r}", value, [key for key in values if key])
    return number


def index_of(record: Mapping[str, Any], field_name: str, where: str, count: int) -> int:
    """Return the index, 0 to `count` - 1, in a field; -1 if the record is unlabelled (-1 or empty).

    Raises:
      InputError: the field has another value.
    """
    return one_of(record, field_name, where, {str(i): i for i in range(count)} | UNLABELLED)


def texts_of(record: Mapping[str, Any], field_name: str, where: str) -> list[str]:
    """Return the texts in a field that holds a list, stripped; some may be empty.

    Raises:
      InputError: the field is not a list of texts.
    """
    value = record[field_name]
    texts = ["" if is_missing(t) else t for t in value] if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: field {field_name!r}: not a list of texts: {shown(value)}")
    return [text.strip() for text in texts]


def part_of(
    record: Mapping[str, Any], field_name: str, where: str, keys: tuple[str, ...]
) -> Mapping[str, Any]:
    """Return the record in a field of a record.

    Raises:
      InputError: the field is not a record with all of `keys`.
    """
    value = record[field_name]
    if not isinstance(value, Mapping) or any(key not in value for key in keys):
        raise InputError(
            f"{where}: field {field_name!r}: not a record with {', '.join(keys)}: {shown(value)}"
        )
    return value


def expand_text_and_label(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the candidate of a record with `text` and `label`."""
    return [Candidate(text_of(record, "text", where), record["label"])]
