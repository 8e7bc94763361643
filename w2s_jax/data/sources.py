"""Sources of a task's records: local files, the Hugging Face hub, TFDS.

`open_records` chooses the source. It may download, but reads no record before a split is iterated.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core.errors import InputError, first_line, listed, unknown
from w2s_jax.core.files import location
from w2s_jax.core.hf_hub import INSTALL
from w2s_jax.data import hf_datasets, records, tfds
from w2s_jax.data.image_files import open_images
from w2s_jax.data.records import OpenedRecords, Reader
from w2s_jax.data.roles import training_split
from w2s_jax.data.task import Origin, Task

RECORD_SOURCES = ("auto", "files", "hub", "tfds")


def open_records(task: Task, source: str, data_dir: str | None) -> OpenedRecords:
    """Find the records of `task`.

    'auto' takes the first that exists: local files, a local clone of the hub's repository, a
    prepared TFDS folder; then, if the task has an origin there and the necessary package is
    installed, the hub and the TFDS catalogue. 'hub' and 'tfds' also prefer local copies.

    Args:
      task: a task with `expand`.
      source: 'auto', 'files', 'hub' or 'tfds'.
      data_dir: the data folder; None: the environment's W2S_DATA_DIR.

    Raises:
      InputError: no records were found; lists what was tried and how to use local files.
    """
    if source not in RECORD_SOURCES:
        raise unknown("task.source", source, RECORD_SOURCES)
    if task.image is not None:
        if source not in ("auto", "files"):
            raise InputError(f"task.source: {_not_available(task, source)}")
        return open_images(task, data_dir)
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
            # Folders written by `prepare` have our splits and fields already.
            origin = None if tfds.read_info(folder) is not None else task.tfds
            return _as_ours(task, "tfds", str(folder), tfds.open_prepared(folder), origin)
    return _open_remote(task, source, data_dir)


def _open_remote(task: Task, source: str, data_dir: str | None) -> OpenedRecords:
    """Try the hub, then the catalogue; the error has the reasons of both."""
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
        raise InputError(_not_available(task, "the hub"))
    if source == "auto" and importlib.util.find_spec("datasets") is None:
        raise InputError(f"the package datasets is not installed; {INSTALL}")
    return _as_ours(
        task, "hub", hf_datasets.title_of(task.hub), hf_datasets.open_hub(task.hub), task.hub
    )


def _open_catalogue(task: Task, data_dir: str | None) -> OpenedRecords:
    if task.tfds is None:
        root = records.data_root(data_dir)
        where = f" and no prepared folder {root / task.name}/<version>" if root else ""
        raise InputError(_not_available(task, "TFDS") + where)
    title = f"TFDS {task.tfds.name}"
    return _as_ours(task, "tfds", title, tfds.open_catalogue(task.tfds), task.tfds)


def _not_available(task: Task, catalogue: str) -> str:
    origins = {"files": True, "hub": task.hub is not None, "tfds": task.tfds is not None}
    sources = ", ".join(source for source, available in origins.items() if available)
    return f"task {task.name!r} is not available from {catalogue} (its sources: {sources})"


def _as_ours(
    task: Task, source: str, title: str, splits: Mapping[str, Reader], origin: Origin | None
) -> OpenedRecords:
    """Rename splits and convert records as `origin` says; splits are in alphabetical order."""
    if origin is not None and origin.splits:
        names = dict(origin.splits)
        for name, theirs in names.items():
            if theirs not in splits:
                raise InputError(
                    f"{title}: no split {theirs!r} (split {name!r} of task {task.name!r}); "
                    f"found: {', '.join(splits)}"
                )
    else:
        names = _our_names(splits, title)
    unused = tuple(split for split in splits if split not in names.values())
    readers = {name: splits[theirs] for name, theirs in names.items()}
    others = {split: splits[split] for split in unused}
    if origin is not None and origin.convert is not None:
        readers = {name: _converted(reader, origin) for name, reader in readers.items()}
        others = {name: _converted(reader, origin) for name, reader in others.items()}
    return OpenedRecords(source, title, dict(sorted(readers.items())), names, unused, others)


def _our_names(splits: Iterable[str], title: str | Path) -> dict[str, str]:
    """Return our name of each split of a source ('validation' for 'dev') -> its own name.

    Raises:
      InputError: two splits have one name.
    """
    names: dict[str, str] = {}
    for theirs in splits:
        name = records.official_split(theirs) or theirs
        if name in names:
            raise InputError(
                f"{title}: two splits are the {name} split: {names[name]} and {theirs}"
            )
        names[name] = theirs
    return names


def _converted(reader: Reader, origin: Origin) -> Reader:
    convert = origin.convert
    assert convert is not None

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for where, record in reader():
            try:
                converted = convert(record)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                raise InputError(
                    f"{where}: not in the expected form of {origin.name} ({first_line(error)}); "
                    f"the record has: {listed(record, 'no fields')}"
                ) from error
            yield where, converted

    return read


def _files_name(task: Task, data_dir: str | None) -> str | None:
    """Return the folder of the task's own files, else the shared one; None if neither exists."""
    for name in (task.name, task.folder):
        if name is not None and records.task_folder(name, data_dir) is not None:
            return name
    return None


