"""TensorFlow Datasets: prepared ArrayRecord folders, read without TensorFlow, and the catalogue.

A prepared folder is laid out as TFDS does it: <name>[/<config>]/<version>/ with dataset_info.json.
Those that `prepare` wrote hold our own records as JSON, and `w2s.json`; any others hold records as
the catalogue has them, which a task's `Origin` converts.
"""

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, unknown
from w2s_jax.data.records import Reader, data_root, is_folder, is_local, reaching, short
from w2s_jax.data.task import Origin

INFO_FILE = "dataset_info.json"
OUR_INFO_FILE = "w2s.json"
INSTALL = "pip install tensorflow-datasets"

_CHUNK = 256  # records read at a time
_process: int | None = None  # that which used ArrayRecord first, here or before a fork
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; it is not imported."""
    return importlib.util.find_spec("tensorflow") is not None


def version_folder(folder: Path) -> Path | None:
    """The prepared folder of the highest version in `folder`, or `folder` itself if it is one."""
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
    """The prepared folder of the first of some names that has one below the data folder.

    Args:
      names: names of folders, in order; None is passed over.
      data_dir: the data folder; None means the environment's W2S_DATA_DIR.
      origin: where the catalogue has the data. Its name is looked up after the others, and its
        configuration below each of them.

    Raises:
      InputError: there is one, but the data folder is not on a local disk.
    """
    root = data_root(data_dir)
    if root is None:
        return None
    places = [name for name in names if name and name != ".." and Path(name).name == name]
    if origin is not None:
        config = origin.name.partition("/")[2]
        places += [f"{name}/{config}" for name in places if config]
        places.append(origin.name)
    for place in places:
        folder = version_folder(root / place)
        if folder is None:
            continue
        if not is_local(folder):
            raise InputError(
                f"{folder}: ArrayRecord can be read from local paths only; mount the bucket or "
                "copy the folder"
            )
        return folder
    return None


def read_info(folder: Path) -> dict[str, Any] | None:
    """What `prepare` wrote about a prepared folder; None if something else wrote that folder.

    Keys: task, source, place, splits (split -> records, sha256), sha256 (of all), versions.

    Raises:
      InputError: the file is broken.
    """
    path = folder / OUR_INFO_FILE
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text("utf-8"))
        whole = all(int(entry["records"]) > 0 for entry in info["splits"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{path}: broken ({type(error).__name__}: {error})") from error
    if not whole or not info["splits"]:
        raise InputError(f"{path}: broken (it names no split, or one without records)")
    return dict(info)


def open_prepared(folder: Path) -> dict[str, Reader]:
    """For each split of a prepared folder a function that yields (place, record).

    Raises:
      InputError: the folder is broken, TFDS is not installed, or the folder holds no ArrayRecord
        and TensorFlow is not installed.
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
            f"{folder}: holds {', '.join(kinds) or 'no known'} files; without TensorFlow only "
            "ArrayRecord can be read: prepare the dataset with file_format='array_record' "
            "(TFDS does so where TensorFlow is), or install TensorFlow"
        )
    return {s: _reader(folder, s, _in_order(builder)) for s in builder.info.splits}


def open_catalogue(origin: Origin) -> dict[str, Reader]:
    """For each split of a dataset of the catalogue a function that yields (place, record).

    The dataset is downloaded and prepared as ArrayRecord in the user's TFDS folder (the
    environment's TFDS_DATA_DIR) unless it is there already.

    Raises:
      InputError: TFDS or TensorFlow is not installed, or the dataset cannot be prepared.
    """
    name = f"TFDS {origin.name}"
    tfds = import_tfds()
    if not has_tensorflow():
        raise InputError(
            f"{name}: the catalogue needs TensorFlow, which is not installed; without it give a "
            f"prepared ArrayRecord folder <data_dir>/{origin.name}/<version>"
        )
    try:
        sources = tfds.data_source(origin.name, try_gcs=False)
    except Exception as error:  # whatever the code of the dataset raises
        raise InputError(f"{name}: cannot be prepared ({short(error)})") from error
    return {split: _reader(name, split, sources.__getitem__) for split in sources}


