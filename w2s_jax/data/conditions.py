"""Conditions on documents: `task.where` and `task.test_where`.

A condition is FIELD OP VALUE, such as Rating<1500 or level=hard. OP is one of <, <=, >, >=, = and
!=; FIELD is a field of the records, or of the `meta` that their task makes of them. A VALUE like
50% stands for the value that separates that share of the training documents, by rank, from the
others: Rating<50% is their lower half and Rating>=50% their upper half. Test documents are
compared with the same value, whatever their own distribution.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

from w2s_jax.core.errors import InputError, did_you_mean, listed, shown
from w2s_jax.data.documents import Document
from w2s_jax.data.roles import POOL, roles
from w2s_jax.data.values import is_missing, plain_text

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
_FORM = re.compile(r"\s*([^<>=!]*[^<>=!\s])\s*(<=|>=|!=|<|>|=)\s*([^<>=!\s][^<>=!]*?)\s*")
_ORDERED = ("<", "<=", ">", ">=")


@dataclass(frozen=True)
class Condition:
    """A condition on a field of documents.

    Attributes:
      option: the config's field, for errors: 'task.where' or 'task.test_where'.
      text: the condition as it was given.
      field: name of the field.
      op: a key of `_OPERATORS`.
      value: the text to compare with; of an ordered comparison a number; of a percentage that.
      percent: whether `value` is one.
    """

    option: str
    text: str
    field: str
    op: str
    value: str
    percent: bool

    def threshold(self, training: Sequence[Document], fields: Sequence[str]) -> str | float:
        """Return what values are compared with: a number for ordered comparisons, else a text.

        Args:
          training: the documents behind a percentage.
          fields: the names in their records, for errors.
        """
        if not self.percent:
            return float(self.value) if self.op in _ORDERED else self.value
        values = sorted(_number(self, document, fields) for document in training)
        # Exact, so that 50% of 10 documents are 5 on every machine.
        below = math.floor(len(values) * Fraction(self.value) / 100)
        if self.op in ("<", ">="):
            return values[below] if below < len(values) else math.inf
        return values[below - 1] if below else -math.inf

    def holds(self, document: Document, threshold: str | float, fields: Sequence[str] = ()) -> bool:
        """Return whether a document meets the condition.

        Raises:
          InputError: it has no such field, or the field is not a number where it must be one.
        """
        compare = _OPERATORS[self.op]
        if not isinstance(threshold, str):
            return compare(_number(self, document, fields), threshold)
        value = _value(self, document, fields)
        if isinstance(value, list | tuple | dict):
            raise InputError(
                f"{self.option}: {shown(self.text)}: {document.name}: field {self.field!r} is "
                f"neither a number nor a text: {shown(value)}"
            )
        if isinstance(value, bool):  # in files true or True
            return compare(str(value).casefold(), threshold.casefold())
        numbers = _as_number(value), _as_number(threshold)
        if None not in numbers:
            return compare(*numbers)
        return compare("" if is_missing(value) else plain_text(value), threshold)


@dataclass(frozen=True)
class Conditions:
    """The conditions of a run; None: all documents are kept.

    Attributes:
      where: of training and validation documents.
      test_where: of test documents.
      own_test: whether it was given for the test documents alone.
    """

    where: Condition | None
    test_where: Condition | None
    own_test: bool

    @staticmethod
    def parse(where: str | None, test_where: str | None) -> "Conditions":
        """Return the conditions in `task.where` and `task.test_where` (None: as `where`).

        Raises:
          InputError: one is malformed.
        """
        first = parse_condition("task.where", where) if where else None
        if test_where is None:
            return Conditions(first, first, False)
        second = parse_condition("task.test_where", test_where) if test_where else None
        return Conditions(first, second, True)

    @property
    def fields(self) -> frozenset[str]:
        """The fields of records that are needed."""
        return frozenset(c.field for c in (self.where, self.test_where) if c is not None)


def parse_condition(option: str, text: str) -> Condition:
    """Return the condition in `text`; `option` names it in errors.

    Raises:
      InputError: it is not FIELD OP VALUE, or VALUE is not a number where one is needed.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(
            f"{option}: {shown(text)}; must be FIELD OP VALUE with one of {', '.join(_OPERATORS)}, "
            "such as Rating<1500, Rating<50% or level=hard"
        )
    field, op, value = match.groups()
    percent = value.endswith("%") and op in _ORDERED
    number = _as_number(value.removesuffix("%").strip() if percent else value)
    if op in _ORDERED and number is None:
        raise InputError(
            f"{option}: {shown(text)}: {value!r} is not a number, which {op} needs; allowed: a "
            "number, or a percentage such as 50%"
        )
    if percent:
        assert number is not None
        if not 0 <= number <= 100:
            raise InputError(f"{option}: {shown(text)}: {value}; allowed: 0% to 100%")
        value = value.removesuffix("%").strip()
    return Condition(option, text, field, op, value, percent)


