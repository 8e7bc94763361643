"""Labels, soft labels and groups as people and tools write them in records.

One value has several spellings: a column of integers with a missing value becomes one of floats,
CSV has only text, spreadsheets write TRUE. What counts as missing, and which spellings are equal,
is decided here for all tasks.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

from w2s_jax.core.errors import InputError, did_you_mean, listed, shown

UNLABELLED = -1
_NO_LABEL = frozenset({"", "-1", "nan", "none", "null", "na", "n/a", "<na>"})
_LABELS = {"0": 0, "1": 1, "false": 0, "true": 1}
#: What `label_text` returns for the labels of two classes without names.
TWO_LABELS = frozenset(_LABELS)
_INTEGRAL_TEXT = re.compile(r"(-?\d+)\.0*", re.ASCII)
_INTEGER = re.compile(r"-?\d+", re.ASCII)
# float32 probabilities may leave [0, 1] by rounding errors.
ROUNDING = 1e-6
# Probabilities in files are often rounded to three digits.
SUM_TOLERANCE = 1e-3
FLOAT32_ROUNDING = 6e-8


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN, which some tools write for None."""
    return value is None or (isinstance(value, Real | Decimal) and value != value)


def is_unlabelled(value: Any) -> bool:
    """Return whether a label says that there is none: -1, missing, or a text such as '' or 'null'.

    The only such test: all tasks, splits and formats share it.
    """
    if type(value) is int:  # nearly all
        return value == UNLABELLED
    if isinstance(value, list | tuple | Mapping):
        return False
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


def parse_label(value: Any, where: str, classes: tuple[str, ...] = ()) -> int:
    """Return a label, 0 to C - 1, or -1 (unlabelled) from a value in a file.

    Accepts the number of a class, as an integer, as a float or as text (as in CSV); of two classes
    also true and false, in any case; the name of a class, whose case counts only where two names
    differ in nothing else; and what `is_unlabelled` accepts. If names are integers (1 to 5 stars),
    integers are names.

    Args:
      value: the value.
      where: the record, for errors.
      classes: names of the classes; (): two classes without names.

    Raises:
      InputError: anything else.
    """
    if is_unlabelled(value):
        return UNLABELLED
    label = class_of(value, classes)
    if label is None:
        raise InputError(f"{where}: field 'label': {not_a_class(value, classes)}")
    return label


def not_a_class(value: Any, classes: tuple[str, ...]) -> str:
    """Return the end of an error on a label that is no class."""
    numbers = "0 or 1" if len(classes) <= 2 else f"0 to {len(classes) - 1}"
    allowed = [] if classes and _tables(classes).named_by_integers else [numbers]
    allowed += [listed(classes)] if classes else []
    hint = did_you_mean(value, classes) if isinstance(value, str) else ""
    return f"{shown(value)}{hint}; allowed: {', or '.join(allowed)}"


class _Tables(NamedTuple):
    """Label by the name of a class, by its name in any case, and by its number as text."""

    exact: Mapping[str, int]
    folded: Mapping[str, int]
    numbers: Mapping[str, int]
    named_by_integers: bool


@functools.lru_cache(maxsize=16)
def _tables(classes: tuple[str, ...]) -> _Tables:
    exact = {name: label for label, name in enumerate(classes)}
    counts = Counter(map(label_text, classes))
    folded = {label_text(name): n for name, n in exact.items() if counts[label_text(name)] == 1}
    named_by_integers = any(map(_INTEGER.fullmatch, folded))
    numbers = _LABELS if len(classes) <= 2 else {str(n): n for n in range(len(classes))}
    return _Tables(exact, folded, {} if named_by_integers else numbers, named_by_integers)


def class_of(value: Any, classes: tuple[str, ...]) -> int | None:
    """Return the label that a value stands for, as `parse_label` reads it; None if for none."""
    if not isinstance(value, str | Real | Decimal):
        return None
    tables, text = _tables(classes), label_text(value)
    found = tables.exact.get(plain_text(value))
    return tables.folded.get(text, tables.numbers.get(text)) if found is None else found


