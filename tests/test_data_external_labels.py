"""Labels from files of three formats, and each refusal."""

import gzip
import json

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data.external_labels import (
    join_labels,
    join_texts,
    read_external_labels,
    read_external_texts,
)

IDS = [5, 2**63 + 11, 2**64 - 1]


def write(path, rows):
    if path.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        columns = {name: [row[name] for row in rows] for name in rows[0]}
        if all(isinstance(value, int) for value in columns["id"]):
            columns["id"] = pyarrow.array(columns["id"], pyarrow.uint64())
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif path.name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
@pytest.mark.parametrize("spelling", ["integer", "decimal", "hexadecimal", "0x"])
def test_ids_of_every_spelling_in_every_format(tmp_path, suffix, spelling):
    spell = {
        "integer": int,
        "decimal": str,
        "hexadecimal": "{:016x}".format,  # that of 5 alone could be decimal
        "0x": "{:#x}".format,
    }[spelling]
    p = [0.25, 0.0, 1.0]
    rows = [{"id": spell(i), "p": q, "comment": "x"} for i, q in zip(IDS, p, strict=True)]
    found = read_external_labels(write(tmp_path / f"labels{suffix}", rows))
    assert found == dict(zip(IDS, p, strict=True))
    soft_NC = join_labels(found, np.array([IDS[2], IDS[0]], np.uint64), "labels")
    assert soft_NC.dtype == np.float32 and soft_NC.tolist() == [[0, 1], [0.75, 0.25]]


def test_digits_are_hexadecimal_only_where_the_file_shows_it(tmp_path):
    path = tmp_path / "l.jsonl"
    rows = [{"id": "10", "p": 0.5}, {"id": "11", "p": 0.5}]
    assert list(read_external_labels(write(path, rows))) == [10, 11]
    assert list(read_external_labels(write(path, [*rows, {"id": "ab", "p": 0.5}]))) == [16, 17, 171]
    assert list(read_external_labels(write(path, [*rows, {"id": "0xAB", "p": 0.5}]))) == [
        10,
        11,
        171,
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_hard_labels(tmp_path, suffix):
    rows = [{"id": 1, "label": 1}, {"id": 2, "label": 0}]
    assert read_external_labels(write(tmp_path / f"l{suffix}", rows)) == {1: 1.0, 2: 0.0}


GOOD = {"id": 7, "p": 0.5}
NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 8, "p": NAN}, "p nan; allowed: 0 to 1"),
        ({"id": 8, "p": 1.01}, "p 1.01; allowed"),
        ({"id": 8, "p": -0.1}, "p -0.1; allowed"),
        ({"id": 8, "p": "much"}, "p 'much'; allowed"),
        ({"id": 8, "p": [1]}, r"p \[1\]; allowed"),
        ({"id": 8, "label": 2}, "label 2; allowed: 0 or 1"),
        ({"id": 8, "label": NAN}, "label nan; allowed: 0 or 1"),
        ({"id": 8, "label": 0.5}, "label 0.5; allowed: 0 or 1"),
        ({"id": 8, "label": 1, "p": 0.5}, "both 'p' and 'label'"),
        ({"id": 8, "lable": 1}, "neither 'p' nor 'label'.*should 'lable' be 'label'"),
        ({"id": 8, "p": None}, "'p' is empty"),
        ({"idx": 8, "p": 0.5}, "no 'id' .should 'idx' be 'id'.*columns: idx, p"),
        ({"id": 8.0, "p": 0.5}, "id 8.0 is a double: .*as text"),
        ({"id": 1.2345678901234567e19, "p": 0.5}, "is a double: .*as text"),
        ({"id": "1.23456789012346E+19", "p": 0.5}, "is a double: .*as text"),
        ({"id": "8.0", "p": 0.5}, "is a double: .*as text"),
        ({"id": -(2**63) - 1, "p": 0.5}, "more than 64 bits"),
        ({"id": "x" * 300, "p": 0.5}, r"id 'x{76}\.\.\.; allowed"),
        ({"id": True, "p": 0.5}, "id True; allowed"),
        ({"id": "doc 8", "p": 0.5}, "id 'doc 8'; allowed"),
        ({"id": "0x", "p": 0.5}, "id '0x'; allowed"),
        ({"id": "0xyz", "p": 0.5}, "id '0xyz'; allowed"),
        ({"id": 2**64, "p": 0.5}, "more than 64 bits"),
        ({"id": str(2**64), "p": 0.5}, "more than 64 bits"),
        ({"id": "7", "p": 0.5}, "id '7' occurs twice"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path, row, message):
    path = write(tmp_path / "labels.jsonl", [GOOD, row])
    with pytest.raises(InputError, match=rf"labels\.jsonl, line 2: .*{message}") as caught:
        read_external_labels(path)
    assert "\n" not in str(caught.value)


