"""Templates: the words around a document's text, and the words that stand for the classes.

A task declares them in `Task.templates`; the file `templates.json` in the folder of its data adds
others, without code:

    {"review": {"text": "{text}\nIs this review favourable?\nAnswer:", "classes": ["no", "yes"]}}
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_jax.core.classes import check_classes
from w2s_jax.core.errors import InputError, did_you_mean, listed, shown, unknown
from w2s_jax.core.files import read_json
from w2s_jax.data.records import TEMPLATES_FILE, data_root, is_plain, reaching

if TYPE_CHECKING:
    from w2s_jax.data.task import Task

#: Places of the text of a document, and of the two texts of a pair.
PLACES = {1: ("{text}",), 2: ("{text_a}", "{text_b}")}

_PLACE = re.compile(r"(\{text(?:_[ab])?\})")
_FIELDS = ("text", "classes")


@dataclass(frozen=True, slots=True)
class Template:
    """What a model reads instead of the bare text of a document.

    Attributes:
      text: with the place `{text}` of a document's text; in a preference task with `{text_a}` and
        `{text_b}`, the two texts in one prompt. Other braces are text.
      classes: a word for each class, in the order of the labels, which may continue the text. In a
        preference task the first word says that `{text_a}` is better. A space is put before a word
        unless the text ends in white space. (): the label tokens of the task without a template.
    """

    text: str
    classes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The words between the places: K + 1 texts, of which some may be empty."""
        return tuple(_PLACE.split(self.text)[::2])

    @property
    def order(self) -> tuple[int, ...]:
        """The number of the document's text in each place."""
        return tuple(int(place == "{text_b}") for place in _PLACE.split(self.text)[1::2])

    @property
    def words(self) -> tuple[str, ...]:
        """The words for the classes, each with the space before it, if any."""
        space = "" if self.text[-1:].isspace() else " "
        return tuple(space + word for word in self.classes)

    def around(self, texts: Sequence[str]) -> str:
        """Return the texts of a document in their places."""
        first, *rest = self.parts
        found = [first]
        for k, words in zip(self.order, rest, strict=True):
            found += [texts[k], words]
        return "".join(found)


def check_templates(task: "Task", where: str = "") -> None:
    """Check the templates of a task whose classes are known.

    Args:
      task: the task.
      where: the file that they are from, for errors; '': the task's declaration.

    Raises:
      InputError: a bad name, a template without the places of the task's texts, a word for a class
        that is empty, occurs twice or has spaces around it, another number of words than classes,
        or a task that can have no templates.
    """
    if not isinstance(task.templates, Mapping):
        raise InputError(
            f"task.name: task {task.name!r}: `templates` is {shown(task.templates)}, not a dict of "
            "templates by name"
        )
    if not task.templates:
        return
    start = where or f"task {task.name!r}"
    if task.generates or task.token_space is not None:
        why = "asks for completions" if task.generates else "has documents of tokens"
        raise InputError(
            f"{start}: {listed(task.templates)}: task {task.name!r} {why}; templates are of tasks "
            "of texts with classes"
        )
    for name, template in task.templates.items():
        _check_template(f"{start}: template {shown(name)}", name, template, task)


def _check_template(start: str, name: Any, template: Any, task: "Task") -> None:
    # A name is a value on the command line, where commas separate.
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{start}; allowed: a name of letters, digits, '_', '-' and '.'")
    if not isinstance(template, Template):
        raise InputError(f"{start} is {shown(template)}, not a Template")
    if not isinstance(template.text, str):
        raise InputError(f"{start}: text: {shown(template.text)} is no text")
    needed = PLACES[task.num_texts]
    found = _PLACE.findall(template.text)
    if sorted(found) != sorted(needed):
        places = " and ".join(needed)
        raise InputError(
            f"{start}: {shown(template.text)} has {listed(found, none='no place for the text')}; "
            f"needed: {places}, {'once' if len(needed) == 1 else 'each once'}"
        )
    if isinstance(template.classes, str) or not isinstance(template.classes, Sequence):
        raise InputError(f"{start}: classes: {shown(template.classes)} is no list of words")
    check_classes(f"{start}: classes", template.classes)
    if template.classes and len(template.classes) != task.num_classes:
        raise InputError(
            f"{start}: classes: {len(template.classes)} words ({listed(template.classes)}) for the "
            f"{task.num_classes} classes of task {task.name!r}"
            + (f": {listed(task.classes)}" if task.classes else "")
        )


def find_template(task: "Task", name: str, field: str = "task.template") -> Template:
    """Return a template of a task.

    Args:
      task: the task.
      name: of the template.
      field: begins errors.

    Raises:
      InputError: the task has no such template.
    """
    if name in task.templates:
        return task.templates[name]
    if not task.templates:
        raise InputError(
            f"{field}: {name!r}, but task {task.name!r} has no templates; leave it at None"
        )
    raise unknown(field, name, task.templates)


def with_file(task: "Task", data_dir: str | None) -> "Task":
    """Return a task with the templates in `<data_dir>/<task>/templates.json`, if that file exists.

    They are added to the task's own; one of the same name replaces it. The number of words is not
    checked here, as the classes of a folder may not be known yet (see `check_templates`).

    Args:
      task: the task.
      data_dir: the data folder; None: the environment's W2S_DATA_DIR.

    Raises:
      InputError: the file cannot be read, or has something else than templates.
    """
    path = templates_file(task.name, data_dir)
    if path is None:
        return task
    with reaching(path):
        found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: {shown(found)}; must be an object of templates by name")
    own = {name: _from_json(f"{path}: template {name!r}", value) for name, value in found.items()}
    return dataclasses.replace(task, templates={**task.templates, **own})


def templates_file(name: str, data_dir: str | None) -> Path | None:
    """Return the file with templates of a task; None if there is none."""
    root = data_root(data_dir)
    if root is None or not is_plain(name):
        return None
    path = root / name / TEMPLATES_FILE
    with reaching(path):
        return path if path.is_file() else None


def _from_json(start: str, value: Any) -> Template:
    if not isinstance(value, dict):
        raise InputError(f'{start}: {shown(value)}; must be {{"text": ..., "classes": [...]}}')
    for name in value:
        if name not in _FIELDS:
            raise InputError(
                f"{start}: unknown field {shown(name)}{did_you_mean(name, _FIELDS)}; allowed: "
                f"{', '.join(_FIELDS)}"
            )
    if "text" not in value:
        raise InputError(f"{start}: field 'text' is missing")
    classes = value.get("classes", [])
    return Template(value["text"], tuple(classes) if isinstance(classes, list) else classes)
