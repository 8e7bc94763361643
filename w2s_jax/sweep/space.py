"""Functions that make the points of a sweep. Pure; imports no JAX.

A point is a dict of the flat config fields that it overrides: {'strong.model': 'gpt-d32', 'seed':
3}. A space is an ordered list of distinct points. The functions make spaces from values or from
other spaces:

    product(pairs(MODELS), over("seed", range(3)))      every pair of models with every seed
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from w2s_jax.core import errors

Point = dict[str, Any]
Space = list[Point]


def over(field: str, values: Iterable[Any]) -> Space:
    """Return a point for each value of a field.

    Raises:
      InputError: `values` is a string or not iterable.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise errors.InputError(f"over: {field}: {values!r}; must be a list of values")
    return distinct([{field: value} for value in values])


def fixed(**fields: Any) -> Space:
    """Return a single point; give fields with dots as `**{'strong.model': 'gpt-d32'}`."""
    return [dict(fields)]


def product(*spaces: Iterable[Mapping[str, Any]]) -> Space:
    """Return every combination of one point per space; the last space varies fastest.

    Raises:
      InputError: two spaces give a field different values.
    """
    points: Space = [{}]
    for space in map(list, spaces):
        points = [_merged("product", point, other) for point in points for other in space]
    return distinct(points)


def zip_(*spaces: Iterable[Mapping[str, Any]]) -> Space:
    """Merge the first points of all spaces, the second ones, and so on.

    Raises:
      InputError: the spaces differ in length, or give a field different values.
    """
    lists = [list(space) for space in spaces]
    lengths = [len(points) for points in lists]
    if len(set(lengths)) > 1:
        raise errors.InputError(
            f"zip_: the spaces have {', '.join(map(str, lengths))} points; must be equally many"
        )
    points: Space = []
    for row in zip(*lists, strict=True):
        point: Point = {}
        for other in row:
            point = _merged("zip_", point, other)
        points.append(point)
    return distinct(points)


def chain(*spaces: Iterable[Mapping[str, Any]]) -> Space:
    """Concatenate spaces."""
    return distinct([dict(point) for space in spaces for point in space])


def prefix(name: str, space: Iterable[Mapping[str, Any]]) -> Space:
    """Prefix each field with `name` and a dot: 'model' becomes 'strong.model'."""
    return [{f"{name}.{field}": value for field, value in point.items()} for point in space]


def pairs(models: Iterable[str]) -> Space:
    """Return all pairs of a weak model and a strong one that is the same or comes after it.

    Args:
      models: n names, weak ones first, which give n (n + 1) / 2 points.
    """
    names = [point["model"] for point in over("model", models)]
    return [
        {"weak.model": weak, "strong.model": strong}
        for number, weak in enumerate(names)
        for strong in names[number:]
    ]


def distinct(points: Iterable[Mapping[str, Any]]) -> Space:
    """Return the distinct points, in the order of their first appearance."""
    found: dict[str, Point] = {}
    for point in points:
        found.setdefault(identity(point), dict(point))
    return list(found.values())


def identity(point: Mapping[str, Any]) -> str:
    """Return a text that is equal for equal points only; 1, 1.0, '1' and True differ."""
    return json.dumps(dict(point), sort_keys=True, default=repr)


def _merged(name: str, point: Mapping[str, Any], other: Mapping[str, Any]) -> Point:
    for field in point.keys() & other.keys():
        ours, theirs = {field: point[field]}, {field: other[field]}
        if identity(ours) != identity(theirs):
            raise errors.InputError(
                f"{name}: {field}: {point[field]!r} in one space, {other[field]!r} in another; "
                "give each field in one space"
            )
    return {**point, **other}
