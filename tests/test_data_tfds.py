"""Prepared TFDS folders: nothing is lost, nothing looks complete before it is, no network."""

import hashlib
import json
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from refusals import error

from w2s_jax.core.errors import StorageError
from w2s_jax.data import tfds as our_tfds
from w2s_jax.data.documents import stable_id
from w2s_jax.data.loading import load, load_task
from w2s_jax.data.prepare import prepare, record_hash, record_json
from w2s_jax.data.sources import open_records, read_corpus
from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks import TASKS
from w2s_jax.data.tfds import read_prepared


def expand(record, place):
    return [
        Candidate(record["question"] + str(record["answers"]), record["label"], record["group"])
    ]


TASK = Task(
    name="quiz",
    description="A task of these tests.",
    licence="none",
    fields=("question", "answers", "label", "group"),
    expand=expand,
)


@pytest.fixture(autouse=True)
def quiz(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    monkeypatch.setitem(TASKS, "quiz", TASK)

    def no_network(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)


def quiz_record(n, **changes):
    record = {
        "question": f"naïve 🙂 {n // 2}\n",
        "answers": [f"a{n // 2}", None, 0.1 * n, {"z": True, "a": -0.0}],
        "label": n // 2 % 2,
        "group": f"g{n % 5}",
    }
    return record | changes


def dumps(record, sort_keys=True):
    """JSON as in the definition of ids."""
    return json.dumps(record, sort_keys=sort_keys, ensure_ascii=False, separators=(",", ":"))


def write_quiz(root, splits=("train", "validation", "test_hard"), count=40):
    """Each record occurs twice in its split."""
    for split in splits:
        path = root / "quiz" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [quiz_record(n) for n in range(count)]
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return root


def test_prepared_documents_are_those_of_the_files(tmp_path, monkeypatch):
    files, ready = write_quiz(tmp_path / "files"), tmp_path / "ready"
    summary = prepare("quiz", ready, data_dir=str(files))
    assert summary.folder == ready / "quiz" / "1.0.0" and summary.source == "files"
    assert summary.records == {"test_hard": 40, "train": 40, "validation": 40}
    assert "quiz" in str(summary) and "40 train" in str(summary)
    assert not [p for p in (ready / "quiz").iterdir() if p.name != "1.0.0"]
    a = load("quiz", data_dir=str(files))
    b = load("quiz", data_dir=str(ready))
    assert (a.source, b.source) == ("files", "tfds") and b.location == str(summary.folder)
    assert a.documents == b.documents and list(a.documents) == list(b.documents)
    assert len({d.id for d in b.documents["train"]}) == 40
    # A prepared folder already has our names and fields.
    monkeypatch.setitem(TASKS, "quiz", replace(TASK, tfds=ORIGIN))
    assert load("quiz", data_dir=str(ready)).documents == a.documents


def test_ids_and_digest_from_the_plain_definition(tmp_path):
    prepare("quiz", tmp_path / "ready", data_dir=str(write_quiz(tmp_path / "files", ("train",))))
    digest = hashlib.sha256()
    found = read_prepared(tmp_path / "ready/quiz/1.0.0", "train")
    assert len(found) == 40
    for n, item in enumerate(found):
        assert item["index"] == n and item["record"] == quiz_record(n)
        text = dumps(quiz_record(n))
        # Records of index 0 and 1 differ in their group, so none is repeated here.
        assert item["id"] == stable_id(stable_id("record", "quiz", "train", text), 0)
        digest.update(item["id"].to_bytes(8, "little"))
        stored = dumps(quiz_record(n), sort_keys=False).encode()
        digest.update(len(stored).to_bytes(8, "little") + stored)
    info = our_tfds.read_info(tmp_path / "ready/quiz/1.0.0")
    assert info["splits"] == {"train": {"records": 40, "sha256": digest.hexdigest()}}
    assert info["task"] == "quiz" and info["source"] == "files"
    assert any(item["id"] >= 2**63 for item in found)


def test_equal_records_get_distinct_ids_in_their_order(tmp_path):
    path = tmp_path / "files" / "quiz" / "train.jsonl"
    path.parent.mkdir(parents=True)
    one, two = quiz_record(0), quiz_record(2)
    turned = dict(reversed(one.items()))
    path.write_text("".join(json.dumps(r) + "\n" for r in (one, two, turned, one)))
    prepare("quiz", tmp_path / "ready", data_dir=str(tmp_path / "files"))
    ids = [item["id"] for item in read_prepared(tmp_path / "ready/quiz/1.0.0", "train")]
    base = [stable_id("record", "quiz", "train", dumps(r)) for r in (one, two)]
    assert ids == [
        stable_id(base[0], 0),
        stable_id(base[1], 0),
        stable_id(base[0], 1),
        stable_id(base[0], 2),
    ]


def test_a_stranger_reads_it_with_tfds_alone_and_after_a_move(tmp_path, monkeypatch):
    # Several shards, so that their order matters.
    monkeypatch.setattr("w2s_jax.data.prepare._SHARD_BYTES", 1000)
    prepare("quiz", tmp_path / "ready", data_dir=str(write_quiz(tmp_path / "files")))
    (tmp_path / "ready").rename(tmp_path / "moved")
    folder = tmp_path / "moved/quiz/1.0.0"
    assert len(list(folder.glob("quiz-train.array_record-*"))) > 3
    code = (
        "import json, sys, tensorflow_datasets as tfds\n"
        "builder = tfds.builder_from_directory(sys.argv[1])\n"
        "assert builder.info.splits['validation'].num_examples == 40\n"
        "same = tfds.builder('quiz', data_dir=sys.argv[2])\n"
        "assert same.info.full_name == builder.info.full_name == 'quiz/1.0.0'\n"
        "for example in builder.as_data_source('train'):\n"
        "    print(json.dumps([int(example['index']), example['record'].decode()]))\n"
        "assert 'tensorflow' not in sys.modules and 'w2s_jax' not in sys.modules\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "moved")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = [json.loads(line) for line in out.splitlines()]
    assert [index for index, _ in found] == list(range(40))
    assert [json.loads(text) for _, text in found] == [quiz_record(n) for n in range(40)]


def _third(split):
    return split[3]["id"], os.getpid()


def test_random_access_in_other_processes(tmp_path):
    prepare("quiz", tmp_path / "ready", data_dir=str(write_quiz(tmp_path / "files")))
    split = read_prepared(tmp_path / "ready/quiz/1.0.0", "train")
    assert split[-1] == split[39] and split[np.int64(7)]["index"] == 7
    assert split.__getitems__([7, -1, 7]) == [split[7], split[39], split[7]]
    assert split.__getitems__([]) == []
    for out in (40, -41):
        with pytest.raises(IndexError):
            split[out]
    copy = pickle.loads(pickle.dumps(split))
    assert copy[5] == split[5] and len(copy) == 40 and repr(copy) == repr(split)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        value, process = pool.apply(_third, (split,))
    assert value == split[3]["id"] and process != os.getpid()
    # ArrayRecord would wait for ever for threads that a fork has lost. (In a process of its own,
    # as JAX must not be forked either.)
    code = (
        "import os, sys\n"
        "from w2s_jax.data.tfds import read_prepared\n"
        "split = read_prepared(sys.argv[1], 'train')\n"
        "split[0]\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        split[3]\n"
        "    except Exception as error:\n"
        "        print(error)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    command = [sys.executable, "-c", code, str(split.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "'spawn'" in done.stdout, done


def test_a_second_preparation_is_refused(tmp_path):
    files = str(write_quiz(tmp_path / "files"))
    folder = prepare("quiz", tmp_path, data_dir=files).folder
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert f"{folder}: already exists" in error(prepare, "quiz", tmp_path, data_dir=files)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    again = prepare("quiz", tmp_path / "other", data_dir=files)
    assert again.sha256 == json.loads(before["w2s.json"])["sha256"]


def test_bad_records_leave_nothing(tmp_path):
    files = write_quiz(tmp_path / "files")
    with (files / "quiz" / "validation.jsonl").open("a") as file:
        file.write('{"question": \n')
    message = error(prepare, "quiz", tmp_path / "ready", data_dir=str(files))
    assert "validation.jsonl, line 41: malformed JSON" in message
    assert not list((tmp_path / "ready").glob("**/*"))


def test_a_killed_preparation_leaves_nothing_that_looks_complete(tmp_path):
    files = write_quiz(tmp_path / "files", count=2000)
    # Killed when the second split is about to be written.
    code = (
        "import os, signal, sys\n"
        "from w2s_jax.data import prepare, tasks\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "import test_data_tfds\n"
        "tasks.TASKS['quiz'] = test_data_tfds.TASK\n"
        "plain = prepare._examples\n"
        "def examples(name, split, reader, scan):\n"
        "    if split == 'train':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(name, split, reader, scan)\n"
        "prepare._examples = examples\n"
        "prepare.prepare('quiz', sys.argv[2], data_dir=sys.argv[1])\n"
    )
    ready = tmp_path / "ready"
    done = subprocess.run(
        [sys.executable, "-c", code, str(files), str(ready), os.path.dirname(__file__)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    assert list(ready.glob("quiz/.1.0.0.*/quiz-test_hard.array_record-*"))
    assert our_tfds.prepared_folder(["quiz"], str(ready)) is None
    assert "no data files for task 'quiz'" in error(load_task, "quiz", data_dir=str(ready))
    prepare("quiz", ready, data_dir=str(files))
    assert load("quiz", data_dir=str(ready)).source == "tfds"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("w2s_jax.data.prepare.write_json", full)
    files = str(write_quiz(tmp_path / "files"))
    message = error(prepare, "quiz", tmp_path / "ready", data_dir=files, kind=StorageError)
    assert str(tmp_path / "ready/quiz/1.0.0") in message and "No space left" in message
    assert not list((tmp_path / "ready").glob("quiz/*")) + list(tmp_path.glob("ready/quiz/.*"))


@pytest.mark.parametrize(
    "value",
    ["half \ud83d of a pair", float("inf"), 2**80, 1e-320, "", [], {"": None}, "\u2028\x00"],
)
def test_json_gives_everything_back(value):
    record = {"b": value, "a": 1.0}
    text = record_json(record, "here")
    back = json.loads(text.encode("utf-8"))
    assert back == record and type(back["a"]) is float
    assert list(back) == ["b", "a"]
    other = record_hash("t", "train", {"a": 1.0, "b": value})
    assert record_hash("t", "train", record) == other != record_hash("t", "test", record)


@pytest.mark.parametrize("value", [b"bytes", (1, 2), {1: "a"}, np.int64(3), {"x": [object()]}])
def test_what_json_would_change_is_refused(value):
    message = error(record_json, {"a": 1, "b": value}, "there, row 3")
    assert message.startswith("there, row 3: field 'b") and "without loss" in message


def test_what_cannot_be_prepared(tmp_path, monkeypatch):
    files = str(write_quiz(tmp_path / "files"))
    monkeypatch.setitem(TASKS, "a-b", replace(TASK, name="a-b"))
    assert "'a-b' cannot be the name" in error(prepare, "a-b", tmp_path / "x", data_dir=files)
    assert "digits_even" in error(prepare, "digits_even", tmp_path / "x")
    assert "task.name" in error(prepare, "quizz", tmp_path / "x", data_dir=files)
    assert "task.source" in error(prepare, "quiz", tmp_path / "x", source="file", data_dir=files)
    assert "--to: memory://x" in error(prepare, "quiz", "memory://x", data_dir=files)
    write_quiz(tmp_path / "files", ("all",))
    assert "split 'all'" in error(prepare, "quiz", tmp_path / "x", data_dir=files)
    assert not (tmp_path / "x").exists()


def test_a_corpus(tmp_path):
    folder = tmp_path / "files" / "corpus"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": " "}\n{"text": "b", "x": 1}\n')
    (folder / "validation.jsonl").write_text('{"text": "c"}\n')
    files, ready = str(tmp_path / "files"), str(tmp_path / "ready")
    summary = prepare("corpus", ready, data_dir=files)
    assert summary.records == {"train": 3, "validation": 1}
    for place in (str(summary.folder), str(summary.folder.parent)):
        assert read_corpus(place, None) == ["a", "b"]
        assert read_corpus(place, None, "validation") == ["c"]
    assert read_corpus("corpus", ready) == read_corpus("corpus", files) == ["a", "b"]
    assert "no split 'test'; found: train" in error(read_corpus, "corpus", ready, "test")
    (folder / "validation.jsonl").write_text('{"text": "c"}\n{"texts": "c"}\n')
    message = error(prepare, "corpus", tmp_path / "again", data_dir=files)
    assert "validation.jsonl, line 2: field 'text' is missing" in message


def test_broken_folders(tmp_path):
    files = str(write_quiz(tmp_path / "files"))
    folder = prepare("quiz", tmp_path, data_dir=files).folder
    (shard,) = folder.glob("quiz-train*")
    shard.write_bytes(shard.read_bytes()[:100])
    message = error(load_task, "quiz", data_dir=str(tmp_path))
    assert f"{folder}, split train, record 1 to 40: cannot be read" in message
    shard.unlink()
    message = error(load_task, "quiz", data_dir=str(tmp_path))
    assert f"{folder}, split train, record 1 to 40: cannot be read" in message
    assert "split: unknown value 'tain' (did you mean 'train'?)" in error(
        read_prepared, folder, "tain"
    )
    (folder / "w2s.json").write_text('{"splits": {}}')
    assert "w2s.json: damaged" in error(load_task, "quiz", data_dir=str(tmp_path))
    (folder / "w2s.json").unlink()
    assert "not written by `w2s data prepare`" in error(read_prepared, folder, "train")
    (folder / "dataset_info.json").write_text("{")
    message = error(load_task, "quiz", data_dir=str(tmp_path))
    assert message.startswith(f"{folder}: cannot be read by TFDS")


def write_official(folder, name, version="2.0.0", config=None, file_format="array_record"):
    """A dataset as the catalogue would have it: other fields and names of splits, and arrays."""
    features = tfds.features.FeaturesDict(
        {
            "sentence": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "answers": tfds.features.Sequence(tfds.features.Text()),
            "weights": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }
    )
    folder = folder / name / (config or "") / version
    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name=name,
        version=tfds.core.Version(version),
        data_dir=str(folder),
        module_name="catalogue",
        config_name=config,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, 7, file_format="array_record")
    writer.initialize_splits(["train", "validation"])
    for split, count in (("train", 20), ("validation", 4)):
        examples = [
            {
                "sentence": f"{split} {n} é",
                "label": n % 2,
                "answers": ["p", "q"],
                "weights": np.float32([n, 0.5]),
            }
            for n in range(count)
        ]
        writer.add_examples({split: examples})
    writer.close_all()
    if file_format != "array_record":
        path = folder / "dataset_info.json"
        path.write_text(path.read_text().replace("array_record", file_format))
    return folder


def convert(record):
    return {
        "question": record["sentence"],
        "answers": record["answers"] + record["weights"],
        "label": record["label"],
        "group": record["sentence"],
    }


ORIGIN = Origin("official/small", splits={"train": "train", "test": "validation"}, convert=convert)


@pytest.mark.parametrize(
    "folder, config", [("official", "small"), ("quiz", None), ("quiz", "small")]
)
def test_a_folder_of_the_catalogue(tmp_path, monkeypatch, folder, config):
    monkeypatch.setitem(TASKS, "quiz", replace(TASK, tfds=ORIGIN))
    write_official(tmp_path, folder, "1.9.0", config)
    (tmp_path / folder / (config or "") / "1.10.0.incompleteX").mkdir()
    newest = write_official(tmp_path, folder, "1.10.0", config)
    for source in ("auto", "tfds"):
        loaded = load("quiz", source, data_dir=str(tmp_path))
        assert (loaded.source, loaded.location) == ("tfds", str(newest))
        documents = loaded.documents
        assert {split: len(found) for split, found in documents.items()} == {"train": 20, "test": 4}
        assert [d.text for d in documents["test"]] == [
            f"validation {n} é['p', 'q', {float(n)}, 0.5]" for n in range(4)
        ]
        assert [d.label for d in documents["test"]] == [0, 1, 0, 1]


def test_what_the_catalogue_may_have_wrong(tmp_path, monkeypatch):
    folder = write_official(tmp_path, "quiz")
    place = f"{folder}, split train, record 1"
    monkeypatch.setitem(TASKS, "quiz", replace(TASK, tfds=replace(ORIGIN, splits={"test": "dev"})))
    message = error(load_task, "quiz", data_dir=str(tmp_path))
    assert "no split 'dev' (split 'test' of task 'quiz'); found: train, validation" in message
    bad = replace(ORIGIN, splits={}, convert=lambda record: {"text": record["text"]})
    monkeypatch.setitem(TASKS, "quiz", replace(TASK, tfds=bad))
    message = error(load_task, "quiz", data_dir=str(tmp_path))
    assert message.startswith(place) and "KeyError: 'text'" in message and "sentence" in message
    monkeypatch.setitem(TASKS, "quiz", replace(TASK, tfds=replace(bad, convert=None)))
    assert f"{place}: field 'question' is missing" in error(
        load_task, "quiz", data_dir=str(tmp_path)
    )


def test_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(our_tfds, "has_tensorflow", lambda: False)
    monkeypatch.setitem(TASKS, "quiz", replace(TASK, tfds=ORIGIN))
    folder = write_official(tmp_path, "quiz", file_format="tfrecord")
    message = error(load_task, "quiz", data_dir=str(tmp_path))
    assert message.startswith(f"{folder}: contains tfrecord") and "ArrayRecord" in message
    message = error(load_task, "quiz", source="tfds")
    assert "task.source: 'tfds'" in message and "TFDS official/small" in message
    assert "TensorFlow" in message and "<data_dir>/official/small/<version>" in message
    assert "W2S_DATA_DIR" in message


def test_the_catalogue_where_tensorflow_is(monkeypatch):
    monkeypatch.setattr(our_tfds, "has_tensorflow", lambda: True)
    asked = []

    def data_source(name, **options):
        asked.append((name, options))
        if len(asked) > 1:
            raise RuntimeError("no network\nat all")
        example = {
            "sentence": b"s",
            "label": np.int64(1),
            "answers": np.array([b"x", "é".encode()], object),
            "weights": np.float32([1.5, 2]),
        }
        return {"train": [example], "validation": [example], "other": [example]}

    monkeypatch.setattr(tfds, "data_source", data_source)
    task = replace(TASK, tfds=ORIGIN)
    opened = open_records(task, "tfds", None)
    assert opened.location == "TFDS official/small" and list(opened.splits) == ["test", "train"]
    assert list(opened.splits["test"]()) == [
        (
            "TFDS official/small, split validation, record 1",
            {"question": "s", "answers": ["x", "é", 1.5, 2.0], "label": 1, "group": "s"},
        )
    ]
    assert asked == [("official/small", {"try_gcs": False})]
    message = error(open_records, task, "tfds", None)
    assert "official/small: cannot be prepared (RuntimeError: no network)" in message


def test_a_shared_folder(tmp_path, monkeypatch):
    prepare("quiz", tmp_path, data_dir=str(write_quiz(tmp_path / "files")))
    other = replace(TASK, name="quiz_too", folder="quiz")
    monkeypatch.setitem(TASKS, "quiz_too", other)
    documents = load_task("quiz_too", data_dir=str(tmp_path))
    assert documents == load_task("quiz_too", data_dir=str(tmp_path / "files"))


def test_remote_prepared_folders_are_refused(monkeypatch):
    import upath

    root = upath.UPath("memory://prepared-test")
    (root / "quiz" / "1.0.0").mkdir(parents=True, exist_ok=True)
    (root / "quiz" / "1.0.0" / "dataset_info.json").write_text("{}")
    message = error(load_task, "quiz", data_dir="memory://prepared-test")
    assert "memory://prepared-test/quiz/1.0.0" in message and "must be on a local disk" in message


def test_a_folder_whose_counts_disagree_is_damaged(tmp_path):
    folder = prepare("quiz", tmp_path, data_dir=str(write_quiz(tmp_path / "files"))).folder
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    (split,) = [s for s in info["splits"] if s["name"] == "train"]
    split["shardLengths"] = [str(int(n) - 3) for n in split["shardLengths"]]
    path.write_text(json.dumps(info))
    message = error(load_task, "quiz", source="tfds", data_dir=str(tmp_path))
    assert "split train: damaged" in message and "prepare it again" in message
