"""A small language for the points of a sweep. Pure; imports no JAX.

A point is what it overrides in a config: a dict of flat fields, {'strong.model': 'gpt-d32', 'seed':
3}. A space is a list of points, without repetitions, in an order. Everything below makes spaces, of
values or of other spaces:

    product(pairs(MODELS), over("seed", range(3)))      every pair of models with every seed
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from w2s_jax.core import errors

Point = dict[str, Any]
Space = list[Point]


def over(field: str, values: Iterable[Any]) -> Space:
    """A point for each value of a field.

    Raises:
      InputError: if `values` is a single string, or nothing that can be gone through.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise errors.InputError(f"over: {field}: {values!r}; allowed: a list of values")
    return distinct([{field: value} for value in values])


def fixed(**fields: Any) -> Space:
    """A single point; fields with dots come as `**{'strong.model': 'gpt-d32'}`."""
    return [dict(fields)]


def product(*spaces: Iterable[Mapping[str, Any]]) -> Space:
    """Every combination of a point of each space; the last space turns fastest.

    Raises:
      InputError: if two spaces give one field different values; it names the field.
    """
    points: Space = [{}]
    for space in map(list, spaces):
        points = [_merged("product", point, other) for point in points for other in space]
    return distinct(points)


def zip_(*spaces: Iterable[Mapping[str, Any]]) -> Space:
    """The first points of all spaces as one, the second ones, and so on.

    Raises:
      InputError: if the spaces differ in length, or give one field different values.
    """
    lists = [list(space) for space in spaces]
    lengths = [len(points) for points in lists]
    if len(set(lengths)) > 1:
        raise errors.InputError(
            f"zip_: the spaces have {', '.join(map(str, lengths))} points; allowed: as many in each"
        )
    points: Space = []
    for row in zip(*lists, strict=True):
        point: Point = {}
        for other in row:
            point = _merged("zip_", point, other)
        points.append(point)
    return distinct(points)


def chain(*spaces: Iterable[Mapping[str, Any]]) -> Space:
    """The points of all spaces, one space after another."""
    return distinct([dict(point) for space in spaces for point in space])


def prefix(name: str, space: Iterable[Mapping[str, Any]]) -> Space:
    """The points with `name` and a dot before each field: 'model' becomes 'strong.model'."""
    return [{f"{name}.{field}": value for field, value in point.items()} for point in space]


def pairs(models: Iterable[str]) -> Space:
    """Each model as the weak one of itself and of all that come after it.

    Args:
      models: their names, weak ones first. n of them give n (n + 1) / 2 points.
    """
    names = [point["model"] for point in over("model", models)]
    return [
        {"weak.model": weak, "strong.model": strong}
        for number, weak in enumerate(names)
        for strong in names[number:]
    ]


def distinct(points: Iterable[Mapping[str, Any]]) -> Space:
    """The points without repetitions, in the order of their first appearance."""
    found: dict[str, Point] = {}
    for point in points:
        found.setdefault(identity(point), dict(point))
    return list(found.values())


def identity(point: Mapping[str, Any]) -> str:
    """A text that points share if and only if they are the same; 1, 1.0, '1' and True are not."""
    return json.dumps(dict(point), sort_keys=True, default=repr)


def _merged(name: str, point: Mapping[str, Any], other: Mapping[str, Any]) -> Point:
    for field in point.keys() & other.keys():
        ours, theirs = {field: point[field]}, {field: other[field]}
        if identity(ours) != identity(theirs):
            raise errors.InputError(
                f"{name}: {field}: {point[field]!r} in one space, {other[field]!r} in another; "
                "allowed: each field in one of them"
            )
    return {**point, **other}
