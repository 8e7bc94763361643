"""Finding and reading data files: JSON Lines (plain or gzip), CSV, Parquet, plain text.

Files are local, or at any location that fsspec knows (gs://, s3://, ...). Every failure is an
`InputError` that names the file and the line, because the files are the user's.
"""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from w2s_jax.core.errors import InputError, nearest

Place = str  # names a record in errors: file and line, or split and row
Reader = Callable[[], Iterator[tuple[Place, dict[str, Any]]]]

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_SHARD = re.compile(r"-\d+-of-\d+$")
LAYOUT = "<data_dir>/<task>/<split>.jsonl[.gz], .csv or .parquet"
HOW_TO = f"set task.data_dir or W2S_DATA_DIR to a folder laid out as {LAYOUT}"

# What to install for a protocol of fsspec.
_PACKAGES = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "s3a": "s3fs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
    "hf": "huggingface_hub",
}


@dataclass(frozen=True)
class OpenedRecords:
    """The records of a task, not yet read.

    Attributes:
      source: 'files', 'hub' or 'tfds'.
      place: where they are, for people.
      splits: our name of a split -> a function that yields (place, record in the task's fields).
    """

    source: str
    place: str
    splits: Mapping[str, Reader]


def location(place: str | os.PathLike[str]) -> Path:
    """A local path, or for 'protocol://...' a `UPath`, which has the same methods.

    Raises:
      InputError: nothing here can read that protocol; says what to install.
    """
    # A UPath is no os.PathLike, but its text leads back to it.
    text = str(place)
    if "://" not in text:
        return Path(text).expanduser()
    protocol, _, rest = text.partition("://")
    if protocol in ("file", "local"):
        return Path(rest)
    try:
        from upath import UPath
    except ImportError as error:
        raise InputError(
            f"{text}: reading from {protocol}:// needs the package universal_pathlib; "
            "pip install universal_pathlib"
        ) from error
    try:
        path = UPath(text)
        _ = path.fs
    except Exception as error:
        raise unreachable(text, error) from error
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Whether a `location` is on a local (or mounted) disk."""
    return isinstance(path, Path) and not hasattr(path, "protocol")


def unreachable(place: str | Path, error: Exception) -> InputError:
    """What to say when a location that is not local gives an error of its file system."""
    text = str(place)
    protocol = text.partition("://")[0]
    reason = short(error)
    if isinstance(error, ImportError):
        package = _PACKAGES.get(protocol)
        install = f"; pip install {package}" if package else ""
        return InputError(f"{text}: a package for {protocol}:// is missing ({reason}){install}")
    if isinstance(error, ValueError) and "Unsupported filesystem" in reason:
        from fsspec import available_protocols

        match = nearest(protocol, available_protocols())
        hint = f" (did you mean {match!r}?)" if match else ""
        return InputError(f"{text}: unknown protocol {protocol!r}{hint}; e.g. gs://, s3://")
    return InputError(f"{text}: cannot be reached ({reason})")


def short(error: BaseException) -> str:
    """Kind and message of an error of some library, on one line of bearable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Errors of the file system become `InputError`; outside the local one they are of any type."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if not is_local(path):
            raise unreachable(path, error) from error
        reason = error.strerror or error
        raise InputError(f"{error.filename or path}: cannot be read ({reason})") from error
    except Exception as error:
        if is_local(path):
            raise
        raise unreachable(path, error) from error


def is_folder(path: Path) -> bool:
    """Whether there is a folder at a location.

    Raises:
      InputError: the location is not local and cannot be reached.
    """
    if is_local(path):
        return path.is_dir()
    place = cast(Any, path)
    with reaching(path):
        # `isdir` of fsspec takes any failure, of the network too, for 'there is none'.
        try:
            return bool(place.fs.info(place.path)["type"] == "directory")
        except FileNotFoundError:
            return False


def data_root(data_dir: str | None) -> Path | None:
    """The folder of the data: `data_dir`, else the environment's W2S_DATA_DIR, else None."""
    chosen = data_dir or os.environ.get("W2S_DATA_DIR")
    return location(chosen) if chosen else None


def split_of(path: Path) -> str | None:
    """The split that a file holds ('train' for train.jsonl.gz); None if it is no data file."""
    for suffix in SUFFIXES:
        stem = path.name.removesuffix(suffix)
        # A leading dot marks the hidden copies that some systems leave beside a file.
        if stem != path.name and stem and not stem.startswith("."):
            return stem
    return None


def task_folder(task: str, data_dir: str | None) -> Path | None:
    """The folder of `task` below the data folder if it is there and holds data files, else None."""
    root = data_root(data_dir)
    # Only a plain name is looked up, so that no task name can point outside the data folder.
    if root is None or task in ("", ".", "..") or Path(task).name != task:
        return None
    folder = root / task
    with reaching(folder):
        found = is_folder(folder) and any(
            split_of(path) and path.is_file() for path in folder.iterdir()
        )
    return folder if found else None


