"""Where the records of a task come from: local files, the Hugging Face hub, TFDS.

`open_records` finds them and says which source it took; no record is read before a split is
iterated (the hub and the catalogue are downloaded).
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_jax.core.errors import InputError, unknown
from w2s_jax.core.hf_hub import INSTALL
from w2s_jax.data import hf_datasets, records, tfds
from w2s_jax.data.records import OpenedRecords, Place, Reader
from w2s_jax.data.task import Origin, Task

__all__ = ["OpenedRecords", "Place", "Reader", "open_records", "read_corpus"]

RECORD_SOURCES = ("auto", "files", "hub", "tfds")


def open_records(task: Task, source: str, data_dir: str | None) -> OpenedRecords:
    """Finds the records of `task`.

    'auto' takes the first that is there: local files, a local clone of the hub's repository, a
    prepared TFDS folder; then, if the task has an origin there and the package that it needs is
    installed: the hub, the TFDS catalogue. 'hub' and 'tfds' also prefer what is local.

    Args:
      task: a task that is read from records.
      source: 'auto', 'files', 'hub' or 'tfds'.
      data_dir: the data folder; None means the environment's W2S_DATA_DIR.

    Raises:
      InputError: there are none; says what was tried and how to give local files.
    """
    if source not in RECORD_SOURCES:
        raise unknown("task.source", source, RECORD_SOURCES)
    if source == "files":
        return _open_files(task, data_dir)
    if source == "auto" and _files_name(task, data_dir) is not None:
        return _open_files(task, data_dir)
    if source in ("auto", "hub") and task.hub is not None:
        folder = hf_datasets.clone_folder(task.hub, data_dir)
        if folder is not None:
            return _as_ours(
                task, "hub", str(folder), hf_datasets.open_clone(task.hub, folder), task.hub
            )
    if source in ("auto", "tfds"):
        folder = tfds.prepared_folder((task.name, task.folder), data_dir, task.tfds)
        if folder is not None:
            # What `prepare` wrote has our splits and fields already.
            origin = None if tfds.read_info(folder) is not None else task.tfds
            return _as_ours(task, "tfds", str(folder), tfds.open_prepared(folder), origin)
    return _open_remote(task, source, data_dir)


def _open_remote(task: Task, source: str, data_dir: str | None) -> OpenedRecords:
    """The hub, then the catalogue; an error that tells why each gave nothing."""
    failures = []
    if source in ("auto", "hub"):
        try:
            return _open_hub(task, source)
        except InputError as error:
            failures.append(f"hub: {error}")
    if source in ("auto", "tfds"):
        try:
            return _open_catalogue(task, data_dir)
        except InputError as error:
            failures.append(f"tfds: {error}")
    clone = f", or a clone ({hf_datasets.how_to_clone(task.hub)})" if task.hub is not None else ""
    tried = "; ".join(failures)
    if source == "auto":
        try:
            records.find_files(task.name, data_dir)
        except InputError as error:
            raise InputError(f"{error}{clone}; also tried {tried}") from None
    raise InputError(
        f"task.source: {source!r}: no data for task {task.name!r}: {tried}; {records.HOW_TO}{clone}"
    )


def _open_hub(task: Task, source: str) -> OpenedRecords:
    if task.hub is None:
        raise InputError(_no_origin(task))
    if source == "auto" and importlib.util.find_spec("datasets") is None:
        raise InputError(f"the package datasets is not installed; {INSTALL}")
    return _as_ours(
        task, "hub", hf_datasets.place_of(task.hub), hf_datasets.open_hub(task.hub), task.hub
    )


def _open_catalogue(task: Task, data_dir: str | None) -> OpenedRecords:
    if task.tfds is None:
        root = records.data_root(data_dir)
        where = f" and no prepared folder {root / task.name}/<version>" if root else ""
        raise InputError(_no_origin(task) + where)
    place = f"TFDS {task.tfds.name}"
    return _as_ours(task, "tfds", place, tfds.open_catalogue(task.tfds), task.tfds)


def _no_origin(task: Task) -> str:
    return f"task {task.name!r} has no origin there (it has: {', '.join(sources_of(task))})"


def sources_of(task: Task) -> tuple[str, ...]:
    """The sources that a task read from records can have, besides prepared folders."""
    hub_ = ("hub",) if task.hub is not None else ()
    return ("files", *hub_, *(("tfds",) if task.tfds is not None else ()))


def _as_ours(
    task: Task, source: str, place: str, splits: Mapping[str, Reader], origin: Origin | None
) -> OpenedRecords:
    """Splits by our names, in alphabetical order as of files, and records in our fields."""
    if origin is not None and origin.splits:
        for name, theirs in origin.splits.items():
            if theirs not in splits:
                raise InputError(
                    f"{place}: no split {theirs!r}, which is {name!r} of task {task.name!r}; "
                    f"it has: {', '.join(splits)}"
                )
        splits = {name: splits[theirs] for name, theirs in origin.splits.items()}
    if origin is not None and origin.convert is not None:
        splits = {name: _converted(reader, origin) for name, reader in splits.items()}
    return OpenedRecords(source, place, dict(sorted(splits.items())))


def _converted(reader: Reader, origin: Origin) -> Reader:
    convert = origin.convert
    assert convert is not None

    def read() -> Iterator[tuple[Place, dict[str, Any]]]:
        for place, record in reader():
            try:
                converted = convert(record)
            except InputError as error:
                raise InputError(f"{place}: {error}") from error
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                raise InputError(
                    f"{place}: not as {origin.name} is expected to be ({records.short(error)}); "
                    f"the record has: {', '.join(map(str, record)) or 'no fields'}"
                ) from error
            yield place, converted

    return read


def _files_name(task: Task, data_dir: str | None) -> str | None:
    """The folder of the task's own files, else that which it shares with another; None: neither."""
    for name in (task.name, task.folder):
        if name is not None and records.task_folder(name, data_dir) is not None:
            return name
    return None


