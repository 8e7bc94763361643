"""The language of sweeps, against lists written by hand and the laws that it must keep."""

import itertools
import random

import pytest
from refusals import error

from w2s_jax.sweep import space
from w2s_jax.sweep.points import names
from w2s_jax.sweep.space import chain, fixed, over, pairs, prefix, product, zip_


def test_spaces_are_what_one_would_write_by_hand():
    sizes, seeds = over("strong.model", ("a", "b")), over("seed", range(2))
    assert sizes == [{"strong.model": "a"}, {"strong.model": "b"}]
    assert product(sizes, seeds) == [
        {"strong.model": "a", "seed": 0},
        {"strong.model": "a", "seed": 1},
        {"strong.model": "b", "seed": 0},
        {"strong.model": "b", "seed": 1},
    ]
    assert chain(sizes, seeds) == [*sizes, *seeds]
    assert zip_(sizes, seeds) == [
        {"strong.model": "a", "seed": 0},
        {"strong.model": "b", "seed": 1},
    ]
    assert prefix("strong", over("model", ["ab"])) == [{"strong.model": "ab"}]
    assert fixed(seed=3, **{"train.steps": 2}) == [{"seed": 3, "train.steps": 2}]
    assert pairs(["a", "b", "c"]) == [
        {"weak.model": weak, "strong.model": strong}
        for weak, strong in ("aa", "ab", "ac", "bb", "bc", "cc")
    ]
    assert product() == [{}] and zip_() == chain() == []


def random_space(rng, fields):
    """Up to four distinct points over some fields of its own."""
    count = rng.randint(1, 4)
    return space.distinct(
        {field: rng.choice((0, 1, "x", None, 2.5, ("xent",))) for field in fields}
        for _ in range(count)
    )


@pytest.mark.parametrize("seed", range(20))
def test_products_multiply_and_all_combinations_associate(seed):
    rng = random.Random(seed)
    a, b, c = (random_space(rng, fields) for fields in (["a", "b"], ["c"], ["d.e", "d.f"]))
    assert len(product(a, b, c)) == len(a) * len(b) * len(c)
    assert product(a, product(b, c)) == product(product(a, b), c) == product(a, b, c)
    assert chain(a, chain(b, c)) == chain(chain(a, b), c) == chain(a, b, c)
    assert product(a, [{}]) == product([{}], a) == chain(a, a) == zip_(a) == a
    assert prefix("x", product(a, b)) == product(prefix("x", a), prefix("x", b))
    # The product goes over a chain, from the left.
    assert product(chain(a, b), c) == chain(product(a, c), product(b, c))
    short = min(len(a), len(b), len(c))
    cut = [points[:short] for points in (a, b, c)]
    zipped = zip_(*cut)
    assert zipped == zip_(cut[0], zip_(*cut[1:])) == zip_(zip_(*cut[:2]), cut[2])
    assert len(zipped) == short


def test_repetitions_are_dropped_and_types_are_told_apart():
    assert over("seed", [1, 2, 1]) == [{"seed": 1}, {"seed": 2}]
    alike = [1, 1.0, True, "1"]
    assert len(over("x", alike)) == 4
    twice = chain(over("seed", [0, 1]), over("seed", [1, 2]))
    assert [point["seed"] for point in twice] == [0, 1, 2]
    assert chain([{"a": 1, "b": 2}], [{"b": 2, "a": 1}]) == [{"a": 1, "b": 2}]


def test_spaces_are_not_changed_by_what_is_made_of_them():
    a, b = over("a", [1, 2]), over("b", [3])
    for made in (product(a, b), zip_(a[:1], b), chain(a, b), space.distinct(a)):
        made[0]["c"] = 4
    assert (a, b) == ([{"a": 1}, {"a": 2}], [{"b": 3}])


def test_conflicts_and_mistakes_are_named():
    seeds = over("seed", [0, 1])
    text = error(product, seeds, over("train.steps", [1]), seeds)
    assert "product: seed: 0 in one space, 1 in another" in text
    assert product(fixed(seed=0), fixed(seed=0, x=1)) == [{"seed": 0, "x": 1}]
    assert "zip_: seed: 0 in one space, 0.0 in another" in error(
        zip_, fixed(seed=0), fixed(seed=0.0)
    )
    assert "2, 3 points" in error(zip_, seeds, over("x", range(3)))
    for wrong in ("gpt-d8", 3, None):
        assert f"strong.model: {wrong!r}; must be a list" in error(over, "strong.model", wrong)
    assert "must be a list" in error(pairs, "gpt-d8")


def test_names_are_readable_safe_and_unique():
    points = product(
        over("strong.model", ("gpt-d8", "org/model@rev ü")),
        over("losses", (("xent",), ("xent", "confidence"), ({"kind": "window", "radius": 2},))),
        over("seed", (3, "3", None)),
    )
    made = names(points)
    assert made[0] == "strong.model=gpt-d8,losses=xent,seed=3-" + made[0][-8:]
    assert made[2] == "strong.model=gpt-d8,losses=xent,seed=None"
    assert made[5] == "strong.model=gpt-d8,losses=xent+confidence,seed=None"
    assert made[8] == "strong.model=gpt-d8,losses=(kind=window,radius=2),seed=None"
    assert made[-1].startswith("strong.model=org-model-rev-,losses=")
    long = [{"task.data_dir": "x" * n} for n in (300, 301)]
    made += names([{}, *long, {"a": "x"}, {"a": "X"}])
    assert len({name.casefold() for name in made}) == len(made)
    assert "base" in made
    for name in made:
        assert len(name.encode()) < 200 and not set(name) & set("/\\ :*?\"<>|'\n"), name
        assert name.isascii() and not name.startswith((".", "-"))


def test_a_points_name_does_not_depend_on_the_others():
    points = product(over("weak.model", ("a b", "c")), over("seed", range(3)))
    all_names = dict(zip(map(space.identity, points), names(points), strict=True))
    for some in itertools.combinations(points, 2):
        assert names(some) == [all_names[space.identity(point)] for point in some]
