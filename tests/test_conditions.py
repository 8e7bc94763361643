"""`task.where` and `task.test_where`, against selections made by hand."""

import json
import math
from decimal import Decimal

import numpy as np
import pytest
from refusals import error

from w2s_jax.data import Candidate, Task, register_task
from w2s_jax.data.conditions import Conditions, parse_condition
from w2s_jax.data.documents import Document
from w2s_jax.data.loading import load
from w2s_jax.data.tasks import TASKS


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


RNG = np.random.default_rng(5)
RATINGS = {split: RNG.integers(0, 30, n).tolist() for split, n in (("train", 101), ("test", 40))}


def theme(n):
    return "mate" if n % 3 else "fork"


@pytest.fixture
def folder(tmp_path):
    """Puzzles with ratings, many of them equal, and a theme."""
    for split, ratings in RATINGS.items():
        records = [
            {"prompt": f"{split} {n}", "target": "x", "Rating": rating, "Theme": theme(n)}
            for n, rating in enumerate(ratings)
        ]
        path = tmp_path / "puzzles" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def kept(folder, **conditions):
    loaded = load("puzzles", data_dir=str(folder), **conditions)
    found = {
        split: [int(d.text.split()[1]) for d in documents]
        for split, documents in loaded.documents.items()
    }
    return found, loaded


def by_hand(split, meets):
    return [n for n, rating in enumerate(RATINGS[split]) if meets(n, rating)]


@pytest.mark.parametrize(
    ("condition", "meets"),
    [
        ("Rating<20", lambda n, r: r < 20),
        (" Rating <= 20 ", lambda n, r: r <= 20),
        ("Rating>20.5", lambda n, r: r > 20.5),
        ("Rating >=2e1", lambda n, r: r >= 20),
        ("Rating=20.0", lambda n, r: r == 20),
        ("Rating!=20", lambda n, r: r != 20),
        ("Theme=mate", lambda n, r: n % 3 > 0),
        ("Theme!=mate", lambda n, r: n % 3 == 0),
    ],
)
def test_each_comparison(folder, condition, meets):
    found, loaded = kept(folder, where=condition)
    expected = {split: by_hand(split, meets) for split in RATINGS}
    assert found == expected and all(expected.values())
    counts = ", ".join(f"{len(expected[s])} of {len(RATINGS[s])} of {s}" for s in ("train", "test"))
    assert loaded.notes == (f"task.where: {condition}: keeps {counts}",)
    # Ids are those of all documents, and only the field that is used is kept with them.
    everything = {d.text: d.id for d in load("puzzles", data_dir=str(folder)).documents["train"]}
    field = "Theme" if "Theme" in condition else "Rating"
    for document in loaded.documents["train"]:
        assert document.id == everything[document.text] and list(document.meta) == [field]


@pytest.mark.parametrize("percent", [0, 1, 12.5, 50, 99, 100])
def test_percentages_are_ranks_of_the_training_documents(folder, percent):
    ordered = sorted(RATINGS["train"])
    count = int(101 * percent / 100)
    least_above = ordered[count] if count < 101 else math.inf
    largest_below = ordered[count - 1] if count else -math.inf
    cases = {
        "<": lambda n, r: r < least_above,
        ">=": lambda n, r: r >= least_above,
        "<=": lambda n, r: r <= largest_below,
        ">": lambda n, r: r > largest_below,
    }
    for op, meets in cases.items():
        expected = {split: by_hand(split, meets) for split in RATINGS}
        condition = f"Rating{op}{percent}%"
        if not all(expected.values()):
            assert "leaves none of the" in error(kept, folder, where=condition)
            continue
        found, loaded = kept(folder, where=condition)
        assert found == expected
        threshold = least_above if op in ("<", ">=") else largest_below
        assert f"task.where: {condition} (Rating {op} {threshold:g}): keeps" in loaded.notes[0]


def test_half_of_different_values_is_half():
    documents = [Document(id=n, meta={"r": 7 - n}) for n in range(8)]
    for op, expected in (("<", 4), ("<=", 4), (">", 4), (">=", 4)):
        condition = parse_condition("task.where", f"r{op}50%")
        threshold = condition.threshold(documents, ())
        assert sum(condition.holds(d, threshold) for d in documents) == expected


