"""Reading files, and one clear line for each kind of bad file."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import error

from w2s_jax.data.loading import load_task
from w2s_jax.data.records import find_files, read_records
from w2s_jax.data.sources import read_corpus

RECORDS = [
    {"text": "good", "label": 1},
    {"text": 'bad, "very"\nbad', "label": 0},
    {"text": "naïve 🙂", "label": 1},
]


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)


def write_jsonl(path, records=RECORDS):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_csv(path, records=RECORDS):
    def quoted(value):
        return '"' + str(value).replace('"', '""') + '"'

    names = list(records[0])
    rows = [",".join(names)] + [",".join(quoted(r[name]) for name in names) for r in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_find_files(tmp_path, monkeypatch):
    for name in ("train.jsonl.gz", "extra.jsonl"):
        write_jsonl(tmp_path / "mine" / name)
    write_csv(tmp_path / "mine" / "test.csv")
    (tmp_path / "mine" / "README.md").write_text("about")
    (tmp_path / "mine" / "._train.jsonl").write_text("hidden")
    files = find_files("mine", str(tmp_path))
    assert {split: path.name for split, path in files.items()} == {
        "train": "train.jsonl.gz",
        "extra": "extra.jsonl",
        "test": "test.csv",
    }
    monkeypatch.setenv("W2S_DATA_DIR", str(tmp_path))
    assert find_files("mine", None) == files
    write_jsonl(tmp_path / "mine" / "train.jsonl")
    message = error(find_files, "mine", None)
    assert "'train'" in message and "train.jsonl " in message and "train.jsonl.gz" in message


def test_missing_folders(tmp_path):
    message = error(find_files, "mine", None)
    assert "task.data_dir" in message and "W2S_DATA_DIR" in message and "<split>" in message
    message = error(find_files, "mine", str(tmp_path))
    assert str(tmp_path / "mine") in message and "W2S_DATA_DIR" in message
    (tmp_path / "mine").mkdir()
    assert str(tmp_path / "mine") in error(find_files, "mine", str(tmp_path))
    write_jsonl(tmp_path / "train.jsonl")
    for outside in ("", ".", "..", "../" + tmp_path.name):
        error(find_files, outside, str(tmp_path))


def test_records_of_every_format(tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    plain = write_jsonl(tmp_path / "a.jsonl")
    zipped = write_jsonl(tmp_path / "a.jsonl.gz")
    for path in (plain, zipped):
        assert list(read_records(path)) == [
            (f"{path}, line {n + 1}", record) for n, record in enumerate(RECORDS)
        ]
    path = write_csv(tmp_path / "a.csv")
    as_text = [{"text": r["text"], "label": str(r["label"])} for r in RECORDS]
    # The second record spans lines 3 and 4.
    assert list(read_records(path)) == [
        (f"{path}, line {n}", r) for n, r in zip((2, 3, 5), as_text, strict=True)
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    assert list(read_records(path)) == [
        (f"{path}, row {n + 1}", record) for n, record in enumerate(RECORDS)
    ]


def test_tolerated_oddities(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b\\u2028c"}')
    assert [(place[-6:], r["text"]) for place, r in read_records(path)] == [
        ("line 1", "a"),
        ("line 3", "b\u2028c"),
    ]
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\n" + b"x" * 200_000 + b",1\r\n")
    ((_, record),) = read_records(path)
    assert record == {"text": "x" * 200_000, "label": "1"}


def test_malformed_files(tmp_path):
    def bad(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        message = error(read_records, path)
        assert message.startswith(str(path))
        return message.removeprefix(str(path))

    assert bad("a.jsonl", b'{"a": 1}\n{"a": }\n').startswith(", line 2: malformed JSON")
    assert bad("b.jsonl", b'{"a": 1}\n{"a": 1').startswith(", line 2: malformed JSON")
    assert bad("c.jsonl", b"\n[1, 2]\n").startswith(", line 2: a record must be a JSON object")
    assert bad("d.jsonl", b'{"a": 1}\n\n{"a": "\xff"}\n').startswith(", line 3: not UTF-8")
    assert "line 1: the file is empty" in bad("e.jsonl", b"")
    assert "line 1: the file is empty" in bad("f.jsonl", b"\n\n")
    assert "line 1: the file is empty" in bad("g.csv", b"text,label\n")
    assert "line 1: the file is empty" in bad("h.csv", b"")
    assert "line 1: the file is empty" in bad("i.jsonl.gz", gzip.compress(b""))
    assert "after line 0: broken or truncated gzip" in bad("j.jsonl.gz", b'{"a": 1}\n')
    many = b"".join(b'{"a": %d}\n' % (n * 7919 % 10007) for n in range(20000))
    whole = gzip.compress(many)
    assert "broken or truncated gzip" in bad("k.jsonl.gz", whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum
    assert "after line 20000: broken or truncated gzip" in bad("l.jsonl.gz", bytes(flipped))
    assert ", line 3: 1 values for 2 columns" in bad("m.csv", b"text,label\na,1\nb\n")
    assert "line 2: malformed CSV" in bad("n.csv", b'text,label\n"a,1\nb,0\n')
    assert "twice in the header" in bad("o.csv", b"text,text\na,1\n")
    assert "cannot be read as Parquet" in bad("p.parquet", b"not parquet")
    assert "unknown file type" in bad("q.xlsx", b"a")
    assert "cannot be read" in error(read_records, tmp_path / "absent.jsonl")


def test_read_corpus(tmp_path, monkeypatch):
    text = tmp_path / "book.txt"
    text.write_text("one\ntwo\n", encoding="utf-8")
    assert read_corpus(str(text), None) == ["one\ntwo\n"]
    path = write_jsonl(
        tmp_path / "corpus" / "train.jsonl.gz",
        [{"text": "a"}, {"text": " "}, {"text": "b", "source": "x"}],
    )
    write_jsonl(tmp_path / "corpus" / "validation.jsonl", [{"text": "c"}])
    assert read_corpus(str(path), None) == ["a", "b"]
    monkeypatch.setenv("W2S_DATA_DIR", str(tmp_path))
    assert read_corpus("corpus", None) == ["a", "b"]
    assert read_corpus("corpus", None, split="validation") == ["c"]
    assert "'test'" in error(read_corpus, "corpus", None, split="test")
    assert str(tmp_path / "nowhere") in error(read_corpus, "nowhere", None)
    monkeypatch.delenv("W2S_DATA_DIR")
    assert "W2S_DATA_DIR" in error(read_corpus, "corpus", None)
    path = write_jsonl(tmp_path / "bad.jsonl", [{"text": "a"}, {"txt": "b"}])
    assert "bad.jsonl, line 2: field 'text' is missing" in error(read_corpus, str(path), None)
    path = write_jsonl(tmp_path / "bad.jsonl", [{"text": 3}])
    assert "bad.jsonl, line 1: field 'text' is not text: 3" in error(read_corpus, str(path), None)
    path = write_jsonl(tmp_path / "blank.jsonl", [{"text": " "}])
    assert "blank.jsonl, line 1: the file is empty" in error(read_corpus, str(path), None)


@pytest.mark.parametrize(
    "record, words",
    [
        ({"label": 1}, ["field 'text' is missing", "the record has: label"]),
        ({"text": "x"}, ["field 'label' is missing"]),
        ({"text": "x", "label": 0.5}, ["field 'label': 0.5"]),
        ({"text": "x", "label": float("nan")}, ["field 'label': nan"]),
        ({"text": "x", "label": None}, ["field 'label': None"]),
        ({"text": "x", "label": [1]}, ["field 'label': [1]"]),
        ({"text": "x", "label": "yes"}, ["field 'label': 'yes'"]),
        ({"text": "x", "label": -1}, ["field 'label': -1", "unlabelled"]),
        ({"text": "x", "label": "1"}, ["field 'label': '1' is of type str", "line 1", "int"]),
        ({"text": "x", "label": True}, ["field 'label': True is of type bool", "line 1", "int"]),
        ({"text": "", "label": 1}, ["field 'text': empty document", "''"]),
        ({"text": " \t", "label": 1}, ["field 'text': empty document"]),
        ({"text": 5, "label": 1}, ["field 'text': not text: 5"]),
    ],
)
def test_bad_rows(tmp_path, record, words):
    path = write_jsonl(tmp_path / "mine" / "train.jsonl", [*RECORDS[:2], record])
    message = error(load_task, "mine", data_dir=str(tmp_path))
    assert message.startswith(f"{path}, line 3: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "zero, one",
    [
        (0, 1),
        (False, True),
        (0.0, 1.0),
        ("0", "1"),
        (" 0", "1 "),
        ("False", "True"),
        ("0.0", "1.0"),
    ],
)
def test_accepted_labels(tmp_path, zero, one):
    write_jsonl(
        tmp_path / "mine" / "train.jsonl",
        [{"text": "a", "label": zero}, {"text": "b", "label": one}],
    )
    documents = load_task("mine", data_dir=str(tmp_path))["train"]
    assert [(d.text, d.label, type(d.label)) for d in documents] == [("a", 0, int), ("b", 1, int)]


def test_one_class_only(tmp_path):
    path = write_jsonl(tmp_path / "mine" / "train.jsonl", [RECORDS[0]] * 3)
    message = error(load_task, "mine", data_dir=str(tmp_path))
    assert str(path) in message and "all 3 documents" in message and "label 1" in message
    # A test split of one class is the user's own business until it is balanced.
    path.rename(path.with_name("test.jsonl"))
    assert len(load_task("mine", data_dir=str(tmp_path))["test"]) == 3


def test_unlabelled_splits(tmp_path):
    hidden = [{"text": "a", "label": -1}, {"text": "b", "label": -1}]
    write_jsonl(tmp_path / "mine" / "test.jsonl", hidden)
    assert "mine, split test: field 'label': the only split is unlabelled" in error(
        load_task, "mine", data_dir=str(tmp_path)
    )
    write_jsonl(tmp_path / "mine" / "train.jsonl")
    write_jsonl(tmp_path / "mine" / "unsupervised.jsonl", hidden)
    out = load_task("mine", data_dir=str(tmp_path))
    assert list(out) == ["train", "unsupervised"]
    assert [d.label for d in out["unsupervised"]] == [None, None]
    write_jsonl(tmp_path / "mine" / "validation.jsonl", hidden)
    assert "validation.jsonl, line 1: field 'label': -1" in error(
        load_task, "mine", data_dir=str(tmp_path)
    )
    (tmp_path / "mine" / "validation.jsonl").unlink()
    write_jsonl(tmp_path / "mine" / "test.jsonl", [RECORDS[0], hidden[0]])
    assert "test.jsonl, line 2: field 'label': -1" in error(
        load_task, "mine", data_dir=str(tmp_path)
    )


def test_formats_give_the_same_documents(tmp_path):
    write_jsonl(tmp_path / "a" / "mine" / "train.jsonl.gz")
    write_csv(tmp_path / "b" / "mine" / "train.csv")
    a, b = (load_task("mine", data_dir=str(tmp_path / d))["train"] for d in "ab")
    assert a == b


def test_official_splits_come_first_and_others_stay(tmp_path):
    for split in ("extra", "test", "train", "validation"):
        write_jsonl(tmp_path / "mine" / f"{split}.jsonl")
    out = load_task("mine", data_dir=str(tmp_path))
    assert list(out) == ["train", "validation", "test", "extra"]
    # Equal records of different splits have different ids.
    assert len({d.id for docs in out.values() for d in docs}) == 12


@pytest.fixture
def bucket():
    """An empty location in fsspec's memory file system."""
    import upath

    root = upath.UPath("memory://w2s-test-bucket/data")
    root.mkdir(parents=True, exist_ok=True)
    yield root
    root.fs.rm("/w2s-test-bucket", recursive=True)