def _open_files(task: Task, data_dir: str | None) -> OpenedRecords:
    name = _files_name(task, data_dir) or task.folder or task.name
    files = records.find_files(name, data_dir)
    place = str(next(iter(files.values())).parent)
    splits = {split: _file_reader(path) for split, path in files.items()}
    theirs = {} if task.hub is None else dict(task.hub.splits)
    if theirs and not set(theirs) <= set(files) and set(theirs.values()) <= set(files):
        # The hub's own names: those of the files as they are downloaded.
        renamed = {name: splits[split] for name, split in theirs.items()}
        kept = {name: splits[name] for name in splits if name not in theirs.values()}
        splits = dict(sorted((kept | renamed).items()))
    return OpenedRecords("files", place, splits)


def _file_reader(path: Path) -> Reader:
    return lambda: records.read_records(path)


def read_corpus(source: str, data_dir: str | None, split: str = "train") -> list[str]:
    """Unlabelled texts, for language-model training.

    Args:
      source: a file (.txt is one text; other kinds have a field `text`), a folder that `w2s data
        prepare` wrote, or the name of a folder below the data folder.
      data_dir: as in `find_files`; used when `source` is neither a file nor a prepared folder.
      split: which split of that folder.

    Returns:
      The texts in the order of the source. Texts of nothing but white space are left out.

    Raises:
      InputError: nothing is found, a record has no text, or all texts are empty.
    """
    place, reader = _open_corpus(source, data_dir, split)
    texts = [text for _, text in reader() if text.strip()]
    if not texts:
        raise InputError(f"{place}: the file is empty (no text but white space in any line)")
    return texts


def _open_corpus(
    source: str, data_dir: str | None, split: str = "train"
) -> tuple[str, Callable[[], Iterator[tuple[Place, str]]]]:
    """Where a corpus begins, and a function that yields (place, text) of all its records.

    Arguments and errors as of `read_corpus`; nothing is read before that function is called.
    """
    path = records.location(source)
    with records.reaching(path):
        is_file = path.is_file()
    if not is_file:
        found = _corpus_folder(source, path, data_dir)
        if (found / tfds.INFO_FILE).is_file():
            prepared = tfds.open_prepared(found)
            _check_split(found, split, prepared)
            return f"{found}, split {split}", lambda: _texts(prepared[split]())
        files = records.find_files(source, data_dir)
        _check_split(found, split, files)
        path = files[split]
    if path.suffix == ".txt":
        return f"{path}, line 1", lambda: _whole_text(path)
    return f"{path}, line 1", lambda: _texts(records.read_records(path))


def _corpus_folder(source: str, path: Path, data_dir: str | None) -> Path:
    """The folder of a corpus: prepared, or of files."""
    with records.reaching(path):
        given = tfds.version_folder(path) if path.is_absolute() or "/" in source else None
    folder = given or records.task_folder(source, data_dir)
    folder = folder or tfds.prepared_folder((source,), data_dir)
    if folder is not None:
        return folder
    root = records.data_root(data_dir)
    where = (
        f"no folder {root / source} with data files"
        if root
        else ("neither task.data_dir nor W2S_DATA_DIR is set")
    )
    raise InputError(
        f"pretrain.source: {source!r} is not a file, and {where}; give a file or {records.HOW_TO}"
    )


def _check_split(folder: Path, split: str, splits: Iterable[str]) -> None:
    names = list(splits)
    if split not in names:
        raise InputError(
            f"pretrain.source: {folder} has no split {split!r}; found: {', '.join(names)}"
        )


def _whole_text(path: Path) -> Iterator[tuple[Place, str]]:
    yield f"{path}, line 1", "".join(line for _, line in records.read_lines(path))


def _texts(found: Iterator[tuple[Place, dict[str, Any]]]) -> Iterator[tuple[Place, str]]:
    for place, record in found:
        text = record.get("text")
        if not isinstance(text, str):
            problem = "missing" if "text" not in record else f"not text: {text!r}"
            raise InputError(f"{place}: field 'text' is {problem}")
        yield place, text
