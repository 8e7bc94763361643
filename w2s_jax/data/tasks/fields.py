"""Read and check fields of records, for the `expand` functions of tasks."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.core.errors import InputError, unknown
from w2s_jax.data.task import Candidate

# Values of label fields without a label.
UNLABELLED = {"": -1, "-1": -1}


def text_of(
    record: Mapping[str, Any], field_name: str, where: str, *, may_be_empty: bool = False
) -> str:
    """Return the text in a field of a record, stripped.

    Raises:
      InputError: the field is not text, or blank although `may_be_empty` is False.
    """
    value = record[field_name]
    if not isinstance(value, str):
        raise InputError(f"{where}: field {field_name!r}: not text: {value!r}")
    text = value.strip()
    if not text and not may_be_empty:
        raise InputError(f"{where}: field {field_name!r}: empty document: {value!r}")
    return text


def one_of(
    record: Mapping[str, Any], field_name: str, where: str, values: Mapping[str, int]
) -> int:
    """Look up a field, which is one of a few integers or words, in `values`.

    Integers equal their text (as in CSV), case is ignored, and None equals the empty text.

    Raises:
      InputError: the value of the field is not in `values`.
    """
    value = record[field_name]
    known = {key.casefold(): number for key, number in values.items()}
    number = known.get("" if value is None else str(value).strip().casefold())
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
    if not isinstance(value, list) or not value or not all(isinstance(t, str) for t in value):
        raise InputError(f"{where}: field {field_name!r}: not a list of texts: {value!r}")
    return [text.strip() for text in value]


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
            f"{where}: field {field_name!r}: not a record with {', '.join(keys)}: {value!r}"
        )
    return value


def expand_text_and_label(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the candidate of a record with `text` and `label`."""
    return [Candidate(text_of(record, "text", where), record["label"])]
