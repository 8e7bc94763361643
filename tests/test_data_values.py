"""Labels, groups and texts as tools write them: every spelling of "none", and of equal values."""

import csv
import json
import math

import numpy as np
import pytest
from refusals import error

from w2s_jax import testing
from w2s_jax.config.validation import validate
from w2s_jax.core.errors import InputError, shown
from w2s_jax.data import Candidate, Document, Task, register_task
from w2s_jax.data.check import split_facts
from w2s_jax.data.loading import load
from w2s_jax.data.splits import make_splits
from w2s_jax.data.tasks import TASKS
from w2s_jax.data.tokenize import hard_labels, tokenize
from w2s_jax.data.tokenizers import ByteTokenizer
from w2s_jax.data.values import group_key, is_unlabelled, parse_label, parse_soft_label
from w2s_jax.execution import workdirs
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve

NAN = float("nan")
MISSING = object()


@pytest.fixture(autouse=True)
def registered():
    """Tasks that a test registers vanish with it."""
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


def write(root, name, split, rows):
    path = root / name / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count=8, **more):
    return [{"text": f"text {n}", "label": n % 2} | more for n in range(count)]


# A test record of tasks whose label fields have different names and forms.
OTHERS = {
    "mine": ({"text": "x"}, "label"),
    "sst2": ({"sentence": "x"}, "label"),
    "boolq": ({"passage": "p", "question": "q"}, "answer"),
    "piqa": ({"goal": "g", "sol1": "a", "sol2": "b"}, "label"),
    "dream": ({"dialogue": ["d"], "question": "q", "choice": ["a", "b"]}, "answer"),
    "quartz": (
        {"para": "p", "question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}},
        "answerKey",
    ),
    "summarize_from_feedback": (
        {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}]},
        "choice",
    ),
}
NONE = [-1, -1.0, "-1", " -1.0", None, NAN, "", " ", "nan", "null", "NA", MISSING]


@pytest.mark.parametrize("name", OTHERS)
def test_a_test_split_without_labels_is_left_out_whatever_the_spelling(tmp_path, name):
    record, field = OTHERS[name]
    labelled = {"dream": "a", "quartz": "A"}.get(name, 1)
    for value in NONE:
        hidden = record if value is MISSING else record | {field: value}
        write(tmp_path, name, "validation", [record | {field: labelled}])
        path = write(tmp_path, name, "test", [hidden] * 3)
        found = load(name, data_dir=str(tmp_path))
        assert list(found.documents) == ["validation"], value
        (note,) = found.notes
        assert note.startswith(f"test: left out, because its 3 records have no label ({path}, ")
        assert value is MISSING or note.endswith(f"field {field!r}: {value!r})")
        # A single one among others is a mistake, and so is one to train on.
        path = write(tmp_path, name, "test", [record | {field: labelled}, hidden])
        assert error(load, name, data_dir=str(tmp_path)).startswith(f"{path}, line 2: field ")
        path.unlink()
        path = write(tmp_path, name, "validation", [hidden])
        message = error(load, name, data_dir=str(tmp_path))
        assert message.startswith(f"{path}, line 1: field {field!r}")
        assert message.endswith("; records of 'validation' need labels, this one is unlabelled")


def test_a_csv_file_is_unlabelled_too(tmp_path):
    write(tmp_path, "mine", "train", rows())
    with (tmp_path / "mine" / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], ["a", ""], ["b", "NaN"], ["c", "-1.0"]])
    assert "its 3 records have no label" in load("mine", data_dir=str(tmp_path)).notes[0]


def test_a_soft_label_may_be_missing_too(tmp_path):
    found = [
        {"text": "a", "label": 1, "soft_label": None},
        {"text": "b", "label": None, "soft_label": 0.25},
        {"text": "c", "soft_label": 1 + 1e-7},
    ]
    write(tmp_path, "mine", "x", found)
    documents = load("mine", data_dir=str(tmp_path)).documents["x"]
    assert [(d.label, d.soft_label) for d in documents] == [(1, None), (None, 0.25), (None, 1.0)]
    assert "soft_label': 1.00001; allowed: 0 to 1" in error(parse_soft_label, 1.00001, "x")


