"""Calls of a task's functions on completions; whatever they do wrong is one line."""

import math
from collections.abc import Callable
from typing import Any

from w2s_jax.core import errors
from w2s_jax.data.documents import Document
from w2s_jax.data.task import Task


def answer_of(task: Task, text: str) -> str:
    """Return the answer in a completion, '' if there is none.

    Raises:
      InputError: the function raises an exception, or returns no text.
    """
    found = _called(task.answer_in, "answer", text)
    if not isinstance(found, str):
        raise _wrong("answer", found, "a text, '' for no answer", text)
    return found


def is_right(task: Task, answer: str, document: Document) -> bool:
    """Return whether an answer is right.

    Raises:
      InputError: the function raises an exception.
    """
    return bool(_called(task.is_correct, "correct", answer, document))


def scores_of(task: Task, answer: str, document: Document) -> dict[str, float | None]:
    """Return the scores of an answer by name; None where one does not apply.

    Raises:
      InputError: a function raises an exception, or returns no finite number.
    """
    found: dict[str, float | None] = {}
    for name, function in task.scores.items():
        value = _called(function, f"scores[{name!r}]", answer, document)
        if value is not None:
            try:
                value = float(value)
            except (TypeError, ValueError):
                value = math.nan
            if not math.isfinite(value):
                raise _wrong(f"scores[{name!r}]", value, "a finite number, or None", answer)
        found[name] = value
    return found


def _called(function: Callable[..., Any], name: str, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except errors.InputError:
        raise
    except Exception as error:
        raise errors.InputError(
            f"Task.{name}: raises {errors.first_line(error)} for {errors.shown(arguments[0])}"
        ) from error


def _wrong(name: str, value: Any, allowed: str, argument: str) -> errors.InputError:
    return errors.InputError(
        f"Task.{name}: returns {errors.shown(value)} for {errors.shown(argument)}; allowed: "
        f"{allowed}"
    )
