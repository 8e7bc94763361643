"""Tasks of C > 2 classes: names, labels, soft labels, splits and external labels."""

import csv
import json
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from refusals import error

from w2s_jax.cli.main import main
from w2s_jax.config import default_config
from w2s_jax.config.overrides import apply_overrides
from w2s_jax.config.validation import validate
from w2s_jax.data import Candidate, Document, Task, commands, register_task
from w2s_jax.data.documents import hash_order, stable_id
from w2s_jax.data.external_labels import join_labels, read_external_labels
from w2s_jax.data.loading import load, refuse_one_class
from w2s_jax.data.splits import make_splits
from w2s_jax.data.task import TokenSpace
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.data.values import parse_label, parse_soft_label

MOODS = ("negative", "neutral", "positive")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Tasks that a test registers vanish with it."""
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


def write(folder, split, labels, field="label"):
    """Write a split of the task 'mine', one record for each label."""
    path = folder / "mine" / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"{split} {n}", field: label} for n, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(folder, **options):
    """Return the classes of the task 'mine', its training labels, and the note on its classes."""
    loaded = load("mine", data_dir=str(folder), **options)
    notes = [note for note in loaded.notes if note.startswith("classes of label: ")]
    assert len(notes) == bool(loaded.task.classes)
    train = loaded.documents["train"]
    return loaded.task.classes, [d.label for d in train], notes[0] if notes else ""


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((name, label) for label, name in enumerate(MOODS)),
        *((f" {name.upper()} ", label) for label, name in enumerate(MOODS)),
        *((spelt, 2) for spelt in (2, 2.0, "2", "2.0", " 2 ")),
        *((spelt, -1) for spelt in (-1, None, "", "nan", float("nan"))),
    ],
)
def test_a_label_is_a_name_or_a_number(value, label):
    assert parse_label(value, "here", MOODS) == label


@pytest.mark.parametrize("value", [3, -2, 0.5, "good", True, "true", [1]])
def test_other_labels_are_refused(value):
    message = error(parse_label, value, "file, line 1", MOODS)
    assert message.startswith(f"file, line 1: field 'label': {value!r}")
    assert message.endswith("allowed: 0 to 2, or negative, neutral, positive")


def test_a_misspelt_class_is_answered_by_the_nearest():
    assert "'netural' (did you mean 'neutral'?)" in error(parse_label, "netural", "x", MOODS)


def test_names_that_are_integers_are_names_and_not_numbers():
    stars = ("1", "2", "3", "4", "5")
    for value in (1, 1.0, "1", "1.0"):
        assert parse_label(value, "x", stars) == 0
    assert "label': 0; allowed: 1, 2, 3, 4, 5" in error(parse_label, 0, "x", stars)
    assert [parse_label(n, "x", ("1", "0")) for n in (0, 1)] == [1, 0]


def test_the_case_of_a_name_counts_where_nothing_else_differs():
    classes = ("a", "A", "Bc")
    assert [parse_label(name, "x", classes) for name in ("a", "A", "bC")] == [0, 1, 2]
    assert "'b'" in error(parse_label, "b", "x", classes)


def test_labels_of_two_classes_are_read_as_before():
    for classes in ((), ("no", "yes")):
        good = [0, 1, 0.0, 1.0, "0", "1", "TRUE", "false", True, False]
        assert [parse_label(v, "x", classes) for v in good] == [0, 1, 0, 1, 0, 1, 1, 0, 1, 0]
        assert parse_soft_label("0.25", "x", classes) == 0.25
        assert (
            error(parse_soft_label, 2, "x", classes) == "x: field 'soft_label': 2; allowed: 0 to 1"
        )
    assert error(parse_label, 2, "x") == "x: field 'label': 2; allowed: 0 or 1"
    assert error(parse_label, 2, "x", ("no", "yes")).endswith("allowed: 0 or 1, or no, yes")
    assert parse_label("Yes", "x", ("no", "yes")) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0.2, 0.3, 0.5], (0.2, 0.3, 0.5)),
        (["0.2", "0.3", "0.5"], (0.2, 0.3, 0.5)),
        ([0, 0, 1], (0, 0, 1)),
        ([0.333, 0.333, 0.333], (1 / 3, 1 / 3, 1 / 3)),
        ("[0.2, 0.3, 0.5]", (0.2, 0.3, 0.5)),
        ({"positive": 0.5, "negative": 0.2, "neutral": 0.3}, (0.2, 0.3, 0.5)),
        ({"Positive": 0.75, "neutral": 0.25, "negative": None}, (0, 0.25, 0.75)),
        ('{"neutral": 1}', (0, 1, 0)),
    ],
)
def test_soft_labels_are_probabilities_of_all_classes(value, expected):
    p_C = parse_soft_label(value, "x", MOODS)
    np.testing.assert_allclose(p_C, expected, rtol=1e-12)
    assert isinstance(p_C, tuple) and abs(sum(p_C) - 1) < 1e-12


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, ["0.5; allowed: 3 numbers", "negative, neutral, positive"]),
        ([0.5, 0.5], ["has 2 numbers; allowed: 3"]),
        ([0.5, 0.5, 0.5], ["has the sum 1.5; allowed: 1"]),
        ([0.332, 0.333, 0.333], ["has the sum 0.998"]),
        ([0.5, -0.5, 1], ["-0.5 of class 'neutral'; allowed: 0 to 1"]),
        ([0.5, float("nan"), 0.5], ["nan of class 'neutral'"]),
        ([0.5, None, 0.5], ["None of class 'neutral'"]),
        ({"positive": 0.5, "netural": 0.5}, ["class 'netural' (did you mean 'neutral'?)"]),
        ({"positive": 0.5, "Positive": 0.5}, ["'positive' and 'Positive' are one class"]),
        ({}, ["has the sum 0"]),
        ("[0.2, 0.3", ["allowed: 3 numbers"]),
    ],
)
def test_bad_soft_labels(value, words):
    message = error(parse_soft_label, value, "file, line 1", MOODS)
    assert message.startswith("file, line 1: field 'soft_label': ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("soft", "hard"),
    [
        ((0.2, 0.3, 0.5), 2),
        ((0.5, 0.3, 0.2), 0),
        ((0.4, 0.2, 0.4), None),
        ((0.2, 0.4, 0.4), None),
        ((0.3, 0.3, 0.4), 2),
        ((1 / 3, 1 / 3, 1 - 2 / 3), None),  # equal in float32
    ],
)
def test_the_hard_label_is_the_most_probable_class(soft, hard):
    document = Document(id=1, text="x", soft_label=soft)
    assert (document.hard_label, document.is_tie) == (hard, hard is None)
    given = Document(id=1, text="x", soft_label=soft, label=1)
    assert (given.hard_label, given.is_tie) == (1, False)


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "order"),
    [
        ([0, 1, 1], (), [0, 1, 1], ""),
        (["TRUE", "false"], (), [1, 0], ""),
        (["positive", "neutral", "negative"], MOODS, [2, 1, 0], "alphabetical"),
        (["b", "C", "a"], ("a", "b", "C"), [1, 2, 0], "alphabetical"),
        ([" pos", "neg "], ("neg", "pos"), [1, 0], "alphabetical"),
        ([0, 1, 2], ("0", "1", "2"), [0, 1, 2], "by value"),
        ([10, 9, 1], ("1", "9", "10"), [2, 1, 0], "by value"),
        (["3", "1.0", "5"], ("1", "3", "5"), [1, 0, 2], "by value"),
        ([1, 2], ("1", "2"), [0, 1], "by value"),
        ([-3, 4.0, 0], ("-3", "0", "4"), [0, 2, 1], "by value"),
    ],
)
def test_classes_are_found_in_a_stated_order(tmp_path, labels, classes, expected, order):
    write(tmp_path, "train", labels)
    found_classes, found_labels, note = found(tmp_path)
    assert (found_classes, found_labels) == (classes, expected)
    if classes:
        named = ", ".join(f"{label} = {name}" for label, name in enumerate(classes))
        assert note == f"classes of label: {named} ({order}; task.classes sets another order)"


def test_classes_are_given(tmp_path):
    write(tmp_path, "train", ["positive", "neutral", "negative"])
    given = ("positive", "negative", "neutral")
    classes, labels, note = found(tmp_path, classes=given)
    assert (classes, labels) == (given, [0, 2, 1])
    assert note == "classes of label: 0 = positive, 1 = negative, 2 = neutral (as in task.classes)"
    message = error(
        load, "mine", data_dir=str(tmp_path), classes=("positive", "negative", "none of them")
    )
    assert "train.jsonl, line 2: field 'label': 'neutral'; allowed: 0 to 2, or positive" in message
    write(tmp_path, "train", [0, 1, 1])
    assert found(tmp_path, classes=("bad", "good"))[:2] == (("bad", "good"), [0, 1, 1])
    # Names that are not what a folder without `classes` may have.
    write(tmp_path, "train", ["1", "x", "2"])
    assert found(tmp_path, classes=("x", "1", "2"))[1] == [1, 0, 2]


def test_ids_do_not_depend_on_the_order_or_the_number_of_classes(tmp_path):
    def ids(**options):
        return [d.id for d in load("mine", data_dir=str(tmp_path), **options).documents["train"]]

    labels = ["b", "c", "d", "b"]
    write(tmp_path, "train", labels)
    before = ids()
    assert ids(classes=("d", "c", "b")) == before and len({*before}) == 4
    write(tmp_path, "train", [*labels, "a"])
    assert ids()[:4] == before
    soft = [{"b": 0.5, "c": 0.5}, {"d": 1}, {"b": 0.25, "c": 0.75}]
    write(tmp_path, "train", soft, "soft_label")
    before = ids()
    assert ids(classes=("d", "a", "c", "b")) == before and len({*before}) == 3


def test_ids_of_two_classes_are_frozen(tmp_path):
    write(tmp_path, "train", [0, 1])
    expected = [
        stable_id(stable_id("document", "mine", "train", f"train {n}", n), 0) for n in range(2)
    ]
    assert [d.id for d in load("mine", data_dir=str(tmp_path)).documents["train"]] == expected


def test_classes_of_soft_labels(tmp_path):
    write(tmp_path, "train", [[0.2, 0.3, 0.5], [1, 0, 0]], "soft_label")
    loaded = load("mine", data_dir=str(tmp_path))
    assert loaded.task.classes == ("0", "1", "2") and "positions in the lists" in loaded.notes[0]
    assert [d.soft_label for d in loaded.documents["train"]] == [(0.2, 0.3, 0.5), (1, 0, 0)]
    named = load("mine", data_dir=str(tmp_path), classes=MOODS)
    assert named.task.classes == MOODS
    assert [d.hard_label for d in named.documents["train"]] == [2, 0]
    write(tmp_path, "train", [{"good": 1}, {"bad": 0.5, "fair": 0.5}], "soft_label")
    loaded = load("mine", data_dir=str(tmp_path))
    assert loaded.task.classes == ("bad", "fair", "good")
    assert [d.soft_label for d in loaded.documents["train"]] == [(0, 0, 1), (0.5, 0.5, 0)]
    write(tmp_path, "train", [{"good": 1}, {"bad": 0.75, "good": 0.25}], "soft_label")
    loaded = load("mine", data_dir=str(tmp_path))
    assert [d.soft_label for d in loaded.documents["train"]] == [1, 0.25]  # P(label 1)


def test_text_and_json_give_the_same_documents(tmp_path):
    write(tmp_path / "a", "train", [5, 3, 1])
    (tmp_path / "b" / "mine").mkdir(parents=True)
    with (tmp_path / "b" / "mine" / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["text", "label"], *((f"train {n}", 5 - 2 * n) for n in range(3))]
        )
    a, b = (load("mine", data_dir=str(tmp_path / name)).documents for name in "ab")
    assert a == b


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "a", "a"], ["line 1: field 'label': all 3 labels are 'a'; at least two classes"]),
        ([2, 2], ["all 2 labels are '2'"]),
        (range(10_001), ["10,001 different labels; allowed: at most 10,000 classes"]),
        ([0, 1, "x", 0], ["line 3: field 'label': 'x' is a name, but 0 (", "is an integer"]),
        (["a", "b", 1, "c"], ["line 3: field 'label': 1 is an integer, but 'a' (", "is a name"]),
        ([0, 1, 0.5], ["line 3: field 'label': 0.5; allowed: an integer, or the name of a class"]),
        (["0", "1.5"], ["line 2: field 'label': '1.5'; allowed: an integer"]),
        (["a", "b", ["c"]], ["line 3: field 'label': ['c']"]),
        (["Good", "bad", "good"], ["line 3: field 'label': 'good' and 'Good' (", "only in case"]),
        (["a", "b", None], ["line 3: field 'label': None", "unlabelled"]),
        (["0", 1, 2], ["line 2: field 'label': 1 is of type int, but '0'"]),
    ],
)
def test_bad_classes_of_a_folder(tmp_path, labels, words):
    path = write(tmp_path, "train", labels)
    message = error(load, "mine", data_dir=str(tmp_path))
    assert message.startswith(f"{path}, line ")
    for word in words:
        assert word in message


def test_most_classes(tmp_path):
    write(tmp_path, "train", range(10_000))
    classes, labels, note = found(tmp_path)
    assert len(classes) == 10_000 and labels == list(range(10_000)) and len(note) < 600


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_training_never_has_is_refused(tmp_path, split):
    write(tmp_path, "train", ["a", "b", "c"])
    path = write(tmp_path, split, ["a", "d", "d"])
    assert error(load, "mine", data_dir=str(tmp_path)) == (
        f"{path}, line 2: field 'label': class 'd' is that of 2 documents of {split!r}, but of "
        "none of 'train'; a class needs training documents"
    )
    # A class without test documents is the user's own business until it is balanced.
    write(tmp_path, split, ["a", "a"])
    assert found(tmp_path)[0] == ("a", "b", "c")


def test_splits_that_no_run_uses_add_no_classes(tmp_path):
    write(tmp_path, "train", ["a", "b", "c"])
    path = write(tmp_path, "hard", ["a", "d"])
    assert f"{path}, line 2: field 'label': 'd'" in error(load, "mine", data_dir=str(tmp_path))
    assert found(tmp_path, used=("train",))[0] == ("a", "b", "c")


@pytest.mark.parametrize(
    ("fields", "classes", "message"),
    [
        ({"label": 3}, MOODS, "document 1: label 3; task 'own' allows 0 to 2"),
        ({"label": 2}, (), "document 1: label 2; task 'own' allows 0 to 1"),
        ({"label": -1}, MOODS, "document 1: label -1; task 'own' allows 0 to 2"),
        ({"soft_label": 0.5}, MOODS, "allows a tuple of 3 probabilities"),
        ({"soft_label": (0.2, 0.8, 0.0)}, (), r"task 'own' allows P(label 1)"),
    ],
)
def test_labels_of_a_tasks_own_documents_are_its_classes(fields, classes, message):
    def load_documents(split_seed):
        return {"train": [Document(id=0, text="a", label=1), Document(id=1, text="b", **fields)]}

    register_task(Task("own", "", "", load=load_documents, classes=classes))
    assert message in error(load, "own")


def test_a_token_space_has_a_token_for_each_class():
    def registered_as(name, tokens, classes):
        space = TokenSpace(9, 0, 1, tokens)
        return register_task(Task(name, "", "", load=dict, token_space=space, classes=classes))

    assert registered_as("three", (2, 3, 4), MOODS).num_classes == 3
    assert registered_as("two", (2, 3), ()).num_classes == 2
    message = error(registered_as, "other", (2, 3), MOODS)
    assert "has 3 classes, but 2 `label_tokens`" in message


def test_a_task_with_code_has_its_own_classes(tmp_path):
    def expand(record, where):
        return [Candidate(record["text"], record["label"])]

    def registered_as(name, classes, kind="classification", expand=expand):
        return register_task(Task(name, "", "", ("text",), expand, kind=kind, classes=classes))

    task = registered_as("mine", MOODS)
    assert (
        task.num_classes == 3 and get_task("sst2").num_classes == 2 == get_task("sciq").num_classes
    )
    write(tmp_path, "train", ["neutral", 2, "NEGATIVE"][:1] * 2 + ["positive", "negative"])
    options = {"data_dir": str(tmp_path)}
    documents = load("mine", **options).documents["train"]
    assert [d.label for d in documents] == [1, 1, 2, 0]
    assert load("mine", classes=MOODS, **options).documents["train"] == documents
    message = error(load, "mine", classes=MOODS[::-1], **options)
    assert message == (
        "task.classes: positive, neutral, negative, but task 'mine' defines its own classes: "
        "negative, neutral, positive; leave it empty"
    )
    assert "defines its own classes: 0, 1" in error(load, "sciq", classes=("a", "b"), **options)
    assert "the only class" in error(registered_as, "one", ("a",))
    assert "`classes`: 'a' is listed 2 times" in error(registered_as, "two", ("a", "b", "a"))
    assert "10,001 classes" in error(registered_as, "many", tuple(map(str, range(10_001))))
    assert "a pair has two" in error(registered_as, "pairs", MOODS, "preference")
    registered_as("two", MOODS, expand=lambda record, where: expand(record, where) * 2)
    (tmp_path / "mine").rename(tmp_path / "two")
    assert "returns 2 candidates; a task of 3 classes" in error(load, "two", **options)


def test_names_for_tasks_without_classes_are_refused(tmp_path):
    rows = {
        "pairs": {"text_a": "a", "text_b": "b", "label": 1},
        "asks": {"prompt": "a", "target": "b"},
    }
    for name, row in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps(row))
        message = error(load, name, data_dir=str(tmp_path), classes=MOODS)
        assert "task.classes: negative, neutral, positive, but task" in message
        assert "whose classes have no names" in message
    write(tmp_path, "train", ["a", "b"])
    message = error(load, "mine", data_dir=str(tmp_path), classes=("a", "b", "None"))
    assert "task.classes: 'None' stands for no label" in message


def test_one_class_of_many_is_refused():
    documents = [Document(id=n, text="x", label=2, where="train.jsonl, line 1") for n in range(3)]
    assert error(refuse_one_class, documents, MOODS).endswith(
        "all 3 documents of the training split have label 2 (positive); at least two classes are "
        "needed"
    )


# --- the option -----------------------------------------------------------------------------------


def classes_of(text):
    config = default_config()
    apply_overrides(config, [f"--config.task.classes={text}"])
    return validate(config).task.classes


@pytest.mark.parametrize(
    ("text", "classes"),
    [("a,b,c", ("a", "b", "c")), ("('a', 'b')", ("a", "b")), ("b , a", ("b", "a")), ("()", ())],
)
def test_the_option_is_a_list_of_names(text, classes):
    assert classes_of(text) == classes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b,a", "'a' is listed 2 times"),
        ("a", "'a' is the only class"),
        ("a,,b", "''; allowed: names that are not empty"),
        ("", "''; allowed: names"),
        ("('a', ' b')", "' b'; allowed: names that are not empty and have no spaces"),
    ],
)
def test_bad_lists_of_names(text, problem):
    assert error(classes_of, text).startswith(f"task.classes: {problem}")


# --- splits ---------------------------------------------------------------------------------------


def documents(counts, start=0, ties=0, names="x"):
    """Documents of classes 0, 1, ... in a mixed order, and ties between the first two."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)] + [None] * ties
    random.Random(0).shuffle(labels)
    tie = (0.5, 0.5, *([0.0] * (len(counts) - 2)))
    return [
        Document(
            id=stable_id(names, start + n),
            text=f"{names} {start + n}",
            label=label,
            soft_label=tie if label is None else None,
        )
        for n, label in enumerate(labels)
    ]


