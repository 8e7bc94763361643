"""Write a task, or a corpus, as a TFDS ArrayRecord dataset with random access.

An example is {id: uint64, index: int64, record: text}. `record` is the record in the task's fields
as JSON, which keeps the order of its keys. `id` is a stable hash of the task, the split, the record
(whatever the order of its keys) and the number of equal records before it.
"""

import hashlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, unknown
from w2s_jax.core.files import (
    atomic_write,
    is_remote,
    location,
    new_folder,
    refuse_existing,
    write_json,
)
from w2s_jax.core.version import __version__
from w2s_jax.data import records, tfds
from w2s_jax.data.documents import stable_id
from w2s_jax.data.loading import load
from w2s_jax.data.records import OpenedRecords, Reader
from w2s_jax.data.sources import RECORD_SOURCES, open_records
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.data.tasks.local import LABEL_FIELDS
from w2s_jax.data.templates import templates_file

VERSION = "1.0.0"  # of the format of the examples
_SHARD_BYTES = 256 << 20
_CHUNK = 256  # examples passed to TFDS at a time
# TFDS uses names in file names, and names of splits in expressions.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SPLIT = re.compile(r"(?!all$)[A-Za-z0-9_]+")


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset written by `prepare`.

    Attributes:
      folder: the dataset, for `tfds.read_prepared` or any reader of TFDS.
      task: name of the task or corpus.
      source, location: origin of its records, as in `OpenedRecords`.
      records: number of records by split.
      sha256: SHA-256 of all ids and records in order (hexadecimal).
      unused: as in `OpenedRecords`.
    """

    folder: Path
    task: str
    source: str
    location: str
    records: Mapping[str, int]
    sha256: str
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        unused = f"; unused: {', '.join(self.unused)}" if self.unused else ""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.records.items())
        return (
            f"{self.task}: prepared {counts} records from {self.source} ({self.location}) in "
            f"{self.folder} (SHA-256 {self.sha256[:16]}){unused}"
        )


@dataclass(frozen=True)
class _Scan:
    """Results of a pass over a split.

    Attributes:
      records, size: number of records, and bytes of their JSON.
      repeated: hashes that several records share.
    """

    records: int
    size: int
    repeated: frozenset[int]


def prepare(
    name: str, to: str | os.PathLike[str], *, source: str = "auto", data_dir: str | None = None
) -> PreparedDataset:
    """Write all splits of a task, or of a folder of texts, to `<to>/<name>/<version>/`.

    The file with templates of the task's folder is copied to `<to>/<name>/`, if there is none.

    Records are read twice, as a stream: memory grows by 8 bytes per record. The folder appears
    under its name when it is complete; an existing one is never overwritten.

    Args:
      name: a task, or a folder in the data folder whose files have a field `text`.
      to: a local folder.
      source: as in `open_records`; folders of texts are 'files'.
      data_dir: the data folder; None: the environment's W2S_DATA_DIR.

    Raises:
      InputError: an unknown name or source, bad records, a record that JSON cannot represent, or an
        existing dataset.
      StorageError: the dataset cannot be written.
    """
    tfds.refuse_fork()
    root = location(to)
    if is_remote(root):
        raise InputError(f"--to: {to}: use a local folder, and copy it to a bucket afterwards")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"task.name: {name!r} cannot be the name of a TFDS dataset; allowed: a letter, then "
            "letters, digits and _"
        )
    folder = root / name / VERSION
    refuse_existing(folder)
    opened = _open(name, source, data_dir)
    for split in opened.splits:
        if not _SPLIT.fullmatch(split):
            raise InputError(
                f"{opened.location}: split {split!r} cannot be a TFDS split; allowed: letters, "
                "digits and _, and not 'all'"
            )
    scans = {split: _scan(name, split, reader) for split, reader in opened.splits.items()}
    with new_folder(folder) as temporary:
        digests = _write(name, opened, scans, temporary)
        info = _info(name, opened, scans, digests)
        write_json(temporary / tfds.OUR_INFO_FILE, info)
    templates, target = templates_file(name, data_dir), folder.parent / records.TEMPLATES_FILE
    if templates is not None and not target.exists():
        with atomic_write(target) as file:
            file.write(templates.read_bytes())
    counts = {split: scan.records for split, scan in scans.items()}
    return PreparedDataset(
        folder, name, opened.source, opened.location, counts, info["sha256"], opened.unused
    )


def record_json(record: Mapping[str, Any], where: str) -> str:
    """Return the JSON text of a record, without spaces; `json.loads` restores the record.

    Raises:
      InputError: it holds something that JSON cannot represent (a date, bytes, a tuple).
    """
    _refuse_lossy(record, where, ())
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair needs an escape
        text = json.dumps(record, separators=(",", ":"))
        if json.loads(text) != record:  # two adjacent halves become one character
            raise InputError(f"{where}: text with broken surrogate pairs: {text[:100]}") from None
    return text


def record_hash(name: str, split: str, record: Mapping[str, Any]) -> int:
    """Return a stable 64-bit hash of a record that ignores the order of its keys."""
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return stable_id("record", name, split, text)


def _refuse_lossy(value: Any, where: str, path: tuple[str, ...]) -> None:
    if value is None or type(value) in (str, int, float, bool):
        return
    if type(value) is list:
        for i, item in enumerate(value):
            _refuse_lossy(item, where, (*path, str(i)))
    elif type(value) is dict and all(type(key) is str for key in value):
        for key, item in value.items():
            _refuse_lossy(item, where, (*path, key))
    else:
        raise InputError(
            f"{where}: field {'.'.join(path)!r}: a {type(value).__name__} cannot be stored as JSON "
            "without loss; allowed: text, numbers, true, false, null, and lists and objects of them"
        )


def _open(name: str, source: str, data_dir: str | None) -> OpenedRecords:
    """Open the records of a task, or of a folder of texts without labels."""
    if source not in RECORD_SOURCES:
        raise unknown("task.source", source, RECORD_SOURCES)
    if name not in TASKS and records.task_folder(name, data_dir) is not None:
        files = records.task_files(name, data_dir)
        _, first = next(records.read_records(files.first, ("text", *LABEL_FIELDS)))
        if "text" in first and not set(LABEL_FIELDS) & set(first):
            if source not in ("auto", "files"):
                raise InputError(
                    f"task.source: {source!r}, but {name!r} is a folder of files; use 'files'"
                )
            readers = {split: _text_reader(path) for split, path in files.splits.items()}
            return OpenedRecords("files", str(files.folder), readers, unused=files.unused)
    task = get_task(name, data_dir)
    if task.expand is None:
        raise InputError(
            f"task.name: the data of task {name!r} are embedded; there is nothing to prepare"
        )
    # Refuses bad records now, as a run would later.
    load(name, source, data_dir)
    return open_records(task, source, data_dir)


def _text_reader(path: Path) -> Reader:
    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for where, record in records.read_records(path, ("text",)):
            records.text_field(record, where)
            yield where, record

    return read


def _scan(name: str, split: str, reader: Reader) -> _Scan:
    """Check all records, and find those that occur more than once."""
    hashes, size = array("Q"), 0
    for where, record in reader():
        text = record_json(record, where)
        size += len(text.encode("utf-8"))
        hashes.append(record_hash(name, split, record))
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    return _Scan(len(hashes), size, frozenset(values[counts > 1].tolist()))


def _examples(name: str, split: str, reader: Reader, scan: _Scan) -> Iterator[dict[str, Any]]:
    seen: Counter[int] = Counter()
    for index, (where, record) in enumerate(reader()):
        text = record_json(record, where)
        base = record_hash(name, split, record)
        yield {"id": stable_id(base, seen[base]), "index": index, "record": text}
        if base in scan.repeated:
            seen[base] += 1


def _write(
    name: str, opened: OpenedRecords, scans: Mapping[str, _Scan], folder: Path
) -> dict[str, str]:
    """Write the shards and the metadata of TFDS; return the SHA-256 of each split."""
    import tensorflow_datasets as api

    features = api.features.FeaturesDict(
        {"id": np.uint64, "index": np.int64, "record": api.features.Text()}
    )
    identity = api.core.DatasetIdentity(
        name=name, version=api.core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    info = api.core.DatasetInfo(
        builder=identity,
        features=features,
        description=f"{name}, from {opened.source} ({opened.location}).",
        disable_shuffling=True,
    )
    # TFDS's usual builders hold up to 1 GiB of a split in memory, and need TensorFlow for more;
    # this one writes a stream into shards of a number of examples.
    largest = max(scan.size / scan.records for scan in scans.values())
    writer = api.core.SequentialWriter(
        ds_info=info,
        max_examples_per_shard=max(1, int(_SHARD_BYTES / largest)),
        file_format="array_record",
    )
    writer.initialize_splits(list(scans))
    digests = {}
    for split, scan in scans.items():
        digest, written = hashlib.sha256(), 0
        examples = _examples(name, split, opened.splits[split], scan)
        while chunk := list(islice(examples, _CHUNK)):
            for example in chunk:
                text = example["record"].encode("utf-8")
                digest.update(example["id"].to_bytes(8, "little"))
                digest.update(len(text).to_bytes(8, "little"))
                digest.update(text)
            writer.add_examples({split: chunk})
            written += len(chunk)
        if written != scan.records:
            raise InputError(
                f"{opened.location}, split {split}: changed while it was read "
                f"({scan.records} records, then {written})"
            )
        writer.close_splits([split])
        digests[split] = digest.hexdigest()
    return digests


def _info(
    name: str, opened: OpenedRecords, scans: Mapping[str, _Scan], digests: Mapping[str, str]
) -> dict[str, Any]:
    """Return the content of w2s.json (see `tfds.read_info`)."""
    together = "".join(f"{split} {digest}\n" for split, digest in digests.items())
    return {
        "task": name,
        "source": opened.source,
        "location": opened.location,
        "splits": {
            split: {"records": scan.records, "sha256": digests[split]}
            for split, scan in scans.items()
        },
        "sha256": hashlib.sha256(together.encode()).hexdigest(),
        "versions": {
            "w2s_jax": __version__,
            "tensorflow_datasets": metadata.version("tensorflow_datasets"),
        },
    }
