"""The files of a folder that are read, and their formats."""

import gzip
import json

import pytest
from refusals import error

from w2s_jax.data.corpus import open_corpus
from w2s_jax.data.loading import load, load_task
from w2s_jax.data.records import read_records, task_files
from w2s_jax.data.sources import corpus_texts, find_corpus, read_corpus

ROWS = [{"text": f'say "{n}";, {"é" * n}', "label": n % 2} for n in range(4)]


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows, delimiter=",", end="\n"):
    def quoted(value):
        return '"' + str(value).replace('"', '""') + '"'

    body = [delimiter.join(map(quoted, row.values())) for row in rows]
    return end.join([delimiter.join(rows[0]), *body, ""])


def jagged(rows):
    """As a spreadsheet writes columns and rows that were once in use."""
    head, *body = table(rows, end="\r\n").split("\r\n")
    return "\r\n".join([f"{head},,", *(f"{row},," for row in body if row), ",,,", ",,,", ""])


def as_bools(rows):
    return [{"Text": row["text"], "LABEL": str(bool(row["label"])).upper()} for row in rows]


FILES = {
    "train.jsonl": lines(ROWS).encode(),
    "train.ndjson": lines(ROWS).encode(),
    "Train.JSONL.gz": gzip.compress(lines(ROWS).encode()),
    "train.json": json.dumps(ROWS, indent=2).encode(),
    "lines/train.json": lines(ROWS).encode(),
    "train.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "train.csv": table(ROWS).encode(),
    "train.csv.gz": gzip.compress(table(ROWS).encode()),
    "train.tsv": table(ROWS, "\t").encode(),
    "train.tsv.gz": gzip.compress(table(ROWS, "\t").encode()),
    "semicolon/train.csv": table(ROWS, ";").encode(),
    "tab/train.csv": table(ROWS, "\t").encode(),
    "declared/train.csv": ("sep=|\r\n" + table(ROWS, "|", "\r\n")).encode(),
    "carriage/train.csv": table(ROWS, end="\r").encode(),
    "carriage/train.jsonl": lines(ROWS).replace("\n", "\r").encode(),
    "jagged/train.csv": jagged(ROWS).encode(),
    "blank/train.csv": ("\n,\n" + table(ROWS).replace("\n", "\n,\n")).encode(),
    "bools/train.csv": table(as_bools(ROWS)).encode(),
    "spaces/train.csv": table(ROWS).replace("text,label", " text , label").encode(),
    "unicode/train.csv": table(ROWS, "\t", "\r\n").encode("utf-16"),
    "unicode/train.jsonl": lines(ROWS).encode("utf-16"),
    "big/train.json": ("\ufeff" + json.dumps(ROWS)).encode("utf-32-be"),
    "marks/train.csv": ("\ufeff\ufeff" + table(ROWS)).encode(),
    "joined/train.jsonl": ("\ufeff" + lines(ROWS[:2]) + "\ufeff" + lines(ROWS[2:])).encode(),
    "literal/train.tsv": "\n".join(
        ["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in ROWS), '"a" b\t1\n']
    ).encode(),
}


def put(place, files):
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_all_kinds_of_files_give_the_same_documents(tmp_path, name):
    put(tmp_path / "here" / "mine", {name.rpartition("/")[2]: FILES[name]})
    put(tmp_path / "plain" / "mine", {"train.jsonl": FILES["train.jsonl"]})
    found = load_task("mine", data_dir=str(tmp_path / "here"))["train"]
    if "literal" in name:
        assert found.pop().text == '"a" b'
    assert found == load_task("mine", data_dir=str(tmp_path / "plain"))["train"]


@pytest.mark.parametrize("name", ["dev.jsonl", "Val.jsonl", "VALID.jsonl", "Validation.jsonl"])
def test_names_of_the_validation_split(tmp_path, name):
    put(tmp_path / "mine", {"train.jsonl": FILES["train.jsonl"], name: FILES["train.jsonl"]})
    put(tmp_path / "other" / "mine", {"validation.jsonl": FILES["train.jsonl"]})
    found = load_task("mine", data_dir=str(tmp_path))
    assert list(found) == ["train", "validation"]
    same = load_task("mine", data_dir=str(tmp_path / "other"))
    assert found["validation"] == same["validation"]


@pytest.mark.parametrize(
    "one,other",
    [
        ("dev.jsonl", "validation.jsonl"),
        ("val.csv", "valid.csv"),
        ("Test.jsonl", "test.jsonl"),
        ("train.csv", "train.jsonl"),
        ("train.json", "train.tsv.gz"),
    ],
)
def test_two_files_for_one_split_are_refused(tmp_path, one, other):
    put(tmp_path / "mine", {one: b"", other: b""})
    message = error(task_files, "mine", str(tmp_path))
    assert "two files" in message and one in message and other in message


def fill(place):
    put(place, dict.fromkeys(("train.jsonl", "dev.ndjson", "hard.jsonl"), FILES["train.jsonl"]))
    others = ("README.md", "test.jsonl.zst", "training.json", "vocabulary.tsv", "Hard.CSV", "a.TXT")
    put(place, dict.fromkeys((*others, ".DS_Store", "._train.jsonl"), b"\0"))
    (place / "folder.jsonl").mkdir()
    return tuple(sorted(others))


def test_other_files_are_named(tmp_path):
    unused = fill(tmp_path / "mine")
    loaded = load("mine", data_dir=str(tmp_path))
    assert list(loaded.documents) == ["train", "validation", "hard"]
    assert loaded.names == {
        "train": "train.jsonl", "validation": "dev.ndjson", "hard": "hard.jsonl"
    }  # fmt: skip
    assert loaded.unused == unused


def test_a_link_to_a_missing_file_is_not_overlooked(tmp_path):
    put(tmp_path / "mine", {"validation.jsonl": FILES["train.jsonl"]})
    (tmp_path / "mine" / "train.jsonl").symlink_to(tmp_path / "nowhere")
    assert "train.jsonl: cannot be read" in error(load, "mine", data_dir=str(tmp_path))


def test_a_bucket_is_read_like_a_disk(tmp_path):
    import upath

    bucket = upath.UPath("memory://w2s-test-files")
    try:
        unused = fill(tmp_path / "mine")
        for path in (tmp_path / "mine").iterdir():
            if path.is_file():
                put(bucket / "mine", {path.name: path.read_bytes()})
        here, there = (load("mine", data_dir=str(place)) for place in (tmp_path, bucket))
        assert there.documents == here.documents and there.unused == unused
        assert there.names == here.names
        for name in ("unicode/train.csv", "carriage/train.csv", "train.csv.gz", "train.json"):
            put(bucket, {name: FILES[name]})
            put(tmp_path, {name: FILES[name]})
            found = [record for _, record in read_records(bucket / name)]
            assert found == [record for _, record in read_records(tmp_path / name)]
        assert "copy it to a local disk" in error(open_corpus, str(bucket / "mine/train.jsonl"))
    finally:
        bucket.fs.rm("/w2s-test-files", recursive=True)


def test_the_training_file_decides_the_kind_of_a_task(tmp_path):
    pairs = [{"text_a": "x", "text_b": "y", "label": n % 2} for n in range(2)]
    put(tmp_path / "mine", {"extra.jsonl": lines(pairs).encode()})
    put(tmp_path / "mine", {"train.csv": table(as_bools(ROWS)).encode()})
    # The other one comes first by name.
    message = error(load_task, "mine", data_dir=str(tmp_path))
    assert "extra.jsonl, line 1: field 'text' is missing" in message


@pytest.mark.parametrize(
    "name,data,message",
    [
        ("a.json", b'[\n{"a": 1},\n{"a": }]', ", line 3: malformed JSON"),
        ("a.json", b'[{"a": 1}\n', ", line 2: malformed JSON (Expecting ',' or ']' at column 1)"),
        ("a.json", b'[{"a": 1}]\n]', ", line 2: malformed JSON (Extra data at column 1)"),
        ("a.json", b'[{"a": 1},\n 5]', ", line 2: a record must be a JSON object, found a int"),
        ("a.json", b"[]", ", line 1: the file is empty"),
        ("a.json", b"[" * 100_000, ": malformed JSON (nested too deeply)"),
        ("a.jsonl", b"[" * 100_000, ", line 1: malformed JSON (nested too deeply)"),
        ("a.jsonl", b"1" * 5000, ", line 1: malformed JSON (Exceeds the limit"),
        ("a.csv", "text,label\na,1\n".encode("utf-16-le"), ", line 1: UTF-16 text without a"),
        ("a.csv", b"\xff\xfea", ": not UTF-16 text (truncated data at byte 1 of the file)"),
        ("a.csv", b"text\ncaf\xe9\n", ", line 2: not UTF-8 text"),
        ("a.csv", b" , \n\n", ", line 1: the file is empty"),
        ("a.csv", b"text,label\na,1\rb,0\nc,1\n", ", line 2: malformed CSV (a CR outside quotes"),
        ("a.csv", b"sep=;\ntext;label\na;1;x\n", ", line 3: 3 values for 2 columns"),
        ("a.csv", b'sep=;\n\ntext;label\n"a\nb";1\n"c', ", line 6: malformed CSV"),
        ("a.csv", "text,n\na,1\n\ufefftext,n\nb,1\n".encode(), ", line 3: a byte-order mark"),
        ("a.csv", 'text,n\na,1\n\ufeff"b",1\n'.encode(), ", line 3: a byte-order mark"),
        ("a.tsv", b'text\tlabel\n"a\t1\nb\n', ", line 2: malformed CSV"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path, name, data, message):
    put(tmp_path, {name: data})
    found = error(read_records, tmp_path / name)
    assert found.startswith(f"{tmp_path / name}{message}"), found


def test_marks_in_texts_stay(tmp_path):
    put(tmp_path, {"a.csv": "text,n\n\ufeffa,1\n".encode()})
    assert [record["text"] for _, record in read_records(tmp_path / "a.csv")] == ["\ufeffa"]


def test_corpora_and_streams(tmp_path):
    put(tmp_path, {"book.TXT": "one\ntwo".encode("utf-16"), "Books.CSV": b"TEXT\na\nb\n"})
    assert read_corpus(str(tmp_path / "book.TXT"), None) == ["one\ntwo"]
    assert read_corpus(str(tmp_path / "Books.CSV"), None) == ["a", "b"]
    put(tmp_path / "books", {"TRAIN.tsv": b"Text\na\nb\n", "dev.jsonl": b"", "README": b""})
    for source, data_dir in ((tmp_path / "books", None), ("books", tmp_path)):
        found = find_corpus(str(source), data_dir and str(data_dir))
        assert found.name == "TRAIN.tsv" and found.unused == ("README", "dev.jsonl")
        assert corpus_texts(found) == ["a", "b"]
    put(
        tmp_path, {"a.ndjson": FILES["joined/train.jsonl"], "b.jsonl": FILES["unicode/train.jsonl"]}
    )
    corpus = open_corpus(tmp_path / "a.ndjson")
    assert [corpus[n] for n in range(len(corpus))] == [row["text"] for row in ROWS]
    assert "b.jsonl, line 1: UTF-16 text" in error(open_corpus(tmp_path / "b.jsonl").__getitem__, 0)
