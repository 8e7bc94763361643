"""Overrides of a config's fields on the command line: `--config.FIELD=VALUE`. Imports no JAX."""

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import config_dict

from w2s_jax.config.options import check_type
from w2s_jax.config.schema import default_config, flatten
from w2s_jax.config.validation import unknown_field
from w2s_jax.core import errors

_PREFIX = "--config."
#: FIELD, '=', VALUE; labels of losses have '=' within parentheses: 'confidence(alpha_max=0.75)'.
_PARTS = re.compile(r"((?:\([^()]*\)|[^=])*?)(?:(=)(.*))?", re.DOTALL)
_TRUE, _FALSE = ("true", "t", "1"), ("false", "f", "0")


def apply_overrides(config: config_dict.ConfigDict, overrides: Sequence[str]) -> None:
    """Set the fields that `overrides` name, in their order.

    VALUE is read as the field's type: True or False, a number, or a tuple such as a,b or ('a',);
    None is the default of fields whose default is None. `--config.FIELD` alone sets a switch.

    Raises:
      InputError: an argument is no override; an unknown field; a value of a wrong type.
    """
    unset = {field for field, value in flatten(default_config()).items() if value is None}
    for override in overrides:
        if not override.startswith(_PREFIX):
            raise errors.InputError(
                f"unknown argument {override!r}; overrides are --config.FIELD=VALUE"
            )
        parts = _PARTS.fullmatch(override.removeprefix(_PREFIX))
        assert parts is not None
        field, equals, text = parts.groups()
        section, leaf = find_field(config, field, text)
        if text == "None" and field in unset:
            section[leaf] = None
            continue
        expected = section.get_type(leaf)
        if not equals and expected is not bool:
            raise errors.InputError(f"--config.{field}: has no value; use --config.{field}=VALUE")
        value = _parsed(f"--config.{field}", text if equals else "true", expected)
        try:
            section[leaf] = value
        except TypeError as error:
            raise refuse_value(f"--config.{field}", value, section, leaf, error) from error


def find_field(
    config: config_dict.ConfigDict, field: str, value: Any
) -> tuple[config_dict.ConfigDict, str]:
    """Return the section of a field of a config, and the field's name in it.

    Raises:
      InputError: there is no such field, or it is a section; `value` is for the message.
    """
    *parents, leaf = field.split(".")
    if parents[:1] == ["loss"] and len(parents) > 1:
        # Labels may contain dots, as in 'confidence(alpha_max=0.75)'.
        parents = ["loss", ".".join(parents[1:])]
    section: Any = config
    for key in parents:
        section = section.get(key)
        if not isinstance(section, config_dict.ConfigDict):
            raise unknown_field(field, value, config)
    if leaf not in section or isinstance(section[leaf], config_dict.ConfigDict):
        raise unknown_field(field, value, config)
    return section, leaf


def refuse_value(
    field: str, value: Any, section: config_dict.ConfigDict, leaf: str, error: TypeError
) -> errors.InputError:
    """Return the error for a value whose type a section has refused with `error`."""
    if isinstance(section[leaf], config_dict.ConfigDict):
        names = ", ".join(section[leaf])
        return errors.InputError(f"{field}: {value!r}, but it is a section; its fields: {names}")
    try:
        default = flatten(default_config()).get(field.removeprefix(_PREFIX), value)
        check_type(field, value, section.get_type(leaf), default is None)
    except errors.InputError as refusal:
        return refusal
    return errors.InputError(f"{field}: {value!r}: {errors.first_line(error)}")


def _parsed(field: str, text: str, expected: type) -> Any:
    """Return the value that a text represents."""
    parsers: dict[type, tuple[Callable[[str], Any], str]] = {
        bool: (_switch, "True or False"),
        int: (_integer, "an integer"),
        float: (float, "a number"),
        tuple: (_tuple, "a tuple"),
    }
    if expected not in parsers:
        return text
    parse, words = parsers[expected]
    try:
        return parse(text)
    except ValueError as error:
        raise errors.InputError(f"{field}: {text!r} is not {words}") from error


def _switch(text: str) -> bool:
    lower = text.lower()
    if lower not in (*_TRUE, *_FALSE):
        raise ValueError
    return lower in _TRUE


def _integer(text: str) -> int:
    return int(text, 16 if text[:2].lower() == "0x" else 10)


def _tuple(text: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        # Names without quotes; `Option.check` splits them at commas.
        return (text,)
    return tuple(value) if isinstance(value, tuple | list) else (value,)
