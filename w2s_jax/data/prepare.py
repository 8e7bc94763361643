"""Writing a task, or a corpus, as a TFDS ArrayRecord dataset, which is read by random access.

An example is {id: uint64, index: int64, record: text}. `record` is the record in the task's fields
as JSON that gives it back, the order of its keys included. `id` is a stable hash of the task, the
split and the record, whatever that order, and of how many equal records stand before it.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, StorageError, unknown
from w2s_jax.core.files import write_json
from w2s_jax.core.version import __version__
from w2s_jax.data import records, tfds
from w2s_jax.data.documents import stable_id
from w2s_jax.data.loading import load
from w2s_jax.data.records import OpenedRecords, Place, Reader
from w2s_jax.data.sources import RECORD_SOURCES, open_records
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.data.tfds import read_prepared

__all__ = ["Prepared", "prepare", "read_prepared", "record_json"]

VERSION = "1.0.0"  # of the form of the examples
_SHARD_BYTES = 256 << 20
_CHUNK = 256  # examples handed to TFDS at a time
# TFDS makes file names of names, and expressions of the names of splits.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SPLIT = re.compile(r"(?!all$)[A-Za-z0-9_]+")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote.

    Attributes:
      folder: the dataset, for `read_prepared` or any reader of TFDS.
      task: the name of the task or corpus.
      source, place: where its records came from.
      records: how many, by split.
      sha256: of all ids and records in order (hexadecimal).
    """

    folder: Path
    task: str
    source: str
    place: str
    records: Mapping[str, int]
    sha256: str

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {split}" for split, count in self.records.items())
        return (
            f"{self.task}: {counts} records from {self.source} ({self.place}) are prepared in "
            f"{self.folder} (sha256 {self.sha256[:16]})"
        )


@dataclass(frozen=True)
class _Scan:
    """What one pass over a split says.

    Attributes:
      records, size: their number, and the bytes of their JSON.
      repeated: the hashes that several records share.
    """

    records: int
    size: int
    repeated: frozenset[int]


