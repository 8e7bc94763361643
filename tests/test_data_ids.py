"""`w2s data ids`: ids of documents before any run, in every kind of file."""

import csv
import gzip
import json

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from w2s_jax import testing
from w2s_jax.cli import main
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.core.files import TABLES
from w2s_jax.data.external_labels import read_external_labels
from w2s_jax.data.id_list import write_ids
from w2s_jax.planning.resolve import resolve


@pytest.fixture
def data_dir(tmp_path):
    """The tiny task, whose training records have ids of their own, from the last to the first."""
    testing.write_tiny_task(tmp_path / "data")
    path = tmp_path / "data" / "tiny" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | {"id": f"r{len(rows) - n}"} for n, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open()))
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("suffix", TABLES)
def test_each_row_names_its_record(data_dir, tmp_path, suffix):
    to = tmp_path / f"ids{suffix}"
    write_ids("tiny", str(to), Console(quiet=True), data_dir=str(data_dir))
    rows = read(to)
    assert [row["split"] for row in rows] == ["train"] * 160 + ["validation"] * 32 + ["test"] * 64
    assert [row["record"] for row in rows[:160]] == [f"r{160 - n}" for n in range(160)]
    assert not any(row["record"] for row in rows[160:])
    for n in (0, 159):
        assert rows[n]["file"].endswith("tiny/train.jsonl") and rows[n]["place"] == f"line {n + 1}"


def test_a_run_takes_labels_for_these_ids(data_dir, tmp_path):
    """They are those of the documents, in every split of a run."""
    to = tmp_path / "ids.csv"
    assert main.main(["data", "ids", "tiny", f"--data_dir={data_dir}", f"--to={to}"]) == 0
    ids = [row["id"] for row in read(to)]
    labels = tmp_path / "labels.csv"
    labels.write_text("id,p\n" + "".join(f"{id_},0.75\n" for id_ in ids))
    config = testing.tiny_config(data_dir)
    config.weak.labels = str(labels)
    splits = resolve(validate(config)).roles["weak"].splits
    known = read_external_labels(labels)
    for name in ("slice1", "slice2", "validation", "test"):
        assert set(splits[name].ids_N.tolist()) <= known.keys()


def test_nothing_is_overwritten(data_dir, tmp_path):
    to = tmp_path / "ids.csv"
    to.write_text("mine")
    with pytest.raises(errors.InputError, match="exists"):
        write_ids("tiny", str(to), Console(quiet=True), data_dir=str(data_dir))
    assert to.read_text() == "mine"
    with pytest.raises(errors.InputError, match=r"--to: .*unknown file type; allowed: .parquet"):
        write_ids("tiny", str(tmp_path / "ids.txt"), Console(quiet=True), data_dir=str(data_dir))
