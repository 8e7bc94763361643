"""An option: its default, the values it may have, and what it means.

Fields of a config, options of losses and options of methods are all declared with `Option`, and
checked by it.
"""

import contextlib
import dataclasses
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

from w2s_jax.core import errors

_METADATA = "option"
#: A comma outside parentheses: 'confidence(alpha_max=1,warmup_fraction=0)' is one label.
_SEPARATOR = re.compile(r",(?![^()]*\))")
#: Bytes of a file's name, at most, on common file systems.
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Option:
    """A named value that a user sets.

    Attributes:
      default: the value if the user gives none; if it is None, None is always allowed.
      meaning: one line for the documentation.
      low, high: the smallest and the largest value, or entry of a tuple, whose entries are then
        numbers. A float must be finite, unless `high` is not.
      above, below: as `low` and `high`, but excluded.
      also: values that are allowed outside this range; of texts, '' where it means something.
      choices: the allowed values, or entries of a tuple; (): all.
      value_type: the type of the values; None: that of the default, or float if that is None.
    """

    default: Any = None
    meaning: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[Any, ...] = ()
    choices: tuple[Any, ...] = ()
    value_type: type | None = None

    @property
    def expected_type(self) -> type:
        """The type of the values."""
        if self.value_type is not None:
            return self.value_type
        return float if self.default is None else type(self.default)

    @property
    def allowed(self) -> str:
        """The allowed values in words: 'from 0 to 1', 'at least 1, or -1', 'half, prior', ''."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        high = None if self.high == math.inf else self.high
        if self.low is not None and high is not None:
            bounds = [f"from {self.low} to {high}"]
        else:
            words = (
                ("at least", self.low),
                ("above", self.above),
                ("at most", high),
                ("below", self.below),
            )
            bounds = [f"{word} {bound}" for word, bound in words if bound is not None]
        return " and ".join(bounds) + "".join(f", or {value}" for value in self.also if value != "")

    def check(self, field: str, value: Any) -> Any:
        """Return a valid value. Strings in a tuple are split at commas: ('a,b',) on a command line.

        Raises:
          InputError: for a wrong type, a value out of range, or an empty tuple where the default
            is not empty. With `field`, the value and the allowed values.
        """
        check_type(field, value, self.expected_type, self.default is None)
        if value is None:
            return value
        if isinstance(value, tuple | list):
            return self._check_entries(field, tuple(value))
        if self.choices:
            choice(field, value, self.choices)
        elif isinstance(value, str):
            if value != self.default and value not in self.also:
                _check_text(field, value)
        elif isinstance(value, float) and not math.isfinite(value) and self.high != math.inf:
            words = f"a finite number {self.allowed}".rstrip()
            raise errors.InputError(f"{field}: {value!r}; allowed: {words}")
        elif isinstance(value, int | float) and not self._in_range(value):
            raise errors.InputError(f"{field}: {value!r}; allowed: {self.allowed}")
        elif isinstance(value, float) and _float32(value) in (self.above, self.below):
            raise errors.InputError(
                f"{field}: {value!r} is {_float32(value)} in float32; allowed: {self.allowed}"
            )
        return value

    def _check_entries(self, field: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if all(isinstance(value, str) for value in values):
            values = split(values)
        if self.default and not values:
            raise errors.InputError(f"{field}: is empty; list at least one")
        if self._bounded:
            return tuple(self._number(field, value) for value in values)
        names = not self.default or isinstance(self.default[0], str)
        for value in values if names else ():
            if not isinstance(value, str):
                advice = "list names, e.g. ('a', 'b')"
                if isinstance(value, Mapping):
                    advice += "; config.with_labels names mappings"
                raise errors.InputError(
                    f"{field}: {value!r} is of type {type(value).__name__}; {advice}"
                )
        for value in values if self.choices else ():
            choice(field, value, self.choices)
        return values

    @property
    def _bounded(self) -> bool:
        return any(x is not None for x in (self.low, self.high, self.above, self.below))

    def _number(self, field: str, value: Any) -> float:
        """Return an entry of a tuple of numbers."""
        with contextlib.suppress(TypeError, ValueError):
            number = float(value)
            if not isinstance(value, bool) and math.isfinite(number) and self._in_range(number):
                return number
        raise errors.InputError(f"{field}: {value!r}; allowed: numbers {self.allowed}")

    def _in_range(self, value: float) -> bool:
        return value in self.also or (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def option(default: Any = dataclasses.MISSING, **declared: Any) -> Any:
    """A dataclass field that is declared with `Option(default, **declared)`."""
    declaration = Option(None if default is dataclasses.MISSING else default, **declared)
    return dataclasses.field(default=default, metadata={_METADATA: declaration})


def redefault(cls: type, name: str, default: Any) -> Any:
    """A dataclass field declared as that of a base class, with another default."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    declaration = dataclasses.replace(field.metadata[_METADATA], default=default)
    return dataclasses.field(default=default, metadata={_METADATA: declaration})


