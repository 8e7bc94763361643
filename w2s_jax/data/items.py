"""Read the records of a split: check their fields, texts and labels; the task makes candidates."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_jax.core.errors import InputError, first_line, listed, shown
from w2s_jax.data.records import OFFICIAL_SPLITS, Reader
from w2s_jax.data.task import Candidate, Task
from w2s_jax.data.tasks.fields import EmptyText
from w2s_jax.data.values import UNLABELLED, is_unlabelled, parse_label

# A record: its name in errors, and its candidates.
Item = tuple[str, list[Candidate]]


@dataclass(frozen=True)
class Items:
    """The records of a split.

    Attributes:
      task, split: where they belong.
      items: the records with candidates.
      notes: counts of the others.
      unlabelled: the first record without a label: its place, and what it has instead.
      fields: of the first record and its candidates' `meta`.
    """

    task: Task
    split: str
    items: list[Item]
    notes: list[str]
    unlabelled: tuple[str, str] | None
    fields: tuple[str, ...] = ()

    def labels(self) -> list[list[int | None]]:
        """Return the labels of all candidates, None for those with a soft label only.

        Raises:
          InputError: a bad label, or values of different types in one file.
        """
        if self.task.generates:
            return [[UNLABELLED]] * len(self.items)
        types: dict[str, tuple[str, Any]] = {}
        classes = self.task.classes
        known: dict[Any, int] = {}
        labels = []
        for where, candidates in self.items:
            parsed: list[int | None] = []
            for candidate in candidates:
                label = known.get(candidate.label) if type(candidate.label) in (int, str) else None
                if label is None:
                    label = parse_label(candidate.label, where, classes)
                    if type(candidate.label) in (int, str):
                        known[candidate.label] = label
                _check_type("label", candidate.label, where, types)
                _check_type("soft_label", candidate.soft_label, where, types)
                soft = not is_unlabelled(candidate.soft_label)
                parsed.append(None if soft and label == UNLABELLED else label)
            labels.append(parsed)
        return labels

    def without_labels(self, labels: Sequence[Sequence[int | None]]) -> str:
        """Return why the split is left out: it has no label at all; '' if it is used.

        Raises:
          InputError: some documents have labels and others have none.
        """
        if self.task.generates:
            return ""
        flat = [label == UNLABELLED for record in labels for label in record]
        if not any(flat) or (all(flat) and self.split not in OFFICIAL_SPLITS):
            return ""
        assert self.unlabelled is not None
        where, what = self.unlabelled
        if all(flat):
            return f"its {len(self.items):,} records have no label ({where}: {what})"
        raise InputError(
            f"{where}: {what}; other records of {self.split!r} have labels, this one is unlabelled"
        )


def read_items(
    task: Task,
    split: str,
    reader: Reader,
    *,
    skip_empty: bool,
    keep: Collection[str] = (),
    targets: bool = True,
) -> Items:
    """Read a split.

    Args:
      task: makes candidates of records.
      split: name of the split.
      reader: of its records.
      skip_empty: leave out records with an empty text, and count them.
      keep: fields of records that are added to the candidates' `meta`, where they exist.
      targets: whether records of a generation task need a target.

    Raises:
      InputError: a bad record; an empty text unless `skip_empty`; a record of train or validation
        without a label; in a generation task a record without a target; no record left.
    """
    if task.expand is None:
        raise ValueError(f"task {task.name!r} has no expand")
    items: list[Item] = []
    unused = empty = 0
    unlabelled: tuple[str, str] | None = None
    fields: tuple[str, ...] = ()
    for where, record in reader():
        has_label = task.generates or task.label_field in record
        no_label = "" if has_label else _missing(task.label_field, record)
        try:
            candidates = _expanded(task, record, where, no_label, targets)
            for candidate in candidates:
                if candidate.pixels is None and not all(text.strip() for text in candidate.texts):
                    raise EmptyText(
                        f"{where}: fields {', '.join(task.fields)}: empty document: "
                        f"{shown(candidate.text)}"
                    )
        except EmptyText as error:
            if not skip_empty:
                raise EmptyText(f"{error}; task.empty='skip' leaves such records out") from None
            empty += 1
            continue
        if not candidates:
            unused += 1
            continue
        if not items:
            fields = tuple(dict.fromkeys([*record, *(k for c in candidates for k in c.meta)]))
        if task.generates:
            _check_target(task, candidates, where, needed=targets)
        elif unlabelled is None and any(map(_lacks_label, candidates)):
            what = no_label or f"field {task.label_field!r}: {shown(record[task.label_field])}"
            unlabelled = where, what
            if split in ("train", "validation"):
                raise InputError(
                    f"{where}: {what}; records of {split!r} need labels, this one is unlabelled"
                )
        items.append((where, _keeping(candidates, record, keep)))
    reasons = {"that the task does not use": unused, "with an empty text": empty}
    notes = [
        f"{split}: skipped {count:,} record{'' if count == 1 else 's'} {reason}"
        for reason, count in reasons.items()
        if count
    ]
    if not items:
        skipped = f" ({'; '.join(notes)})" if notes else ""
        raise InputError(
            f"task {task.name!r}, split {split!r}: the task uses none of the records{skipped}"
        )
    return Items(task, split, items, notes, unlabelled, fields)


def _check_target(task: Task, candidates: Sequence[Candidate], where: str, *, needed: bool) -> None:
    """Check what a record of a generation task became: one text with a target, without label."""
    if len(candidates) > 1:
        raise InputError(
            f"{where}: `expand` of task {task.name!r} returns {len(candidates)} candidates; a "
            "generation task makes one of each record"
        )
    (candidate,) = candidates
    target = candidate.target
    if not isinstance(candidate.text, str):
        raise InputError(f"{where}: a generation task has one text as its prompt, not a pair")
    if not _lacks_label(candidate):
        raise InputError(f"{where}: a generation task has a target, not a label")
    if target is None and not needed:
        return
    if target is None:
        raise InputError(f"{where}: the record needs a target: the completion of its prompt")
    if not isinstance(target, str) or not target.strip():
        problem = "empty target" if isinstance(target, str) else "the target is not text"
        field = "field 'target': " if "target" in task.fields else ""
        raise InputError(f"{where}: {field}{problem}: {shown(target)}")


def _keeping(
    candidates: list[Candidate], record: Mapping[str, Any], keep: Collection[str]
) -> list[Candidate]:
    """Return the candidates with fields of their record in `meta`, unless they are there."""
    own = {name: record[name] for name in keep if name in record}
    if not own:
        return candidates
    return [dataclasses.replace(c, meta={**own, **c.meta}) for c in candidates]


def _missing(name: str, record: Mapping[str, Any]) -> str:
    """Return the end of an error about a field that a record lacks."""
    return f"field {name!r} is missing; the record has: {listed(record, 'no fields')}"


def _lacks_label(candidate: Candidate) -> bool:
    return is_unlabelled(candidate.label) and is_unlabelled(candidate.soft_label)


def _expanded(
    task: Task, record: dict[str, Any], where: str, no_label: str, targets: bool
) -> list[Candidate]:
    """Call `task.expand`, which may be the user's own code."""
    assert task.expand is not None
    may_lack = None if task.generates and targets else task.label_field
    for name in task.fields:
        if name not in record and name != may_lack:
            raise InputError(f"{where}: {_missing(name, record)}")
    if no_label and task.label_field in task.fields:
        record = {**record, task.label_field: None}
    try:
        candidates = task.expand(record, where)
    except InputError as error:
        if where in str(error):
            raise
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:  # the user's code may raise anything
        if no_label and task.label_field in task.fields:
            raise InputError(f"{where}: {no_label}") from error
        raise InputError(
            f"{where}: `expand` of task {task.name!r} fails "
            f"({listed([first_line(error)], limit=160)}); the record has: "
            f"{listed(record, 'no fields')}"
        ) from error
    if not isinstance(candidates, list) or not all(isinstance(c, Candidate) for c in candidates):
        raise InputError(
            f"{where}: `expand` of task {task.name!r} returns {shown(candidates)}; it must return "
            "a list of Candidate"
        )
    return candidates


def _check_type(name: str, value: Any, where: str, types: dict[str, tuple[str, Any]]) -> None:
    """Refuse text, numbers, and true and false as labels of one file, which hint at a mistake."""
    if is_unlabelled(value):
        return
    first_where, first = types.setdefault(name, (where, value))
    if _kind(value) != _kind(first):
        raise InputError(
            f"{where}: field {name!r}: {shown(value)} is of type {type(value).__name__}, but "
            f"{shown(first)} ({first_where}) is of type {type(first).__name__}; use one type"
        )


def _kind(value: Any) -> type:
    return next((kind for kind in (str, bool) if isinstance(value, kind)), float)