def prepare(
    name: str, to: str | os.PathLike[str], *, source: str = "auto", data_dir: str | None = None
) -> Prepared:
    """Writes all splits of a task, or of a folder of texts, to `<to>/<name>/<version>/`.

    Records are read twice, and streamed: memory grows by 8 bytes a record only. The folder appears
    under its name when it is complete, and an existing one is left as it is.

    Args:
      name: a task, or a folder below the data folder whose files have a field `text`.
      to: a local folder.
      source: as in `open_records`; a folder of texts comes from files only.
      data_dir: the data folder; None means the environment's W2S_DATA_DIR.

    Raises:
      InputError: an unknown name or source, bad records, a record that JSON cannot hold, a dataset
        that is there already, or TFDS is not installed.
      StorageError: it cannot be written.
    """
    tfds.import_tfds()
    tfds.refuse_fork()
    root = records.location(to)
    if not records.is_local(root):
        raise InputError(f"--to: {to}: allowed: a local folder (copy it to a bucket afterwards)")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"task.name: {name!r} cannot name a TFDS dataset; allowed: a letter, then letters, "
            "digits and _"
        )
    folder = root / name / VERSION
    if folder.exists():
        raise InputError(f"{folder}: is there already; remove it, or give another folder")
    opened = _open(name, source, data_dir)
    for split in opened.splits:
        if not _SPLIT.fullmatch(split):
            raise InputError(
                f"{opened.place}: split {split!r} cannot be a TFDS split; allowed: letters, digits "
                "and _, and not 'all'"
            )
    scans = {split: _scan(name, split, reader) for split, reader in opened.splits.items()}
    temporary = folder.with_name(f".{VERSION}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
            digests = _write(name, opened, scans, temporary)
            info = _info(name, opened, scans, digests)
            write_json(temporary / tfds.OUR_INFO_FILE, info)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({records.short(error)})") from error
    counts = {split: scan.records for split, scan in scans.items()}
    return Prepared(folder, name, opened.source, opened.place, counts, info["sha256"])


def record_json(record: Mapping[str, Any], place: Place) -> str:
    """The JSON text of a record, without spaces; `json.loads` gives the record back.

    Raises:
      InputError: it holds something that JSON cannot give back (a date, bytes, a tuple).
    """
    _refuse_lossy(record, place, ())
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can hold it
        text = json.dumps(record, separators=(",", ":"))
        if json.loads(text) != record:  # two halves side by side come back as one character
            raise InputError(f"{place}: text with broken surrogate pairs: {text[:100]}") from None
    return text


def record_hash(name: str, split: str, record: Mapping[str, Any]) -> int:
    """A stable 64-bit hash of a record, the same whatever the order of its keys."""
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return stable_id("record", name, split, text)


def _refuse_lossy(value: Any, place: Place, path: tuple[str, ...]) -> None:
    if value is None or type(value) in (str, int, float, bool):
        return
    if type(value) is list:
        for i, item in enumerate(value):
            _refuse_lossy(item, place, (*path, str(i)))
    elif type(value) is dict and all(type(key) is str for key in value):
        for key, item in value.items():
            _refuse_lossy(item, place, (*path, key))
    else:
        raise InputError(
            f"{place}: field {'.'.join(path)!r}: a {type(value).__name__} cannot be kept as JSON "
            "without loss; allowed: text, numbers, true, false, null, and lists and objects of them"
        )


def _open(name: str, source: str, data_dir: str | None) -> OpenedRecords:
    """The records of a task, or of a folder of texts without labels."""
    if source not in RECORD_SOURCES:
        raise unknown("task.source", source, RECORD_SOURCES)
    if name not in TASKS and records.task_folder(name, data_dir) is not None:
        files = records.find_files(name, data_dir)
        _, first = next(records.read_records(next(iter(files.values()))))
        if "text" in first and not {"label", "soft_label"} & set(first):
            if source not in ("auto", "files"):
                raise InputError(f"task.source: {source!r}, but {name!r} is a folder of files")
            readers = {split: _text_reader(path) for split, path in files.items()}
            return OpenedRecords("files", str(next(iter(files.values())).parent), readers)
    task = get_task(name, data_dir)
    if task.expand is None:
        raise InputError(
            f"task.name: task {name!r} brings its own data; there is nothing to prepare"
        )
    # Bad records are refused here and now, as a run would refuse them later.
    load(name, source, data_dir)
    return open_records(task, source, data_dir)


def _text_reader(path: Path) -> Reader:
    def read() -> Iterator[tuple[Place, dict[str, Any]]]:
        for place, record in records.read_records(path):
            text = record.get("text")
            if not isinstance(text, str):
                problem = "missing" if "text" not in record else f"not text: {text!r}"
                raise InputError(f"{place}: field 'text' is {problem}")
            yield place, record

    return read


def _scan(name: str, split: str, reader: Reader) -> _Scan:
    """Checks all records, and finds those that occur more than once."""
    hashes, size = array("Q"), 0
    for place, record in reader():
        text = record_json(record, place)
        size += len(text.encode("utf-8"))
        hashes.append(record_hash(name, split, record))
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    return _Scan(len(hashes), size, frozenset(values[counts > 1].tolist()))


def _examples(name: str, split: str, reader: Reader, scan: _Scan) -> Iterator[dict[str, Any]]:
    seen: Counter[int] = Counter()
    for index, (place, record) in enumerate(reader()):
        text = record_json(record, place)
        base = record_hash(name, split, record)
        yield {"id": stable_id(base, seen[base]), "index": index, "record": text}
        if base in scan.repeated:
            seen[base] += 1


def _write(
    name: str, opened: OpenedRecords, scans: Mapping[str, _Scan], folder: Path
) -> dict[str, str]:
    """Writes the shards and what TFDS needs to read them; returns the sha256 of each split."""
    api = tfds.import_tfds()
    features = api.features.FeaturesDict(
        {"id": np.uint64, "index": np.int64, "record": api.features.Text()}
    )
    identity = api.core.DatasetIdentity(
        name=name, version=api.core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    info = api.core.DatasetInfo(
        builder=identity,
        features=features,
        description=f"{name}, from {opened.source} ({opened.place}).",
        disable_shuffling=True,
    )
    # The ordinary builders of TFDS hold up to 1 GiB of a split in memory, and need TensorFlow for
    # more; this one writes as it goes, with shards cut by number.
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
                f"{opened.place}, split {split}: changed while it was read "
                f"({scan.records} records, then {written})"
            )
        writer.close_splits([split])
        digests[split] = digest.hexdigest()
    return digests


def _info(
    name: str, opened: OpenedRecords, scans: Mapping[str, _Scan], digests: Mapping[str, str]
) -> dict[str, Any]:
    """What `tfds.read_info` gives back."""
    together = "".join(f"{split} {digest}\n" for split, digest in digests.items())
    return {
        "task": name,
        "source": opened.source,
        "place": opened.place,
        "splits": {
            split: {"records": scan.records, "sha256": digests[split]}
            for split, scan in scans.items()
        },
        "sha256": hashlib.sha256(together.encode()).hexdigest(),
        "versions": {
            "w2s_jax": __version__,
            "tensorflow_datasets": tfds.import_tfds().__version__,
        },
    }