def test_easy_to_hard(folder):
    """Test documents have a condition of their own, with the threshold of the training ones."""
    middle = sorted(RATINGS["train"])[50]
    found, loaded = kept(folder, where="Rating<50%", test_where="Rating>=50%")
    assert found["train"] == by_hand("train", lambda n, r: r < middle)
    assert found["test"] == by_hand("test", lambda n, r: r >= middle)
    assert [note.split(":")[0] for note in loaded.notes] == ["task.where", "task.test_where"]
    found, _ = kept(folder, where="Rating<50%", test_where="")
    assert found["test"] == list(range(40))
    found, _ = kept(folder, test_where="Theme=fork")
    assert found["train"] == list(range(101)) and found["test"] == list(range(0, 40, 3))
    # Validation documents are like those of training; the split to train on may be another one.
    (folder / "puzzles" / "test.jsonl").rename(folder / "puzzles" / "validation.jsonl")
    (folder / "puzzles" / "train.jsonl").rename(folder / "puzzles" / "other.jsonl")
    found, _ = kept(folder, where="Rating<50%", train_split="other")
    assert found["other"] == by_hand("train", lambda n, r: r < middle)
    (folder / "puzzles" / "validation.jsonl").unlink()
    message = error(kept, folder, where="Rating<9", test_where="Rating>9", train_split="other")
    assert message.startswith("task.test_where: there is no split for testing")


def test_conditions_that_are_refused(folder):
    cases = {
        "Rating": "must be FIELD OP VALUE with one of <, <=, >, >=, =, !=",
        "Rating<": "must be FIELD OP VALUE",
        "<5": "must be FIELD OP VALUE",
        "Rating==5": "must be FIELD OP VALUE",
        "1<Rating<5": "must be FIELD OP VALUE",
        "Rating<many": "'many' is not a number, which < needs",
        "Rating<nan": "'nan' is not a number",
        "Rating<150%": "150%; allowed: 0% to 100%",
        "Ratng<5": "puzzles/train.jsonl, line 1 has no field 'Ratng' (did you mean 'Rating'?); it "
        "has: prompt, target, Rating, Theme",
        "Theme<5": "train.jsonl, line 1: field 'Theme' is not a number: 'fork'",
        "Theme<50%": "train.jsonl, line 1: field 'Theme' is not a number: 'fork'",
        "Rating<0": "leaves none of the 101 documents of 'train'",
    }
    for condition, message in cases.items():
        found = error(kept, folder, where=condition)
        assert found.startswith(f"task.where: {condition}") or found.startswith(
            f"task.where: '{condition}'"
        )
        assert message in found
    assert error(kept, folder, test_where="Rating<0").endswith("40 documents of 'test'")
    (folder / "puzzles" / "train.jsonl").write_text('{"prompt": "a", "target": "b", "Theme": []}\n')
    assert "neither a number nor a text: []" in error(kept, folder, where="Theme=a")


@pytest.mark.parametrize("value", [5, 5.0, "5", " 5.0 ", Decimal(5)])
def test_numbers_have_several_forms(value):
    document = Document(id=1, meta={"a": value})
    for text, expected in (("a=5", True), ("a<5.5", True), ("a!=5", False), ("a>5", False)):
        condition = parse_condition("task.where", text)
        assert condition.holds(document, condition.threshold([], ())) == expected
    true = parse_condition("task.where", "a=true")
    assert true.holds(Document(id=1, meta={"a": True}), "true")
    assert not true.holds(Document(id=1, meta={"a": None}), "true")


def test_fields_that_a_task_derives_come_first(tmp_path):
    """Of tasks of classes too; `meta` of an embedded task is all there is."""

    def expand(record, where):
        meta = {"length": len(record["text"]), "n": 10 * record["n"]}
        return [Candidate(record["text"], record["label"], meta=meta)]

    register_task(Task("derived", "", "", ("text", "label"), expand))
    (tmp_path / "derived").mkdir()
    rows = [{"text": "x" * (n + 1), "label": n % 2, "n": n} for n in range(8)]
    path = tmp_path / "derived" / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for condition, expected in (("length>=5", [5, 6, 7, 8]), ("n<=30", [1, 2, 3, 4])):
        found = load("derived", data_dir=str(tmp_path), where=condition).documents["train"]
        assert [len(d.text) for d in found] == expected
    documents = {"train": [Document(id=n, text="a", label=n % 2, meta={"n": n}) for n in range(6)]}
    register_task(Task("embedded", "", "", load=lambda split_seed: documents))
    assert [d.id for d in load("embedded", where="n>=50%").documents["train"]] == [3, 4, 5]
    assert "it has: n" in error(load, "embedded", where="m>1")
    assert Conditions.parse(None, None).fields == frozenset()
