"""Recipes: Python files that return a config. Imports no JAX.

A recipe is the user's own Python. Whatever it raises becomes one line with the file and the line in
it; with `W2S_TRACEBACK=1` the command line prints the traceback too.
"""

import contextlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from w2s_jax.config.overrides import apply_overrides
from w2s_jax.core import errors

if TYPE_CHECKING:
    from types import FrameType

    from ml_collections import config_dict

#: The name of a recipe's module, as ml_collections' `config_flags` would name it.
_MODULE = "config_config"


def load_config(path: str, overrides: Sequence[str]) -> "config_dict.ConfigDict":
    """Return the config of a recipe, with `--config.FIELD=VALUE` overrides applied.

    Args:
      path: FILE, or FILE:ARGUMENT, where ARGUMENT is passed to the recipe's `get_config`.
      overrides: as on the command line; the last one of a field counts.

    Raises:
      InputError: for a missing or broken recipe, an unknown field, or a value of a wrong type.
    """
    return load_recipe(path, overrides)[1]


def load_recipe(path: str, overrides: Sequence[str]) -> tuple[ModuleType, "config_dict.ConfigDict"]:
    """Return the module of a recipe and its config; as `load_config`."""
    from ml_collections import config_dict

    file, colon, argument = path.partition(":")
    arguments = [argument] if colon else []
    with recipe_errors(file):
        module = _run(file)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        match = errors.nearest("get_config", vars(module))
        hint = f" (did you mean to call {match!r} that?)" if match else ""
        raise errors.InputError(
            f"--config: {file}: defines no function get_config{hint}; it must return a config "
            "made by w2s_jax.config.default_config()"
        )
    with recipe_errors(file):
        _check_arguments(get_config, arguments, file)
        config = get_config(*arguments)
    if not isinstance(config, config_dict.ConfigDict):
        got = "None" if config is None else f"a {type(config).__name__}"
        raise errors.InputError(
            f"--config: {_place(file, _line_of(get_config))}: get_config returns {got}; it must "
            "return a config made by w2s_jax.config.default_config()"
        )
    config.lock()
    apply_overrides(config, overrides)
    return module, config


def other_recipe(path: str | os.PathLike[str], argument: str) -> "config_dict.ConfigDict":
    """Return the config of the recipe in another file, for recipes that build on it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def _run(file: str) -> ModuleType:
    """Return the module of a recipe, after running it."""
    loader = SourceFileLoader(_MODULE, file)
    try:
        source = loader.get_data(file)
    except OSError as error:
        there = Path(file).parent
        names = [path.name for path in there.glob("*.py")] if there.is_dir() else []
        hint = errors.did_you_mean(Path(file).name, names)
        raise errors.InputError(
            f"--config: {file}: cannot be read: {error.strerror}{hint}"
        ) from error
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None
    module = sys.modules[_MODULE] = importlib.util.module_from_spec(spec)
    # Always from source: a recipe edited twice in a second would be read from a stale cache.
    exec(loader.source_to_code(source, file), vars(module))
    return module


def _check_arguments(function: Callable[..., Any], arguments: list[str], file: str) -> None:
    """Refuse FILE:ARGUMENT where `get_config` takes none, and FILE where it needs one."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        problem = (
            f"takes no argument, but got {arguments[0]!r}; use --config={file}"
            if arguments
            else f"needs an argument ({error}); use --config={file}:ARGUMENT"
        )
        place = _place(file, _line_of(function))
        raise errors.InputError(f"--config: {place}: get_config {problem}") from error


# --- errors --------------------------------------------------------------------------------------


@contextlib.contextmanager
def recipe_errors(file: str) -> Iterator[None]:
    """Turn whatever the code of a recipe raises into one `InputError` with the line in the file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, errors.InputError) and str(error).startswith("--config: "):
            raise
        raise _recipe_error(file, error) from error


def _recipe_error(file: str, error: BaseException) -> errors.InputError:
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [number for number, (frame, _) in enumerate(frames) if _is_of(frame, file)]
    if not own:
        # The file itself cannot be compiled.
        text = errors.first_line(error)
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
        return errors.InputError(f"--config: {_place(file, line)}: {_without_place(text)}")
    frame, line = frames[own[-1]]
    inner, inner_line = frames[-1]
    if isinstance(error, SystemExit):
        text = f"calls sys.exit({error.code!r}); it must return a config"
    elif isinstance(error, errors.W2SError):
        text = str(error).removeprefix("config: ")
    elif (refused := _refused_field(frame, frames[own[-1] + 1 :], error)) is not None:
        text = refused
    else:
        text = errors.first_line(error)
        if isinstance(error, SyntaxError):
            text = f"{_without_place(text)}, in {_place(str(error.filename), error.lineno)}"
        elif inner is not frame and "importlib" not in inner.f_code.co_filename:
            text += f", in {_place(inner.f_code.co_filename, inner_line)}"
        text += " (W2S_TRACEBACK=1 shows the traceback)"
    return errors.InputError(f"--config: {_place(file, line)}: {text}")


def _refused_field(
    frame: "FrameType", inner: Sequence[tuple["FrameType", int]], error: BaseException
) -> str | None:
    """Describe what a `ConfigDict` has refused with `error`; None if none has."""
    from ml_collections import config_dict

    from w2s_jax.config.overrides import refuse_value
    from w2s_jax.config.schema import default_config, flatten

    for called, _ in inner:
        found = called.f_locals
        section, key = found.get("self"), found.get("key", found.get("attribute"))
        if isinstance(section, config_dict.ConfigDict) and isinstance(key, str):
            break
    else:
        return None
    variables = [*frame.f_locals.values(), *frame.f_globals.values()]
    roots = [v for v in variables if isinstance(v, config_dict.ConfigDict) and "task" in v]
    path = next((path for root in roots if (path := _path_to(section, root)) is not None), [])
    field = ".".join([*path, key])
    if key not in section and isinstance(error, AttributeError | KeyError):
        names = list(section)
        fields = flatten(default_config())
        hint = errors.did_you_mean(key, names) or errors.did_you_mean(key, fields)
        where = ".".join(["config", *path])
        return f"unknown field {key!r}{hint} of {where}; allowed: {', '.join(names)}"
    if key in section and isinstance(error, TypeError):
        return str(refuse_value(field, found.get("value"), section, key, error))
    return None


def _path_to(section: "config_dict.ConfigDict", root: "config_dict.ConfigDict") -> list[str] | None:
    """Return the keys from a config to one of its sections, or None if it is not in it."""
    if section is root:
        return []
    for key, value in root.items():
        if isinstance(value, type(root)) and (rest := _path_to(section, value)) is not None:
            return [key, *rest]
    return None


def _is_of(frame: "FrameType", file: str) -> bool:
    return frame.f_code.co_filename == file


def _line_of(function: Callable[..., Any]) -> int | None:
    """Return the line at which a function is defined; None if it is no Python function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return None if code is None else code.co_firstlineno


def _place(file: str, line: int | None) -> str:
    return file if line is None else f"{file}:{line}"


def _without_place(text: str) -> str:
    """Return the message of a `SyntaxError` without the file and line at its end."""
    head, separator, tail = text.rpartition(" (")
    return head if separator and tail.endswith(")") and " line " in tail else text
