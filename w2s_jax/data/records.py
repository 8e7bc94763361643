"""Find and read data files: JSON Lines (plain or gzip), CSV, Parquet, plain text.

Files are local or at any fsspec location (gs://, s3://, ...). All failures are `InputError`s that
name the file and the line, because the files are the user's.
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

from w2s_jax.core.errors import InputError, shown
from w2s_jax.core.files import is_remote, location, unreachable

# Yields (where, record); `where` names the record in errors: file and line, or split and row.
Reader = Callable[[], Iterator[tuple[str, dict[str, Any]]]]

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_SHARD = re.compile(r"-\d+-of-\d+$")
LAYOUT = "<data_dir>/<task>/<split>.jsonl[.gz], .csv or .parquet"
HOW_TO = f"set task.data_dir or W2S_DATA_DIR to a folder laid out as {LAYOUT}"


@dataclass(frozen=True)
class OpenedRecords:
    """The records of a task, not yet read.

    Attributes:
      source: 'files', 'hub' or 'tfds'.
      location: the folder or dataset, for messages.
      splits: our name of a split -> a reader of its records in the task's fields.
    """

    source: str
    location: str
    splits: Mapping[str, Reader]


@contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Raise errors of the file system as `InputError`; remote ones raise errors of any type."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if is_remote(path):
            raise unreachable(path, error) from error
        reason = error.strerror or error
        raise InputError(f"{error.filename or path}: cannot be read ({reason})") from error
    except Exception as error:
        if is_remote(path):
            raise unreachable(path, error) from error
        raise


def is_folder(path: Path) -> bool:
    """Return whether a path is an existing folder.

    Raises:
      InputError: the path is remote and cannot be reached.
    """
    if not is_remote(path):
        return path.is_dir()
    remote = cast(Any, path)
    with reaching(path):
        # fsspec's `isdir` returns False for any failure, even of the network.
        try:
            return bool(remote.fs.info(remote.path)["type"] == "directory")
        except FileNotFoundError:
            return False


def data_root(data_dir: str | None) -> Path | None:
    """Return the data folder: `data_dir`, else the environment's W2S_DATA_DIR, else None."""
    chosen = data_dir or os.environ.get("W2S_DATA_DIR")
    return location(chosen) if chosen else None


def split_of(path: Path) -> str | None:
    """Return the split of a data file ('train' for train.jsonl.gz); None for other files."""
    for suffix in SUFFIXES:
        stem = path.name.removesuffix(suffix)
        # Some systems leave hidden copies, with a leading dot, beside a file.
        if stem != path.name and stem and not stem.startswith("."):
            return stem
    return None


def task_folder(task: str, data_dir: str | None) -> Path | None:
    """Return the folder of `task` in the data folder if it has data files, else None."""
    found = _contents(task, data_dir)
    if found is None or not any(split_of(path) and path.is_file() for path in found[1]):
        return None
    return found[0]


def other_files(task: str, data_dir: str | None) -> list[str]:
    """Return names of files in the folder of `task` in the data folder, if none is a data file."""
    found = _contents(task, data_dir)
    if found is None or task_folder(task, data_dir) is not None:
        return []
    return sorted(path.name for path in found[1])[:5]


def _contents(task: str, data_dir: str | None) -> tuple[Path, list[Path]] | None:
    """Return the folder of `task` in the data folder and what is in it; None if there is none."""
    root = data_root(data_dir)
    # Only plain names, so that no task name can point outside the data folder.
    if root is None or task in ("", ".", "..") or Path(task).name != task:
        return None
    folder = root / task
    with reaching(folder):
        return (folder, list(folder.iterdir())) if is_folder(folder) else None


def find_files(task: str, data_dir: str | None) -> dict[str, Path]:
    """Return the data files of a task by split, in alphabetical order.

    Splits are the file names without suffix, never renamed ('dev' stays 'dev').

    Args:
      task: name of the folder.
      data_dir: the data folder, with one folder per task; None: the environment's W2S_DATA_DIR.

    Raises:
      InputError: there is no data folder, no folder of the task, no data file in it, or there are
        two files for one split.
    """
    root = data_root(data_dir)
    if root is None:
        raise InputError(
            f"task.data_dir: no files for task {task!r}: neither task.data_dir nor W2S_DATA_DIR "
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
                    f"{path}: shards are not supported; use one file per split (the sources 'hub' "
                    "and 'tfds' read shards)"
                )
            if split in files:
                raise InputError(
                    f"{folder}: two files for split {split!r}: {files[split].name} and "
                    f"{path.name}; remove one"
                )
            files[split] = path
    return files


def text_field(record: Any, where: str = "") -> str:
    """Return the field `text` of a record of a corpus.

    Args:
      record: the record.
      where: names it in errors; "": the caller does.

    Raises:
      InputError: the record is not an object, or the field is missing or not text.
    """
    prefix = where and f"{where}: "
    if not isinstance(record, dict):
        raise InputError(f"{prefix}a record must be a JSON object, found a {type(record).__name__}")
    text = record.get("text")
    if not isinstance(text, str):
        problem = "missing" if "text" not in record else f"not text: {shown(text)}"
        raise InputError(f"{prefix}field 'text' is {problem}")
    return text


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) for each record of a JSON Lines, CSV or Parquet file.

    `where` is the file and the line (Parquet: the row), from 1, for errors. Blank lines of JSON
    Lines are skipped. All values of a CSV file are strings.

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
        raise InputError(f"{path}: unknown file type; allowed: {', '.join(SUFFIXES)}")
    empty = True
    with reaching(path):
        for where, record in records:
            empty = False
            yield where, record
    if empty:
        raise InputError(f"{path}, line 1: the file is empty (it holds no records)")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, line) for each line of a text file, plain or gzip."""
    with reaching(path):
        yield from _read_lines(path)


def _unzipped(file: BinaryIO, name: str) -> AbstractContextManager[Iterable[bytes]]:
    return gzip.open(file) if name.endswith(".gz") else nullcontext(file)


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    # Lines are decoded one by one so that an error names the right line.
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
    for where, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: malformed JSON ({error.msg} at column {error.colno})"
            ) from error
        if not isinstance(record, dict):
            raise InputError(
                f"{where}: a record must be a JSON object, found a {type(record).__name__}"
            )
        yield where, record


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # `read_lines` raises the errors. Quoted fields may span lines, so a record is named by its
    # first line. The limit of the csv module on the length of a field (131,072) is global to the
    # interpreter, so it is raised only while this file is read.
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
            where = f"{path}, line {line}"
            line = rows.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(f"{where}: {len(row)} values for {len(header)} columns")
            found.append((where, dict(zip(header, row, strict=True))))
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: malformed CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    yield from found


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

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
