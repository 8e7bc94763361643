"""Labels, soft labels and groups as people and tools write them in records.

One value has several spellings: a column of integers with a missing value becomes one of floats,
CSV has only text, spreadsheets write TRUE. What counts as missing, and which spellings are equal,
is decided here for all tasks.
"""

import re
from decimal import Decimal
from numbers import Real
from typing import Any

from w2s_jax.core.errors import InputError, shown

UNLABELLED = -1
_NO_LABEL = frozenset({"", "-1", "nan", "none", "null", "na", "n/a", "<na>"})
_LABELS = {"0": 0, "1": 1, "false": 0, "true": 1}
_INTEGRAL_TEXT = re.compile(r"(-?\d+)\.0*", re.ASCII)
# float32 probabilities may leave [0, 1] by rounding errors.
_ROUNDING = 1e-6


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN, which some tools write for None."""
    return value is None or (isinstance(value, Real | Decimal) and value != value)


def is_unlabelled(value: Any) -> bool:
    """Return whether a label says that there is none: -1, missing, or a text such as '' or 'null'.

    The only such test: all tasks, splits and formats share it.
    """
    if type(value) is int:  # nearly all
        return value == UNLABELLED
    return is_missing(value) or label_text(value) in _NO_LABEL


def plain_text(value: Any) -> str:
    """Return a value as text: integral numbers as integers (17.0 is '17'), text stripped."""
    number: Any = value
    if isinstance(value, Real | Decimal) and not isinstance(value, bool):
        try:
            whole = int(number)
        except (OverflowError, ValueError):  # infinity, NaN
            return str(value)
        return str(whole) if whole == value else str(value)
    return str(value).strip()


def label_text(value: Any) -> str:
    """Return a label as text that is the same for all its spellings: 1, 1.0, ' 1.0' are '1'."""
    text = plain_text(value).casefold()
    integral = _INTEGRAL_TEXT.fullmatch(text)
    return str(int(integral[1])) if integral else text


def parse_label(value: Any, where: str) -> int:
    """Return 0, 1, or -1 (unlabelled) from a value in a file.

    Accepts 0, 1, 0.0, 1.0, true, false, the same as strings (as in CSV, in any case), and what
    `is_unlabelled` accepts.

    Raises:
      InputError: anything else.
    """
    if is_unlabelled(value):
        return UNLABELLED
    label = _LABELS.get(label_text(value)) if isinstance(value, str | Real | Decimal) else None
    if label is None:
        raise InputError(f"{where}: field 'label': {shown(value)}; allowed: 0 or 1")
    return label


def parse_soft_label(value: Any, where: str) -> float:
    """Return P(label 1) from a value in a file: a number in [0, 1], or such a number as text.

    Raises:
      InputError: anything else.
    """
    number = probability(value)
    if number is None:
        raise InputError(f"{where}: field 'soft_label': {shown(value)}; allowed: 0 to 1")
    return number


def probability(value: Any) -> float | None:
    """Return a number in [0, 1], or such a number as text; None for anything else.

    Numbers within 1e-6 of the interval are clipped.
    """
    if isinstance(value, bool) or not isinstance(value, str | Real | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    # NaN fails every comparison.
    return min(max(number, 0.0), 1.0) if -_ROUNDING <= number <= 1 + _ROUNDING else None


def group_key(value: Any, where: str) -> str | None:
    """Return the name of a record's group, equal for all spellings of one value; None for no group.

    17, 17.0, '17' and ' 17 ' are one group, the text '17.0' another. None, NaN and '' are no group.

    Raises:
      InputError: a list or an object.
    """
    if isinstance(value, list | tuple | dict | set):
        raise InputError(
            f"{where}: field 'group': {shown(value)}; a group is a text or a number, not a "
            f"{type(value).__name__}"
        )
    return None if is_missing(value) else plain_text(value) or None