def test_other_locations(bucket, tmp_path, monkeypatch):
    """A bucket gives the same records and errors as a disk."""
    import pyarrow
    import pyarrow.parquet as parquet

    write_jsonl(tmp_path / "mine" / "train.jsonl.gz")
    write_jsonl(tmp_path / "mine" / "extra.jsonl")
    as_text = [{"text": r["text"], "label": str(r["label"])} for r in RECORDS]
    write_csv(tmp_path / "mine" / "test.csv", as_text)
    parquet.write_table(
        pyarrow.Table.from_pylist(RECORDS), tmp_path / "mine" / "validation.parquet"
    )
    (tmp_path / "book.txt").write_text("one\ntwo\n")
    (bucket / "mine").mkdir()
    for path in [*(tmp_path / "mine").iterdir(), tmp_path / "book.txt"]:
        (bucket / path.relative_to(tmp_path)).write_bytes(path.read_bytes())
    place = str(bucket)
    assert place.startswith("memory://")
    there, here = find_files("mine", place), find_files("mine", str(tmp_path))
    assert [(split, path.name) for split, path in there.items()] == [
        (split, path.name) for split, path in here.items()
    ]
    for split in here:
        found = [(p.replace(place, str(tmp_path)), r) for p, r in read_records(there[split])]
        assert found == list(read_records(here[split]))
        assert list(read_records(str(there[split]))) == list(read_records(there[split]))
    assert load_task("mine", data_dir=place) == load_task("mine", data_dir=str(tmp_path))
    assert read_corpus(f"{place}/book.txt", None) == ["one\ntwo\n"]
    monkeypatch.setenv("W2S_DATA_DIR", place)
    assert read_corpus("mine", None) == [r["text"] for r in RECORDS]
    assert f"no data files in {place}/nowhere" in error(load_task, "nowhere")
    assert f"no folder {place}/nowhere with data files" in error(read_corpus, "nowhere", None)
    assert "absent.jsonl: cannot be read" in error(read_records, f"{place}/absent.jsonl")
    (bucket / "mine" / "extra.jsonl").write_text('{"text": 1}\n{')
    assert f"{place}/mine/extra.jsonl, line 2: malformed JSON" in error(
        read_records, there["extra"]
    )
    (bucket / "mine" / "train.jsonl.gz").write_bytes(b"nothing")
    assert f"{place}/mine/train.jsonl.gz, after line 0: broken" in error(
        read_records, there["train"]
    )
    (bucket / "mine" / "validation.parquet").write_bytes(b"nothing")
    assert "validation.parquet, after row 0: cannot be read as Parquet" in error(
        read_records, there["validation"]
    )


