"""Recipes: Python files that return a config, and overrides of its fields. Imports no JAX."""

import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_jax.core import errors

if TYPE_CHECKING:
    from ml_collections import config_dict


def load_config(path: str, overrides: Sequence[str]) -> "config_dict.ConfigDict":
    """Return the config of a recipe, with `--config.FIELD=VALUE` overrides applied.

    Raises:
      InputError: for a missing or broken recipe, an unknown field, or a value of a wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    for override in overrides:
        if not override.startswith("--config."):
            raise errors.InputError(
                f"run: unknown argument {override!r}; use --config.FIELD=VALUE, or the options in "
                "w2s run --help"
            )
    unset = _unset(overrides)
    rest = [o for o in overrides if o not in unset]
    command = ["w2s", f"--config={path}", *rest]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    try:
        values(command)
        config: Any = values["config"].value
        # A recipe that failed to load raises its error at the first use.
        config.to_dict()
        for field in unset.values():
            *parents, leaf = field.split(".")
            functools.reduce(lambda section, key: section[key], parents, config)[leaf] = None
        return config
    except errors.InputError:
        raise
    except Exception as error:
        raise _config_error(error, path, overrides) from error


def other_recipe(path: str | os.PathLike[str], argument: str) -> "config_dict.ConfigDict":
    """Return the config of the recipe in another file, for recipes that build on it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def _unset(overrides: Iterable[str]) -> dict[str, str]:
    """Return the overrides that set a field to its default None: override -> field."""
    from w2s_jax.config.schema import default_config, flatten

    parts = {o: o.removeprefix("--config.").partition("=") for o in overrides}
    defaults = flatten(default_config()) if parts else {}
    return {
        override: field
        for override, (field, _, value) in parts.items()
        if value == "None" and field in defaults and defaults[field] is None
    }


def _config_error(error: Exception, path: str, overrides: Sequence[str]) -> errors.InputError:
    """Return the error for a recipe or an override, in one line."""
    from absl import flags

    from w2s_jax.config.schema import default_config, flatten
    from w2s_jax.config.validation import unknown_field

    if isinstance(error, AttributeError | KeyError):
        known = flatten(default_config())
        fields = [o.removeprefix("--config.").partition("=") for o in overrides]
        # Losses last: a recipe may have given its own labels to them.
        for field, _, value in sorted(fields, key=lambda parts: parts[0].startswith("loss.")):
            if field not in known:
                return unknown_field(field, value)
        return errors.InputError(f"--config: {path}: {_recipe_error(error, known)}")
    ours = re.search(r"InputError: (.*)", str(error))
    if ours:
        # ml_collections turns what a recipe raises into the text of its traceback.
        return errors.InputError(f"--config: {path}: {ours[1]}")
    if isinstance(error, OSError):
        reason = str(error).strip().splitlines()[-1].strip()
        return errors.InputError(f"--config: {path}: cannot be loaded: {reason}")
    if isinstance(error, flags.Error):
        return errors.InputError(_one_line(str(error)))
    # A recipe is the user's own Python.
    return errors.InputError(f"--config: {path}: {type(error).__name__}: {_one_line(str(error))}")


def _recipe_error(error: Exception, known: Iterable[str]) -> str:
    """Describe an error in a recipe; ml_collections' message for an unknown field is too long."""
    field = re.search(r'Key "([^"]+)" does not exist', str(error))
    if field is None:
        return _one_line(f"{type(error).__name__}: {error}")
    match = errors.nearest(field[1], {name.rsplit(".", 1)[-1] for name in known})
    hint = f" (did you mean {match!r}?)" if match else ""
    return f"it sets an unknown field {field[1]!r}{hint}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
