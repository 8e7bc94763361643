"""The registry of tasks, and helpers for their `expand` functions.

Each file of this package declares a family of tasks in `TASKS`. A task converts records to
documents; finding the records is the job of `data/sources.py`, choosing documents that of
`data/splits.py`.
"""

from collections.abc import Mapping
from typing import Any

from w2s_jax.core.errors import InputError, unknown
from w2s_jax.data import records
from w2s_jax.data.task import KINDS, Candidate, Task

TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Register `task` under its name, and return it.

    Raises:
      InputError: the name is taken, the kind is unknown, or the task has neither `expand` nor
        `load`.
    """
    if task.name in TASKS:
        raise InputError(f"task.name: task {task.name!r} is already registered")
    if task.kind not in KINDS:
        raise unknown("task.kind", task.kind, KINDS)
    if task.expand is None and task.load is None:
        raise InputError(f"task.name: task {task.name!r} has neither `expand` nor `load`")
    TASKS[task.name] = task
    return task


def get_task(name: str, data_dir: str | None = None) -> Task:
    """Return a registered task, or the task of a folder with data files (see `tasks/local.py`).

    Args:
      name: value of `task.name`.
      data_dir: the data folder; None: the environment's W2S_DATA_DIR.

    Raises:
      InputError: there is neither.
    """
    if name in TASKS:
        return TASKS[name]
    # `local` imports this module.
    from w2s_jax.data import tfds
    from w2s_jax.data.tasks.local import local_task

    if records.task_folder(name, data_dir) is not None:
        return local_task(name, data_dir)
    prepared = tfds.prepared_folder((name,), data_dir)
    if prepared is not None and tfds.read_info(prepared) is not None:
        return local_task(name, data_dir, prepared)
    root = records.data_root(data_dir)
    others = records.other_files(name, data_dir)
    if others:
        raise InputError(
            f"task.name: {name!r} is not a known task; its folder {root}/{name} contains only "
            f"{', '.join(others)}; supported: {', '.join(records.SUFFIXES)}"
        )
    tried = f"; no data files in {root / name} either" if root else ""
    raise InputError(f"{unknown('task.name', name, TASKS)}{tried}")


def text_of(
    record: Mapping[str, Any], field_name: str, where: str, *, may_be_empty: bool = False
) -> str:
    """Return the text in a field of a record, stripped.

    Raises:
      InputError: the field is not text, or blank although `may_be_empty` is False.
    """
    value = record[field_name]
    if not isinstance(value, str):
        raise InputError(f"{where}: field {field_name!r}: not text: {value!r}")
    text = value.strip()
    if not text and not may_be_empty:
        raise InputError(f"{where}: field {field_name!r}: empty document: {value!r}")
    return text


UNLABELLED = {"": -1, "-1": -1}


def one_of(
    record: Mapping[str, Any], field_name: str, where: str, values: Mapping[str, int]
) -> int:
    """Look up a field, which is one of a few integers or words, in `values`.

    Integers equal their text (as in CSV), case is ignored, and None equals the empty text.

    Raises:
      InputError: the value of the field is not in `values`.
    """
    value = record[field_name]
    known = {key.casefold(): number for key, number in values.items()}
    number = known.get("" if value is None else str(value).strip().casefold())
    if number is None:
        raise unknown(f"{where}: field {field_name!r}", value, [key for key in values if key])
    return number


def index_of(record: Mapping[str, Any], field_name: str, where: str, count: int) -> int:
    """Return the index, 0 to `count` - 1, in a field; -1 if the record is unlabelled (-1 or empty).

    Raises:
      InputError: the field has another value.
    """
    return one_of(record, field_name, where, {str(i): i for i in range(count)} | UNLABELLED)


def texts_of(record: Mapping[str, Any], field_name: str, where: str) -> list[str]:
    """Return the texts in a field that holds a list, stripped; some may be empty.

    Raises:
      InputError: the field is not a list of texts.
    """
    value = record[field_name]
    if not isinstance(value, list) or not value or not all(isinstance(t, str) for t in value):
        raise InputError(f"{where}: field {field_name!r}: not a list of texts: {value!r}")
    return [text.strip() for text in value]


def part_of(
    record: Mapping[str, Any], field_name: str, where: str, keys: tuple[str, ...]
) -> Mapping[str, Any]:
    """Return the record in a field of a record.

    Raises:
      InputError: the field is not a record with all of `keys`.
    """
    value = record[field_name]
    if not isinstance(value, Mapping) or any(key not in value for key in keys):
        raise InputError(
            f"{where}: field {field_name!r}: not a record with {', '.join(keys)}: {value!r}"
        )
    return value


def expand_text_and_label(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the candidate of a record with `text` and `label`."""
    return [Candidate(text_of(record, "text", where), record["label"])]


def _register_families() -> None:
    # The families import this module, so they are imported last.
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
