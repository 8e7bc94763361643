"""Tasks: the registry, item expansion, digits against scikit-learn, real files where given."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data import Document, Task, load_task, register_task
from w2s_jax.data.loading import parse_label
from w2s_jax.data.splits import make_splits
from w2s_jax.data.task import Candidate
from w2s_jax.data.tasks import TASKS, digits, get_task


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def sciq_record(n, **changes):
    return {
        "question": f"What is {n}?",
        "correct_answer": f"right {n}",
        "distractor1": f"w1 {n}",
        "distractor2": f"w2 {n}",
        "distractor3": f"w3 {n}",
        "support": f"About {n}.",
    } | changes


def test_importing_data_is_cheap():
    heavy = ("jax", "flax", "sklearn", "scipy", "pandas", "pyarrow")
    code = (
        "import sys, w2s_jax.data, w2s_jax.data.splits, w2s_jax.data.tokenize; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert out.stdout.strip() == "[]"


def test_registry(tmp_path):
    def expand(record, where):
        return [Candidate(record["a"] + record["b"], record["label"], meta={"where": where})]

    task = Task(
        name="joined", description="", licence="", fields=("a", "b", "label"), expand=expand
    )
    assert register_task(task) is task is get_task("joined")
    with pytest.raises(InputError, match="'joined' is already registered"):
        register_task(task)
    with pytest.raises(InputError, match="neither"):
        register_task(Task(name="empty", description="", licence=""))
    path = write(
        tmp_path / "joined" / "train.jsonl",
        [{"a": "x", "b": "y", "label": 0}, {"a": "z", "b": "", "label": 1}],
    )
    documents = load_task("joined", data_dir=str(tmp_path))["train"]
    assert [(d.text, d.label) for d in documents] == [("xy", 0), ("z", 1)]
    assert documents[1].meta["where"] == f"{path}, line 2"
    write(path, [{"a": "x", "b": "y", "label": 0}, {"a": " ", "b": "", "label": 1}])
    with pytest.raises(InputError, match=r"line 2: fields a, b, label: empty document: ' '"):
        load_task("joined", data_dir=str(tmp_path))


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match=r"task\.name: unknown value 'scqi' \(did you mean 'sciq'"):
        load_task("scqi")
    with pytest.raises(InputError, match=rf"no data files in {tmp_path}"):
        load_task("mine", data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"task\.source: unknown value 'file' .*'files'"):
        load_task("sciq", source="file")
    with pytest.raises(InputError, match=r"protocol\.name: unknown value 'papers'"):
        load_task("sciq", protocol="papers")
    with pytest.raises(InputError, match=r"protocol\.item_expansion: unknown value 'two'"):
        load_task("sciq", item_expansion="two")
    with pytest.raises(InputError, match=r"task\.source: 'embedded'.*'sciq'"):
        load_task("sciq", source="embedded")
    with pytest.raises(InputError, match=r"task\.source: 'files'.*'digits_even'"):
        load_task("digits_even", source="files")
    with pytest.raises(InputError, match=r"task\.data_dir.*'sciq'.*W2S_DATA_DIR"):
        load_task("sciq")


def test_equal_records_get_distinct_ids_whatever_their_order(tmp_path):
    records = [
        {"text": "a", "label": 1},
        {"text": "b", "label": 0},
        {"text": "a", "label": 1},
        {"text": "a", "label": 0},
        {"text": "a", "label": 1},
    ]
    write(tmp_path / "mine" / "train.jsonl", records)
    one = load_task("mine", data_dir=str(tmp_path))["train"]
    assert len(one) == 5 == len({d.id for d in one})
    write(tmp_path / "mine" / "train.jsonl", records[::-1])
    two = load_task("mine", data_dir=str(tmp_path))["train"]

    def content(documents):
        return {d.id: (d.text, d.label) for d in documents}

    assert content(one) == content(two)
    assert one[1].id == 370748136847964048  # frozen


def test_expansion_all_pairs_right_with_one_wrong(tmp_path):
    write(tmp_path / "sciq" / "train.jsonl", [sciq_record(n) for n in range(300)])
    load = {"data_dir": str(tmp_path)}
    documents = load_task("sciq", **load)["train"]
    assert len(documents) == 600
    wrong = []
    for n, (right, other) in enumerate(zip(documents[::2], documents[1::2], strict=True)):
        assert (right.label, other.label) == (1, 0)
        assert right.group == other.group == f"What is {n}?"
        assert right.meta["answer"] == f"right {n}"
        assert f"right {n}" in right.text and f"What is {n}?" in right.text
        assert other.meta["answer"] in other.text and f"right {n}" not in other.text
        wrong.append(other.meta["answer"][:2])
    # Each wrong answer has its share: 100 of 300, standard deviation 8.
    assert all(abs(count - 100) < 40 for count in Counter(wrong).values()) and len(set(wrong)) == 3
    assert load_task("sciq", seed=1, **load)["train"] == documents
    other_seed = load_task("sciq", split_seed=1, **load)["train"]
    assert other_seed != documents and other_seed[::2] == documents[::2]
    # A record's draw does not depend on the others.
    write(tmp_path / "sciq" / "train.jsonl", [sciq_record(n) for n in range(250, 260)])
    assert load_task("sciq", **load)["train"] == documents[500:520]


def test_expansion_one_draws_with_the_seed(tmp_path):
    write(tmp_path / "sciq" / "train.jsonl", [sciq_record(n) for n in range(400)])
    load = {"data_dir": str(tmp_path), "protocol": "released"}
    documents = load_task("sciq", **load)["train"]
    assert len(documents) == 400 and len({d.group for d in documents}) == 400
    assert abs(sum(d.label for d in documents) - 200) < 50  # standard deviation 10
    answers = Counter(d.meta["answer"][:2] for d in documents if d.label == 0)
    assert len(answers) == 3 and min(answers.values()) > 30
    assert load_task("sciq", split_seed=1, **load)["train"] == documents
    other = load_task("sciq", seed=1, **load)["train"]
    same = sum(a == b for a, b in zip(documents, other, strict=True))
    assert 70 < same < 200  # expected: 1/4 + 1/12 of 400 = 133
    assert load_task("sciq", data_dir=str(tmp_path), item_expansion="one")["train"] == documents
    assert len(load_task("sciq", item_expansion="all", **load)["train"]) == 800


def test_frozen_draws(tmp_path):
    write(tmp_path / "sciq" / "train.jsonl", [sciq_record(n) for n in range(8)])
    everything = load_task("sciq", data_dir=str(tmp_path))["train"]
    one = load_task("sciq", data_dir=str(tmp_path), protocol="released")["train"]
    assert [d.meta["answer"][:2] for d in everything[1::2]] == (
        ["w3", "w2", "w1", "w1", "w1", "w3", "w3", "w2"]
    )
    assert [d.meta["answer"][:2] for d in one] == (["w3", "ri", "w2", "ri", "ri", "ri", "ri", "w2"])


def test_sciq_oddities(tmp_path):
    same = sciq_record(0, distractor1="Right 0 ", distractor3="RIGHT 0")
    path = write(tmp_path / "sciq" / "train.jsonl", [same, sciq_record(1, support="")])
    documents = load_task("sciq", data_dir=str(tmp_path))["train"]
    assert documents[1].meta["answer"] == "w2 0"
    supported = load_task("sciq_with_support", data_dir=str(tmp_path))["train"]
    assert supported[0].text == "About 0.\n\n" + documents[0].text
    assert supported[2].text == documents[2].text and supported[2].id != documents[2].id
    write(
        path, [sciq_record(0, distractor1="right 0", distractor2="right 0", distractor3="right 0")]
    )
    with pytest.raises(InputError, match=rf"{path}, line 1: field 'distractor1'.*'right 0'"):
        load_task("sciq", data_dir=str(tmp_path))
    write(path, [sciq_record(0), sciq_record(1, correct_answer=" ")])
    with pytest.raises(InputError, match=rf"{path}, line 2: field 'correct_answer': empty"):
        load_task("sciq", data_dir=str(tmp_path), empty="error")
    with pytest.raises(InputError, match=r"task 'sciq_with_support'|task 'sciq'"):
        load_task("sciq_with_support", data_dir=str(tmp_path / "none"))


def test_sentiment_texts(tmp_path):
    cases = {
        "sst2": ({"sentence": "fine film "}, "fine film"),
        "imdb": ({"text": "One.<br /><br />Two."}, "One.\n\nTwo."),
        "rotten_tomatoes": ({"text": "so so"}, "so so"),
        "amazon_blitzer": ({"title": "Good", "content": "Bought it."}, "Good\nBought it."),
    }
    for name, (record, text) in cases.items():
        empty = dict.fromkeys(record, " ")
        path = write(tmp_path / name / "test.jsonl", [record | {"label": 1}])
        (document,) = load_task(name, data_dir=str(tmp_path))["test"]
        assert (document.text, document.label, document.group) == (text, 1, None)
        write(path, [record | {"label": 1}, empty | {"label": 0}])
        with pytest.raises(InputError, match=rf"{path}, line 2: fields? .*empty document"):
            load_task(name, data_dir=str(tmp_path), empty="error")
    path = write(
        tmp_path / "amazon_blitzer" / "test.jsonl",
        [{"title": "", "content": "c", "label": 1}, {"title": "t", "content": "", "label": 0}],
    )
    assert [d.text for d in load_task("amazon_blitzer", data_dir=str(tmp_path))["test"]] == [
        "c",
        "t",
    ]


def test_parse_label():
    good = [0, 1, 0.0, 1.0, False, True, "0", "1", "True", "False", -1, "-1"]
    assert [parse_label(v, "x") for v in good] == [0, 1, 0, 1, 0, 1, 0, 1, 1, 0, -1, -1]
    for bad in (2, 0.5, "2", "one", "yes", [], {}, float("inf"), 10**400):
        with pytest.raises(InputError, match=r"^here: field 'label': "):
            parse_label(bad, "here")


@pytest.fixture(scope="module")
def digit_documents():
    return load_task("digits_even")


def test_digits_are_those_of_scikit_learn(digit_documents):
    from sklearn.datasets import load_digits

    data = load_digits()
    seen = []
    for split in ("train", "validation", "test"):
        for document in digit_documents[split]:
            index = document.meta["index"]
            seen.append(index)
            assert document.tokens == (1, *(2 + int(v) for v in data.images[index].ravel()))
            assert document.label == 1 - data.target[index] % 2
            assert document.loss_weights is None
    shifted = Counter(d.meta["index"] for d in digit_documents["pretrain"])
    assert set(shifted.values()) == {9}
    assert sorted([*seen, *shifted]) == list(range(1797))
    assert {k: len(v) for k, v in digit_documents.items()} == {
        "train": 600,
        "validation": 100,
        "test": 400,
        "pretrain": 697 * 9,
    }
    for split, even in (("train", 300), ("validation", 50), ("test", 200)):
        assert sum(d.label for d in digit_documents[split]) == even
    groups = [{d.group for d in docs} for docs in digit_documents.values()]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 1797
    every = [d.id for docs in digit_documents.values() for d in docs]
    assert len(every) == len(set(every))


def test_digits_pretraining_documents(digit_documents):
    from scipy.ndimage import shift
    from sklearn.datasets import load_digits

    data = load_digits()
    for document in digit_documents["pretrain"][::37]:
        index, (dy, dx) = document.meta["index"], document.meta["shift"]
        expected = shift(data.images[index], (dy, dx), order=0, cval=0.0)
        pixels = np.array(document.tokens[1:-1]).reshape(8, 8) - 2
        np.testing.assert_array_equal(pixels, expected)
        assert document.tokens[0] == 1 and document.tokens[-1] == 19 + data.target[index]
        assert document.label is None
        assert document.loss_weights == (0.0, *[1 / 64] * 64, 1.0)
        assert len(document.tokens) == 66
    shifts = {d.meta["shift"] for d in digit_documents["pretrain"]}
    assert shifts == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    space = get_task("digits_even").token_space
    assert (space.vocab_size, space.pad_id, space.bos_id, space.label_tokens) == (
        29,
        0,
        1,
        (20, 19),  # the captions "1", which is odd, and "0", which is even
    )
    assert max(max(d.tokens) for d in digit_documents["pretrain"]) == 28


def test_digits_partition_is_stable(digit_documents):
    again = digits.load(split_seed=0)
    assert again == digit_documents
    other = load_task("digits_even", split_seed=1)
    assert {d.id for d in other["test"]} != {d.id for d in digit_documents["test"]}
    assert load_task("digits_even", seed=5, protocol="released") == digit_documents
    first = digit_documents["test"][0]
    assert (first.id, first.meta["index"]) == (14793444634941066582, 1579)  # frozen
    out = make_splits(
        digit_documents, train_docs=600, test_docs=400, validation_docs=100, balance=True
    )
    assert [len(out[k]) for k in ("slice1", "slice2", "validation", "test")] == [300, 300, 100, 400]
    assert [sum(d.label for d in out[k]) for k in ("slice1", "slice2")] == [150, 150]
    assert out["pretrain"] == digit_documents["pretrain"]


def real_data():
    root = os.environ.get("W2S_TEST_DATA")
    if not root:
        pytest.skip("W2S_TEST_DATA is not set: no real data")
    return str(Path(root) / "data")


# Rows and label 1 of each split, as the data's manifest states them.
REAL = {
    "sst2": {"train": (6000, 3338), "validation": (872, 444), "test": (1821, 904)},
    "amazon_blitzer": {"train": (6000, 3057), "test": (1854, 914)},
    "imdb": {"train": (6000, 3005), "test": (2000, 1019)},
    "rotten_tomatoes": {"train": (6000, 2995), "validation": (1066, 542), "test": (1066, 530)},
    "sciq": {"train": (12000, 6000), "validation": (2000, 1000), "test": (2000, 1000)},
    "sciq_with_support": {"train": (12000, 6000), "validation": (2000, 1000), "test": (2000, 1000)},
}


@pytest.mark.parametrize("name", list(REAL))
def test_real_data(name):
    documents = load_task(name, data_dir=real_data())
    assert {k: (len(v), sum(d.label for d in v)) for k, v in documents.items()} == REAL[name]
    out = make_splits(documents, train_docs=3000, test_docs=800, validation_docs=200, balance=True)
    assert [len(out[k]) for k in ("slice1", "slice2", "validation", "test")] == [
        1500,
        1500,
        200,
        800,
    ]
    assert sum(d.label for d in out["test"]) == 400
    for part in ("slice1", "slice2"):
        assert 0.45 <= sum(d.label for d in out[part]) / 1500 <= 0.55
    if name.startswith("sciq"):
        sides = [{d.group for d in out[k]} for k in ("slice1", "slice2", "validation", "test")]
        assert len(set.union(*sides)) == sum(map(len, sides))
        assert all(isinstance(d, Document) and "right?" in d.text for d in out["test"])


def test_real_support_text():
    documents = load_task("sciq_with_support", data_dir=real_data())["train"]
    plain = load_task("sciq", data_dir=real_data())["train"]
    with_support = sum(
        len(s.text) > len(p.text) for s, p in zip(documents[::2], plain[::2], strict=True)
    )
    assert with_support == 5413


def test_of_texts_in_several_orders_one_is_drawn_by_content(tmp_path):
    rows = [{"chosen": f"\n\nHuman: {i}?\n\nAssistant: yes {i}", "rejected": f"\n\nHuman: {i}?\n\n"
             f"Assistant: no {i}"} for i in range(400)]  # fmt: skip
    write(tmp_path / "hh_rlhf_helpful" / "train.jsonl", rows)
    load = {"data_dir": str(tmp_path)}
    documents = load_task("hh_rlhf_helpful", **load)["train"]
    assert len(documents) == 400
    assert abs(sum(d.label for d in documents) - 200) < 50  # standard deviation 10
    for document in documents:
        assert (
            "yes" in document.texts[document.label] and "no" in document.texts[1 - document.label]
        )
    assert load_task("hh_rlhf_helpful", protocol="released", seed=3, **load)["train"] == documents
    other = load_task("hh_rlhf_helpful", split_seed=1, **load)["train"]
    assert 130 < sum(a.label == b.label for a, b in zip(documents, other, strict=True)) < 270


def test_tasks_without_code(tmp_path):
    load = {"data_dir": str(tmp_path)}
    train = [{"text": f"t{i}", "soft_label": i / 10, "group": f"g{i // 2}"} for i in range(10)]
    write(tmp_path / "judged" / "train.jsonl", train)
    write(
        tmp_path / "judged" / "test.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    )
    documents = load_task("judged", **load)
    assert [d.soft_label for d in documents["train"]] == [i / 10 for i in range(10)]
    assert [d.group for d in documents["train"]] == [f"g{i // 2}" for i in range(10)]
    assert [(d.label, d.soft_label) for d in documents["test"]] == [(1, None), (0, None)]
    # The same numbers, as CSV has them and as integers, give the same ids.
    lines = "\n".join(["text,soft_label", "a,1.0", "b,0.50"])
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "x.csv").write_text(lines)
    as_csv = load_task("csv", **load)["x"]
    (tmp_path / "csv" / "x.csv").unlink()
    write(
        tmp_path / "csv" / "x.jsonl",
        [{"text": "a", "soft_label": 1}, {"text": "b", "soft_label": 0.5}],
    )
    assert [d.id for d in load_task("csv", **load)["x"]] == [d.id for d in as_csv]
    bad = {
        "field 'label' is missing; the record has: text": [{"text": "a"}],
        r"line 2: field 'soft_label': '0.5' is of type str": [
            {"text": "a", "soft_label": 0.5}, {"text": "b", "soft_label": "0.5"},
        ],
        r"'soft_label': 1\.5; allowed: 0 to 1": [{"text": "a", "soft_label": 1.5}],
        "both 'text' and 'text_a'": [{"text": "a", "text_a": "b", "text_b": "c", "label": 1}],
    }  # fmt: skip
    for message, rows in bad.items():
        write(tmp_path / "bad" / "test.jsonl", rows)
        with pytest.raises(InputError, match=message):
            load_task("bad", **load)


def test_expand_of_a_user_that_fails_is_one_line(tmp_path):
    path = write(tmp_path / "own" / "train.jsonl", [{"a": "x", "label": 0}])
    for expand, message in (
        (lambda r, p: [Candidate(r["b"], 1)], rf"{path}, line 1: `expand` of task 'own' fails"),
        (
            lambda r, p: 1 / 0,
            r"line 1: `expand` of task .own. fails \(ZeroDivisionError: division by",
        ),
        (lambda r, p: r["b" * 999], r"fails \(KeyError: .b{140,150}\.\.\.\); the record has: "),
        (
            lambda r, p: r["a"],
            rf"{path}, line 1: `expand` of task 'own' returns 'x'; it must return a list",
        ),
    ):
        TASKS.pop("own", None)
        register_task(Task("own", "", "", ("a", "label"), expand))
        with pytest.raises(InputError, match=message):
            load_task("own", data_dir=str(tmp_path))


def test_files_may_have_the_hubs_names_of_splits(tmp_path):
    row = {"scenario": "I deserve a cake because I baked it.", "label": 1}
    for n, split in enumerate(("train", "validation", "test")):
        rows = [row | {"scenario": f"{n} {i} because"} | {"label": i % 2} for i in range(4)]
        write(tmp_path / "ethics_justice" / f"{split}.jsonl", rows)
    documents = load_task("ethics_justice", data_dir=str(tmp_path))
    assert list(documents) == ["train", "test", "test_hard"]
    assert documents["test"][0].text.startswith("1 0")  # validation on the hub
    path = tmp_path / "ethics_justice" / "test_hard.jsonl"
    path.write_text((tmp_path / "ethics_justice" / "test.jsonl").read_text())
    assert load_task("ethics_justice", data_dir=str(tmp_path))["test"][0].text.startswith("2 0")


def test_folders_that_hold_no_data_files(tmp_path):
    load = {"data_dir": str(tmp_path)}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.xlsx").write_text("")
    with pytest.raises(
        InputError, match=r"'mine' is not a known task.* contains only train\.xlsx; supported"
    ):
        load_task("mine", **load)
    (tmp_path / "mine" / "train.jsonl").mkdir()
    with pytest.raises(InputError, match="'mine' is not a known task"):
        load_task("mine", **load)
    write(tmp_path / "parts" / "train-00000-of-00002.jsonl", [{"text": "a", "label": 1}])
    with pytest.raises(InputError, match="shards are not supported"):
        load_task("parts", **load)
    with pytest.raises(InputError, match=rf"task\.data_dir: there is no folder {tmp_path}/none"):
        load_task("sciq", data_dir=str(tmp_path / "none"), source="files")
