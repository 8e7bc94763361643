"""The points of a sweep file: their names and configs. Imports no JAX.

A sweep file is a recipe, whose `get_config` returns the config that all points start from, with a
function `sweep` that returns what each point overrides (see `space`).
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import config_dict

from w2s_jax.config.overrides import find_field, refuse_value
from w2s_jax.config.recipes import load_recipe, recipe_errors
from w2s_jax.core import errors
from w2s_jax.sweep import space

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
    module, base = load_recipe(path, overrides)
    points = _points(path.partition(":")[0], module)
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
        section, leaf = find_field(config, field, value)
        try:
            section[leaf] = value
        except TypeError as error:
            raise refuse_value(field, value, section, leaf, error) from error
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


def _points(file: str, module: ModuleType) -> list[space.Point]:
    """Return what the function `sweep` of a file returns."""
    function = getattr(module, "sweep", None)
    if not callable(function):
        raise errors.InputError(
            f"--config: {file} has no function 'sweep' that returns what each run overrides; see "
            "configs/sweeps for examples"
        )
    with recipe_errors(file):
        points = list(function())
    for point in points:
        if not (isinstance(point, dict) and all(isinstance(field, str) for field in point)):
            raise errors.InputError(
                f"--config: {file}: sweep returns {point!r:.100}; points must be dicts of "
                "fields and values"
            )
    if not points:
        raise errors.InputError(f"--config: {file}: sweep returns no points; needs at least one")
    return space.distinct(points)
