"""The points of a sweep file: their names and configs. Imports no JAX.

A sweep file is a recipe, whose `get_config` returns the config that all points start from, with a
function `sweep` that returns what each point overrides (see `space`).
"""

import functools
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import config_dict

from w2s_jax.config import default_config, flatten
from w2s_jax.config.options import check_type
from w2s_jax.config.recipes import load_config
from w2s_jax.config.validation import unknown_field
from w2s_jax.core import errors
from w2s_jax.sweep import space

#: The name of the module that ml_collections makes of a recipe.
_RECIPE = "config_config"

#: Longer names are cut: file systems allow 255 bytes.
_LONGEST = 160


@dataclass(frozen=True)
class NamedPoint:
    """A point: the run's name, what it overrides, and its whole config."""

    name: str
    overrides: dict[str, Any]
    config: config_dict.ConfigDict


@dataclass(frozen=True)
class PointSource:
    """The source of a sweep's points, from which a process on any host can load them.

    Attributes:
      config: absolute path of the sweep file, with `:ARGUMENT` if there is one.
      overrides: `--config.FIELD=VALUE`, for all points.
      folder: the working directory, for relative paths in the config.
    """

    config: str
    overrides: tuple[str, ...]
    folder: str

    def points(self) -> list[NamedPoint]:
        """Load the points. Changes the working directory of the process to `folder`.

        Raises:
          InputError: the folder or the file is missing or broken.
        """
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise errors.InputError(
                f"{self.folder}: the sweep was started there, but this host cannot open it "
                f"({error.strerror}); start it in a folder that all hosts share"
            ) from error
        return load_points(self.config, self.overrides)


def point_source(path: str, overrides: Sequence[str]) -> PointSource:
    """Return the source for a sweep file and overrides given to this process."""
    file, colon, argument = path.partition(":")
    absolute = f"{Path(file).absolute()}{colon}{argument}"
    return PointSource(absolute, tuple(overrides), str(Path.cwd()))


def load_points(path: str, overrides: Sequence[str]) -> list[NamedPoint]:
    """Return the distinct points of a sweep file.

    Args:
      path: the file, with `:ARGUMENT` for its `get_config` if there is one.
      overrides: `--config.FIELD=VALUE`, for all points.

    Raises:
      InputError: the file is missing, broken or without points; an unknown field or a value of a
        wrong type.
    """
    sys.modules.pop(_RECIPE, None)
    base = load_config(path, overrides)
    points = _points(path)
    named = zip(names(points), points, strict=True)
    return [NamedPoint(name, point, with_overrides(base, point, name)) for name, point in named]


def with_overrides(
    config: config_dict.ConfigDict, point: space.Point, name: str
) -> config_dict.ConfigDict:
    """Return a copy of a config with a point's values, and its name unless the point has one.

    Raises:
      InputError: an unknown field or a value of a wrong type.
    """
    config = config.copy_and_resolve_references()
    config.name = name
    for field, value in point.items():
        *parents, leaf = field.split(".")
        if parents[:1] == ["loss"]:
            # Labels may contain dots, as in 'confidence(alpha_max=0.75)'.
            parents = ["loss", ".".join(parents[1:])]
        try:
            section = functools.reduce(lambda found, key: found[key], parents, config)
            if leaf not in section or isinstance(section[leaf], config_dict.ConfigDict):
                raise KeyError(leaf)
        except (KeyError, TypeError, AttributeError) as error:
            raise unknown_field(field, value) from error
        try:
            section[leaf] = value
        except TypeError as error:
            default = flatten(default_config()).get(field, value)
            check_type(field, value, section.get_type(leaf), default is None)
            raise errors.InputError(f"{field}: {value!r}: {error}") from error
    return config


def names(points: Sequence[space.Point]) -> list[str]:
    """Return a folder name for each of some distinct points: its overrides, as 'seed=3,...'.

    A point has the same name in every sweep, unless two names would differ only in case.
    Characters that are unusual in file names become '-'; such names, and long ones, end in a hash.
    """
    plain = [_plain_name(point) for point in points]
    folded = [name.casefold() for name in plain]
    return [
        name if folded.count(name.casefold()) == 1 else _hashed(name, point)
        for name, point in zip(plain, points, strict=True)
    ]


def _plain_name(point: space.Point) -> str:
    text = ",".join(f"{field}={_shown(value)}" for field, value in point.items()) or "base"
    safe = re.sub(r"[^\w.,=+()-]+", "-", text, flags=re.ASCII)
    return safe if safe == text and len(safe) <= _LONGEST else _hashed(safe, point)


def _hashed(name: str, point: space.Point) -> str:
    digest = hashlib.sha256(space.identity(point).encode()).hexdigest()[:8]
    return f"{name[:_LONGEST]}-{digest}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "+".join(map(_shown, value))
    if isinstance(value, dict):
        return "(" + ",".join(f"{key}={_shown(part)}" for key, part in value.items()) + ")"
    return str(value)


def _points(path: str) -> list[space.Point]:
    """Return what the function `sweep` of a file returns."""
    file = path.partition(":")[0]
    function = getattr(_module(file), "sweep", None)
    if not callable(function):
        raise errors.InputError(
            f"--config: {file} has no function 'sweep' that returns what each run overrides; see "
            "configs/sweeps for examples"
        )
    try:
        points = list(function())
    except errors.InputError as error:
        raise errors.InputError(f"--config: {file}: {error}") from error
    except Exception as error:
        # A sweep file is the user's own Python.
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise errors.InputError(f"--config: {file}: {text}") from error
    for point in points:
        if not (isinstance(point, dict) and all(isinstance(field, str) for field in point)):
            raise errors.InputError(
                f"--config: {file}: sweep returns {point!r:.100}; points must be dicts of "
                "fields and values"
            )
    if not points:
        raise errors.InputError(f"--config: {file}: sweep returns no points; needs at least one")
    return space.distinct(points)


def _module(file: str) -> ModuleType:
    """Return the module of a sweep file, which `load_config` has just run."""
    # Running it again would register its tasks and losses twice.
    found = sys.modules.get(_RECIPE)
    if found is not None:
        return found
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
