"""Find and read the data files of tasks and corpora; `formats` reads each kind of file.

Files are local or at any fsspec location (gs://, s3://, ...). All failures are `InputError`s that
name the file and the line, because the files are the user's.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from w2s_jax.core.errors import InputError, shown
from w2s_jax.core.files import contents, is_remote, location, unreachable
from w2s_jax.data import formats

# Yields (where, record); `where` names the record in errors: file and line, or split and row.
Reader = Callable[[], Iterator[tuple[str, dict[str, Any]]]]

_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES), ".parquet")
# Kinds of files whose name is a split whatever it is.
_NAMED_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_READERS = {
    ".jsonl": formats.read_json_lines,
    ".ndjson": formats.read_json_lines,
    ".json": formats.read_json,
    ".parquet": formats.read_parquet,
}
#: Not data: words around the texts of a task (see `templates`).
TEMPLATES_FILE = "templates.json"
OFFICIAL_SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {split: split for split in OFFICIAL_SPLITS} | dict.fromkeys(
    ("dev", "val", "valid"), "validation"
)
_SHARD = re.compile(r"-\d+-of-\d+$")
LAYOUT = "<data_dir>/<task>/<split>.jsonl, .ndjson, .json, .csv, .tsv (also .gz) or .parquet"
HOW_TO = f"set task.data_dir or W2S_DATA_DIR to a folder laid out as {LAYOUT}"


@dataclass(frozen=True)
class OpenedRecords:
    """The records of a task, not yet read.

    Attributes:
      source: 'files', 'hub' or 'tfds'.
      location: the folder or dataset, for messages.
      splits: our name of a split -> a reader of its records in the task's fields.
      names: our name of a split -> its file, or its name in the source, for messages.
      unused: names of other visible files of the folder, or of other splits of the source.
      others: those of `unused` that may be an unlabelled pool -> a reader, as in `splits`.
    """

    source: str
    location: str
    splits: Mapping[str, Reader]
    names: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    others: Mapping[str, Reader] = field(default_factory=dict)


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


def official_split(name: str) -> str | None:
    """Return 'train', 'validation' or 'test' for one of their names in any case; None for others.

    'dev', 'val' and 'valid' are names of the validation split.
    """
    return _SPLIT_NAMES.get(name.lower())


def _suffix(name: str) -> str | None:
    """Return the suffix of a data file as in `SUFFIXES`; None for other files."""
    # A .jsonl.gz file has one suffix only, because none of them ends with another.
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def split_of(path: Path) -> str | None:
    """Return the split of a data file ('validation' for dev.jsonl.gz); None for other files.

    Files with other names than those of the three splits are splits of their own if their kind is
    one of `_NAMED_SUFFIXES`. (A .json or .tsv file may be anything.)
    """
    suffix = _suffix(path.name)
    if suffix is None:
        return None
    stem = path.name[: -len(suffix)]
    own = stem if stem and path.name.endswith(_NAMED_SUFFIXES) else None
    return official_split(stem) or own


def _is_file(path: Path) -> bool:
    """Return whether a path is a file, or a link to one that is missing (an error when read)."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def task_folder(task: str, data_dir: str | None) -> Path | None:
    """Return the folder of `task` in the data folder if it has data files, else None."""
    found = task_contents(task, data_dir)
    if found is None or not any(split_of(path) and _is_file(path) for path in found[1]):
        return None
    return found[0]


def other_files(task: str, data_dir: str | None) -> list[str]:
    """Return names of files in the folder of `task` in the data folder, if none is a data file."""
    found = task_contents(task, data_dir)
    if found is None or task_folder(task, data_dir) is not None:
        return []
    return sorted(path.name for path in found[1])[:5]


def is_plain(name: str) -> bool:
    """Return whether a name is that of a folder, and cannot point outside the data folder."""
    return name not in ("", ".", "..") and Path(name).name == name


def task_contents(task: str, data_dir: str | None) -> tuple[Path, list[Path]] | None:
    """Return the folder of `task` in the data folder and what is in it; None if there is none."""
    root = data_root(data_dir)
    if root is None or not is_plain(task):
        return None
    folder = root / task
    with reaching(folder):
        return (folder, contents(folder)) if is_folder(folder) else None


@dataclass(frozen=True)
class TaskFiles:
    """The files in the folder of a task or of a corpus.

    Attributes:
      folder: the folder.
      splits: split -> its file, in alphabetical order.
      unused: names of the other visible files.
    """

    folder: Path
    splits: Mapping[str, Path]
    unused: tuple[str, ...]

    @property
    def first(self) -> Path:
        """The training file, else that of another official split, else any."""
        return first_split(self.splits)


def first_split(splits: Mapping[str, Any]) -> Any:
    """Return the value of the training split, else of another official one, else of any."""
    official = (splits[split] for split in OFFICIAL_SPLITS if split in splits)
    return next(official, next(iter(splits.values())))


def find_files(task: str, data_dir: str | None) -> dict[str, Path]:
    """Return `task_files(task, data_dir).splits`."""
    return dict(task_files(task, data_dir).splits)


def task_files(task: str, data_dir: str | None) -> TaskFiles:
    """Return the data files of a task by split (see `split_of`), and the other files.

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
        others = other_files(task, data_dir)
        found = f" (it contains {', '.join(others)})" if others else ""
        raise InputError(
            f"task.data_dir: no data files for task {task!r} in {root / task}{found}; {HOW_TO}"
        )
    files: dict[str, Path] = {}
    unused = []
    with reaching(folder):
        for path in contents(folder):
            if not _is_file(path) or path.name == TEMPLATES_FILE:
                continue
            split = split_of(path)
            if split is None:
                unused.append(path.name)
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
    return TaskFiles(folder, dict(sorted(files.items())), tuple(unused))


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


def read_records(
    path: str | os.PathLike[str], fields: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) for each record of a file.

    `where` is the file and the line (Parquet: the row), from 1, for errors. All values of a CSV or
    TSV file are strings.

    Args:
      path: a file with one of `SUFFIXES`.
      fields: names of fields, which the header of a CSV file may write in another case.

    Raises:
      InputError: the file cannot be read or decoded, a record is malformed, or there is none.
    """
    path = location(path)
    suffix = _suffix(path.name)
    if suffix is None:
        raise InputError(f"{path}: unknown file type; allowed: {', '.join(SUFFIXES)}")
    kind = suffix.removesuffix(".gz")
    is_table = kind in (".csv", ".tsv")
    records = formats.read_csv(path, fields) if is_table else _READERS[kind](path)
    empty = True
    with reaching(path):
        for where, record in records:
            empty = False
            yield where, record
    if empty:
        raise InputError(f"{path}, line 1: the file is empty (it holds no records)")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, line) for each line of a text file (see `formats.read_lines`)."""
    with reaching(path):
        yield from formats.read_lines(path)