def read_prepared(folder: str | os.PathLike[str], split: str) -> "PreparedSplit":
    """Random access to a split of a folder that `prepare` wrote.

    Raises:
      InputError: `prepare` did not write this folder, or it has no such split.
    """
    path = Path(folder)
    info = read_info(path)
    if info is None:
        raise InputError(f"{path}: not a folder that `w2s data prepare` wrote (no {OUR_INFO_FILE})")
    if split not in info["splits"]:
        raise unknown(f"{path}: split", split, info["splits"])
    return PreparedSplit(path, split, int(info["splits"][split]["records"]))


class PreparedSplit(Sequence[dict[str, Any]]):
    """The records of a split in the order of their source, by random access.

    An item is {'id': int (uint64), 'index': int, 'record': dict}. Pickling keeps the path only, and
    files are opened when the first item is read, in each process anew. ArrayRecord has threads of
    its own, which a fork loses: a process forked from one that has read must not read (it is
    refused, where ArrayRecord would wait for ever); spawn it, as grain does.
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
        """Several items at once, which is much faster than one by one.

        Raises:
          IndexError: an index is out of range.
          InputError: one of the records cannot be read.
        """
        places = [index.__index__() for index in indices]
        for i in places:
            if not -self._length <= i < self._length:
                raise IndexError(f"record {i} of {self._length}")
        places = [i % self._length for i in places]
        try:
            source = self._source()
            # Reading several starts threads, which one is not worth.
            examples = [source[i] for i in places] if len(places) == 1 else None
            return [_our_item(e) for e in examples or source.__getitems__(places)]
        except InputError:
            raise
        except Exception as error:  # ArrayRecord has no errors of its own
            which = f"{min(places) + 1}" + (f" to {max(places) + 1}" if len(places) > 1 else "")
            raise InputError(
                f"{self.folder}, split {self.split}, record {which}: cannot be read "
                f"({short(error)})"
            ) from error

    def _source(self) -> Any:
        process = os.getpid()
        opened = self._opened
        if opened is None or opened[0] != process:
            refuse_fork()
            # Without a lock, which a fork could copy locked: at worst two threads open the files.
            source = _builder(self.folder).as_data_source(self.split)
            if len(source) != self._length:
                raise InputError(
                    f"{self.folder}, split {self.split}: damaged: {INFO_FILE} tells of "
                    f"{len(source)} records, {OUR_INFO_FILE} of {self._length}; prepare it again"
                )
            opened = self._opened = process, source
        return opened[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSplit, (self.folder, self.split, self._length)

    def __repr__(self) -> str:
        return f"PreparedSplit({str(self.folder)!r}, {self.split!r}, {self._length})"


def refuse_fork() -> None:
    """Remembers that this process uses ArrayRecord.

    Raises:
      InputError: a process that it was forked from did so already.
    """
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise InputError(
            "ArrayRecord cannot be used in a process forked from one that has used it; start the "
            "process by 'spawn'"
        )


def plain(value: Any) -> Any:
    """A TFDS example as plain Python: bytes become text, arrays lists, scalars numbers.

    Raises:
      UnicodeDecodeError: bytes that are no UTF-8 text.
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


def _reader(place: Any, split: str, source_of: Any) -> Reader:
    """Reads what `source_of(split)` gives, example by example."""

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        refuse_fork()
        number = 0
        try:
            for example in source_of(split):
                number += 1
                yield f"{place}, split {split}, record {number}", plain(example)
        except InputError:
            raise
        except Exception as error:  # TFDS, ArrayRecord and TensorFlow have no common base
            raise InputError(
                f"{place}, split {split}, after record {number}: cannot be read ({short(error)})"
            ) from error

    return read


def _in_order(builder: Any) -> Any:
    """The examples of a TFRecord folder, through TensorFlow, in the order of the files."""

    def source_of(split: str) -> Any:
        tfds = import_tfds()
        config = tfds.ReadConfig(interleave_cycle_length=1)
        return tfds.as_numpy(builder.as_dataset(split, read_config=config))

    return source_of


def _builder(folder: Path) -> Any:
    tfds = import_tfds()
    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # it asserts, and raises KeyError, ValueError and others
        raise InputError(f"{folder}: not a folder that TFDS can read ({short(error)})") from error


def import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"task.source: TFDS data need the package tensorflow-datasets; {INSTALL}"
        ) from error
    return tfds