def test_unreadable_locations(bucket, monkeypatch):
    message = error(load_task, "mine", data_dir="gcss://bucket/data")
    assert "gcss://bucket/data: unknown protocol 'gcss' (did you mean 'gcs'?)" in message

    def broken(self, *args, **kwargs):
        raise ConnectionError("the bucket is away\nfor good")

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket.fs), "info", broken)
        patch.setattr(type(bucket.fs), "ls", broken)
        message = error(load_task, "mine", data_dir=str(bucket))
    assert message == f"{bucket}/mine: cannot be reached (ConnectionError: the bucket is away)"
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    message = error(load_task, "mine", data_dir="gs://bucket/data")
    assert message.startswith("gs://bucket/data: a package for gs:// is missing")
    assert message.endswith("pip install 'w2s_jax[gcs]'")


def test_local_paths_need_no_other_package(tmp_path):
    write_jsonl(tmp_path / "mine" / "train.jsonl")
    code = (
        "import sys\n"
        "from w2s_jax.data import load_task\n"
        "load_task('mine', data_dir=sys.argv[1])\n"
        "load_task('mine', data_dir='file://' + sys.argv[1])\n"
        "heavy = ('upath', 'fsspec', 'datasets', 'tensorflow_datasets', 'huggingface_hub')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert out.stdout == "[]\n"
