"""The errors that a user sees, and the exit status that each one becomes.

Every error of this package that a user can mend is an `InputError`: one line that names the field,
the value and what is allowed. The command line prints that line and exits with `exit_status`.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class W2SError(Exception):
    """Base of the errors raised by this package. `exit_status` is what the command line returns."""

    exit_status = 1


class InputError(W2SError, ValueError):
    """Bad input (a config field, a data file, a working directory): exit status 2."""

    exit_status = 2


class Interrupted(W2SError):
    """Stopped by a signal after its state was saved; the same command resumes: exit status 75."""

    exit_status = 75


class TrainingFailed(W2SError):
    """Training cannot go on (a non-finite loss); the last good state is kept: exit status 1."""


class StorageError(W2SError):
    """Something could not be stored or read back; complete checkpoints are intact: status 1."""


def nearest(value: Any, allowed: Iterable[Any]) -> str | None:
    """The entry of `allowed` that is spelt most like `value`, or None if none is close."""
    matches = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(field: str, value: Any, allowed: Iterable[Any]) -> InputError:
    """An `InputError` that names `field`, `value`, the nearest match and all that is allowed."""
    names = [str(a) for a in allowed]
    match = nearest(value, names)
    hint = f" (did you mean {match!r}?)" if match else ""
    return InputError(f"{field}: unknown value {value!r}{hint}; allowed: {', '.join(names)}")