def test_a_header_may_be_in_another_case(tmp_path):
    found = read_external_labels(write(tmp_path / "l.csv", [{"ID": 7, "Split": "test", "P": 0.5}]))
    assert found == {7: 0.5}


def test_bad_rows_of_csv_and_parquet(tmp_path):
    with pytest.raises(InputError, match=r"l\.csv, line 3: p 'nan'"):
        read_external_labels(write(tmp_path / "l.csv", [GOOD, {"id": 8, "p": "nan"}]))
    with pytest.raises(InputError, match=r"l\.csv, line 3: 'p' is empty"):
        read_external_labels(write(tmp_path / "l.csv", [GOOD, {"id": 8, "p": ""}]))
    with pytest.raises(InputError, match=r"l\.parquet, row 2: p nan"):
        read_external_labels(write(tmp_path / "l.parquet", [GOOD, {"id": 8, "p": NAN}]))
    with pytest.raises(InputError, match=r"l\.txt: unknown file type"):
        read_external_labels(tmp_path / "l.txt")


def test_missing_documents_are_refused_in_one_error():
    ids_N = np.array([1, 255, 2, 3], np.uint64)
    message = (
        r"labels\.csv: no label for 2 of 4 documents \(the first: id 255, in hexadecimal "
        r"00000000000000ff\); every document needs a label"
    )
    with pytest.raises(InputError, match=message):
        join_labels({1: 0.5, 2: 0.5}, ids_N, "labels.csv")


def test_signed_ids(tmp_path):
    signed = [i - 2**64 if i >= 2**63 else i for i in IDS]
    for suffix, spell in ((".jsonl", int), (".jsonl", str), (".csv", str)):
        rows = [{"id": spell(i), "p": 0.5} for i in signed]
        assert list(read_external_labels(write(tmp_path / f"s{suffix}", rows))) == IDS
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": pyarrow.array(signed, pyarrow.int64()), "p": [0.5] * 3})
    pyarrow.parquet.write_table(table, tmp_path / "s.parquet")
    assert list(read_external_labels(tmp_path / "s.parquet")) == IDS


@pytest.mark.parametrize("p,read", [(1 + 1e-7, 1.0), (-1e-7, 0.0), (np.float32(1), 1.0)])
def test_rounding_errors_of_probabilities_are_clipped(tmp_path, p, read):
    rows = [{"id": 1, "p": float(p)}]
    assert read_external_labels(write(tmp_path / "l.jsonl", rows)) == {1: read}


def digits_15(i):
    """As spreadsheets: 15 digits, then zeros."""
    return int(str(i)[:15] + "0" * (len(str(i)) - 15))


@pytest.mark.parametrize("tool", [lambda i: int(float(i)), digits_15])
def test_rounded_ids_are_explained(tmp_path, tool):
    ids_N = np.random.default_rng(0).integers(2**60, 2**64 - 1, 50, np.uint64)
    found = {tool(int(i)): 0.5 for i in ids_N}
    with pytest.raises(InputError, match=r"no label for \d+ of 50 .* ids of the file are rounded"):
        join_labels(found, ids_N, "labels.csv")
    # Other documents are just missing.
    others_N = np.random.default_rng(1).integers(2**60, 2**64 - 1, 50, np.uint64)
    for given in (found, {1: 0.5}, {}):
        with pytest.raises(InputError, match="every document needs a label"):
            join_labels(given, others_N, "labels.csv")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_texts_by_id(tmp_path, suffix):
    texts = [" so it is 5 ", "", "日"]
    found_rows = [
        {"id": f"{i:#x}", "text": t, "split": "s"} for i, t in zip(IDS, texts, strict=True)
    ]
    found = read_external_texts(write(tmp_path / f"texts{suffix}", found_rows))
    assert found == dict(zip(IDS, texts, strict=True))
    assert join_texts(found, np.array([IDS[2], IDS[0]], np.uint64), "x") == ["日", " so it is 5 "]
    with pytest.raises(InputError) as caught:
        join_texts(found, np.array([IDS[0], 255], np.uint64), "weak.labels: f: slice2")
    assert str(caught.value) == (
        "weak.labels: f: slice2: no label for 1 of 2 documents (the first: id 255, in hexadecimal "
        "00000000000000ff); every document needs a label"
    )


def test_texts_that_are_refused(tmp_path):
    bad = {
        "line 1: no 'text' (should 'txt' be 'text'?); its columns: id, txt": [
            {"id": 1, "txt": "a"}
        ],
        "line 2: 'text' is not text: None": [{"id": 1, "text": "a"}, {"id": 2, "text": None}],
        "line 1: 'text' is not text: 5": [{"id": 1, "text": 5}],
        "line 2: id 1 occurs twice": [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}],
        "line 1: no 'id'": [{"text": "a"}],
    }
    for message, found_rows in bad.items():
        with pytest.raises(InputError) as caught:
            read_external_texts(write(tmp_path / "t.jsonl", found_rows))
        assert message in str(caught.value), message