def _open_files(task: Task, data_dir: str | None) -> OpenedRecords:
    name = _files_name(task, data_dir) or task.folder or task.name
    found = records.task_files(name, data_dir)
    files = dict(found.splits)
    theirs = {} if task.hub is None else dict(task.hub.splits)
    if theirs and not set(theirs) <= set(files) and set(theirs.values()) <= set(files):
        # Files downloaded from the hub, under its names of the splits.
        renamed = {name: files[split] for name, split in theirs.items()}
        kept = {name: files[name] for name in files if name not in theirs.values()}
        files = dict(sorted((kept | renamed).items()))
    splits = {split: _file_reader(path, task) for split, path in files.items()}
    names = {split: path.name for split, path in files.items()}
    return OpenedRecords("files", str(found.folder), splits, names, found.unused)


def _file_reader(path: Path, task: Task) -> Reader:
    return lambda: records.read_records(path, (*task.fields, *task.optional_fields))


@dataclass(frozen=True)
class CorpusFiles:
    """Text for language-model training, found and not yet read.

    Attributes:
      path: a file, or a folder prepared for TFDS.
      split: the folder's own name of the split; None for a file.
      unused: names of the other files or splits beside it.
    """

    path: Path
    split: str | None = None
    unused: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the file or the split, for messages."""
        return self.path.name if self.split is None else f"split {self.split}"


def find_corpus(
    source: str, data_dir: str | None, split: str | None = None, *, train_split: str | None = None
) -> CorpusFiles:
    """Find unlabelled texts for language-model training.

    Args:
      source: a file, a folder of files or written by `w2s data prepare`, or the name of a folder in
        the data folder.
      data_dir: as in `find_files`; used if `source` is no path of a file or folder.
      split: split of the folder; None: 'train', else `train_split`.
      train_split: `task.train_split`, for folders without 'train'.

    Raises:
      InputError: nothing is found, or there is no such split.
    """
    path = location(source)
    with records.reaching(path):
        if path.is_file():
            return CorpusFiles(path)
    folder = _corpus_folder(source, path, data_dir)
    if (folder / tfds.INFO_FILE).is_file():
        names = _our_names(tfds.open_prepared(folder), folder)
        advice = "prepare it from a file named train"
        chosen = _corpus_split(folder, split, train_split, names, names.values(), advice)
        unused = tuple(name for name in names.values() if name != names[chosen])
        return CorpusFiles(folder, names[chosen], unused)
    found = records.task_files(folder.name, str(folder.parent))
    files = [*(path.name for path in found.splits.values()), *found.unused]
    # A choice of `task.train_split` would hold for the task too.
    advice = f"name the training file train, or give the path of one, such as {found.first}"
    chosen = _corpus_split(folder, split, train_split, found.splits, files, advice, offered=False)
    path = found.splits[chosen]
    return CorpusFiles(path, None, tuple(sorted(name for name in files if name != path.name)))


def _corpus_split(
    folder: Path,
    split: str | None,
    train_split: str | None,
    splits: Iterable[str],
    found: Iterable[str],
    advice: str,
    *,
    offered: bool = True,
) -> str:
    names = list(splits)
    if split is None:
        return training_split(
            names,
            declared=train_split,
            place=str(folder),
            found=found,
            field="pretrain.source",
            advice=advice,
            offered=offered,
        )
    if split not in names:
        raise InputError(
            f"pretrain.source: {folder} has no split {split!r}; found: {', '.join(names)}"
        )
    return split


def read_corpus(source: str, data_dir: str | None, split: str | None = None) -> list[str]:
    """Read the texts that `find_corpus` finds.

    Files are of any kind with a field `text`; a .txt file is one text.

    Returns:
      The texts in the order of the source, without blank ones.

    Raises:
      InputError: nothing is found, a record has no text, or all texts are blank.
    """
    return corpus_texts(find_corpus(source, data_dir, split))


def corpus_texts(corpus: CorpusFiles) -> list[str]:
    """Read texts as `read_corpus` does."""
    path = corpus.path
    start = f"{path}, line 1"
    if corpus.split is not None:
        start = f"{path}, split {corpus.split}"
        found = _texts(tfds.open_prepared(path)[corpus.split]())
    elif path.suffix.lower() == ".txt":
        found = _whole_text(path)
    else:
        found = _texts(records.read_records(path, ("text",)))
    texts = [text for _, text in found if text.strip()]
    if not texts:
        raise InputError(f"{start}: the file is empty (all lines are blank)")
    return texts


def corpus_records(corpus: CorpusFiles) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) for each record of a corpus, whatever its fields.

    Raises:
      InputError: a .txt file, an unreadable file, or a malformed record.
    """
    if corpus.split is not None:
        return tfds.open_prepared(corpus.path)[corpus.split]()
    return records.read_records(corpus.path)


def _corpus_folder(source: str, path: Path, data_dir: str | None) -> Path:
    """Return the folder of a corpus: a prepared one, or one of files."""
    with records.reaching(path):
        given = tfds.version_folder(path)
    named = path.is_absolute() or "/" in source
    folder = given or records.task_folder(path.name, str(path.parent)) if named else None
    folder = folder or records.task_folder(source, data_dir)
    folder = folder or tfds.prepared_folder((source,), data_dir) or given
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


def _whole_text(path: Path) -> Iterator[tuple[str, str]]:
    yield f"{path}, line 1", "".join(line for _, line in records.read_lines(path))


def _texts(found: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
    return ((where, records.text_field(record, where)) for where, record in found)