def options_of(cls: type, *, inherit: bool = False) -> dict[str, Option]:
    """Field name -> `Option` of the fields of a dataclass that are declared with `option`.

    Args:
      cls: the dataclass.
      inherit: make every option optional (None: inherited from another section).
    """
    hints = get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        declaration = field.metadata.get(_METADATA)
        if declaration is not None:
            default = None if inherit else declaration.default
            found[field.name] = dataclasses.replace(
                declaration, default=default, value_type=_base_type(hints[field.name])
            )
    return found


def _base_type(hint: Any) -> type:
    """`int` for `int | None`, `tuple` for `tuple[str, ...]`."""
    if get_origin(hint) is tuple:
        return tuple
    args = [a for a in getattr(hint, "__args__", ()) if a is not type(None)]
    return args[0] if args else hint


def declared(options: Mapping[str, Any]) -> dict[str, Option]:
    """Options from `Option`s and plain defaults."""
    return {
        name: value if isinstance(value, Option) else Option(value)
        for name, value in options.items()
    }


def defaults(options: Mapping[str, Option]) -> dict[str, Any]:
    """Name -> default."""
    return {name: declaration.default for name, declaration in options.items()}


def _float32(value: float) -> float:
    """Return the nearest float32, in which most values are used."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def _check_text(field: str, text: str) -> None:
    """Refuse a text that is neither a name nor a path: empty, with control characters, or long."""
    if not text.strip():
        raise errors.InputError(f"{field}: {text!r} is empty")
    if not text.isprintable():
        raise errors.InputError(f"{field}: {text!r} has characters that cannot be printed")
    if len(max(text.split("/"), key=len).encode()) > _LONGEST_NAME:
        raise errors.InputError(
            f"{field}: {text[:40]!r}... has {len(text)} characters; names of files have at most "
            f"{_LONGEST_NAME}"
        )


def check_type(field: str, value: Any, expected: type, may_be_none: bool) -> None:
    """Refuse a value of a wrong type; an int is a float too, a bool is no int.

    Raises:
      InputError: with the field, the value and the expected type.
    """
    if value is None and may_be_none:
        return
    if isinstance(value, bool):
        right = expected is bool
    elif expected is float:
        right = isinstance(value, int | float)
    elif expected is tuple:
        right = isinstance(value, tuple | list)
    else:
        right = isinstance(value, expected)
    if not right:
        allowed = expected.__name__ + (" or None" if may_be_none else "")
        raise errors.InputError(
            f"{field}: {value!r} is of type {type(value).__name__}; allowed: {allowed}"
        )


def choice(field: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
      InputError: with the nearest match.
    """
    if value not in allowed:
        raise errors.unknown(field, value, allowed)


def split(items: Any) -> tuple[str, ...]:
    """('a', 'b') from ('a', 'b'), and from ('a,b',) as the command line leaves it."""
    parts = tuple(part.strip() for item in items for part in _SEPARATOR.split(str(item)))
    return tuple(part for part in parts if part)
