"""The classes of a folder of records: found in its labels, or given by `task.classes`."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

from w2s_jax.core.classes import MAX_CLASSES
from w2s_jax.core.errors import InputError, listed, shown
from w2s_jax.data.documents import Document
from w2s_jax.data.items import Items
from w2s_jax.data.records import OFFICIAL_SPLITS
from w2s_jax.data.task import Task
from w2s_jax.data.values import TWO_LABELS, decoded, is_unlabelled, label_text, plain_text

#: The beginning of the note on the classes of a folder.
NAMED = "classes of label: "
_INTEGER = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def refuse_classes(task: Task, names: Sequence[str], *, own_code: bool) -> None:
    """Refuse names in `task.classes` that the task cannot have; () are those of the task.

    Args:
      task: the task.
      names: value of `task.classes`.
      own_code: True if code defines the task and its classes, False for a folder of files.

    Raises:
      InputError: the task has no classes or other ones, or a name stands for no label.
    """
    if not names or (own_code and tuple(names) == task.classes):
        return
    problem = ""
    if task.kind != "classification":
        problem = f"is of kind {task.kind!r}, whose classes have no names"
    elif own_code:
        problem = f"defines its own classes: {listed(task.classes or ('0', '1'))}"
    if problem:
        raise InputError(
            f"task.classes: {listed(names)}, but task {task.name!r} {problem}; leave it empty"
        )
    for name in names:
        if is_unlabelled(name):
            raise InputError(f"task.classes: {shown(name)} stands for no label in files; rename it")


def with_classes(
    task: Task, read: Mapping[str, Items], given: Sequence[str], notes: list[str]
) -> Task:
    """Return the task of a folder with its classes.

    Args:
      task: the task, without classes.
      read: the records by split.
      given: names of the classes; (): those that `find_classes` finds.
      notes: get a line on the order of the classes, if they have names.

    Raises:
      InputError: as `find_classes`.
    """
    names, order = (tuple(given), "as in task.classes") if given else find_classes(read)
    if not names:
        return task
    named = listed(f"{label} = {name}" for label, name in enumerate(names))
    notes.append(f"{NAMED}{named} ({order})")
    return dataclasses.replace(task, classes=names)


def find_classes(read: Mapping[str, Items]) -> tuple[tuple[str, ...], str]:
    """Return the classes of a folder, and how they are ordered.

    Integers are in the order of their values, names in alphabetical order. Labels that are all 0 or
    1 (or true or false) have classes without names. Without labels, soft labels decide: the
    positions in lists, or the names in mappings.

    Args:
      read: the records by split. Splits that no run uses add no classes, unless there are no
        others.

    Returns:
      Names of the classes, () for 0 and 1; and the order in words.

    Raises:
      InputError: one class only, or more than `MAX_CLASSES`; labels that are neither integers nor
        names, or both; names that differ only in case.
    """
    official = {split: items for split, items in read.items() if split in OFFICIAL_SPLITS}
    field, counts = "label", Counter[str]()
    first: dict[str, tuple[str, Any]] = {}
    for where, value in _labels(official or read, "label"):
        name = _name(value, where)
        first.setdefault(name, (where, value))
        counts[name] += 1
    if not first:
        field = "soft_label"
        for where, value in _labels(official or read, field):
            given = decoded(value)
            if isinstance(given, list | tuple):
                names = tuple(map(str, range(len(given))))
                _check_number(names, where, field, 1)
                return names, "positions in the lists; task.classes names them"
            if not isinstance(given, Mapping):
                return (), ""
            for key in given:
                first.setdefault(_name(key, where), (where, key))
                counts[_name(key, where)] += 1
    if {label_text(name) for name in first} <= TWO_LABELS:
        return (), ""
    return _ordered(first, field, counts)


def _ordered(
    first: Mapping[str, tuple[str, Any]], field: str, counts: Mapping[str, int]
) -> tuple[tuple[str, ...], str]:
    """Return the names in their order, and this in words.

    Args:
      first: name -> the first record with it, and the label in that.
      field: the field of the labels.
      counts: name -> number of records.
    """
    integers = [name for name in first if _INTEGER.fullmatch(name)]
    names = [name for name in first if not _INTEGER.fullmatch(name)]
    if integers and names:
        few, many = sorted((names, integers), key=len)
        kinds = ("a name", "an integer") if few is names else ("an integer", "a name")
        (where, value), (other_where, other) = first[few[0]], first[many[0]]
        raise InputError(
            f"{where}: field {field!r}: {shown(value)} is {kinds[0]}, but {shown(other)} "
            f"({other_where}) is {kinds[1]}; labels are all integers or all names, unless "
            "task.classes lists them"
        )
    spellings: dict[str, str] = {}
    for name in names:
        other_name = spellings.setdefault(name.casefold(), name)
        if other_name != name:
            raise InputError(
                f"{first[name][0]}: field {field!r}: {shown(name)} and {shown(other_name)} "
                f"({first[other_name][0]}) differ only in case; write one of them, or list both in "
                "task.classes"
            )
    where = next(iter(first.values()))[0]
    _check_number(tuple(first), where, field, sum(counts.values()))
    if integers:
        return tuple(sorted(integers, key=int)), "by value; task.classes sets another order"
    return tuple(sorted(names, key=str.casefold)), "alphabetical; task.classes sets another order"


def _check_number(names: Sequence[str], where: str, field: str, records: int) -> None:
    """Refuse a single class, and too many."""
    if len(names) < 2:
        raise InputError(
            f"{where}: field {field!r}: all {records:,} labels are {listed(map(shown, names))}; at "
            "least two classes are needed"
        )
    if len(names) > MAX_CLASSES:
        raise InputError(
            f"{where}: field {field!r}: {len(names):,} different labels; allowed: at most "
            f"{MAX_CLASSES:,} classes"
        )


def _labels(read: Mapping[str, Items], attribute: str) -> Iterator[tuple[str, Any]]:
    for items in read.values():
        for where, candidates in items.items:
            for candidate in candidates:
                value = getattr(candidate, attribute)
                if not is_unlabelled(value):
                    yield where, value


def _name(value: Any, where: str) -> str:
    """Return the name that a label stands for: its decimal text, or itself without spaces."""
    text = label_text(value)
    number = _INTEGER.fullmatch(text)
    is_label = isinstance(value, str | Real | Decimal)
    if not is_label or (_NUMBER.fullmatch(text) and not number and "." in text):
        raise InputError(
            f"{where}: field 'label': {shown(value)}; allowed: an integer, or the name of a class"
        )
    return text if number else plain_text(value)


def refuse_other_labels(documents: Mapping[str, Sequence[Document]], task: Task) -> None:
    """Refuse labels that a task's own `load` gives documents, and that are none of its classes.

    Raises:
      InputError: a label out of range, or a soft label of another number of classes.
    """
    count = task.num_classes
    for document in (document for split in documents.values() for document in split):
        label, soft = document.label, document.soft_label
        if label is not None and not 0 <= label < count:
            raise InputError(
                f"{document.name}: label {shown(label)}; task {task.name!r} allows 0 to {count - 1}"
            )
        if soft is not None and (len(soft) if isinstance(soft, tuple) else 2) != count:
            wanted = "P(label 1)" if count == 2 else f"a tuple of {count} probabilities"
            raise InputError(
                f"{document.name}: soft label {shown(soft)}; task {task.name!r} allows {wanted}"
            )


def refuse_one_class(documents: Sequence[Document], classes: Sequence[str] = ()) -> None:
    """Refuse training documents that all have one label.

    Args:
      documents: the training documents.
      classes: names of the classes, for errors.

    Raises:
      InputError: they have.
    """
    counts = Counter(document.label for document in documents)
    if len(counts) == 1 and None not in counts:
        path, label = documents[0].where.rpartition(", ")[0], documents[0].label
        name = f" ({classes[label]})" if len(classes) > 2 and label is not None else ""
        raise InputError(
            f"{path}: field 'label': all {len(documents)} documents of the "
            f"training split have label {label}{name}; "
            f"{'at least two classes' if len(classes) > 2 else 'both labels'} are needed"
        )


def refuse_unseen_classes(
    documents: Mapping[str, Sequence[Document]], train_split: str, task: Task
) -> None:
    """Refuse test and validation documents of classes that no training document has.

    Args:
      documents: by split.
      train_split: the split that runs train on.
      task: names the classes.

    Raises:
      InputError: there are such; names the class, their number and the first.
    """
    seen: set[int] = set()
    for document in documents[train_split]:
        if document.label is not None:
            seen.add(document.label)
        if isinstance(document.soft_label, tuple):
            seen |= {label for label, p in enumerate(document.soft_label) if p > 0}
    for split in OFFICIAL_SPLITS:
        unseen = [
            (label, document)
            for document in documents.get(split, ())
            if (label := document.hard_label) is not None and label not in seen
        ]
        if unseen:
            label, document = unseen[0]
            count = sum(other == label for other, _ in unseen)
            raise InputError(
                f"{document.name}: field {task.label_field!r}: class {task.classes[label]!r} is "
                f"that of {count:,} {'document' if count == 1 else 'documents'} of {split!r}, but "
                f"of none of {train_split!r}; a class needs training documents"
            )
