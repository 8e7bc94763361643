"""The registry of tasks.

A task says how a record of its dataset becomes documents; where the records come from (local files
now, other sources later) and which of the documents are used is not its business. Each family of
tasks has a file of its own here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from w2s_jax.data import sources
from w2s_jax.data.documents import Document
from w2s_jax.errors import InputError, unknown


@dataclass(frozen=True, slots=True)
class TokenSpace:
    """The vocabulary of a task whose documents are tokens.

    Attributes:
      vocab_size: number of ids.
      pad_id, bos_id: ids of padding and of the beginning of a document.
      label_tokens: ids of the tokens for label 0 and label 1 (a head may start from their rows of
        the unembedding).
    """

    vocab_size: int
    pad_id: int
    bos_id: int
    label_tokens: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item that a record could become; the protocol's item expansion chooses among them.

    Attributes:
      text: the content.
      label: as found in the record (the loader checks it and converts it to 0 or 1).
      group: as in `Document`.
      meta: as in `Document`.
    """

    text: str
    label: Any
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
      name: what `task.name` says.
      description, licence: for people. The licence is that of the data.
      fields: the fields that each record must have.
      expand: (record, place) -> candidates. One candidate where the record is one item; several
        (at least one with label 1 and one with label 0) where, say, a question has answers to
        choose from. `place` names the record in errors.
      kind: what is learned; 'classification' is a label, 0 or 1, for one text or token sequence.
      folder: the folder of the local files, if a task shares those of another; else the name.
      load: for tasks that bring their own data: load(split_seed=...) -> documents by split.
      token_space: for tasks whose documents are tokens.
    """

    name: str
    description: str
    licence: str
    fields: tuple[str, ...] = ()
    expand: Callable[[Mapping[str, Any], str], list[Candidate]] | None = None
    kind: str = "classification"
    folder: str | None = None
    load: Callable[..., dict[str, list[Document]]] | None = None
    token_space: TokenSpace | None = None


TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Makes `task` known under its name, and returns it.

    Raises:
      InputError: the name is taken, or the task has neither `expand` nor `load`.
    """
    if task.name in TASKS:
        raise InputError(f"task.name: a task {task.name!r} is registered already")
    if task.expand is None and task.load is None:
        raise InputError(f"task.name: task {task.name!r} has neither `expand` nor `load`")
    TASKS[task.name] = task
    return task


def get_task(name: str, data_dir: str | None = None) -> Task:
    """The task of that name.

    A name that is not registered but has a folder with data files below the data folder is a
    generic local task, whose records have `text` and `label` (0 or 1).

    Args:
      name: as in `task.name`.
      data_dir: the data folder; None means the environment's W2S_DATA_DIR.

    Raises:
      InputError: neither is the case.
    """
    if name in TASKS:
        return TASKS[name]
    if sources.task_folder(name, data_dir) is not None:
        return Task(
            name=name,
            description="Local files with text and label.",
            licence="not stated",
            fields=("text", "label"),
            expand=expand_text_and_label,
        )
    root = sources.data_root(data_dir)
    looked = f"; no data files in {root / name} either" if root else ""
    raise InputError(f"{unknown('task.name', name, TASKS)}{looked}")


def text_of(
    record: Mapping[str, Any], field_name: str, place: str, *, may_be_empty: bool = False
) -> str:
    """The text in a field of a record, without white space around it.

    Raises:
      InputError: the field holds something else, or no text where there must be some.
    """
    value = record[field_name]
    if not isinstance(value, str):
        raise InputError(f"{place}: field {field_name!r}: not text: {value!r}")
    text = value.strip()
    if not text and not may_be_empty:
        raise InputError(f"{place}: field {field_name!r}: empty document: {value!r}")
    return text


def expand_text_and_label(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """The one candidate of a record with `text` and `label`."""
    return [Candidate(text_of(record, "text", place), record["label"])]


def _register_families() -> None:
    # The families use the names above, so they are imported after those are defined.
    from w2s_jax.data.tasks import digits, multiple_choice, sentiment

    for task in (*digits.TASKS, *sentiment.TASKS, *multiple_choice.TASKS):
        register_task(task)


_register_families()
