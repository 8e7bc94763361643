"""The registry of tasks.

A task says how a record of its dataset becomes documents; where the records come from (see
`data/sources.py`) and which of the documents are used is not its business. Each family of
tasks has a file of its own here.
"""

from collections.abc import Mapping
from typing import Any

from w2s_jax.core.errors import InputError, unknown
from w2s_jax.data import records
from w2s_jax.data.task import KINDS, Candidate, Task

TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Makes `task` known under its name, and returns it.

    Raises:
      InputError: the name is taken, the kind is unknown, or the task has neither `expand` nor
        `load`.
    """
    if task.name in TASKS:
        raise InputError(f"task.name: a task {task.name!r} is registered already")
    if task.kind not in KINDS:
        raise unknown("task.kind", task.kind, KINDS)
    if task.expand is None and task.load is None:
        raise InputError(f"task.name: task {task.name!r} has neither `expand` nor `load`")
    TASKS[task.name] = task
    return task


def get_task(name: str, data_dir: str | None = None) -> Task:
    """The task of that name.

    A name that is not registered but has a folder with data files below the data folder is a
    generic local task (see `tasks/local.py`).

    Args:
      name: as in `task.name`.
      data_dir: the data folder; None means the environment's W2S_DATA_DIR.

    Raises:
      InputError: neither is the case.
    """
    if name in TASKS:
        return TASKS[name]
    # Imported here because they use the names above.
    from w2s_jax.data import tfds
    from w2s_jax.data.tasks.local import local_task

    if records.task_folder(name, data_dir) is not None:
        return local_task(name, data_dir)
    prepared = tfds.prepared_folder((name,), data_dir)
    if prepared is not None and tfds.read_info(prepared) is not None:
        return local_task(name, data_dir, prepared)
    root = records.data_root(data_dir)
    looked = f"; no data files in {root / name} either" if root else ""
    there = records.other_files(name, data_dir)
    if there:
        raise InputError(
            f"task.name: {name!r} is no task, and its folder {root}/{name} has no data files but "
            f"{', '.join(there)}; allowed: {', '.join(records.SUFFIXES)}"
        )
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


UNLABELLED = {"": -1, "-1": -1}


def one_of(
    record: Mapping[str, Any], field_name: str, place: str, values: Mapping[str, int]
) -> int:
    """What `values` has for the content of a field, which is one of few integers or words.

    Integers and the same integers as text (as CSV has them) are alike, and so are upper and lower
    case; nothing (None) is an empty text.

    Raises:
      InputError: the field holds something else.
    """
    value = record[field_name]
    known = {key.casefold(): number for key, number in values.items()}
    number = known.get("" if value is None else str(value).strip().casefold())
    if number is None:
        raise unknown(f"{place}: field {field_name!r}", value, [key for key in values if key])
    return number


def index_of(record: Mapping[str, Any], field_name: str, place: str, count: int) -> int:
    """The index, 0 to `count` - 1, in a field; -1 where the record is unlabelled (-1 or empty).

    Raises:
      InputError: the field holds something else.
    """
    return one_of(record, field_name, place, {str(i): i for i in range(count)} | UNLABELLED)


def texts_of(record: Mapping[str, Any], field_name: str, place: str) -> list[str]:
    """The texts in a field that holds a list, without white space around them; some may be empty.

    Raises:
      InputError: the field holds something else.
    """
    value = record[field_name]
    if not isinstance(value, list) or not value or not all(isinstance(t, str) for t in value):
        raise InputError(f"{place}: field {field_name!r}: not a list of texts: {value!r}")
    return [text.strip() for text in value]


def part_of(
    record: Mapping[str, Any], field_name: str, place: str, keys: tuple[str, ...]
) -> Mapping[str, Any]:
    """The record inside a field of a record, which has all of `keys`.

    Raises:
      InputError: the field holds something else.
    """
    value = record[field_name]
    if not isinstance(value, Mapping) or any(key not in value for key in keys):
        raise InputError(
            f"{place}: field {field_name!r}: not a record with {', '.join(keys)}: {value!r}"
        )
    return value


def expand_text_and_label(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """The one candidate of a record with `text` and `label`."""
    return [Candidate(text_of(record, "text", place), record["label"])]


def _register_families() -> None:
    # The families use the names above, so they are imported after those are defined.
    from w2s_jax.data.tasks import (
        digits,
        ethics,
        grammar,
        mathematics,
        multiple_choice,
        preference,
        reading,
        sentence_pairs,
        sentiment,
    )

    for family in (
        digits,
        sentiment,
        grammar,
        sentence_pairs,
        multiple_choice,
        reading,
        ethics,
        mathematics,
        preference,
    ):
        for task in family.TASKS:
            register_task(task)


_register_families()