def other_files(task: str, data_dir: str | None) -> list[str]:
    """Names of what lies in a task's folder below the data folder, if it holds no data file."""
    root = data_root(data_dir)
    if root is None or task in ("", ".", "..") or Path(task).name != task:
        return []
    folder = root / task
    with reaching(folder):
        there = is_folder(folder) and task_folder(task, data_dir) is None
        return sorted(path.name for path in folder.iterdir())[:5] if there else []


def find_files(task: str, data_dir: str | None) -> dict[str, Path]:
    """The data files of a task, by split, in alphabetical order.

    Splits are the names of the files without their suffix; none is renamed ('dev' stays 'dev').

    Args:
      task: name of the folder.
      data_dir: folder that holds one folder a task; None means the environment's W2S_DATA_DIR.

    Raises:
      InputError: there is no data folder, no folder for the task, no data file in it, or there are
        two files for one split.
    """
    root = data_root(data_dir)
    if root is None:
        raise InputError(
            f"task.data_dir: no files for task {task!r}: neither it nor W2S_DATA_DIR "
            f"is set; {HOW_TO}"
        )
    with reaching(root):
        missing = not is_folder(root)
    if missing:
        raise InputError(f"task.data_dir: there is no folder {root} (for task {task!r}); {HOW_TO}")
    folder = task_folder(task, data_dir)
    if folder is None:
        raise InputError(
            f"task.data_dir: no data files for task {task!r} in {root / task}; {HOW_TO}"
        )
    files: dict[str, Path] = {}
    with reaching(folder):
        for path in sorted(folder.iterdir()):
            split = split_of(path)
            if split is None or not path.is_file():
                continue
            if _SHARD.search(split):
                raise InputError(
                    f"{path}: shards are not joined; allowed: one file a split (the sources 'hub' "
                    "and 'tfds' read shards)"
                )
            if split in files:
                raise InputError(
                    f"{folder}: two files for split {split!r}: {files[split].name} and "
                    f"{path.name}; remove one"
                )
            files[split] = path
    return files


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, record) for each record of a JSON Lines, CSV or Parquet file.

    `place` is for error messages: the file and the line (Parquet: the row), counted from 1. Blank
    lines of JSON Lines are skipped. All values of a CSV file are strings.

    Raises:
      InputError: the file cannot be read or decoded, a record is malformed, or there is none.
    """
    path = location(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        records = _read_jsonl(path)
    elif path.name.endswith(".csv"):
        records = _read_csv(path)
    elif path.name.endswith(".parquet"):
        records = _read_parquet(path)
    else:
        raise InputError(f"{path}: unknown kind of file; allowed: {', '.join(SUFFIXES)}")
    empty = True
    with reaching(path):
        for place, record in records:
            empty = False
            yield place, record
    if empty:
        raise InputError(f"{path}, line 1: the file is empty (it holds no records)")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (place, line) of a text file, gzip'd or not.

    Lines are decoded one by one so that an error names the right one.
    """
    with reaching(path):
        yield from _read_lines(path)


def _unzipped(file: BinaryIO, name: str) -> AbstractContextManager[Iterable[bytes]]:
    return gzip.open(file) if name.endswith(".gz") else nullcontext(file)


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with path.open("rb") as stored, _unzipped(stored, path.name) as file:
            for raw in file:
                number += 1
                # Some editors start a file with a byte order mark.
                yield f"{path}, line {number}", raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: not UTF-8 text ({error.reason} at byte "
            f"{error.start + 1} of the line)"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}, after line {number}: broken or truncated gzip data ({error})"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{place}: malformed JSON ({error.msg} at column {error.colno})"
            ) from error
        if not isinstance(record, dict):
            raise InputError(
                f"{place}: a record must be a JSON object, found a {type(record).__name__}"
            )
        yield place, record


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Reading goes through read_lines for its errors. Quoted fields may span lines, so a record's
    # place is the line on which it starts. The csv module's limit on a field's length (131,072) is
    # a global of the interpreter: lifted here only while this file is read.
    limit = csv.field_size_limit(2**31 - 1)
    line = 1
    try:
        rows = csv.reader((text for _, text in read_lines(path)), strict=True)
        header = next(rows, None)
        if header is None:
            return
        if len(set(header)) != len(header):
            raise InputError(f"{path}, line 1: a column name occurs twice in the header")
        found = []
        line = rows.line_num + 1
        for row in rows:
            place = f"{path}, line {line}"
            line = rows.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(f"{place}: {len(row)} values for {len(header)} columns")
            found.append((place, dict(zip(header, row, strict=True))))
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: malformed CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    yield from found


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: reading Parquet needs the package pyarrow") from error
    number = 0
    try:
        with path.open("rb") as stored, pyarrow.parquet.ParquetFile(stored) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}, after row {number}: cannot be read as Parquet ({reason})"
        ) from error
