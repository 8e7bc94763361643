"""Names of classes, in configs and in tasks."""

from collections import Counter
from collections.abc import Sequence

from w2s_jax.core.errors import InputError, shown

#: Most classes of a task.
MAX_CLASSES = 10_000


def class_names(value: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes; ('a,b',) is what the command line makes of a,b.

    Unlike other lists of names, empty ones stay, to be refused.
    """
    if len(value) == 1 and isinstance(value[0], str):
        return tuple(name.strip() for name in value[0].split(","))
    return tuple(value)


def check_classes(field: str, names: Sequence[str]) -> None:
    """Check the names of a task's classes; () stands for the classes 0 and 1.

    Raises:
      InputError: an empty name or one that is not text, a name that occurs twice, a single class,
        or more than `MAX_CLASSES`. Begins with `field`.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            raise InputError(
                f"{field}: {shown(name)}; allowed: names that are not empty and have no spaces "
                "around them"
            )
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise InputError(f"{field}: {shown(name)} is listed {count} times; list each class once")
    if len(names) == 1:
        raise InputError(f"{field}: {shown(name)} is the only class; at least two are needed")
    if len(names) > MAX_CLASSES:
        raise InputError(f"{field}: {len(names):,} classes; allowed: at most {MAX_CLASSES:,}")