def split(data, **options):
    options = {
        "train_docs": None,
        "test_docs": None,
        "validation_docs": 0,
        "balance": True,
    } | options
    return make_splits(data, **options)


def counted(documents):
    return Counter(d.hard_label for d in documents)


@pytest.mark.parametrize(
    "counts",
    [(40, 40, 40), (44, 38, 38), (45, 38, 37), (90, 20, 10), (30, 28, 26, 36), (9, 8, 8, 8, 8)],
)
def test_training_is_balanced_where_one_class_is_too_large(counts):
    """The first of each class in hash order, all as many as the smallest one has."""
    train, test = documents(counts), documents([5] * len(counts), names="test")
    order = hash_order(np.array([d.id for d in train], np.uint64), "split", 3)
    too_large = Fraction(max(counts), sum(counts)) > Fraction(11, 10 * len(counts))
    keep, expected, taken = min(counts) if too_large else max(counts), set(), Counter()
    for n in order:
        taken[train[n].label] += 1
        if taken[train[n].label] <= keep:
            expected.add(train[n].id)
    notes = []
    out = split({"train": train, "test": test}, split_seed=3, notes=notes)
    both = out["slice1"] + out["slice2"]
    assert {d.id for d in both} == expected
    assert abs(len(out["slice1"]) - len(out["slice2"])) <= 1
    difference = counted(out["slice1"])
    difference.subtract(counted(out["slice2"]))
    assert max(map(abs, difference.values())) <= 2
    halved = 2 * len(expected) < sum(counts)
    assert (
        notes
        == [
            f"train: balancing {len(counts)} classes keeps {len(expected)} of {sum(counts)} "
            "documents; protocol.balance=False keeps all"
        ]
        * halved
    )
    everything = split({"train": train, "test": test}, balance=False)
    assert len(everything["slice1"] + everything["slice2"]) == sum(counts)


