"""TensorFlow Datasets: prepared ArrayRecord folders, read without TensorFlow, and the catalogue.

A prepared folder has the layout of TFDS: <name>[/<config>]/<version>/ with dataset_info.json.
Folders written by `prepare` have our records as JSON, and `w2s.json`; others have the catalogue's
records, which a task's `Origin` converts.
"""

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, first_line, unknown
from w2s_jax.core.files import is_remote
from w2s_jax.data.records import Reader, data_root, is_folder, reaching
from w2s_jax.data.task import Origin

INFO_FILE = "dataset_info.json"
OUR_INFO_FILE = "w2s.json"

_CHUNK = 256  # records read at a time
_process: int | None = None  # the first process to use ArrayRecord, here or before a fork
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def has_tensorflow() -> bool:
    """Return whether TensorFlow is installed, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None


def version_folder(folder: Path) -> Path | None:
    """Return the prepared folder of the highest version in `folder`, or `folder` if it is one."""
    with reaching(folder):
        if not is_folder(folder):
            return None
        if (folder / INFO_FILE).is_file():
            return folder
        found = [
            path
            for path in folder.iterdir()
            if _VERSION.fullmatch(path.name) and (path / INFO_FILE).is_file()
        ]
    return max(found, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def prepared_folder(
    names: Sequence[str | None], data_dir: str | None, origin: Origin | None = None
) -> Path | None:
    """Return the first prepared folder of several names in the data folder, or None.

    Args:
      names: names of folders, in order; None is ignored.
      data_dir: the data folder; None: the environment's W2S_DATA_DIR.
      origin: the dataset in the catalogue. Its name is tried last, and its configuration as a
        subfolder of each name.

    Raises:
      InputError: there is one, but not on a local disk.
    """
    root = data_root(data_dir)
    if root is None:
        return None
    candidates = [name for name in names if name and name != ".." and Path(name).name == name]
    if origin is not None:
        config = origin.name.partition("/")[2]
        candidates += [f"{name}/{config}" for name in candidates if config]
        candidates.append(origin.name)
    for name in candidates:
        folder = version_folder(root / name)
        if folder is None:
            continue
        if is_remote(folder):
            raise InputError(
                f"{folder}: ArrayRecord files must be on a local disk; mount the bucket or copy "
                "the folder"
            )
        return folder
    return None


def read_info(folder: Path) -> dict[str, Any] | None:
    """Return the w2s.json of a prepared folder; None if `prepare` did not write the folder.

    Keys: task, source, location, splits (split -> records, sha256), sha256 (of all), versions.

    Raises:
      InputError: the file is damaged.
    """
    path = folder / OUR_INFO_FILE
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text("utf-8"))
        whole = all(int(entry["records"]) > 0 for entry in info["splits"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from error
    if not whole or not info["splits"]:
        raise InputError(f"{path}: damaged (no splits, or a split without records)")
    return dict(info)


def open_prepared(folder: Path) -> dict[str, Reader]:
    """Return a reader for each split of a prepared folder.

    Raises:
      InputError: the folder is damaged, or it holds no ArrayRecord files and TensorFlow is not
        installed.
    """
    info = read_info(folder)
    if info is not None:
        return {split: _our_reader(folder, split) for split in info["splits"]}
    builder = _builder(folder)
    kinds = sorted(kind.value for kind in builder.info.available_file_formats())
    if "array_record" in kinds:
        return {s: _reader(folder, s, builder.as_data_source) for s in builder.info.splits}
    if not has_tensorflow():
        raise InputError(
            f"{folder}: contains {', '.join(kinds) or 'no known'} files; without TensorFlow only "
            "ArrayRecord can be read: prepare the dataset with file_format='array_record' on a "
            "machine with TensorFlow, or install TensorFlow"
        )
    return {s: _reader(folder, s, _in_order(builder)) for s in builder.info.splits}


def open_catalogue(origin: Origin) -> dict[str, Reader]:
    """Return a reader for each split of a dataset of the catalogue.

    The dataset is downloaded and prepared as ArrayRecord in the user's TFDS folder (TFDS_DATA_DIR)
    unless it exists.

    Raises:
      InputError: TensorFlow is not installed, or the dataset cannot be prepared.
    """
    import tensorflow_datasets

    title = f"TFDS {origin.name}"
    if not has_tensorflow():
        raise InputError(
            f"{title}: the catalogue needs TensorFlow, which is not installed; install it, or use "
            f"a prepared ArrayRecord folder <data_dir>/{origin.name}/<version>"
        )
    try:
        sources = tensorflow_datasets.data_source(origin.name, try_gcs=False)
    except Exception as error:  # a dataset's code raises errors of any type
        raise InputError(f"{title}: cannot be prepared ({first_line(error)})") from error
    return {split: _reader(title, split, sources.__getitem__) for split in sources}


def read_prepared(folder: str | os.PathLike[str], split: str) -> "PreparedSplit":
    """Return random access to a split of a folder written by `prepare`.

    Raises:
      InputError: `prepare` did not write this folder, or it has no such split.
    """
    path = Path(folder)
    info = read_info(path)
    if info is None:
        raise InputError(f"{path}: not written by `w2s data prepare` (it has no {OUR_INFO_FILE})")
    if split not in info["splits"]:
        raise unknown(f"{path}: split", split, info["splits"])
    return PreparedSplit(path, split, int(info["splits"][split]["records"]))


class PreparedSplit(Sequence[dict[str, Any]]):
    """The records of a split in the order of their source, with random access.

    An item is {'id': int (uint64), 'index': int, 'record': dict}. Pickling keeps only the path, and
    each process opens the files when it reads its first item. ArrayRecord has threads, which a fork
    loses: in a process forked from one that has read, reading is an error (ArrayRecord would hang);
    spawn processes, as grain does.
    """

    def __init__(self, folder: Path, split: str, length: int) -> None:
        self.folder, self.split = folder, split
        self._length = length
        self._opened: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Any]) -> list[dict[str, Any]]:
        """Return several items at once, which is much faster than one by one.

        Raises:
          IndexError: an index is out of range.
          InputError: one of the records cannot be read.
        """
        rows = [index.__index__() for index in indices]
        for i in rows:
            if not -self._length <= i < self._length:
                raise IndexError(f"record {i} of {self._length}")
        rows = [i % self._length for i in rows]
        try:
            source = self._source()
            # Reading several starts threads, which take longer than reading one.
            examples = [source[i] for i in rows] if len(rows) == 1 else None
            return [_our_item(e) for e in examples or source.__getitems__(rows)]
        except InputError:
            raise
        except Exception as error:  # ArrayRecord has no error types of its own
            which = f"{min(rows) + 1}" + (f" to {max(rows) + 1}" if len(rows) > 1 else "")
            raise InputError(
                f"{self.folder}, split {self.split}, record {which}: cannot be read "
                f"({first_line(error)})"
            ) from error

    def _source(self) -> Any:
        process = os.getpid()
        opened = self._opened
        if opened is None or opened[0] != process:
            refuse_fork()
            # No lock, because a fork could copy it locked; two threads may both open the files.
            source = _builder(self.folder).as_data_source(self.split)
            if len(source) != self._length:
                raise InputError(
                    f"{self.folder}, split {self.split}: damaged: {INFO_FILE} has "
                    f"{len(source)} records, {OUR_INFO_FILE} {self._length}; prepare it again"
                )
            opened = self._opened = process, source
        return opened[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSplit, (self.folder, self.split, self._length)

    def __repr__(self) -> str:
        return f"PreparedSplit({str(self.folder)!r}, {self.split!r}, {self._length})"


def refuse_fork() -> None:
    """Record that this process uses ArrayRecord.

    Raises:
      InputError: a process that it was forked from has used it.
    """
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise InputError(
            "ArrayRecord cannot be used in a process forked from one that has used it; start "
            "processes with 'spawn'"
        )


def plain(value: Any) -> Any:
    """Convert a TFDS example: bytes to text, arrays to lists, scalars to numbers.

    Raises:
      UnicodeDecodeError: bytes that are not UTF-8 text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _our_item(example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": int(example["id"]),
        "index": int(example["index"]),
        "record": json.loads(example["record"]),
    }


