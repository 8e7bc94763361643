"""The documents of test sets of other tasks (`task.test_tasks`). Imports no JAX.

Their labels are for evaluation alone: only phases of the kind 'transfer' depend on them.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2s_jax.config import Settings
from w2s_jax.core import errors
from w2s_jax.data.classes import NAMED
from w2s_jax.data.documents import Document, stable_id
from w2s_jax.data.feature_sources import FeatureSource
from w2s_jax.data.loading import LoadedTask, load
from w2s_jax.data.records import OFFICIAL_SPLITS
from w2s_jax.data.splits import choose_test, normalised_text
from w2s_jax.data.task import Task
from w2s_jax.data.tasks import TASKS
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models.image_models import IMAGE_MODELS, check_documents
from w2s_jax.planning import classes, features, generation
from w2s_jax.planning.tokenized_splits import Key, Reader, tokenize_split, without_overlong

if TYPE_CHECKING:
    from w2s_jax.planning.role_inputs import RoleInput

#: The first of these splits that a task has is its test set.
_PREFERRED = ("test", "validation", "train")


def split_name(name: str) -> str:
    """Return the name of the split with the test documents of another task, safe in file names."""
    safe = re.sub(r"[^\w-]", "_", name)
    return f"test:{safe}" if safe == name else f"test:{safe}-{stable_id(name):016x}"


@dataclass(frozen=True)
class TestSet:
    """The test set of another task.

    Attributes:
      name: of the task.
      loaded: the task and its documents.
      origin: the split that the documents are from.
    """

    name: str
    loaded: LoadedTask
    origin: str

    @property
    def task(self) -> Task:
        """The task."""
        return self.loaded.task

    @property
    def split(self) -> str:
        """The name of the split in the run."""
        return split_name(self.name)

    @property
    def documents(self) -> list[Document]:
        """All documents of the split."""
        return self.loaded.documents[self.origin]


def load_set(name: str, own: Task, settings: Settings) -> TestSet:
    """Return the test set of another task: its split 'test', else 'validation', else 'train'.

    Conditions (`task.where`) do not apply to it.

    Args:
      name: of the task, an entry of `task.test_tasks`.
      own: the task of the run.
      settings: of the run.

    Raises:
      InputError: there is no such task, it has no documents, or its labels do not mean the same.
    """
    with _of_the_field(name):
        loaded = _load(name, settings)
        _check_labels(loaded.task, own)
        if own.classes and loaded.task.classes not in ((), own.classes):
            # A folder's labels are names, which the run's task orders.
            loaded = _load(name, settings, own.classes)
        there = [split for split in _PREFERRED if loaded.documents.get(split)]
        if not there:
            raise errors.InputError(f"{loaded.location} has no documents to test on")
    return TestSet(name, loaded, there[0])


def _load(name: str, settings: Settings, names: Sequence[str] = ()) -> LoadedTask:
    given = settings.task

    def read(*splits: str) -> LoadedTask:
        return load(
            name,
            given.source,
            given.data_dir,
            settings.protocol.item_expansion,
            seed=settings.seed,
            split_seed=given.split_seed,
            empty=given.empty,
            used=splits,
            classes=names,
            keep=("id",),
            image_size=given.image_size,
        )

    if name not in TASKS:
        # The classes of a folder are those of all its labels.
        return read(*OFFICIAL_SPLITS)
    loaded = read("test", "validation")
    return loaded if any(loaded.documents.values()) else read("train")


def _check_labels(task: Task, own: Task) -> None:
    """Check that labels of a task mean what those of the run's task mean, as far as is known.

    Raises:
      InputError: the kinds differ, the numbers of classes, their names, or the tokens.
    """
    if task.kind != own.kind:
        raise errors.InputError(
            f"it is of kind {task.kind!r}, but task {own.name!r} of kind {own.kind!r}; list tasks "
            "of the same kind"
        )
    tokens = task.token_space in (None, own.token_space)
    tokens &= (task.token_space is None) == (own.token_space is None)
    if not tokens:
        raise errors.InputError(
            f"its documents are {_contents(task)}, but those of task {own.name!r} are "
            f"{_contents(own)}, which its models read"
        )
    if task.image is not None and own.image is not None and task.image.shape != own.image.shape:
        raise errors.InputError(
            f"its images have the shape {list(task.image.shape)}, but those of task {own.name!r} "
            f"{list(own.image.shape)}"
        )
    if task.generates:
        return
    names, wanted = _folded(task), _folded(own)
    # A folder is read again, with the names in the order of the run's task.
    if task.name not in TASKS and names and set(names) <= set(wanted):
        return
    if task.num_classes != own.num_classes:
        raise errors.InputError(
            f"it has {_named(task)}, but task {own.name!r} has {_named(own)}; list tasks with the "
            "same classes"
        )
    if names and wanted and names != wanted:
        same = "in another order" if set(names) == set(wanted) else "which mean something else"
        raise errors.InputError(
            f"it has {_named(task)}, but task {own.name!r} has {_named(own)}, {same}; list tasks "
            "with the same classes, or a folder with these names"
        )


def _compared(task: Task, own: Task) -> list[str]:
    """Return a note where the classes of just one of two tasks have names."""
    names = task.classes or own.classes
    if task.generates or bool(task.classes) == bool(own.classes):
        return []
    named, other = (task, own) if task.classes else (own, task)
    labels = ", ".join(f"{label} = {name}" for label, name in enumerate(names))
    return [
        f"only the classes of {named.name} have names ({labels}); {other.name} is taken to mean "
        "the same"
    ]


def _folded(task: Task) -> list[str]:
    return [name.casefold() for name in task.classes]


def _named(task: Task) -> str:
    names = f" ({errors.listed(task.classes, limit=80)})" if task.classes else ""
    return f"{task.num_classes} classes{names}"


def _contents(task: Task) -> str:
    space = task.token_space
    return "texts" if space is None else f"tokens of a vocabulary of {space.vocab_size}"


def with_set(
    found: TestSet,
    roles: "Mapping[str, RoleInput]",
    readers: Mapping[str, Reader],
    own: Mapping[str, Sequence[Document]],
    settings: Settings,
    notes: list[str],
    sources: Mapping[str, FeatureSource],
) -> "tuple[dict[str, list[Document]], dict[str, RoleInput]]":
    """Tokenise a test set for all roles, as the run's own test set is.

    Args:
      found: the test set.
      roles: the models of the run and their data.
      readers: role -> how it reads the run's own task.
      own: the run's own splits. Documents of slices and validation are left out of the set.
      settings: of the run.
      notes: lines for the user are appended.
      sources: of the roles whose model is features.

    Returns:
      {split: documents} in a generation task, else {}; and the roles with the split.

    Raises:
      InputError: no document is left, or all have one class.
    """
    with _of_the_field(found.name):
        reading = {
            role: _reader(found, readers[role], data, settings) for role, data in roles.items()
        }
        run_task = next(iter(readers.values())).task
        lines = [line for line in found.loaded.notes if not line.startswith(NAMED)]
        lines += _compared(found.task, run_task)
        unseen = _unseen(found, own, lines)
        different = {reader.key: reader for reader in reading.values()}
        chosen, tokenized = _chosen(found, unseen, list(different.values()), settings, lines)
        with_split = {}
        for role, data in roles.items():
            if data.model.name in IMAGE_MODELS:
                check_documents(role, data.model.name, found.task, settings.task.max_length)
            part, limit = tokenized[reading[role].key], reading[role].limit
            if limit != readers[role].limit and part.longest == limit:
                lines.append(f"{role}: documents are limited to the {limit} positions of the model")
            digest = part.digest()
            if data.completion is None:
                classes.check_present(found.split, part.truth_N, data.num_classes)
            else:
                generation.check_room(role, data.model, {found.split: part}, data.completion)
                digest = generation.with_judged(found.task, digest, chosen)
            rows = data.features
            if rows is not None:
                source = features.reading(role, sources[role], found.task)
                new = features.bound(role, source, {found.split: chosen}, found.task.num_texts)
                digest = features.digest(part, new.digests[found.split])
                rows = features.joined(role, rows, new)
            with_split[role] = dataclasses.replace(
                data,
                features=rows,
                splits={**data.splits, found.split: part},
                digests={**data.digests, found.split: digest},
            )
        if found.task.generates:
            generation.check_functions(found.task, {found.split: chosen})
    place = found.loaded.file_names[found.origin]
    notes.append(
        f"{found.split}: from {found.loaded.source} ({found.loaded.location}), {place}: "
        f"{len(chosen):,} of {len(found.documents):,} documents; their labels are never learnt"
    )
    notes += [line if line.startswith(found.split) else f"{found.split}: {line}" for line in lines]
    return {found.split: chosen} if found.task.generates else {}, with_split


def _reader(found: TestSet, own: Reader, data: "RoleInput", settings: Settings) -> Reader:
    """Return how a role reads the documents of a test set.

    An embedded model has as many positions as the documents of its own task need.
    """
    limit, longest = own.limit, data.model.max_positions
    if data.model.positions == "learned":
        limit = longest if limit is None else min(limit, longest)
    truncate = settings.task.truncate or found.task.truncate
    return dataclasses.replace(
        own, task=found.task, limit=limit, truncate=truncate, empty=found.loaded.empty
    )


def _unseen(
    found: TestSet, own: Mapping[str, Sequence[Document]], notes: list[str]
) -> list[Document]:
    """Return the documents that are not among those that the run trains on, or selects steps by."""
    names = [name for name in own if name.startswith("slice") or name == "validation"]
    seen = {_content(document) for name in names for document in own[name]}
    unseen = [document for document in found.documents if _content(document) not in seen]
    removed = len(found.documents) - len(unseen)
    if not unseen:
        raise errors.InputError(
            f"all {removed:,} documents are also in {', '.join(names)} of the run, so none can "
            "test it; list another set"
        )
    if removed:
        notes.append(f"removed {removed:,} documents that are also in {', '.join(names)}")
    return unseen


def _content(document: Document) -> Any:
    """Return what is equal for documents with the same content; of pairs in both orders."""
    text = normalised_text(document)
    return document.tokens if text is None else tuple(sorted(text.split("\0")))


def _chosen(
    found: TestSet,
    documents: list[Document],
    readers: Sequence[Reader],
    settings: Settings,
    notes: list[str],
) -> tuple[list[Document], dict[Key, TokenizedDocuments]]:
    """Return the documents to test on, and as each reader reads them, all the same documents.

    As of the run's own splits (`tokenized_splits`), those that a reader drops are replaced.
    """
    kept: Mapping[str, list[Document]] = {found.split: documents}
    for reader in readers:
        kept = without_overlong(kept, reader, notes)
    documents = kept[found.split]
    wanted = settings.task.test_docs
    while True:
        chosen = choose_test(
            documents,
            wanted,
            balance=settings.protocol.balance_test and not found.task.generates,
            split_seed=settings.task.split_seed,
        )
        if not chosen:
            raise errors.InputError("it has no document with a label to test on")
        lines: list[str] = []
        made = {
            reader.key: tokenize_split(found.split, chosen, reader, lines) for reader in readers
        }
        read = set.intersection(*(set(part.ids_N.tolist()) for part in made.values()))
        if len(read) == len(chosen):
            break
        empty = {document.id for document in chosen} - read
        documents = [document for document in documents if document.id not in empty]
    notes += lines
    skipped = len(kept[found.split]) - len(documents)
    if skipped:
        notes.append(f"skipped {skipped:,} documents with a text that gives no token (task.empty)")
    if wanted is not None and len(chosen) <= wanted - found.task.num_classes:
        notes.append(f"fewer documents than task.test_docs={wanted}")
    return chosen, made


@contextlib.contextmanager
def _of_the_field(name: str) -> Iterator[None]:
    try:
        yield
    except errors.InputError as error:
        reason = str(error).removeprefix("task.name: ")
        raise errors.InputError(f"task.test_tasks: {name}: {reason}") from error
