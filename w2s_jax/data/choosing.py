"""From the records of a split to its documents: which candidates they become, and their ids."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document, hash_keys, stable_id
from w2s_jax.data.items import Item
from w2s_jax.data.task import Candidate, Task
from w2s_jax.data.values import UNLABELLED, group_key, is_unlabelled, parse_soft_label

#: Value of `protocol.item_expansion` that `protocol.name` implies.
ITEM_EXPANSION = {"paper": "all", "released": "one"}


def documents_of(
    task: Task,
    split: str,
    items: Sequence[Item],
    labels: Sequence[Sequence[int | None]],
    expansion: str,
    *,
    seed: int,
    split_seed: int,
) -> list[Document]:
    """Return the documents of a split; of records with several candidates, those that are chosen.

    Args:
      task: the task.
      split: name of the split, a part of the ids.
      items: the records.
      labels: of all their candidates (see `items.Items.labels`).
      expansion: 'all' or 'one', as in `loading.load_task`.
      seed: of the run, used by 'one'.
      split_seed: seed of the other choices.

    Raises:
      InputError: a record of which no candidate is right, or none is wrong; several candidates in a
        task of more than two classes; a bad soft label or group.
    """
    chosen = _choose(task, split, items, labels, expansion, seed, split_seed)
    return _documents(task, split, items, labels, chosen)


def _choose(
    task: Task,
    split: str,
    items: Sequence[Item],
    labels: Sequence[Sequence[int | None]],
    expansion: str,
    seed: int,
    split_seed: int,
) -> list[list[int]]:
    """Return the indices of the candidates of each record that become documents."""
    if all(len(candidates) == 1 for _, candidates in items):
        return [[0]] * len(items)
    if task.num_classes > 2 and not task.orders:
        where, candidates = next(item for item in items if len(item[1]) > 1)
        raise InputError(
            f"{where}: `expand` of task {task.name!r} returns {len(candidates)} candidates; a task "
            f"of {task.num_classes} classes makes one of each record"
        )
    ids_N = _record_ids(task, split, items, labels)
    if task.orders:
        order_N = hash_keys(ids_N, "order of texts", split_seed) >> np.uint64(32)
        return [[int(order_N[n]) % len(found)] for n, (_, found) in enumerate(items)]
    if expansion == "all":
        right_N = hash_keys(ids_N, "right", split_seed)
        wrong_N = hash_keys(ids_N, "wrong", split_seed)
    else:
        right_N = hash_keys(ids_N, "right of one", seed)
        wrong_N = hash_keys(ids_N, "wrong of one", seed)
    is_right_N = hash_keys(ids_N, "right or wrong", seed) >> np.uint64(63) == 1
    chosen = []
    for n, (where, candidates) in enumerate(items):
        if len(candidates) == 1:
            chosen.append([0])
            continue
        rights = [i for i, label in enumerate(labels[n]) if label == 1]
        wrongs = [i for i, label in enumerate(labels[n]) if label == 0]
        if not rights or not wrongs:
            missing = "right" if not rights else "wrong"
            raise InputError(
                f"{where}: fields {', '.join(task.fields)}: {len(candidates)} "
                f"candidates, but none is {missing}"
            )
        right, wrong = rights[int(right_N[n]) % len(rights)], wrongs[int(wrong_N[n]) % len(wrongs)]
        if expansion == "all":
            chosen.append([right, wrong])
        else:
            chosen.append([right if is_right_N[n] else wrong])
    return chosen


def _record_ids(
    task: Task, split: str, items: Sequence[Item], labels: Sequence[Sequence[int | None]]
) -> np.ndarray:
    """Return uint64 ids of the records, from all candidates; equal records get distinct ids."""
    seen: Counter[int] = Counter()
    ids_N = np.zeros(len(items), np.uint64)
    for n, (where, candidates) in enumerate(items):
        parts = [
            part
            for c, label in zip(candidates, labels[n], strict=True)
            for part in (*_content(c), _label_part(task, c, label, where))
        ]
        base = stable_id("record", task.name, split, *parts)
        ids_N[n] = stable_id(base, seen[base])
        seen[base] += 1
    return ids_N


def _documents(
    task: Task,
    split: str,
    items: Sequence[Item],
    labels: Sequence[Sequence[int | None]],
    chosen: Sequence[Sequence[int]],
) -> list[Document]:
    # Ids include the label, and occurrences count equal (text, label) only, so that ids do not
    # depend on the order of the records.
    seen: Counter[int] = Counter()
    documents = []
    for (where, candidates), record_labels, picks in zip(items, labels, chosen, strict=True):
        for i in picks:
            candidate, label = candidates[i], record_labels[i]
            label_part = _label_part(task, candidate, label, where)
            base = stable_id("document", task.name, split, *_content(candidate), label_part)
            soft = None if is_unlabelled(candidate.soft_label) else candidate.soft_label
            image = candidate.pixels is not None
            documents.append(
                Document(
                    id=stable_id(base, seen[base]),
                    text=candidate.text if isinstance(candidate.text, str) and not image else None,
                    texts=None if isinstance(candidate.text, str) else candidate.text,
                    tokens=candidate.pixels,
                    label=None if label == UNLABELLED else label,
                    soft_label=(
                        None if soft is None else parse_soft_label(soft, where, task.classes)
                    ),
                    target=candidate.target,
                    group=_group(candidate, where),
                    meta=candidate.meta,
                    where=where,
                )
            )
            seen[base] += 1
    return documents


def _content(candidate: Candidate) -> tuple[str | bytes, ...]:
    """Return what a candidate's id is a hash of: its texts, or its pixels."""
    return candidate.texts if candidate.pixels is None else (candidate.pixels,)


def _group(candidate: Candidate, where: str) -> str | None:
    # Text from an `expand` function is that function's key; files' own values have several forms.
    group: Any = candidate.group
    return group if isinstance(group, str) and group else group_key(group, where)


def _label_part(task: Task, candidate: Candidate, label: int | None, where: str) -> str | int:
    """Return the label's part of an id; soft labels as numbers, however the file writes them.

    That of a document with a target is the target, so that ids of one prompt with several targets
    do not depend on the order of the records. Of more than two classes it is the name, so that ids
    do not change with the number of classes or their order.
    """
    if candidate.target is not None:
        return f"target {candidate.target}"
    if label is None:
        soft = parse_soft_label(candidate.soft_label, where, task.classes)
        if isinstance(soft, tuple):
            named = sorted((name, p) for name, p in zip(task.classes, soft, strict=True) if p)
            return f"soft {named!r}"
        return f"soft {soft!r}"
    if task.num_classes > 2 and label != UNLABELLED:
        return f"class {task.classes[label]}"
    return label
