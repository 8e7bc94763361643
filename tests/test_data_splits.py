"""Splits against an independent statement of the order, and against their promises."""

import hashlib
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document, hash_order, stable_id
from w2s_jax.data.splits import make_splits

MASK = 2**64 - 1


def reference_id(*parts):
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def reference_key(id_, *salt):
    """SplitMix64's finaliser in Python integers."""
    z = (id_ + reference_id(*salt)) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def singles(n, share=0.5, start=0):
    """`n` ungrouped documents, the first `share` of them with label 1."""
    return [
        Document(id=reference_id("doc", start + i), text=str(start + i), label=int(i < share * n))
        for i in range(n)
    ]


def pairs(n):
    """`n` groups of one right and one wrong document."""
    return [
        Document(id=reference_id("pair", i, label), text=f"{i} {label}", label=label, group=f"q{i}")
        for i in range(n)
        for label in (1, 0)
    ]


def ids(documents):
    return [document.id for document in documents]


def balance(documents):
    return sum(document.label for document in documents) / len(documents)


def split(documents, train=None, test=None, validation=0, **options):
    options = {"balance": True, **options}
    return make_splits(
        documents, train_docs=train, test_docs=test, validation_docs=validation, **options
    )


def test_ids_and_keys_are_frozen():
    assert stable_id("a", 1, "b") == reference_id("a", 1, "b") == 8075525279626060543
    some = [0, 1, 2**63, MASK, 12345]
    expected = sorted(range(5), key=lambda n: reference_key(some[n], "split", 3))
    assert hash_order(np.array(some, np.uint64), "split", 3).tolist() == expected


def test_a_split_is_frozen_and_follows_the_hash_order():
    data = {"train": singles(40), "test": singles(10, start=100)}
    out = split(data, train=20, balance=False, split_seed=7)
    expected = sorted(ids(data["train"]), key=lambda i: reference_key(i, "split", 7))[:20]
    assert sorted(ids(out["slice1"] + out["slice2"])) == sorted(expected)
    assert ids(out["test"]) == sorted(ids(data["test"]), key=lambda i: reference_key(i, "split", 7))
    # Frozen: changes if any machine or version orders otherwise.
    listing = ",".join(f"{name}:{ids(docs)}" for name, docs in sorted(out.items()))
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == "2f2551b85fb1de27"
    grouped = split({"train": pairs(60)}, train=40, test=20, validation=10, split_seed=1)
    listing = ",".join(f"{name}:{ids(docs)}" for name, docs in sorted(grouped.items()))
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == "d18da5824a97b1ae"


def test_order_of_the_file_and_seed():
    data = singles(100, 0.4) + pairs(30)
    shuffled = random.Random(0).sample(data, len(data))
    a = split({"train": data}, train=60, test=30, validation=10)
    b = split({"train": shuffled}, train=60, test=30, validation=10)
    c = split({"train": data}, train=60, test=30, validation=10, split_seed=1)
    assert {k: ids(v) for k, v in a.items()} == {k: ids(v) for k, v in b.items()}
    assert set(ids(a["test"])) != set(ids(c["test"]))


