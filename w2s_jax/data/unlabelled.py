"""The unlabelled pool: documents without ground truth, from which the student's slices come.

`task.unlabelled` names a split of the task or a file. Labels and targets in it are never read. The
layout of public harnesses, a folder of `train_label`, `train_unlabel` and `test`, has such a pool
by itself.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core.errors import InputError, did_you_mean, listed, nearest, of_field
from w2s_jax.core.files import contents, location
from w2s_jax.data import records
from w2s_jax.data.documents import Document
from w2s_jax.data.items import Items, read_items
from w2s_jax.data.records import OFFICIAL_SPLITS, OpenedRecords, Reader
from w2s_jax.data.roles import POOL
from w2s_jax.data.task import Task
from w2s_jax.data.values import is_unlabelled

#: Names of the training split and of the pool in the layout of public harnesses.
LAYOUT = ("train_label", "train_unlabel")


@dataclass(frozen=True)
class Pool:
    """Records of documents without labels, not yet read.

    Attributes:
      name: value of `task.unlabelled` that names them.
      split: name of the split in the ids of the documents.
      file: their file, or the split's name in the source, for messages.
      reader: of the records.
    """

    name: str
    split: str
    file: str
    reader: Reader


def with_pool(
    task: Task, opened: OpenedRecords, wanted: str | None, train_split: str | None
) -> tuple[OpenedRecords, Pool | None]:
    """Return the records of a task, and its pool.

    In the layout of `LAYOUT`, where there is no split 'train' and `train_split` names no other, the
    split `train_label` is returned as 'train', and `train_unlabel` is the pool.

    Args:
      task: the task.
      opened: the records.
      wanted: `task.unlabelled`: a split, the file of a split, or the path of a file; None: as the
        layout says.
      train_split: `task.train_split`.

    Raises:
      InputError: there is no such split or file, or it is the training split.
    """
    theirs, pool = LAYOUT
    if train_split is None and "train" not in opened.splits and {*LAYOUT} <= {*opened.splits}:
        wanted = wanted or pool
        splits = {"train" if name == theirs else name: r for name, r in opened.splits.items()}
        names = dict(opened.names)
        names["train"] = names.pop(theirs, theirs)
        opened = dataclasses.replace(opened, splits=splits, names=names)
    training = train_split or ("train" if "train" in opened.splits else task.train_split)
    return opened, None if wanted is None else _find_pool(task, opened, wanted, training)


def _find_pool(task: Task, opened: OpenedRecords, wanted: str, training: str | None) -> Pool:
    split = records.official_split(wanted) or wanted
    files = {name: split for split, name in opened.names.items()}
    readers = {**opened.others, **opened.splits}
    if split not in readers:
        split = files.get(wanted, "")
    path = location(wanted)
    if not split:
        with records.reaching(path):
            if not path.is_file():
                raise _not_there(wanted, path, opened)
            split = _split_of(path, opened)
    if split and split == training:
        raise InputError(
            f"task.unlabelled: {wanted!r} is the training split, whose labels the supervisor "
            "learns; allowed: another split, or a file"
        )
    if split:
        return Pool(wanted, split, opened.names.get(split, split), readers[split])
    fields = (*task.fields, *task.optional_fields)
    return Pool(wanted, POOL, wanted, lambda: records.read_records(path, fields))


def _not_there(wanted: str, path: Path, opened: OpenedRecords) -> InputError:
    """Return the error on a name that is neither a split nor a file."""
    if "/" not in wanted:
        splits = [*opened.splits, *opened.others]
        return InputError(
            f"task.unlabelled: {wanted!r} is neither a split of {opened.location} nor a file"
            f"{did_you_mean(wanted, splits)}; its splits: {listed(splits)}"
        )
    near = nearest(
        path.name, [p.name for p in contents(path.parent)] if path.parent.is_dir() else ()
    )
    hint = f" (did you mean {path.with_name(near)}?)" if near else ""
    return InputError(f"task.unlabelled: there is no file {wanted!r}{hint}")


def _split_of(path: Path, opened: OpenedRecords) -> str:
    """Return the split of which a path is the file; '' for a file of its own."""
    for split, name in opened.names.items():
        theirs = location(opened.location) / name
        if opened.source == "files" and path.name == name and path.resolve() == theirs.resolve():
            return split
    return ""


def read_pool(
    task: Task, pool: Pool, *, skip_empty: bool, keep: Collection[str], notes: list[str]
) -> Items:
    """Read the records of a pool, without any labels.

    Args:
      task: makes candidates of records.
      pool: the records.
      skip_empty, keep: as in `items.read_items`.
      notes: get the counts of records that are skipped, and of labels that are ignored.

    Raises:
      InputError: as `items.read_items`; records with several candidates, of which a label says
        which are right; an official split with labels.
    """
    labelled: set[str] = set()
    names = {task.label_field, *({"soft_label"} & {*task.fields, *task.optional_fields})}

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for where, record in pool.reader():
            if not all(is_unlabelled(record.get(name)) for name in names):
                labelled.add(where)
            if task.generates:
                yield where, {k: value for k, value in record.items() if k not in names}
            else:
                yield where, {k: None if k in names else value for k, value in record.items()}

    with of_field("task.unlabelled"):
        found = read_items(task, POOL, read, skip_empty=skip_empty, keep=keep, targets=False)
    items = []
    for where, candidates in found.items:
        if len(candidates) > 1 and not task.orders:
            raise InputError(
                f"task.unlabelled: {where}: task {task.name!r} makes {len(candidates)} documents "
                "of the record, right and wrong ones; an unlabelled record must be one document"
            )
        if not all(
            is_unlabelled(c.label) and is_unlabelled(c.soft_label) and c.target is None
            for c in candidates
        ):
            labelled.add(where)
        bare = [
            dataclasses.replace(c, label=None, soft_label=None, target=_no_target(task))
            for c in candidates
        ]
        items.append((where, bare))
    notes += found.notes
    _on_labels(pool.name, pool.split, pool.file, len(labelled), len(items), notes)
    return dataclasses.replace(found, items=items)


def embedded_pool(
    task: Task,
    wanted: str,
    documents: Mapping[str, Sequence[Document]],
    train_split: str | None,
    notes: list[str],
) -> tuple[str, list[Document]]:
    """Return the split that `task.unlabelled` names in embedded data, and its documents unlabelled.

    Args:
      task: the task.
      wanted: the split.
      documents: the embedded data by split.
      train_split: `task.train_split`.
      notes: get the number of labels that are ignored.

    Raises:
      InputError: there is no such split, it is the training split, or an official one with labels.
    """
    split = records.official_split(wanted) or wanted
    allowed = [s for s in documents if s not in ("pretrain", train_split or "train")]
    if split not in allowed:
        raise InputError(
            f"task.unlabelled: {wanted!r}, but the data of task {task.name!r} are embedded; "
            f"allowed: one of its splits ({listed(allowed)}), without labels"
        )
    found = documents[split]
    labelled = sum(bool(d.target) or (d.label, d.soft_label) != (None, None) for d in found)
    _on_labels(wanted, split, split, labelled, len(found), notes)
    target = _no_target(task)
    bare = [dataclasses.replace(d, label=None, soft_label=None, target=target) for d in found]
    return split, bare


def _no_target(task: Task) -> str | None:
    """Return the target of documents without one: '' in generation tasks, which need some."""
    return "" if task.generates else None


def _on_labels(
    wanted: str, split: str, file: str, labelled: int, count: int, notes: list[str]
) -> None:
    """Note labels that are ignored; refuse those of official splits, which serve evaluation."""
    if not labelled:
        return
    if split in OFFICIAL_SPLITS:
        raise InputError(
            f"task.unlabelled: {wanted!r}: {labelled:,} of its {count:,} records have labels, "
            f"and runs are evaluated on {split!r}; allowed: a split of another name, or one "
            "without labels"
        )
    notes.append(f"{POOL}: labels of {labelled:,} of {count:,} records of {file} are ignored")
