"""Errors that users see, and the exit status of each.

Every error that a user can fix is an `InputError`: one line that names the field, the value and
what is allowed. The command line prints that line and exits with `exit_status`.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class W2SError(Exception):
    """Base class of this package's errors. The command line returns `exit_status`."""

    exit_status = 1


class InputError(W2SError, ValueError):
    """Bad input (a config field, a data file, a working directory): exit status 2."""

    exit_status = 2


class Interrupted(W2SError):
    """Stopped by a signal after saving; run the same command to resume. Exit status 75."""

    exit_status = 75


class TrainingFailed(W2SError):
    """Training cannot continue (a non-finite loss); the last good state is kept: exit status 1."""


class StorageError(W2SError):
    """Something could not be stored or read; complete checkpoints are intact: exit status 1."""


@contextmanager
def of_field(field: str) -> Iterator[None]:
    """Begin the `InputError`s of a block with the field whose value they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


def shown(value: Any, limit: int = 80) -> str:
    """Return the `repr` of a value that a user gave, cut at `limit` characters."""
    # The text of a record may be a book, of which the first characters are enough.
    text = repr(value[: limit + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listed(names: Iterable[Any], none: str = "none", limit: int = 400) -> str:
    """Return names that a user gave, separated by commas and cut at `limit` characters."""
    text = ", ".join(map(str, names)) or none
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(value: Any, allowed: Iterable[Any]) -> str | None:
    """Return the entry of `allowed` spelt most like `value`, or None if none is close."""
    matches = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(value: Any, allowed: Iterable[Any]) -> str:
    """Return " (did you mean 'x'?)" for the nearest entry of `allowed`, or "" if none is close."""
    match = nearest(value, allowed)
    return f" (did you mean {match!r}?)" if match else ""


def unknown(field: str, value: Any, allowed: Iterable[Any]) -> InputError:
    """Return an `InputError` with the field, the value, the nearest match and what is allowed."""
    names = [str(a) for a in allowed]
    return InputError(
        f"{field}: unknown value {shown(value)}{did_you_mean(value, names)}; allowed: "
        f"{', '.join(names)}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, after its type if it is not of this package."""
    line = next(iter(str(error).strip().splitlines()), "").strip()
    if isinstance(error, W2SError) and line:
        return line
    # Other libraries list whole registries in one line.
    return f"{type(error).__name__}: {line[:300]}" if line else type(error).__name__
