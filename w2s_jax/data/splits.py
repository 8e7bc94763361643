"""Split a task's documents into slices, validation and test.

All orders come from a hash of `split_seed` and document ids, so splits are the same on every
machine, whatever the order of the documents in their files.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from w2s_jax.core.errors import InputError, shown
from w2s_jax.data.documents import Document, hash_order, stable_id
from w2s_jax.data.roles import roles

# Training documents are balanced if the share of one class exceeds this over the number of classes;
# of two classes 55% (the paper's rule).
MAJORITY_LIMIT = 1.1

_FIELD = "task.train_docs"

# Documents that stay together. All functions below keep the order of and within groups.
Group = list[Document]


def make_splits(
    documents: Mapping[str, Sequence[Document]],
    *,
    train_docs: int | None,
    test_docs: int | None,
    validation_docs: int | None,
    num_slices: int = 2,
    balance: bool,
    balance_test: bool | None = None,
    grouping: bool = True,
    split_seed: int = 0,
    train_split: str | None = None,
    removed: dict[str, int] | None = None,
    ties: dict[str, int] | None = None,
    notes: list[str] | None = None,
) -> dict[str, list[Document]]:
    """Return slices of the training documents, validation and test.

    Test documents come from 'test', else from 'validation', else from the training documents;
    validation documents from 'validation' if that is not the test set, else from the training
    documents. These are `train_split`, which then serves nothing else.

    With `grouping`, no group is on two sides: if one document of a group is taken for test or
    validation, the group is removed from the training documents, and so are groups that occur in an
    official split in use. Documents without a group but with the same words (see `normalised_text`)
    form a group. Whole groups are assigned greedily to slices: slices of ungrouped and of paired
    documents have equal sizes (or differ by one), with the classes spread evenly.

    Without it, as in the code released with the paper, single documents are assigned at random; the
    second of two slices has the odd document.

    Ties (`Document.is_tie`) have no right answer, so they are never test or validation documents.
    Training documents may be ties, which belong to no class.

    The classes are 0 and 1, or, if any training document has a higher one, those of the training
    documents.

    Args:
      documents: by split, as `load_task` returns them.
      train_docs: training documents of all slices together, after balancing; None: all. A smaller
        number gives a subset of a larger one's documents, with the same test and validation.
      test_docs, validation_docs: number of documents; None: all of an official split. With
        `balance_test`, numbers are reduced to a multiple of the number of classes.
      num_slices: number of slices.
      balance: cut training documents to equal classes if the share of one exceeds 1.1 / C (of two
        classes 55%); an error without classes.
      balance_test: test and validation have equally many documents of all classes; None: the value
        of `balance`.
      grouping: see above.
      split_seed: seed of all orders.
      ties: gets the number of ties, by split, in the splits in use.
      train_split: split to train on; None: 'train'.
      removed: gets the number of documents, by split, that grouping removes.
      notes: gets a line if balancing more than two classes drops more than half of the training
        documents.

    Returns:
      'slice1' ... 'sliceN', 'validation', 'test', and 'pretrain', unchanged, if it was given.

    Raises:
      InputError: a number is out of range, there are too few documents, or one group is too large
        for even slices; names the field, the number asked for and the number available.
    """
    sizes = {"train_docs": train_docs, "test_docs": test_docs, "validation_docs": validation_docs}
    for name, value in sizes.items():
        if value is not None and value < 0:
            raise InputError(f"task.{name}: {value}; must be at least 0")
    if num_slices < 1:
        raise ValueError(f"num_slices must be at least 1, got {num_slices}")
    balance_test = balance if balance_test is None else balance_test
    train, test, validation = roles(documents, train_split)
    if validation_docs == 0:
        validation = None
    names = [name for name in (train, test, validation) if name]
    if ties is not None:
        counts = {name: sum(d.is_tie for d in documents[name]) for name in names}
        ties |= {name: count for name, count in counts.items() if count}
    keys = group_keys([document for name in names for document in documents[name]], grouping)
    groups = grouped(documents[train], keys, split_seed)
    test_groups = grouped(documents[test], keys, split_seed) if test else []
    validation_groups = grouped(documents[validation], keys, split_seed) if validation else []
    classes = _classes(groups)
    before = _size(groups), _size(validation_groups)
    validation_groups = without(validation_groups, test_groups, keys)
    groups = without(groups, [*test_groups, *validation_groups], keys)

    test_classes = classes if balance_test else ()
    lost = {train: before[0] - _size(groups)}
    if validation:
        lost[validation] = before[1] - _size(validation_groups)
    with _naming_removed(lost):
        if test:
            chosen_test, _ = _take(test_groups, test_docs, test_classes, "task.test_docs", test)
        else:
            size = _size(groups)
            chosen_test, groups = _carve(groups, test_docs, test_classes, "task.test_docs", train)
            lost[train] += size - _size(groups) - len(chosen_test)
        if validation:
            chosen_validation, _ = _take(
                validation_groups, validation_docs, test_classes, "task.validation_docs", validation
            )
        else:
            size = _size(groups)
            chosen_validation, groups = _carve(
                groups, validation_docs, test_classes, "task.validation_docs", train
            )
            lost[train] += size - _size(groups) - len(chosen_validation)
        training = _training(groups, train_docs, classes if balance else (), train, notes)
    if removed is not None:
        removed |= lost

    slices = sliced(training, num_slices, keys) if grouping else cut(training, num_slices)
    result = {f"slice{s + 1}": slices[s] for s in range(num_slices)}
    result |= {"validation": chosen_validation, "test": chosen_test}
    if "pretrain" in documents:
        result["pretrain"] = list(documents["pretrain"])
    return result


def choose_test(
    documents: Sequence[Document], count: int | None, *, balance: bool, split_seed: int = 0
) -> list[Document]:
    """Return the test documents of a task of which nothing else is used.

    Args:
      documents: those of one split.
      count: number of documents; None, or more than there are: all.
      balance: take equally many of each class that occurs.
      split_seed: seed of the order.

    Returns:
      The documents, without ties; none if all are ties.
    """
    groups = grouped(documents, {}, split_seed)
    counts = Counter(_class(document) for document in documents if not document.is_tie)
    classes = tuple(sorted(counts)) if balance else ()
    have = len(classes) * min(counts.values()) if counts and balance else counts.total()
    wanted = have if count is None else min(count, have)
    return _take(groups, wanted, classes, "task.test_docs", "test")[0] if have else []


@contextmanager
def _naming_removed(removed: Mapping[str, int]) -> Iterator[None]:
    """Add to errors on too few documents how many of them grouping has removed."""
    try:
        yield
    except InputError as error:
        counts = [f"{count:,} of {split!r}" for split, count in removed.items() if count]
        if not counts:
            raise
        raise InputError(
            f"{error}; protocol.grouping removed {' and '.join(counts)}, because their groups or "
            "texts are in other splits"
        ) from None


def normalised_text(document: Document) -> str | None:
    """Return the words of a document (of a pair: of both texts), without case and punctuation.

    None if it has no text. A text without words is returned unchanged, and so is a prompt, except
    white space: the position of a board may be all signs, and 2 + 2 is not 2 - 2.
    """
    if document.target is not None and document.text is not None:
        return " ".join(document.text.split()) or None
    texts = document.texts or (() if document.text is None else (document.text,))
    words = (re.sub(r"\W+", " ", text.casefold()).strip() or text for text in texts)
    return "\0".join(words) or None


#: Document id -> name of its group; documents without an entry are groups of their own.
Keys = Mapping[int, str]


def group_keys(documents: Sequence[Document], grouping: bool) -> Keys:
    """Return the groups of documents: their own, else one of documents with the same words."""
    if not grouping:
        return {}
    keys = {d.id: d.group for d in documents if d.group is not None}
    texts = {d.id: normalised_text(d) for d in documents if d.group is None}
    counts = Counter(text for text in texts.values() if text is not None)
    return keys | {
        id_: f"text {stable_id(text)}" for id_, text in texts.items() if text and counts[text] > 1
    }


def grouped(documents: Sequence[Document], keys: Keys, split_seed: int) -> list[Group]:
    """Return groups in hash order of their keys, each in hash order of document ids."""
    members: dict[int, Group] = {}
    for document in documents:
        name = keys.get(document.id)
        key = document.id if name is None else stable_id("group", name)
        members.setdefault(key, []).append(document)
    groups = list(members.values())
    order_G = hash_order(np.array(list(members), np.uint64), "split", split_seed)
    return [_in_order(groups[g], split_seed) for g in order_G]


def _in_order(group: Group, split_seed: int) -> Group:
    if len(group) == 1:
        return group
    ids_N = np.array([document.id for document in group], np.uint64)
    return [group[n] for n in hash_order(ids_N, "split", split_seed)]


def _size(groups: Sequence[Group]) -> int:
    return sum(map(len, groups))


def without(groups: Sequence[Group], others: Sequence[Group], keys: Keys) -> list[Group]:
    """Return the groups whose names do not occur in `others`."""
    names = {keys.get(group[0].id) for group in others} - {None}
    return [group for group in groups if keys.get(group[0].id) not in names]


_TIE = -1


def _class(document: Document) -> int:
    """Return the class, or _TIE; documents without any label (never balanced) count as class 0."""
    return _TIE if document.is_tie else document.hard_label or 0


def _classes(training: Sequence[Group]) -> tuple[int, ...]:
    """Return the classes to be balanced: 0 and 1, or those of the documents if one is higher."""
    found = {_class(document) for group in training for document in group} - {_TIE}
    return tuple(sorted(found)) if max(found, default=0) > 1 else (0, 1)


def _require_labels(groups: Sequence[Group]) -> None:
    if any(d.label is None and d.soft_label is None for group in groups for d in group):
        raise InputError("protocol.balance: True, but some documents have no label")


def _too_few(
    field: str,
    asked: int | None,
    have: int,
    split: str,
    classes: Sequence[int],
    counts: Mapping[int, int],
) -> InputError:
    """Return the error on too few documents.

    Args:
      field, asked: the field with their number, and its value.
      have: number of documents that could be taken.
      split: their split.
      classes: those that are balanced; () if none are.
      counts: class -> number of documents.
    """
    number = "all" if asked is None else str(asked)
    after = " after balancing the classes" if classes else ""
    if len(classes) > 2:
        fewest = min(classes, key=lambda label: counts.get(label, 0))
        after += f" (class {fewest} has {counts.get(fewest, 0)})"
    ties = counts.get(_TIE, 0)
    of_two = ", soft_label 0.5" if len(classes) <= 2 else ""
    after += f" (and {ties} ties{of_two})" if ties else ""
    return InputError(
        f"{field}: {number} documents were asked for, but split {split!r} has only {have}{after}"
    )


def _take(
    groups: Sequence[Group], count: int | None, classes: Sequence[int], field: str, split: str
) -> tuple[list[Document], list[Group]]:
    """Return the first `count` documents (None: all), and the groups without any of them.

    With `classes`, equally many are from each of them. Ties are not taken. The rest of a partly
    taken group is dropped.
    """
    if classes:
        _require_labels(groups)
    counts = Counter(_class(d) for group in groups for d in group)
    have = counts.total() - counts[_TIE]
    if classes:
        have = len(classes) * min(counts[label] for label in classes)
    wanted = have if count is None else count
    if wanted > have or (count != 0 and have == 0):
        raise _too_few(field, count, have, split, classes, counts)
    left: Counter[int | None] = Counter({label: wanted // len(classes) for label in classes})
    left[None] = 0 if classes else wanted
    chosen: list[Document] = []
    rest: list[Group] = []
    for group in groups:
        taken = []
        for document in group:
            key = _class(document) if classes else None
            if left[key] > 0 and not document.is_tie:
                left[key] -= 1
                taken.append(document)
        chosen += taken
        if not taken:
            rest.append(group)
    return chosen, rest


def _carve(
    groups: Sequence[Group], count: int | None, classes: Sequence[int], field: str, split: str
) -> tuple[list[Document], list[Group]]:
    """Take documents as `_take` does, but from the training documents, and never all."""
    if count == 0:
        return [], list(groups)
    if count is None:
        raise InputError(
            f"{field}: must be a number, because the documents are taken from split {split!r}"
        )
    return _take(groups, count, classes, field, split)


def _training(
    groups: Sequence[Group],
    train_docs: int | None,
    classes: Sequence[int],
    split: str,
    notes: list[str] | None,
) -> list[Document]:
    """Return the first `train_docs` documents, with evenly spread `classes` (if there are any)."""
    ordered = [document for group in groups for document in group]
    if classes:
        _require_labels(groups)
        total = len(ordered)
        ordered = _balanced(ordered, classes)
        if len(classes) > 2 and 2 * len(ordered) < total and notes is not None:
            notes.append(
                f"{split}: balancing {len(classes)} classes keeps {len(ordered):,} of {total:,} "
                "documents; protocol.balance=False keeps all"
            )
    wanted = len(ordered) if train_docs is None else train_docs
    if wanted > len(ordered) or wanted == 0:
        counts = Counter(_class(d) for group in groups for d in group if not d.is_tie)
        raise _too_few("task.train_docs", train_docs, len(ordered), split, classes, counts)
    return ordered[:wanted]


def _balanced(ordered: Sequence[Document], classes: Sequence[int]) -> list[Document]:
    """Cut classes to the smallest if one is too large, and spread classes and ties over the order.

    So the first n documents have the same balance for every n, and in a task with one right and one
    wrong item per question these stay adjacent.
    """
    positions: dict[int, list[int]] = {label: [] for label in (*classes, _TIE)}
    for n, document in enumerate(ordered):
        positions[_class(document)].append(n)
    sizes = [len(positions[label]) for label in classes]
    too_large = max(sizes) > MAJORITY_LIMIT / len(classes) * sum(sizes)
    keep = min(sizes) if too_large else max(sizes)
    ranked = []
    for label, ns in positions.items():
        ns = ns if label == _TIE else ns[:keep]
        ranked += [((2 * rank + 1) / (2 * len(ns)), n) for rank, n in enumerate(ns)]
    return [ordered[n] for _, n in sorted(ranked)]


def cut(
    training: Sequence[Document], num_slices: int, *, field: str = _FIELD
) -> list[list[Document]]:
    """Return consecutive parts of equal size, the later ones possibly one larger."""
    _refuse_too_few(training, num_slices, field)
    bounds = [len(training) * s // num_slices for s in range(num_slices + 1)]
    return [list(training[a:b]) for a, b in itertools.pairwise(bounds)]


def _refuse_too_few(training: Sequence[Document], num_slices: int, field: str) -> None:
    if len(training) < num_slices:
        raise InputError(
            f"{field}: {len(training)} documents cannot be cut into {num_slices} slices"
        )


def sliced(
    training: Sequence[Document], num_slices: int, keys: Keys, *, field: str = _FIELD
) -> list[list[Document]]:
    """Assign whole groups to slices: largest first, each to the smallest slice.

    Ties go to the slice with the fewest documents of the group's classes, so that classes are
    spread as evenly as sizes.
    """
    _refuse_too_few(training, num_slices, field)
    members: dict[str | int, list[int]] = {}
    for n, document in enumerate(training):
        key: str | int = keys.get(document.id, document.id)
        members.setdefault(key, []).append(n)
    groups = sorted(members.values(), key=len, reverse=True)
    _refuse_unequal(training, groups, num_slices, keys, field)
    # Documents of each slice by class, and its ties.
    counts: list[Counter[int]] = [Counter() for _ in range(num_slices)]
    positions: list[list[int]] = [[] for _ in range(num_slices)]
    for group in groups:
        own = Counter(_class(training[n]) for n in group)
        fullness = [(c.total(), sum(c[k] * count for k, count in own.items())) for c in counts]
        s = fullness.index(min(fullness))
        counts[s] += own
        positions[s] += group
    return [[training[n] for n in sorted(ns)] for ns in positions]


def _refuse_unequal(
    training: Sequence[Document],
    groups: Sequence[Sequence[int]],
    num_slices: int,
    keys: Keys,
    field: str,
) -> None:
    """Refuse a group above half of the data or one and a half slices, and empty slices."""
    if num_slices == 1:
        return
    size, total = len(groups[0]), len(training)
    if size > min(total / 2, 1.5 * total / num_slices):
        name = keys.get(training[groups[0][0]].id)
        raise InputError(
            f"{field}: group {shown(name)} has {size} of {total} documents, too many "
            f"for one of {num_slices} slices"
        )
    if len(groups) < num_slices:
        raise InputError(
            f"{field}: {total} documents in {len(groups)} groups cannot be cut into "
            f"{num_slices} slices without splitting a group"
        )