@pytest.mark.parametrize("value", [1, 1.0, True, "1", " 1.0 ", "TRUE", np.int64(1), np.float32(1)])
def test_spellings_of_a_label(value):
    assert parse_label(value, "x") == 1 and not is_unlabelled(value)


def test_integers_and_floats_are_labels_of_one_file(tmp_path):
    write(tmp_path, "mine", "train", [{"text": "a", "label": 1}, {"text": "b", "label": 0.0}])
    assert [d.label for d in load("mine", data_dir=str(tmp_path)).documents["train"]] == [1, 0]
    record, field = OTHERS["piqa"]
    write(tmp_path, "piqa", "test", [record | {field: "1.0"}, record | {field: 1.0}])
    documents = load("piqa", data_dir=str(tmp_path)).documents["test"]
    assert [d.meta["answer"] for d in documents if d.label] == ["b", "b"]


@pytest.mark.parametrize(
    "value,key",
    [
        (17, "17"), (17.0, "17"), ("17", "17"), (" 17 ", "17"), ("17.0", "17.0"), (17.5, "17.5"),
        (True, "True"), ("a b ", "a b"), (0, "0"), (-0.0, "0"), (math.inf, "inf"),
        (None, None), (NAN, None), ("", None), (" ", None), ("nan", "nan"),
    ],
)  # fmt: skip
def test_group_keys(value, key):
    assert group_key(value, "x") == key


@pytest.mark.parametrize("value", [[1], {"a": 1}, ("a",)])
def test_a_group_that_is_no_value_is_refused_by_line(tmp_path, value):
    path = write(tmp_path, "mine", "train", [*rows(), {"text": "x", "label": 0, "group": value}])
    assert error(load, "mine", data_dir=str(tmp_path)).startswith(f"{path}, line 9: field 'group'")