def test_the_first_documents_have_the_same_balance():
    out = split(
        {"train": documents([300, 100, 200]), "test": documents([9] * 3, names="test")},
        train_docs=90,
    )
    assert set(counted(out["slice1"] + out["slice2"]).values()) == {30}


def test_test_and_validation_are_balanced_exactly():
    data = {
        "train": documents([50, 50, 50], ties=6),
        "validation": documents([9, 30, 12], names="validation", ties=3),
        "test": documents([20, 8, 15], names="test"),
    }
    out = split(data, validation_docs=None, test_docs=20)
    assert counted(out["test"]) == {0: 6, 1: 6, 2: 6}
    assert counted(out["validation"]) == {0: 9, 1: 9, 2: 9}
    assert counted(out["slice1"] + out["slice2"]) == {0: 50, 1: 50, 2: 50, None: 6}
    natural = split(data, balance_test=False, validation_docs=None)
    assert counted(natural["test"]) == {0: 20, 1: 8, 2: 15}
    assert counted(natural["validation"]) == {0: 9, 1: 30, 2: 12}
    carved = split({"train": data["train"]}, test_docs=30, validation_docs=15)
    assert counted(carved["test"]) == {0: 10, 1: 10, 2: 10}
    assert counted(carved["validation"]) == {0: 5, 1: 5, 2: 5}


