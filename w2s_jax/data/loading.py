"""Load a task: records to documents."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, first_line, unknown
from w2s_jax.data.documents import Document, hash_keys, stable_id
from w2s_jax.data.records import OFFICIAL_SPLITS, Reader
from w2s_jax.data.sources import RECORD_SOURCES, open_records
from w2s_jax.data.task import Candidate, Task
from w2s_jax.data.tasks import get_task

SOURCES = (*RECORD_SOURCES, "embedded")
ITEM_EXPANSION = {"paper": "all", "released": "one"}

# A record: its name in errors, and its candidates.
Item = tuple[str, list[Candidate]]

_UNLABELLED = -1
_LABEL_TEXTS = {
    "0": 0,
    "1": 1,
    "0.0": 0,
    "1.0": 1,
    "False": 0,
    "True": 1,
    "false": 0,
    "true": 1,
    **{"FALSE": 0, "TRUE": 1},  # as spreadsheets write them
    "-1": _UNLABELLED,
    "-1.0": _UNLABELLED,
}


@dataclass(frozen=True)
class LoadedTask:
    """A task's documents and their source.

    Attributes:
      task: the task.
      documents: by split, as `load_task` returns them.
      source: 'files', 'hub', 'tfds' or 'embedded'.
      location: the folder or dataset, for messages.
      notes: messages for the user: the task's warning, skipped records.
      names, unused: as in `OpenedRecords`.
    """

    task: Task
    documents: dict[str, list[Document]]
    source: str
    location: str
    notes: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def load_task(
    name: str,
    *,
    source: str = "auto",
    data_dir: str | None = None,
    protocol: str = "paper",
    seed: int = 0,
    split_seed: int = 0,
    item_expansion: str | None = None,
) -> dict[str, list[Document]]:
    """Return the documents of a task by split: train, validation, test if they exist, then others.

    Splits are those of the source, neither balanced nor cut into slices (see `splits.make_splits`).
    A test split without labels (all -1) is left out; in splits with other names, -1 gives documents
    without a label. Ids depend on the task, the split and the content; identical documents of a
    split have distinct ids.

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

    Raises:
      InputError: an unknown name or option, missing data, or a bad record; names the file, the line
        and the field.
    """
    if protocol not in ITEM_EXPANSION:
        raise unknown("protocol.name", protocol, ITEM_EXPANSION)
    expansion = ITEM_EXPANSION[protocol] if item_expansion is None else item_expansion
    loaded = load(name, source, data_dir, expansion, seed=seed, split_seed=split_seed)
    return loaded.documents


def load(
    name: str,
    source: str = "auto",
    data_dir: str | None = None,
    item_expansion: str = "all",
    *,
    seed: int = 0,
    split_seed: int = 0,
) -> LoadedTask:
    """Load a task as `load_task` does, and return its source and notes too."""
    if source not in SOURCES:
        raise unknown("task.source", source, SOURCES)
    if item_expansion not in ITEM_EXPANSION.values():
        raise unknown("protocol.item_expansion", item_expansion, ITEM_EXPANSION.values())
    task = get_task(name, data_dir)
    notes = [] if task.warning is None else [f"task {name}: {task.warning}"]
    if source == "embedded" and task.load is None:
        raise InputError(f"task.source: 'embedded', but task {name!r} has no embedded data")
    if source not in ("auto", "embedded") and task.expand is None:
        raise InputError(
            f"task.source: {source!r}, but the data of task {name!r} are embedded; use 'embedded'"
        )
    if task.load is not None and source in ("auto", "embedded"):
        documents = task.load(split_seed=split_seed)
        return LoadedTask(task, documents, "embedded", "this package", tuple(notes))

    opened = open_records(task, source, data_dir)
    documents = {}
    for split in _official_first(opened.splits):
        found = _read_split(task, split, opened.splits[split], item_expansion, seed, split_seed)
        if found is not None:
            documents[split], skipped = found
            if skipped:
                plural = "" if skipped == 1 else "s"
                notes.append(
                    f"{split}: skipped {skipped:,} record{plural} that the task does not use"
                )
    if not documents:
        raise InputError(
            f"{opened.location}, split test: field 'label': the only split is unlabelled (all -1)"
        )
    return LoadedTask(
        task,
        documents,
        opened.source,
        opened.location,
        tuple(notes),
        opened.names,
        opened.unused,
    )


def _official_first(splits: Iterable[str]) -> list[str]:
    order = [split for split in OFFICIAL_SPLITS if split in splits]
    return [*order, *(split for split in splits if split not in order)]


def _read_split(
    task: Task, split: str, reader: Reader, expansion: str, seed: int, split_seed: int
) -> tuple[list[Document], int] | None:
    """Return the documents of a split and the number of skipped records; None: unlabelled test."""
    items, skipped = _read_items(task, reader)
    if not items:
        raise InputError(f"task {task.name!r}, split {split!r}: the task uses none of the records")
    labels = _labels(items)
    unlabelled = all(label == _UNLABELLED for record in labels for label in record)
    if unlabelled and split == "test":
        return None
    if not unlabelled or split in OFFICIAL_SPLITS:
        _refuse_unlabelled(items, labels)
    chosen = _choose(task, split, items, labels, expansion, seed, split_seed)
    documents = _documents(task, split, items, labels, chosen)
    if split == "train":
        counts = Counter(document.label for document in documents)
        if len(counts) == 1 and None not in counts:
            path = items[0][0].rpartition(", ")[0]
            raise InputError(
                f"{path}: field 'label': all {len(documents)} documents of the "
                f"training split have label {documents[0].label}; both labels are needed"
            )
    return documents, skipped


def _read_items(task: Task, reader: Reader) -> tuple[list[Item], int]:
    """Return the records with candidates, checked, and the number of those without."""
    if task.expand is None:
        raise ValueError(f"task {task.name!r} has no expand")
    items, skipped = [], 0
    for where, record in reader():
        for name in task.fields:
            if name not in record:
                raise InputError(
                    f"{where}: field {name!r} is missing; the record has: "
                    f"{', '.join(map(str, record)) or 'no fields'}"
                )
        candidates = _expanded(task, record, where)
        if not candidates:
            skipped += 1
            continue
        for candidate in candidates:
            for text in candidate.texts:
                if not text.strip():
                    raise InputError(
                        f"{where}: fields {', '.join(task.fields)}: empty document: {text!r}"
                    )
        items.append((where, candidates))
    return items, skipped


def _expanded(task: Task, record: dict[str, Any], where: str) -> list[Candidate]:
    """Call `task.expand`, which may be the user's own code."""
    assert task.expand is not None
    try:
        candidates = task.expand(record, where)
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{where}: `expand` of task {task.name!r} fails ({first_line(error)}); the "
            f"record has: {', '.join(map(str, record)) or 'no fields'}"
        ) from error
    if not isinstance(candidates, list) or not all(isinstance(c, Candidate) for c in candidates):
        raise InputError(
            f"{where}: `expand` of task {task.name!r} returns {candidates!r:.100}; it must return "
            "a list of Candidate"
        )
    return candidates