def test_one_group_stays_together_whatever_its_spelling(tmp_path):
    spell = (int, float, str, lambda n: f" {n}")
    found = [
        {"text": f"t {n}", "label": n % 2, "group": spell[n % 4](n // 4)} for n in range(80)
    ] + [{"text": f"alone {n}", "label": n % 2, "group": (NAN, None, "")[n % 3]} for n in range(60)]
    write(tmp_path, "mine", "train", found)
    documents = load("mine", data_dir=str(tmp_path)).documents
    assert sum(d.group is None for d in documents["train"]) == 60
    out = make_splits(documents, train_docs=40, test_docs=16, validation_docs=8, balance=True)
    groups = [{d.group for d in out[k]} - {None} for k in ("slice1", "slice2", "test")]
    assert all(groups) and not any(a & b for a in groups for b in groups if a is not b)


def test_groups_of_code_are_keys_already(tmp_path):
    groups = {"a": "x ", "b": "x", "c": 3.0, "d": NAN}

    def expand(record, where):
        return [Candidate(record["text"], record["label"], group=groups[record["text"]])]

    register_task(Task("own", "", "", ("text", "label"), expand))
    write(tmp_path, "own", "x", [{"text": text, "label": 1} for text in groups])
    documents = load("own", data_dir=str(tmp_path)).documents["x"]
    assert [d.group for d in documents] == ["x ", "x", "3", None]


EMPTY = {
    "multirc": {"paragraph": "p", "question": "q", "answer": " ", "label": 0},
    "sst2": {"sentence": None, "label": 0},
    "imdb": {"text": "<br />", "label": 0},
    "amazon_blitzer": {"title": "", "content": NAN, "label": 0},
    "ethics_virtue": {"scenario": "He came. [SEP] ", "label": 0},
    "hh_rlhf_helpful": {"chosen": "a", "rejected": ""},
}
FULL = {
    "multirc": {"answer": "a"}, "sst2": {"sentence": "s"}, "imdb": {"text": "t"},
    "amazon_blitzer": {"content": "c"}, "ethics_virtue": {"scenario": "He came. [SEP] brave"},
    "hh_rlhf_helpful": {"rejected": "b"},
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_built_in_tasks_skip_records_with_an_empty_text(tmp_path, name):
    path = write(tmp_path, name, "test", [EMPTY[name] | FULL[name], EMPTY[name]])
    found = load(name, data_dir=str(tmp_path))
    assert found.empty == "skip" and len(found.documents["test"]) == 1
    assert found.notes[-1] == "test: skipped 1 record with an empty text"
    message = error(load, name, data_dir=str(tmp_path), empty="error")
    assert message.startswith(f"{path}, line 2: field ") and "task.empty='skip'" in message


def test_rows_of_a_folder_are_refused_unless_they_may_be_skipped(tmp_path):
    path = write(tmp_path, "mine", "train", [*rows(), {"text": None, "label": 1}])
    message = error(load, "mine", data_dir=str(tmp_path))
    assert message.startswith(f"{path}, line 9: field 'text': empty document: None")
    assert len(load("mine", data_dir=str(tmp_path), empty="skip").documents["train"]) == 8
    assert "task.empty: unknown value 'drop'" in error(
        load, "mine", data_dir=str(tmp_path), empty="drop"
    )


class Silent(ByteTokenizer):
    """Bytes, but nothing for a text of x."""

    def encode_batch(self, texts):
        return super().encode_batch([text.replace("x", "") for text in texts])


@pytest.mark.parametrize("pair", [False, True])
def test_texts_without_a_token(tmp_path, pair):
    texts = [("a", "b"), ("xx", "c"), ("d", "e")]
    documents = [
        Document(id=n, texts=t if pair else None, text=None if pair else t[0], where=f"f, line {n}")
        for n, t in enumerate(texts)
    ]
    how = {"max_length": None, "overlong": "truncate"}
    tokenized, counts = tokenize(documents, Silent(), empty="skip", **how)
    assert tokenized.ids_N.tolist() == [0, 2] and counts["empty"] == 1
    assert (
        tokenized.document(1, 0).tolist()
        == tokenize(documents[2:], Silent(), **how)[0].document(0, 0).tolist()
    )
    message = error(tokenize, documents, Silent(), empty="error", **how)
    assert message.startswith("f, line 1 has no tokens for the tokenizer bytes: 'xx'")
    assert len(tokenize(documents[1:2], Silent(), empty="skip", **how)[0]) == 0


def test_pairs_that_truncation_makes_equal_are_counted():
    pairs = [("same start a", "same start b"), ("a same end", "b same end"), ("x" * 9, "x" * 9)]
    documents = [Document(id=n, texts=pair) for n, pair in enumerate(pairs)]
    for side, same in (("end", 1), ("start", 1)):
        tokenized, counts = tokenize(
            documents, ByteTokenizer(), max_length=8, overlong="truncate", truncate=side
        )
        assert counts["same"] == same  # equal texts have not become equal
        assert set(tokenized.piece_lengths_P.tolist()) == {8}


def test_pairs_are_cut_at_the_start_unless_their_task_says_otherwise(tmp_path):
    write(tmp_path, "mine", "x", [{"text_a": "a", "text_b": "b", "label": 1}])
    assert load("mine", data_dir=str(tmp_path)).task.truncate == "start"
    assert Task("a", "", "", kind="preference").truncate == "start"
    assert Task("a", "", "", kind="preference", truncate="end").truncate == "end"
    assert Task("a", "", "").truncate == "end"


def tied(count, start=0, every=4):
    return [
        Document(id=n + 1, text=f"text {n}", soft_label=0.5 if n % every == 0 else (n % 3) / 2.5)
        for n in range(start, start + count)
    ]


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("official", [False, True])
def test_ties_are_never_evaluated(official, balance, grouping):
    documents = {"train": tied(400)}
    if official:
        documents |= {"test": tied(80, 400), "validation": tied(80, 480)}
    ties = {}
    out = make_splits(
        documents, train_docs=200, test_docs=30, validation_docs=20, balance=balance,
        grouping=grouping, ties=ties,
    )  # fmt: skip
    assert [len(out[k]) for k in ("test", "validation")] == [30, 20]
    assert not any(d.is_tie for k in ("test", "validation") for d in out[k])
    assert ties == {"train": 100} | ({"test": 20, "validation": 20} if official else {})
    # In training they are neither class, and spread evenly.
    for name in ("slice1", "slice2"):
        facts = split_facts(out[name], np.zeros(len(out[name])))
        undecided = sum(d.is_tie for d in out[name])
        assert 15 < undecided <= 50
        if balance:
            assert abs(facts.positive - (len(out[name]) - undecided - facts.positive)) <= 2
    if official:
        message = error(
            make_splits, documents, train_docs=20, test_docs=70, validation_docs=20, balance=False
        )
        assert "split 'test' has only 60 (and 20 ties, soft_label 0.5)" in message


def test_balancing_keeps_ties():
    documents = tied(400, every=2) + [
        Document(id=n, text=f"one {n}", label=1) for n in range(1000, 1300)
    ]
    out = make_splits(
        {"train": documents}, train_docs=None, test_docs=8, validation_docs=0, balance=True
    )
    training = out["slice1"] + out["slice2"]
    labels = [d.hard_label for d in training]
    assert labels.count(None) == 200 and labels.count(0) == labels.count(1)


def test_documents_and_arrays_agree_on_ties():
    soft = [0.5, 0.5 + 1e-9, 0.5 + 1e-6, 0.5 - 1e-6, 0.0, 1.0]
    documents = [Document(id=n, text="a", soft_label=p) for n, p in enumerate(soft)]
    tokenized, _ = tokenize(documents, ByteTokenizer(), max_length=None, overlong="error")
    expected = [NAN if d.hard_label is None else d.hard_label for d in documents]
    assert [d.is_tie for d in documents] == [True, True, False, False, False, False]
    np.testing.assert_array_equal(hard_labels(tokenized.labels_N), np.float32(expected))
    assert Document(id=1, text="a", label=1, soft_label=0.5).hard_label == 1
    assert Document(id=1, text="a").hard_label is None and not Document(id=1, text="a").is_tie


LONG = "long " * 1000


@pytest.mark.parametrize(
    "name,record",
    [
        ("mine", {"text": "x", "label": LONG}),
        ("mine", {"text": [LONG], "label": 1}),
        ("mine", {f"column {n}": n for n in range(500)} | {"label": 1}),
        ("mine", {"text": "x", "label": 1, "group": [LONG]}),
        ("mine", {"text": "x", "soft_label": LONG}),
        ("boolq", OTHERS["boolq"][0] | {"answer": LONG}),
        ("piqa", OTHERS["piqa"][0] | {"label": LONG}),
        ("dream", OTHERS["dream"][0] | {"answer": LONG}),
        ("dream", OTHERS["dream"][0] | {"choice": LONG, "answer": "a"}),
        ("quartz", OTHERS["quartz"][0] | {"choices": LONG, "answerKey": "A"}),
        ("summarize_from_feedback", {"info": LONG, "summaries": [], "choice": 0}),
        ("summarize_from_feedback", {"info": {"post": "p"}, "summaries": [LONG], "choice": 0}),
        ("ethics_virtue", {"scenario": LONG, "label": 1}),
        ("gsm8k_verification", {"question": "q", "answer": LONG}),
    ],
)
def test_long_values_are_cut_and_the_place_is_kept(tmp_path, name, record):
    path = write(tmp_path, TASKS[name].folder or name if name in TASKS else name, "x", [record])
    message = error(load, name, data_dir=str(tmp_path))
    assert message.startswith(f"{path}, line 1: ") and len(message) < len(str(path)) + 500


def test_an_error_of_a_users_task_has_the_place_once(tmp_path):
    def expand(record, where):
        raise InputError("no good")

    register_task(Task("own", "", "", ("text",), expand))
    path = write(tmp_path, "own", "x", [{"text": "a"}])
    assert error(load, "own", data_dir=str(tmp_path)) == f"{path}, line 1: no good"


def test_a_text_that_cannot_be_encoded_is_named():
    class Strict(ByteTokenizer):
        def encode_batch(self, texts):
            if "bad" in texts:
                raise InputError("cannot encode a text")
            return super().encode_batch(texts)

    documents = [Document(id=n, text=t, where=f"f, line {n}") for n, t in enumerate(["a", "bad"])]
    message = error(tokenize, documents, Strict(), max_length=None, overlong="error")
    assert message == "f, line 1: cannot encode a text"


def test_shown():
    assert shown("a") == "'a'" and shown(NAN) == "nan"
    for value in ("x" * 1000, list(range(1000)), "\n" * 100):
        assert len(shown(value)) == 80 and shown(value).endswith("...")


def resolved(root, **fields):
    """A resolved run on the folder `mine`, which has only training documents."""
    config = testing.tiny_config(root)
    config.pretrain.source = None
    config.task.name, config.task.test_docs, config.task.validation_docs = "mine", 16, 8
    config.task.max_length = 24
    config.task.update(fields)
    return resolve(validate(config))


def names(found):
    return [phase.name for phase in plan(found).phases]


def test_the_side_of_truncation_is_part_of_the_fingerprint_where_it_matters(tmp_path):
    def pair(n):
        return {"text_a": f"{n} begins {n} ", "text_b": f"{n} began {n} ", "label": n % 2}

    short = [pair(n) for n in range(160)]
    write(tmp_path, "mine", "train", short)
    same = [names(resolved(tmp_path, truncate=side)) for side in (None, "start", "end")]
    assert same[0] == same[1] == same[2]
    long = [
        r | {k: f"one question for all pairs {n} {r[k]}" for k in ("text_a", "text_b")}
        for n, r in enumerate(short)
    ]
    write(tmp_path, "mine", "train", long)
    found = {side: resolved(tmp_path, truncate=side) for side in (None, "start", "end")}
    assert names(found[None]) == names(found["start"]) != names(found["end"])
    notes = [note for note in found["end"].notes if "the same text twice" in note]
    assert [note.split(" pairs")[0] for note in notes] == [
        "slice1: 68 of 68", "slice2: 68 of 68", "validation: 8 of 8", "test: 16 of 16",
    ]  # fmt: skip
    assert not any("same text twice" in note for note in found[None].notes)
    # A working directory goes on with another spelling of the same choice, and with no other.
    stored = {"config": {"task": {"truncate": None}}, "data": found[None].digests}
    workdirs.refuse_other_data(tmp_path, stored, found["start"])
    message = error(workdirs.refuse_other_data, tmp_path, stored, found["end"])
    assert "differs in task.truncate (None there, 'end' now); the documents of slice1" in message
    before = {"config": {"task": {}}, "data": found["end"].digests}
    workdirs.refuse_other_data(tmp_path, before, found["end"])
    message = error(workdirs.refuse_other_data, tmp_path, before, found[None])
    assert "the side at which pairs are cut (task.truncate=end there)" in message
    config = testing.tiny_config(tmp_path)
    config.task.truncate, config.task.empty = "start", "error"
    earlier = json.loads(json.dumps(testing.tiny_config(tmp_path).to_dict()))
    workdirs.refuse_other_config(tmp_path, earlier, {}, config)
    earlier["task"]["truncate"] = "end"
    assert "task.truncate ('end' there, 'start' now)" in error(
        workdirs.refuse_other_config, tmp_path, earlier, {}, config
    )
    assert error(resolved, tmp_path, truncate="middle").startswith("task.truncate: ")


def test_a_run_says_what_it_left_out(tmp_path, monkeypatch):
    import w2s_jax.planning.readers as module

    monkeypatch.setattr(module, "load_tokenizer", lambda _: Silent())
    found = rows(200) + [{"text": " ", "label": 1}] + [{"text": "xxx", "label": 1, "group": 5}] * 3
    found += [{"text": f"tie {n}", "soft_label": 0.5} for n in range(20)]
    path = write(tmp_path, "mine", "train", found)
    test = [{"text": f"test {n}", "label": n % 2} for n in range(100)]
    write(tmp_path, "mine", "test", [*test, {"text": "xx", "label": 0, "group": 6}])
    assert error(resolved, tmp_path).startswith(f"{path}, line 201: field 'text': empty document")
    del found[200]
    write(tmp_path, "mine", "train", found)
    assert error(resolved, tmp_path).startswith(f"{path}, line 201 has no tokens")
    skipped = resolved(tmp_path, empty="skip")
    what = "with a text that gives no token (task.empty)"
    assert f"train: skipped 3 documents {what}" in skipped.notes
    assert f"test: skipped 1 document {what}" in skipped.notes
    assert "train: 20 ties (soft_label 0.5), which are never evaluated" in skipped.notes
    write(tmp_path, "mine", "train", found[:200] + found[203:])
    write(tmp_path, "mine", "test", test)
    # As if they had never been there.
    assert names(resolved(tmp_path)) == names(skipped)
