"""Load a task: records to documents."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from w2s_jax.core.classes import check_classes
from w2s_jax.core.errors import InputError, unknown
from w2s_jax.data.choosing import ITEM_EXPANSION, documents_of
from w2s_jax.data.classes import (
    refuse_classes,
    refuse_one_class,
    refuse_other_labels,
    refuse_unseen_classes,
    with_classes,
)
from w2s_jax.data.conditions import Conditions, kept_documents
from w2s_jax.data.documents import Document
from w2s_jax.data.items import Items, read_items
from w2s_jax.data.records import OFFICIAL_SPLITS
from w2s_jax.data.roles import POOL, training_split
from w2s_jax.data.sources import RECORD_SOURCES, open_records
from w2s_jax.data.task import Task
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.data.templates import check_templates, templates_file
from w2s_jax.data.unlabelled import embedded_pool, read_pool, with_pool
from w2s_jax.data.values import UNLABELLED, parse_label, parse_soft_label

__all__ = [
    "EMPTY",
    "LoadedTask",
    "load",
    "load_task",
    "parse_label",
    "parse_soft_label",
    "refuse_one_class",
]

SOURCES = (*RECORD_SOURCES, "embedded")

#: What to do with records that have an empty text, and documents that give no token.
EMPTY = ("skip", "error")


@dataclass(frozen=True)
class LoadedTask:
    """A task's documents and their source.

    Attributes:
      task: the task.
      documents: by split, as `load_task` returns them.
      source: 'files', 'hub', 'tfds' or 'embedded'.
      location: the folder or dataset, for messages.
      notes: messages for the user: the task's warning, skipped records, splits without labels.
      empty: what is done with texts that are empty, or give no token: 'skip' or 'error'.
      names, unused: as in `OpenedRecords`.
      pool: value of `task.unlabelled` that names the documents 'unlabelled', given or implied by
        the layout; None without a pool.
    """

    task: Task
    documents: dict[str, list[Document]]
    source: str
    location: str
    notes: tuple[str, ...]
    empty: str = "error"
    names: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    pool: str | None = None

    @property
    def file_names(self) -> dict[str, str]:
        """The file of each split, or its name in the source."""
        return {split: split for split in self.documents} | dict(self.names)

    def training_split(self, wanted: str | None) -> str:
        """Return the split to train on, by `roles.training_split`.

        Args:
          wanted: `task.train_split`.

        Raises:
          InputError: there is no such split.
        """
        return training_split(
            [split for split in self.documents if split not in ("pretrain", POOL)],
            wanted=wanted,
            declared=self.task.train_split,
            place=self.location,
            found=[*self.file_names.values(), *self.unused],
        )


def load_task(
    name: str,
    *,
    source: str = "auto",
    data_dir: str | None = None,
    protocol: str = "paper",
    seed: int = 0,
    split_seed: int = 0,
    item_expansion: str | None = None,
    empty: str | None = None,
    classes: Sequence[str] = (),
    unlabelled: str | None = None,
) -> dict[str, list[Document]]:
    """Return the documents of a task by split: train, validation, test if they exist, then others.

    Splits are those of the source, neither balanced nor cut into slices (see `splits.make_splits`).
    A test split without labels (see `values.is_unlabelled`) is left out; splits with other names
    give documents without a label. Ids depend on the task, the split and the content; identical
    documents of a split have distinct ids.

    Records with several candidates (a question with its answers) are expanded:
      'all': one right and one wrong item of each record, the wrong one drawn by a hash of the
        record's id and `split_seed`, independent of `seed`.
      'one': one item of each record, right with probability 1/2, else a random wrong one, drawn by
        a hash of the record's id and `seed`; so the test items change with the seed.
    If the candidates are one content in several orders (a pair of texts to be compared), one of
    them is drawn by a hash of the record's id and `split_seed`.

    Args:
      name: a registered task, or a folder with data files in the data folder.
      source: 'files' (local files), 'hub' (Hugging Face datasets), 'tfds' (TensorFlow Datasets),
        'embedded' (data of the task itself), 'auto' (the first available; see
        `sources.open_records`).
      data_dir: the data folder; None: the environment's W2S_DATA_DIR.
      protocol: 'paper' (item expansion 'all') or 'released' ('one').
      seed: the run's seed, used by item expansion 'one'.
      split_seed: seed of everything that does not change with `seed`.
      item_expansion: 'all' or 'one'; None: the protocol's.
      empty: records with an empty text are left out ('skip') or refused ('error'); None: 'skip' for
        built-in tasks, 'error' for others.
      classes: names of the classes of a folder, in the order of the labels; (): those found in the
        labels (see `classes.find_classes`). Tasks with code have their own.
      unlabelled: a split or a file whose documents are returned as the split 'unlabelled', without
        labels (see `data.unlabelled`).

    Raises:
      InputError: an unknown name or option, missing data, or a bad record; names the file, the line
        and the field.
    """
    if protocol not in ITEM_EXPANSION:
        raise unknown("protocol.name", protocol, ITEM_EXPANSION)
    expansion = ITEM_EXPANSION[protocol] if item_expansion is None else item_expansion
    return load(
        name,
        source,
        data_dir,
        expansion,
        seed=seed,
        split_seed=split_seed,
        empty=empty,
        classes=classes,
        unlabelled=unlabelled,
    ).documents


def load(
    name: str,
    source: str = "auto",
    data_dir: str | None = None,
    item_expansion: str = "all",
    *,
    seed: int = 0,
    split_seed: int = 0,
    empty: str | None = None,
    used: Collection[str] | None = None,
    where: str | None = None,
    test_where: str | None = None,
    train_split: str | None = None,
    classes: Sequence[str] = (),
    keep: Collection[str] = (),
    unlabelled: str | None = None,
    image_size: int | None = None,
) -> LoadedTask:
    """Load a task as `load_task` does, and return its source and notes too.

    Only the splits in `used` are read (None: all): no run fails on a file that it does not need.
    Of training and validation only documents that meet the condition `where` are kept, of test
    those that meet `test_where` (see `conditions.kept_documents`). Their ids are the same with
    and without conditions. The task returned for a folder has the classes that `classes` gives, or
    that were found. Fields of records in `keep` are in `meta` of their documents. The pool that
    `unlabelled` names, or the layout has (see `data.unlabelled`), is the split 'unlabelled'.
    Pictures are resized to `image_size` pixels a side (`task.image_size`).
    """
    conditions = Conditions.parse(where, test_where)
    _check_options(source, item_expansion, empty)
    check_classes("task.classes", classes)
    task = get_task(name, data_dir, image_size)
    if image_size is not None and (task.image is None or not task.image.resized):
        raise InputError(
            f"task.image_size: {image_size}, but task {name!r} is not a folder of PNG or JPEG "
            "pictures; leave it at None"
        )
    refuse_classes(task, classes, own_code=name in TASKS)
    empty = empty or task.empty
    notes = [] if task.warning is None else [f"task {name}: {task.warning}"]
    _check_source(task, source)
    template_file = str(templates_file(name, data_dir) or "")
    own_classes = name not in TASKS and task.kind == "classification"
    if not own_classes:
        check_templates(task, template_file)
    if task.load is not None and source in ("auto", "embedded"):
        embedded = _embedded(task, split_seed, conditions, train_split, unlabelled, notes)
        return _with_seen_classes(dataclasses.replace(embedded, empty=empty), train_split)

    opened = open_records(task, source, data_dir)
    opened, pool = with_pool(task, opened, unlabelled, train_split)
    keep = {*conditions.fields, *keep}
    skip_empty = empty == "skip"

    def read(split: str) -> Items:
        return read_items(task, split, opened.splits[split], skip_empty=skip_empty, keep=keep)

    splits = [s for s in _official_first(opened.splits) if used is None or s in used]
    if pool is not None:
        splits = [s for s in splits if s not in (pool.split, POOL)]
    all_items: dict[str, Items] = {}
    if own_classes:
        # Labels of all splits are read before any is converted.
        all_items = {split: read(split) for split in splits}
        task = with_classes(task, all_items, classes, notes)
        check_templates(task, template_file)
    make = partial(documents_of, task, expansion=item_expansion, seed=seed, split_seed=split_seed)
    each = (dataclasses.replace(all_items.get(s) or read(s), task=task) for s in splits)
    documents, fields = _converted(each, make, opened.location, notes)
    names = dict(opened.names)
    if pool is not None:
        found = read_pool(task, pool, skip_empty=skip_empty, keep=keep, notes=notes)
        none = [[UNLABELLED] * len(candidates) for _, candidates in found.items]
        documents[POOL] = make(pool.split, found.items, none)
        fields[POOL] = found.fields
        names.pop(pool.split, None)
        names[POOL] = pool.file
    documents = kept_documents(documents, conditions, train_split, fields, notes)
    loaded = LoadedTask(
        task,
        documents,
        opened.source,
        opened.location,
        tuple(notes),
        empty,
        names,
        tuple(name for name in opened.unused if pool is None or name != pool.file),
        None if pool is None else pool.name,
    )
    return _with_seen_classes(loaded, train_split)


def _embedded(
    task: Task,
    split_seed: int,
    conditions: Conditions,
    train_split: str | None,
    unlabelled: str | None,
    notes: list[str],
) -> LoadedTask:
    """Return the documents that the code of a task makes; of its pool those without labels."""
    assert task.load is not None
    documents, names = task.load(split_seed=split_seed), {}
    if not task.generates:
        refuse_other_labels(documents, task)
    if unlabelled is not None:
        split, pool_documents = embedded_pool(task, unlabelled, documents, train_split, notes)
        rest = {name: docs for name, docs in documents.items() if name != split}
        documents, names = rest | {POOL: pool_documents}, {POOL: split}
    documents = kept_documents(documents, conditions, train_split, {}, notes)
    return LoadedTask(
        task, documents, "embedded", "this package", tuple(notes), names=names, pool=unlabelled
    )


def _converted(
    read: Iterable[Items],
    make: Callable[..., list[Document]],
    location: str,
    notes: list[str],
) -> tuple[dict[str, list[Document]], dict[str, tuple[str, ...]]]:
    """Return the documents of each split with labels, and the fields of the records of each split.

    Args:
      read: the records of each split, one split in memory at a time.
      make: (split, records, labels) -> documents.
      location: the folder or dataset, for errors.
      notes: get a line for a split that is left out.

    Raises:
      InputError: the only split has no labels; the labels of 'train' are all the same.
    """
    documents: dict[str, list[Document]] = {}
    fields, without = {}, ""
    for found in read:
        split, task = found.split, found.task
        fields[split] = found.fields
        notes += found.notes
        labels = found.labels()
        without = found.without_labels(labels)
        if without:
            notes.append(f"{split}: left out, because {without}")
            continue
        documents[split] = make(split, found.items, labels)
        if split == "train":
            refuse_one_class(documents[split], task.classes)
        notes += _several_targets(split, documents[split])
    if not documents and without:
        raise InputError(
            f"{location}, split test: field {task.label_field!r}: the only split is "
            f"unlabelled: {without}"
        )
    return documents, fields


def _check_options(source: str, item_expansion: str, empty: str | None) -> None:
    if source not in SOURCES:
        raise unknown("task.source", source, SOURCES)
    if item_expansion not in ITEM_EXPANSION.values():
        raise unknown("protocol.item_expansion", item_expansion, ITEM_EXPANSION.values())
    if empty is not None and empty not in EMPTY:
        raise unknown("task.empty", empty, EMPTY)


def _check_source(task: Task, source: str) -> None:
    if source == "embedded" and task.load is None:
        raise InputError(f"task.source: 'embedded', but task {task.name!r} has no embedded data")
    if source not in ("auto", "embedded") and task.expand is None:
        raise InputError(
            f"task.source: {source!r}, but the data of task {task.name!r} are embedded; use "
            "'embedded'"
        )


def _with_seen_classes(loaded: LoadedTask, wanted: str | None) -> LoadedTask:
    """Return the task, after checking that training documents have all classes of the others."""
    if loaded.task.num_classes > 2:
        try:
            train_split = loaded.training_split(wanted)
        except InputError:  # of runs, not of other uses of the documents
            return loaded
        refuse_unseen_classes(loaded.documents, train_split, loaded.task)
    return loaded


def _official_first(splits: Iterable[str]) -> list[str]:
    order = [split for split in OFFICIAL_SPLITS if split in splits]
    return [*order, *(split for split in splits if split not in order)]


def _several_targets(split: str, documents: Sequence[Document]) -> list[str]:
    """Return a note on prompts that occur with different targets, if there are such."""
    targets: dict[str, set[str]] = {}
    for document in documents:
        if document.target is not None:
            targets.setdefault(document.text or "", set()).add(document.target.strip())
    several = {text for text, found in targets.items() if len(found) > 1}
    if not several:
        return []
    count = sum(document.text in several for document in documents)
    return [
        f"{split}: {len(several):,} {'prompt occurs' if len(several) == 1 else 'prompts occur'} "
        f"with different targets, in {count:,} documents"
    ]
