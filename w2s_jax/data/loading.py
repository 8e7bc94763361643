"""From the files of a task to its documents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.data import sources
from w2s_jax.data.documents import Document, hash_keys, stable_id
from w2s_jax.data.tasks import Candidate, Task, get_task
from w2s_jax.errors import InputError, unknown

SOURCES = ("auto", "files", "embedded")
ITEM_EXPANSION = {"paper": "all", "released": "one"}
OFFICIAL_SPLITS = ("train", "validation", "test")

# A record of a file: where it stands and what it could become.
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
    "-1": _UNLABELLED,
    "-1.0": _UNLABELLED,
}


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
    """The documents of a task by split: train, validation, test where they exist, then any others.

    Splits are the source's own, neither balanced nor cut into slices (see `splits.make_splits`).
    A test split without labels (all -1) is left out; in splits with other names -1 gives documents
    without a label. Ids depend on the task, the split and the content; identical documents
    of a split get distinct ids.

    Records that offer several items (a question with its answers) are expanded:
      'all': one right and one wrong item of each record, the wrong one drawn by a hash of the
        record's id and `split_seed`, so that `seed` does not change it.
      'one': one item of each record, right with probability 1/2, else a wrong one at random, drawn
        by a hash of the record's id and `seed`; so the test items change with the seed.

    Args:
      name: a registered task, or a folder with data files below the data folder.
      source: 'files' (local files), 'embedded' (data that come with the task), 'auto' (whichever
        the task has).
      data_dir: the data folder; None means the environment's W2S_DATA_DIR.
      protocol: 'paper' (item expansion 'all') or 'released' ('one').
      seed: the run's seed; matters for item expansion 'one' only.
      split_seed: seed of everything that should stay when `seed` changes.
      item_expansion: 'all' or 'one'; None: as the protocol says.

    Raises:
      InputError: an unknown name or option, missing files, or a bad record: one line that names
        the file, the line and the field.
    """
    if source not in SOURCES:
        raise unknown("task.source", source, SOURCES)
    if protocol not in ITEM_EXPANSION:
        raise unknown("protocol.name", protocol, ITEM_EXPANSION)
    expansion = ITEM_EXPANSION[protocol] if item_expansion is None else item_expansion
    if expansion not in ITEM_EXPANSION.values():
        raise unknown("protocol.item_expansion", expansion, ITEM_EXPANSION.values())

    task = get_task(name, data_dir)
    if source == "embedded" and task.load is None:
        raise InputError(f"task.source: 'embedded', but task {name!r} brings no data of its own")
    if source == "files" and task.expand is None:
        raise InputError(f"task.source: 'files', but task {name!r} is not read from files")
    if task.load is not None and source != "files":
        return task.load(split_seed=split_seed)

    documents: dict[str, list[Document]] = {}
    files = _official_first(_files_of(task, data_dir))
    for split, path in files.items():
        found = _read_split(task, split, path, expansion, seed, split_seed)
        if found is not None:
            documents[split] = found
    if not documents:
        raise InputError(f"{files['test']}: field 'label': the only split is unlabelled (all -1)")
    return documents


def _files_of(task: Task, data_dir: str | None) -> dict[str, Path]:
    """The task's own folder, else the one that it shares with another task."""
    if task.folder is not None and sources.task_folder(task.name, data_dir) is None:
        return sources.find_files(task.folder, data_dir)
    return sources.find_files(task.name, data_dir)


def _official_first(files: Mapping[str, Path]) -> dict[str, Path]:
    order = [split for split in OFFICIAL_SPLITS if split in files]
    return {split: files[split] for split in [*order, *(s for s in files if s not in order)]}


def _read_split(
    task: Task, split: str, path: Path, expansion: str, seed: int, split_seed: int
) -> list[Document] | None:
    """The documents of one file; None for a test split without labels."""
    items = _read_items(task, path)
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
        if len(counts) == 1:
            raise InputError(
                f"{path}: field 'label': all {len(documents)} documents of the "
                f"training split have label {documents[0].label}; both are needed"
            )
    return documents


def _read_items(task: Task, path: Path) -> list[Item]:
    """Each record's place and candidates, with all fields present and no text empty."""
    if task.expand is None:
        raise ValueError(f"task {task.name!r} has no expand")
    items = []
    for place, record in sources.read_records(path):
        for name in task.fields:
            if name not in record:
                raise InputError(
                    f"{place}: field {name!r} is missing; the record has: "
                    f"{', '.join(map(str, record)) or 'no fields'}"
                )
        candidates = task.expand(record, place)
        if not candidates:
            raise InputError(f"{place}: fields {', '.join(task.fields)}: nothing to learn from")
        for candidate in candidates:
            if not candidate.text.strip():
                raise InputError(
                    f"{place}: fields {', '.join(task.fields)}: empty document: {candidate.text!r}"
                )
        items.append((place, candidates))
    return items