def kept_documents(
    documents: Mapping[str, list[Document]],
    conditions: Conditions,
    train_split: str | None,
    fields: Mapping[str, Sequence[str]],
    notes: list[str],
) -> dict[str, list[Document]]:
    """Return the documents that meet the conditions on their splits.

    Args:
      documents: by split.
      conditions: on training and validation documents, and on test documents; the unlabelled pool
        counts as training documents. Other splits are not changed.
      train_split: `task.train_split`.
      fields: split -> the names in its records, for errors.
      notes: get a line for each condition: what it compares with, and how many documents it keeps.

    Raises:
      InputError: there is no such field or no document left; a value is not a number; there are no
        test documents of their own for `task.test_where`.
    """
    if conditions.where is None and conditions.test_where is None:
        return dict(documents)
    train, test, validation = roles(documents, train_split)
    if conditions.own_test and test is None:
        raise InputError(
            f"task.test_where: there is no split for testing, so test documents are taken from "
            f"{train!r}, to which task.where applies; allowed: None"
        )
    kept = dict(documents)
    pool = [POOL] if POOL in documents else []
    parts = (
        (conditions.where, [train, *([validation] if validation else []), *pool]),
        (conditions.test_where, [test] if test else []),
    )
    lines: dict[str, list[str]] = {}
    for condition, splits in parts:
        if condition is None:
            continue
        threshold = condition.threshold(documents[train], fields.get(train, ()))
        line = f"{condition.option}: {condition.text}"
        if condition.percent:
            line += f" ({condition.field} {condition.op} {threshold:g})"
        for split in splits:
            names = fields.get(split, ())
            kept[split] = [
                document
                for document in documents[split]
                if condition.holds(document, threshold, names)
            ]
            if not kept[split]:
                raise InputError(
                    f"{line}: leaves none of the {len(documents[split]):,} documents of {split!r}"
                )
            lines.setdefault(line, []).append(
                f"{len(kept[split]):,} of {len(documents[split]):,} of {split}"
            )
    notes += [f"{line}: keeps {', '.join(counts)}" for line, counts in lines.items()]
    return kept


def _value(condition: Condition, document: Document, fields: Sequence[str]) -> Any:
    if condition.field not in document.meta:
        names = fields or list(document.meta)
        raise InputError(
            f"{condition.option}: {shown(condition.text)}: {document.name} has no field "
            f"{condition.field!r}{did_you_mean(condition.field, names)}; it has: "
            f"{listed(names, 'no fields')}"
        )
    return document.meta[condition.field]


def _number(condition: Condition, document: Document, fields: Sequence[str]) -> float:
    value = _value(condition, document, fields)
    number = _as_number(value)
    if number is None:
        raise InputError(
            f"{condition.option}: {shown(condition.text)}: {document.name}: field "
            f"{condition.field!r} is not a number: {shown(value)}"
        )
    return number


def _as_number(value: Any) -> float | None:
    """Return a number, or a number as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | Real | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
