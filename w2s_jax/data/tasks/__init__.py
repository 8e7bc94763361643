"""The registry of tasks.

Each family of tasks is declared in a file of this package, in `TASKS`. A task converts records to
documents; finding the records is the job of `data/sources.py`, choosing documents that of
`data/splits.py`.
"""

import dataclasses
import importlib
from collections.abc import Mapping

from w2s_jax.core.classes import check_classes
from w2s_jax.core.errors import InputError, did_you_mean, shown, unknown
from w2s_jax.data import image_files, records, tfds
from w2s_jax.data.task import KINDS, Task
from w2s_jax.data.tasks.local import local_task
from w2s_jax.data.templates import check_templates, with_file

# Files and packages of this package with a tuple `TASKS`.
_FAMILIES = (
    "digits",
    "images",
    "sentiment",
    "grammar",
    "sentence_pairs",
    "multiple_choice",
    "reading",
    "ethics",
    "mathematics",
    "preference",
    "chess",
)

TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Register `task` under its name, and return it.

    Raises:
      InputError: the name is taken, the kind is unknown, the task has neither `expand` nor `load`,
        or an attribute, such as `classes`, is bad or does not belong to its kind.
    """
    if task.name in TASKS:
        raise InputError(f"task.name: task {task.name!r} is already registered")
    if task.kind not in KINDS:
        raise unknown("task.kind", task.kind, KINDS)
    if task.expand is None and task.load is None:
        raise InputError(f"task.name: task {task.name!r} has neither `expand` nor `load`")
    _check_kind(task)
    check_templates(task)
    TASKS[task.name] = task
    return task


def _check_kind(task: Task) -> None:
    """Refuse attributes that the task's kind does not have, and those of another type."""
    of_answers = ("answer", "correct", "scores", "tokenizer", "pretraining")
    of_classes = ("orders", "token_space", "classes", "templates")
    others = of_classes if task.generates else of_answers
    for name in others:
        if getattr(task, name):
            kinds = "of classes" if task.generates else "of kind 'generation'"
            raise InputError(
                f"task.name: task {task.name!r} is of kind {task.kind!r}, but has `{name}`, which "
                f"belongs to tasks {kinds}"
            )
    check_classes(f"task.name: task {task.name!r}: `classes`", task.classes)
    if task.kind == "preference" and task.num_classes > 2:
        raise InputError(
            f"task.name: task {task.name!r} is of kind 'preference', but has {task.num_classes} "
            "classes; a pair has two: the first or the second text is better"
        )
    space = task.token_space
    unnamed = task.image is not None and space is not None and not space.label_tokens
    if space is not None and not unnamed and len(space.label_tokens) != task.num_classes:
        raise InputError(
            f"task.name: task {task.name!r} has {task.num_classes} classes, but "
            f"{len(space.label_tokens)} `label_tokens`; give a token for each class"
        )
    for name in ("answer", "correct"):
        value = getattr(task, name)
        if value is not None and not callable(value):
            raise InputError(
                f"task.name: task {task.name!r}: `{name}` is {shown(value)}, not a function"
            )
    for name in ("scores", "pretraining"):
        functions = getattr(task, name)
        if not isinstance(functions, Mapping) or not all(map(callable, functions.values())):
            raise InputError(
                f"task.name: task {task.name!r}: `{name}` is {shown(functions)}, not a dict of "
                "functions by name"
            )


def get_task(name: str, data_dir: str | None = None, image_size: int | None = None) -> Task:
    """Return a registered task, or that of a folder (see `tasks/local.py` and `image_files`).

    It has the templates of its folder, too (see `templates.with_file`).

    Args:
      name: value of `task.name`.
      data_dir: the data folder; None: the environment's W2S_DATA_DIR.
      image_size: `task.image_size`.

    Raises:
      InputError: there is neither, or the folder's templates are bad.
    """
    return with_file(_find_task(name, data_dir, image_size), data_dir)


def _find_task(name: str, data_dir: str | None, image_size: int | None) -> Task:
    if name in TASKS:
        return TASKS[name]
    if records.task_folder(name, data_dir) is not None:
        return local_task(name, data_dir)
    images = image_files.image_folder(name, data_dir)
    if images is not None:
        return image_files.image_task(name, images, image_size)
    prepared = tfds.prepared_folder((name,), data_dir)
    if prepared is not None and tfds.read_info(prepared) is not None:
        return local_task(name, data_dir, prepared)
    root = records.data_root(data_dir)
    others = records.other_files(name, data_dir)
    if others:
        raise InputError(
            f"task.name: {name!r} is not a known task; its folder {root}/{name} contains only "
            f"{', '.join(others)}; supported: {', '.join(records.SUFFIXES)}; of images "
            f"{image_files.LAYOUT}"
        )
    tried = f" (there are no data files in {root / name})" if root else ""
    raise InputError(
        f"task.name: unknown value {name!r}{did_you_mean(name, TASKS)}; allowed: the tasks that "
        "`w2s data list` shows, or a folder of your own: set --data_dir (in a run "
        f"--config.task.data_dir) to a folder laid out as {records.LAYOUT}, or of images{tried}"
    )


for _family in _FAMILIES:
    for _task in importlib.import_module(f"{__name__}.{_family}").TASKS:
        # The official data of some have records with an empty text, which no task can use.
        register_task(dataclasses.replace(_task, empty="skip"))