@pytest.mark.parametrize("num_slices", [1, 2, 3, 5])
@pytest.mark.parametrize("share", [0.5, 0.46, 0.2])
def test_ungrouped_slices_are_equal_and_balanced(num_slices, share):
    for train in (30, 60, 240):
        for balanced in (True, False):
            out = split(
                {"train": singles(1000, share), "test": singles(20, start=5000)},
                train=train,
                num_slices=num_slices,
                balance=balanced,
            )
            slices = [out[f"slice{s + 1}"] for s in range(num_slices)]
            assert [len(s) for s in slices] == [train // num_slices] * num_slices
            ones = [sum(d.label for d in s) for s in slices]
            assert max(ones) - min(ones) <= 1
            if balanced:
                expected = 0.5 if share == 0.2 else share
                assert abs(sum(ones) / train - expected) <= 1 / train


def test_rebalancing_starts_above_55_percent():
    test = singles(20, start=5000)
    for ones, expected in ((550, 1000), (551, 898), (450, 1000), (449, 898), (100, 200)):
        out = split({"train": singles(1000, ones / 1000), "test": test})
        everything = out["slice1"] + out["slice2"]
        assert len(everything) == expected
        if expected < 1000:
            assert balance(everything) == 0.5
        kept = split({"train": singles(1000, ones / 1000), "test": test}, balance=False)
        assert len(kept["slice1"]) == len(kept["slice2"]) == 500


def test_test_and_validation_are_exactly_balanced():
    data = {
        "train": singles(300),
        "validation": singles(100, 0.3, start=1000),
        "test": singles(200, 0.7, start=2000),
    }
    out = split(data, train=100, validation=40)
    assert len(out["test"]) == 120 and balance(out["test"]) == 0.5
    assert len(out["validation"]) == 40 and balance(out["validation"]) == 0.5
    assert len(split(data, validation=None)["validation"]) == 60
    assert len(split(data, test=51)["test"]) == 50
    natural = split(data, validation=None, balance=False)
    assert len(natural["test"]) == 200 and len(natural["validation"]) == 100


def test_where_test_and_validation_come_from():
    train, validation, test = singles(200), singles(60, start=1000), singles(60, start=2000)
    extra = [Document(id=1, tokens=(1, 2))]

    def origin(data, **sizes):
        out = split(data, **{"test": 20, "validation": 10, **sizes})
        where = {i: name for name, docs in data.items() for i in ids(docs)}
        seen = [i for docs in out.values() for i in ids(docs)]
        assert len(seen) == len(set(seen))
        return {name: {where[i] for i in ids(docs)} for name, docs in out.items()}

    every = {"train": train, "validation": validation, "test": test, "pretrain": extra}
    assert origin(every) == {
        "slice1": {"train"},
        "slice2": {"train"},
        "validation": {"validation"},
        "test": {"test"},
        "pretrain": {"pretrain"},
    }
    assert split(every, test=20)["pretrain"] == extra
    assert origin({"train": train, "validation": validation}) == {
        "slice1": {"train"},
        "slice2": {"train"},
        "validation": {"train"},
        "test": {"validation"},
    }
    assert origin({"train": train, "test": test})["validation"] == {"train"}
    assert origin({"validation": validation, "test": test}, train_split="validation") == {
        "slice1": {"validation"},
        "slice2": {"validation"},
        "validation": {"validation"},
        "test": {"test"},
    }
    # What serves training serves nothing else.
    assert origin(every, train_split="validation") == {
        "slice1": {"validation"},
        "slice2": {"validation"},
        "validation": {"validation"},
        "test": {"test"},
        "pretrain": {"pretrain"},
    }
    assert origin(every, train_split="test")["test"] == {"validation"}
    for only in ("train", "validation", "test"):
        assert set.union(*origin({only: train}, train_split=only).values()) == {only}
    assert split(every)["validation"] == []
    for there in (["validation", "test"], ["test"], ["other"], []):
        found = ", ".join(sorted(there))
        with pytest.raises(InputError, match=rf"task\.train_split: .*found: {found}"):
            split(dict.fromkeys(there, train) | {"pretrain": extra})
    with pytest.raises(InputError, match=r"task\.train_split: 'test', but .*found: train"):
        split({"train": train}, train_split="test")


def test_train_docs_gives_nested_subsets():
    for data in ({"train": singles(400, 0.3)}, {"train": pairs(200)}, {"train": singles(400, 0.5)}):
        for balanced in (True, False):
            outs = [
                split(data, train=n, test=40, validation=20, balance=balanced)
                for n in (10, 50, 100, 180)
            ]
            for small, large in pairwise(outs):
                assert ids(small["test"]) == ids(large["test"])
                assert ids(small["validation"]) == ids(large["validation"])
                for name in ("slice1", "slice2"):
                    assert set(ids(small[name])) < set(ids(large[name]))


def test_pairs_stay_together():
    out = split({"train": pairs(300)}, train=200, test=100, validation=50)
    sides = {name: {d.group for d in docs} for name, docs in out.items()}
    names = list(sides)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert not sides[a] & sides[b]
    for name in ("slice1", "slice2"):
        assert len(out[name]) == 100 and balance(out[name]) == 0.5
        assert set(Counter(d.group for d in out[name]).values()) == {2}


@pytest.mark.parametrize("seed", range(30))
def test_no_group_is_on_two_sides(seed):
    rng = random.Random(seed)
    pool = [
        Document(
            id=reference_id(seed, i),
            text=str(i),
            label=int(rng.random() < 0.35),
            group=rng.choice([None, f"g{rng.randrange(60)}"]),
        )
        for i in range(600)
    ]
    # Official splits may share groups, too.
    data = rng.choice(
        [
            {"train": pool},
            {"train": pool[:500], "test": pool[500:]},
            {"train": pool[:350], "validation": pool[350:500], "test": pool[500:]},
        ]
    )
    out = split(
        data,
        train=rng.choice([None, 51, 80]),
        test=40,
        validation=rng.choice([0, 11]),
        balance=rng.random() < 0.5,
        num_slices=rng.choice([2, 3]),
        split_seed=seed,
    )
    side = {}
    for name, docs in out.items():
        for document in docs:
            if document.group is not None:
                assert side.setdefault(document.group, name) == name
    everything = [i for docs in out.values() for i in ids(docs)]
    assert len(everything) == len(set(everything)) and set(everything) <= set(ids(pool))
    slices = [len(docs) for name, docs in out.items() if name.startswith("slice")]
    # Ungrouped documents fill what the groups leave unequal.
    assert max(slices) - min(slices) <= 1


def test_too_few_documents():
    data = {"train": singles(100), "test": singles(30, 0.3, start=1000)}
    cases = [
        ({"train": 101}, r"task\.train_docs: 101 documents .* 'train' has only 100"),
        ({"test": 20}, r"task\.test_docs: 20 .* 'test' has only 18 after balancing the classes"),
        ({"test": 31, "balance": False}, r"task\.test_docs: 31 .* 'test' has only 30$"),
        ({"validation": 102}, r"task\.validation_docs: 102 .* 'train' has only 100"),
        ({"validation": 40, "train": 61}, r"task\.train_docs: 61 .* has only 60"),
        ({"validation": 100}, r"task\.train_docs: all .* has only 0"),
        ({"validation": None}, r"task\.validation_docs: must be a number"),
        ({"train": -1}, r"task\.train_docs: -1"),
        ({"train": 0}, r"task\.train_docs: 0"),
        ({"train": 2, "num_slices": 3}, r"task\.train_docs: 2 documents .* 3 slices"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            split(data, **options)
    with pytest.raises(InputError, match=r"task\.test_docs: all .* has only 0"):
        split({"train": singles(10), "test": singles(10, 1.0, start=1000)})
    with pytest.raises(InputError, match=r"task\.test_docs: must be a number.*'train'"):
        split({"train": singles(10)})


def test_a_group_that_is_too_large():
    def grouped(size):
        return [
            Document(id=i, text=str(i), label=i % 2, group="big" if i < size else None)
            for i in range(100)
        ]

    test = singles(10, start=1000)
    out = split({"train": grouped(50), "test": test})
    assert len(out["slice1"]) == len(out["slice2"]) == 50
    with pytest.raises(InputError, match=r"task\.train_docs: group 'big' has 52 of 100"):
        split({"train": grouped(52), "test": test})
    with pytest.raises(InputError, match=r"group 'big' has 40 of 100 .* 4 slices"):
        split({"train": grouped(40), "test": test}, num_slices=4)
    assert len(split({"train": grouped(100), "test": test}, num_slices=1)["slice1"]) == 100


def test_balance_needs_labels():
    data = {"train": [Document(id=i, text=f"x{i}", target="y") for i in range(10)]}
    with pytest.raises(InputError, match=r"protocol\.balance: True"):
        split(data, test=2)
    out = split(data, test=2, balance=False)
    assert [len(out[name]) for name in ("slice1", "slice2", "test")] == [4, 4, 2]
    soft = [Document(id=i, text=f"x{i}", soft_label=0.9 if i < 6 else 0.1) for i in range(20)]
    test = split({"train": soft}, test=8)["test"]
    assert sorted(d.soft_label for d in test) == [0.1] * 4 + [0.9] * 4


def test_without_grouping_documents_are_dealt_one_by_one_at_random():
    """As the released code does it: the second half has the odd document, nothing is balanced."""
    data = {"train": pairs(50)[:-1], "test": singles(20, share=0.3, start=900)}
    options = {"balance": False, "grouping": False}
    out = split(data, **options)
    assert [len(out[name]) for name in ("slice1", "slice2", "test")] == [49, 50, 20]
    assert sorted(ids(out["slice1"]) + ids(out["slice2"])) == sorted(ids(data["train"]))
    assert sum(d.label for d in out["test"]) == 6
    groups = [{d.group for d in out[name]} for name in ("slice1", "slice2")]
    assert 10 < len(groups[0] & groups[1]) < 40  # by chance: half of the 50 pairs
    # Class shares by chance too: 49 of 99 with 50 positive ones, standard deviation 2.5.
    assert 12 < sum(d.label for d in out["slice1"]) < 37
    assert ids(split(data, split_seed=1, **options)["slice1"]) != ids(out["slice1"])
    grouped = split(data, balance=False)
    assert not {d.group for d in grouped["slice1"]} & {d.group for d in grouped["slice2"]}


def test_test_and_training_are_balanced_separately():
    data = {"train": singles(100, share=0.8), "test": singles(40, share=0.75, start=500)}
    cases = {(True, True): (40, 20), (True, False): (40, 40), (False, True): (100, 20)}
    for (balance_, balance_test), (train, test) in cases.items():
        out = split(data, balance=balance_, balance_test=balance_test)
        assert len(out["slice1"]) + len(out["slice2"]) == train, (balance_, balance_test)
        assert len(out["test"]) == test, (balance_, balance_test)


def test_equal_texts_without_a_group_stay_on_one_side():
    doubled = [
        Document(id=reference_id("twice", i, k), text=f"{'A' if k else 'a'} {i}\n", label=i % 2)
        for i in range(40)
        for k in range(2)
    ]
    test = [Document(id=reference_id("test", i), text=f"a  {i}", label=i % 2) for i in range(10)]
    out = split({"train": doubled, "test": test})
    texts = {
        name: {" ".join(d.text.lower().split()) for d in out[name]}
        for name in ("slice1", "slice2", "test")
    }
    assert not texts["slice1"] & texts["slice2"]
    assert not texts["test"] & (texts["slice1"] | texts["slice2"])
    assert len(out["slice1"]) == len(out["slice2"]) == 30
    # Ungrouped documents are ordered as if there were no groups.
    alone = [Document(id=d.id, text=str(n), label=d.label) for n, d in enumerate(doubled)]
    plain = [Document(id=d.id, label=d.label) for d in doubled]
    assert ids(split({"train": alone}, test=8)["slice1"]) == ids(
        split({"train": plain}, test=8)["slice1"]
    )
    released = split({"train": doubled, "test": test}, balance=False, grouping=False)
    assert len(released["slice1"]) + len(released["slice2"]) == 80