def _our_reader(folder: Path, split: str) -> Reader:
    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        found = read_prepared(folder, split)
        for start in range(0, len(found), _CHUNK):
            items = found.__getitems__(range(start, min(start + _CHUNK, len(found))))
            for number, item in enumerate(items, start + 1):
                yield f"{folder}, split {split}, record {number}", item["record"]

    return read


def _reader(title: Any, split: str, source_of: Any) -> Reader:
    """Return a reader of the examples in `source_of(split)`."""

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        refuse_fork()
        number = 0
        try:
            for example in source_of(split):
                number += 1
                yield f"{title}, split {split}, record {number}", plain(example)
        except InputError:
            raise
        except Exception as error:  # errors of TFDS, ArrayRecord and TensorFlow share no base class
            raise InputError(
                f"{title}, split {split}, after record {number}: cannot be read "
                f"({first_line(error)})"
            ) from error

    return read


def _in_order(builder: Any) -> Any:
    """Return a function of a split that yields its TFRecord examples in the order of the files."""

    def source_of(split: str) -> Any:
        import tensorflow_datasets as tfds

        config = tfds.ReadConfig(interleave_cycle_length=1)
        return tfds.as_numpy(builder.as_dataset(split, read_config=config))

    return source_of


def _builder(folder: Path) -> Any:
    import tensorflow_datasets

    try:
        return tensorflow_datasets.builder_from_directory(str(folder))
    except Exception as error:  # it raises AssertionError, KeyError, ValueError and others
        raise InputError(f"{folder}: cannot be read by TFDS ({first_line(error)})") from error