def parse_soft_label(
    value: Any, where: str, classes: tuple[str, ...] = ()
) -> float | tuple[float, ...]:
    """Return a soft label from a value in a file.

    Args:
      value: of two classes P(label 1), a number in [0, 1] or such a number as text. Of C > 2, and
        of two with names, what `parse_probabilities` reads.
      where: the record, for errors.
      classes: names of the classes; (): two classes without names.

    Returns:
      P(label 1) of two classes, else the probabilities of all classes.

    Raises:
      InputError: anything else.
    """
    return soft_label_of(value, f"{where}: field 'soft_label':", classes)


def soft_label_of(
    value: Any, subject: str, classes: tuple[str, ...] = ()
) -> float | tuple[float, ...]:
    """Return a soft label as `parse_soft_label` does; errors begin with `subject`."""
    number = probability(value) if len(classes) <= 2 else None
    if number is not None:
        return number
    if not classes or (len(classes) == 2 and not is_distribution(value)):
        raise InputError(f"{subject} {shown(value)}; allowed: 0 to 1")
    p_C = parse_probabilities(value, subject, classes)
    return p_C[1] if len(p_C) == 2 else p_C


def is_distribution(value: Any) -> bool:
    """Return whether a value is a list or a mapping, perhaps as JSON text."""
    return isinstance(decoded(value), list | tuple | Mapping)


def decoded(value: Any) -> Any:
    """Return a value of which a column of text holds the JSON, else the value itself."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def parse_probabilities(value: Any, subject: str, classes: tuple[str, ...]) -> tuple[float, ...]:
    """Return the probabilities of all classes.

    Args:
      value: a list of C numbers in [0, 1], in the order of the classes; a mapping from names of
        classes to such numbers, 0 for those that it lacks; or either as JSON text. Their sum may
        differ from 1 by 0.001.
      subject: what errors begin with.
      classes: names of the classes.

    Returns:
      C numbers with the sum 1, but for the rounding of float32.

    Raises:
      InputError: anything else.
    """
    given = decoded(value)
    count = len(classes)
    if isinstance(given, Mapping):
        given = _in_order(given, subject, classes)
    if not isinstance(given, list | tuple) or len(given) != count:
        wrong = f" has {len(given)} numbers" if isinstance(given, list | tuple) else ""
        raise InputError(
            f"{subject} {shown(value)}{wrong}; allowed: {count} numbers, the probabilities of "
            f"{listed(classes)}"
        )
    numbers: list[float] = []
    for name, item in zip(classes, given, strict=True):
        number = probability(item)
        if number is None:
            raise InputError(f"{subject} {shown(item)} of class {name!r}; allowed: 0 to 1")
        numbers.append(number)
    total = math.fsum(numbers)
    if abs(total - 1) > SUM_TOLERANCE:
        raise InputError(
            f"{subject} {shown(value)} has the sum {total:g}; allowed: 1 (within {SUM_TOLERANCE})"
        )
    # What float32 has rounded stays as it is, so that stored labels are read unchanged.
    if abs(total - 1) <= FLOAT32_ROUNDING * count:
        return tuple(numbers)
    return tuple(number / total for number in numbers)


def _in_order(given: Mapping[Any, Any], subject: str, classes: tuple[str, ...]) -> Sequence[Any]:
    """Return the values of a mapping from classes in the order of the classes."""
    values: list[Any] = [0.0] * len(classes)
    seen: dict[int, Any] = {}
    for name, value in given.items():
        label = class_of(name, classes)
        if label is None:
            raise InputError(f"{subject} class {not_a_class(name, classes)}")
        if label in seen:
            raise InputError(f"{subject} {shown(seen[label])} and {shown(name)} are one class")
        seen[label] = name
        if not is_missing(value):
            values[label] = value
    return values


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
    return min(max(number, 0.0), 1.0) if -ROUNDING <= number <= 1 + ROUNDING else None


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