def test_too_few_documents_of_a_class():
    data = {"train": documents([50, 50, 50]), "test": documents([5, 0, 9], names="test")}
    message = error(split, data)
    assert message == (
        "task.test_docs: all documents were asked for, but split 'test' has only 0 after balancing "
        "the classes (class 1 has 0)"
    )
    assert "has only 15 after balancing the classes (class 0 has 5)" in error(
        split, data | {"test": documents([5, 6, 9], names="test", ties=0)}, test_docs=18
    )


def test_classes_that_no_training_document_has_are_not_balanced():
    """A class that is only given by name."""
    data = {"train": documents([50, 0, 50]), "test": documents([5, 0, 9], names="test")}
    assert counted(split(data)["test"]) == {0: 5, 2: 5}


# --- external labels ------------------------------------------------------------------------------


def external(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


P_3C = [(0.2, 0.3, 0.5), (0.0, 1.0, 0.0), (0.25, 0.25, 0.5)]
FORMS = {
    "lists": [{"id": n, "p": list(p)} for n, p in enumerate(P_3C)],
    "columns": [
        # In another order than the classes.
        {"p.positive": p[2], "id": n, "p.negative": p[0], "p.neutral": p[1]}
        for n, p in enumerate(P_3C)
    ],
}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_external_probabilities(tmp_path, form, suffix):
    found = read_external_labels(external(tmp_path / f"labels{suffix}", FORMS[form]), MOODS)
    assert found == dict(enumerate(P_3C))
    soft_NC = join_labels(found, np.array([2, 0], np.uint64), "labels")
    np.testing.assert_array_equal(soft_NC, np.array([P_3C[2], P_3C[0]], np.float32))
    assert soft_NC.dtype == np.float32


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("labels", [["positive", "Neutral"], [2, 1]])
def test_external_hard_labels(tmp_path, labels, suffix):
    rows = [{"id": n, "label": label} for n, label in enumerate(labels)]
    found = read_external_labels(external(tmp_path / f"labels{suffix}", rows), MOODS)
    assert found == {0: (0, 0, 1), 1: (0, 1, 0)}


def test_external_labels_of_two_classes_with_names(tmp_path):
    classes, path = ("bad", "good"), tmp_path / "labels.jsonl"
    rows = [
        {"id": 0, "p.good": 0.75, "p.bad": 0.25},
        {"id": 1, "label": "good"},
        {"id": 2, "p": 0.5},
    ]
    assert read_external_labels(external(path, rows), classes) == {0: 0.75, 1: 1.0, 2: 0.5}
    # Other columns are ignored, as they were.
    rows = [{"id": 0, "p": 0.5, "p.good": 0.75}]
    assert read_external_labels(external(path, rows), classes) == {0: 0.5}
    assert read_external_labels(path) == {0: 0.5}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"p.negative": 0.5, "p.positive": 0.5},
            "no 'p.neutral'; columns of the classes are p.neg",
        ),
        (
            {"p.negative": 1.0, "p.neutral": 0, "p.positive": 0, "p.other": 0},
            "'p.other' is no class",
        ),
        (
            {"p.negative": 1.0, "p.neutral": 0, "p.positive": 0, "p": [1, 0, 0]},
            "both 'p' and 'p.neg",
        ),
        ({"p.negative": 1.0, "p.neutral": 0, "p.positive": ""}, "'' of class 'positive'"),
        ({"p": 0.5}, "p 0.5; allowed: 3 numbers, the probabilities of negative, neutral, positive"),
        ({"p": [0.5, 0.5]}, "p [0.5, 0.5] has 2 numbers; allowed: 3"),
        ({"p": [0.5, 0.5, 0.5]}, "p [0.5, 0.5, 0.5] has the sum 1.5"),
        (
            {"label": "netural"},
            "label 'netural' (did you mean 'neutral'?); allowed: 0 to 2, or neg",
        ),
        ({"label": 3}, "label 3; allowed: 0 to 2"),
        ({"label": -1}, "label -1; allowed: 0 to 2"),
        ({"label": 1, "p": [0, 1, 0]}, "both 'p' and 'label'"),
        ({"labels": 1}, "neither 'p' nor 'label', nor 'p.<class>' (should 'labels' be 'label'?)"),
    ],
)
def test_bad_external_labels(tmp_path, row, words):
    path = external(tmp_path / "labels.jsonl", [{"id": 7, "label": 0}, {"id": 8} | row])
    message = error(read_external_labels, path, MOODS)
    assert message.startswith(f"{path}, line 2: ") and words in message


