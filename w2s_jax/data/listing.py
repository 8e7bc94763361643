"""The command `w2s data list`: the tasks, or what one of them is."""

import json

from rich.console import Console
from rich.table import Table

from w2s_jax.data import image_files, records
from w2s_jax.data.task import Task
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.data.tasks.local import LABEL_FIELDS


def list_tasks(console: Console) -> None:
    """Print all registered tasks: kind, names in the catalogues, templates, licence."""
    table = Table(box=None, pad_edge=False)
    for column in ("task", "kind", "hub", "tfds", "templates", "licence"):
        table.add_column(column, no_wrap=True)
    for name in sorted(TASKS):
        task = TASKS[name]
        templates = ", ".join(task.templates) or "-"
        table.add_row(name, task.kind, *_origins(task), templates, task.licence)
    console.print(table)
    console.print(
        f"{len(TASKS)} tasks; any folder of files with text and label (or text_a, text_b and "
        "label, or prompt and target), or of images, under task.data_dir also works; `w2s data "
        "list TASK` shows the fields of a task",
        highlight=False,
    )


def list_task(name: str, console: Console, *, data_dir: str | None = None) -> None:
    """Print what a task is, its sources, templates, and the fields and files of local data.

    Raises:
      InputError: an unknown task.
    """
    task = get_task(name, data_dir)
    table = Table(box=None, pad_edge=False, show_header=False)
    folder = f"<data_dir>/{task.folder or task.name}"
    rows = {
        "task": task.name,
        "about": task.description,
        "kind": task.kind,
        "licence": task.licence,
        **dict(zip(("hub", "tfds"), _origins(task), strict=True)),
    }
    if task.load is None:
        rows["required fields"] = ", ".join(task.fields)
        optional = list(task.optional_fields)
        if set(LABEL_FIELDS) <= set(optional):
            rows["required fields"] += f"; {' or '.join(LABEL_FIELDS)}"
            optional = [name for name in optional if name not in LABEL_FIELDS]
        if task.tokenizer:
            rows["tokenizer"] = f"{task.tokenizer}, of embedded models"
        if optional:
            rows["optional fields"] = ", ".join(optional)
        rows["local files"] = (
            records.LAYOUT.replace("<data_dir>/<task>", folder)
            if task.image is None
            else f"{folder}/: {image_files.LAYOUT}"
        )
        rows["trains on"] = "train"
        if task.train_split:
            rows["trains on"] += f", else {task.train_split}"
    for name, template in task.templates.items():
        words = f" -> {' | '.join(template.classes)}" if template.classes else ""
        rows[f"template {name}"] = f"{json.dumps(template.text, ensure_ascii=False)}{words}"
    for title, value in rows.items():
        table.add_row(title, value)
    console.print(table, highlight=False, markup=False)


def _origins(task: Task) -> tuple[str, str]:
    if task.load is not None:
        return "embedded", "embedded"
    hub = "-"
    if task.hub is not None:
        inner = task.hub.config or task.hub.folder
        hub = task.hub.name + (f" ({inner})" if inner else "")
    return hub, "-" if task.tfds is None else task.tfds.name