def parse_label(value: Any, where: str) -> int:
    """Return 0, 1, or -1 (unlabelled) from a value in a file.

    Accepts 0, 1, 0.0, 1.0, true, false, the same as strings (as in CSV), and -1.

    Raises:
      InputError: anything else.
    """
    label: int | None = None
    if isinstance(value, str):
        label = _LABEL_TEXTS.get(value.strip())
    elif isinstance(value, bool | int | float) and value in (0, 1, _UNLABELLED):
        label = int(value)
    if label is None:
        raise InputError(f"{where}: field 'label': {value!r}; allowed: 0 or 1")
    return label


def parse_soft_label(value: Any, where: str) -> float:
    """Return P(label 1) from a value in a file: a number in [0, 1], or such a number as text.

    Raises:
      InputError: anything else.
    """
    number: float | None = None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = None
    if number is None or not 0 <= number <= 1:
        raise InputError(f"{where}: field 'soft_label': {value!r}; allowed: 0 to 1")
    return number


def _labels(items: Sequence[Item]) -> list[list[int | None]]:
    """Return the labels of all candidates, None for those with a soft label only.

    Raises:
      InputError: a bad label, or values of different types in one file.
    """
    first: tuple[str, Any] | None = None
    soft_as_text: bool | None = None
    labels = []
    for where, candidates in items:
        parsed: list[int | None] = []
        for candidate in candidates:
            value = candidate.label
            if candidate.soft_label is not None:
                is_text = isinstance(candidate.soft_label, str)
                if soft_as_text not in (None, is_text):
                    raise InputError(
                        f"{where}: field 'soft_label': {candidate.soft_label!r} is a "
                        f"{type(candidate.soft_label).__name__}, others are not; use one type"
                    )
                soft_as_text = is_text
            if candidate.soft_label is not None and value in (None, "", -1, "-1"):
                parsed.append(None)
                continue
            parsed.append(parse_label(value, where))
            if first is None:
                first = (where, value)
            elif type(value) is not type(first[1]):
                raise InputError(
                    f"{where}: field 'label': {value!r} is a {type(value).__name__}, but "
                    f"{first[1]!r} ({first[0]}) is a {type(first[1]).__name__}; use one type"
                )
        labels.append(parsed)
    return labels


def _refuse_unlabelled(items: Sequence[Item], labels: Sequence[Sequence[int | None]]) -> None:
    for (where, candidates), record_labels in zip(items, labels, strict=True):
        for candidate, label in zip(candidates, record_labels, strict=True):
            if label == _UNLABELLED:
                raise InputError(
                    f"{where}: field 'label': {candidate.label!r} (unlabelled); allowed: 0 or 1"
                )


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
            for part in (*c.texts, _label_part(c, label, where))
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
            label_part = _label_part(candidate, label, where)
            base = stable_id("document", task.name, split, *candidate.texts, label_part)
            soft = candidate.soft_label
            documents.append(
                Document(
                    id=stable_id(base, seen[base]),
                    text=candidate.text if isinstance(candidate.text, str) else None,
                    texts=None if isinstance(candidate.text, str) else candidate.text,
                    label=None if label == _UNLABELLED else label,
                    soft_label=None if soft is None else parse_soft_label(soft, where),
                    group=candidate.group,
                    meta=candidate.meta,
                )
            )
            seen[base] += 1
    return documents


def _label_part(candidate: Candidate, label: int | None, where: str) -> str | int:
    """Return the label's part of an id; soft labels as numbers, however the file writes them."""
    return f"soft {parse_soft_label(candidate.soft_label, where)!r}" if label is None else label