# --- commands -------------------------------------------------------------------------------------


def command(capsys, *arguments):
    status = main(["data", *arguments])
    out, err = capsys.readouterr()
    return status, " ".join(out.split()), err


def test_check_counts_documents_by_class(capsys, tmp_path):
    write(tmp_path, "train", ["neutral"] * 5 + ["negative"] * 3 + ["positive"] * 2)
    write(tmp_path, "test", ["positive", "neutral"])
    status, out, _ = command(capsys, "check", "mine", f"--data_dir={tmp_path}")
    assert status == 0
    assert "note: classes of label: 0 = negative, 1 = neutral, 2 = positive (alphabetical" in out
    assert "0 negative 3 0.300 0 0.000 1 neutral 5 0.500 1 0.500 2 positive 2 0.200 1 0.500" in out
    assert "label 1" not in out
    assert "note: test has no document of negative; a run needs some, or protocol.bal" in out
    order = "--classes=positive,neutral,negative"
    _, out, _ = command(capsys, "check", "mine", f"--data_dir={tmp_path}", order)
    assert "0 positive 2 0.200 1 0.500 1 neutral" in out
    write(tmp_path, "test", ["other"])
    status, _, err = command(capsys, "check", "mine", f"--data_dir={tmp_path}")
    assert status == 2 and "class 'other' is that of 1 document of 'test'" in err
    status, _, err = command(capsys, "check", "mine", f"--data_dir={tmp_path}", "--classes=a")
    assert status == 2 and "task.classes: 'a' is the only class" in err


def test_check_of_many_classes_is_short(capsys, tmp_path):
    write(tmp_path, "train", [*range(60), 59])
    _, out, _ = command(capsys, "check", "mine", f"--data_dir={tmp_path}")
    assert "49 49 1 0.016" in out and "and 10 more: 11 documents of train" in out


def test_show_names_the_class(capsys, tmp_path):
    write(tmp_path, "train", ["neutral", "negative", "positive"])
    _, out, _ = command(capsys, "show", "mine", f"--data_dir={tmp_path}")
    for label, name in enumerate(MOODS):
        assert f"label {label} ({name})" in out
    undecided = Document(id=1, text="x", soft_label=(0.25, 0.75, 0))
    title = commands._title(undecided, "train", Task("mine", "", "", classes=MOODS))
    assert title == "train, id 1, soft label negative 0.25, neutral 0.75, positive 0"
    write(tmp_path, "train", [0, 1])
    _, out, _ = command(capsys, "show", "mine", f"--data_dir={tmp_path}", "--classes=bad,good")
    assert "label 0 (bad)" in out and "label 1 (good)" in out