def parse_label(value: Any, place: str) -> int:
    """0, 1, or -1 (unlabelled) from what stands in a file.

    Accepted are 0, 1, 0.0, 1.0, true, false, those as strings (as CSV has them), and -1.

    Raises:
      InputError: anything else.
    """
    label: int | None = None
    if isinstance(value, str):
        label = _LABEL_TEXTS.get(value.strip())
    elif isinstance(value, bool | int | float) and value in (0, 1, _UNLABELLED):
        label = int(value)
    if label is None:
        raise InputError(f"{place}: field 'label': {value!r}; allowed: 0 or 1")
    return label


def _labels(items: Sequence[Item]) -> list[list[int]]:
    """The parsed labels of all candidates; one type of value for the whole file."""
    first: tuple[str, Any] | None = None
    labels = []
    for place, candidates in items:
        for candidate in candidates:
            value = candidate.label
            parse_label(value, place)
            if first is None:
                first = (place, value)
            elif type(value) is not type(first[1]):
                raise InputError(
                    f"{place}: field 'label': {value!r} is a {type(value).__name__}, but "
                    f"{first[1]!r} ({first[0]}) is a {type(first[1]).__name__}; use one type"
                )
        labels.append([parse_label(candidate.label, place) for candidate in candidates])
    return labels


def _refuse_unlabelled(items: Sequence[Item], labels: Sequence[Sequence[int]]) -> None:
    for (place, candidates), record_labels in zip(items, labels, strict=True):
        for candidate, label in zip(candidates, record_labels, strict=True):
            if label == _UNLABELLED:
                raise InputError(
                    f"{place}: field 'label': {candidate.label!r} (unlabelled); allowed: 0 or 1"
                )


def _choose(
    task: Task,
    split: str,
    items: Sequence[Item],
    labels: Sequence[Sequence[int]],
    expansion: str,
    seed: int,
    split_seed: int,
) -> list[list[int]]:
    """Which candidates of each record become documents."""
    ids_N = _record_ids(task, split, items, labels)
    if expansion == "all":
        right_N = hash_keys(ids_N, "right", split_seed)
        wrong_N = hash_keys(ids_N, "wrong", split_seed)
    else:
        right_N = hash_keys(ids_N, "right of one", seed)
        wrong_N = hash_keys(ids_N, "wrong of one", seed)
    is_right_N = hash_keys(ids_N, "right or wrong", seed) >> np.uint64(63) == 1
    chosen = []
    for n, (place, candidates) in enumerate(items):
        if len(candidates) == 1:
            chosen.append([0])
            continue
        rights = [i for i, label in enumerate(labels[n]) if label == 1]
        wrongs = [i for i, label in enumerate(labels[n]) if label == 0]
        if not rights or not wrongs:
            missing = "right" if not rights else "wrong"
            raise InputError(
                f"{place}: fields {', '.join(task.fields)}: {len(candidates)} "
                f"candidates, but none is {missing}"
            )
        right, wrong = rights[int(right_N[n]) % len(rights)], wrongs[int(wrong_N[n]) % len(wrongs)]
        if expansion == "all":
            chosen.append([right, wrong])
        else:
            chosen.append([right if is_right_N[n] else wrong])
    return chosen


def _record_ids(
    task: Task, split: str, items: Sequence[Item], labels: Sequence[Sequence[int]]
) -> np.ndarray:
    """A uint64 id for each record, from all its candidates; identical records get distinct ids."""
    seen: Counter[int] = Counter()
    ids_N = np.zeros(len(items), np.uint64)
    for n, (_, candidates) in enumerate(items):
        parts = [
            part for c, label in zip(candidates, labels[n], strict=True) for part in (c.text, label)
        ]
        base = stable_id("record", task.name, split, *parts)
        ids_N[n] = stable_id(base, seen[base])
        seen[base] += 1
    return ids_N


def _documents(
    task: Task,
    split: str,
    items: Sequence[Item],
    labels: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
) -> list[Document]:
    # The label is part of the id, and the occurrence counts equal (text, label) only, so that the
    # order of the records in the file changes no id.
    seen: Counter[int] = Counter()
    documents = []
    for (_, candidates), record_labels, picks in zip(items, labels, chosen, strict=True):
        for i in picks:
            candidate, label = candidates[i], record_labels[i]
            base = stable_id("document", task.name, split, candidate.text, label)
            documents.append(
                Document(
                    id=stable_id(base, seen[base]),
                    text=candidate.text,
                    label=None if label == _UNLABELLED else label,
                    group=candidate.group,
                    meta=candidate.meta,
                )
            )
            seen[base] += 1
    return documents
