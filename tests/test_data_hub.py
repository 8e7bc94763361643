"""The Hugging Face hub: clones in its own layout, and one fast, clear line where it is away."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest
from refusals import error

from w2s_jax.data.loading import load, load_task
from w2s_jax.data.prepare import prepare
from w2s_jax.data.sources import open_records
from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks import TASKS


def expand(record, place):
    return [Candidate(record["sentence"], record["label"], meta={"tags": list(record["tags"])})]


TASK = Task(
    name="verdict",
    description="A task of these tests.",
    licence="none",
    fields=("sentence", "label", "tags"),
    expand=expand,
)
SPLITS = {"train": 30, "validation": 6, "test_hard": 4}


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    offline(monkeypatch, False)

    def no_network(*_):
        raise OSError("no network in these tests")

    monkeypatch.setattr(socket.socket, "connect", no_network)


def offline(monkeypatch, value):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", value)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", value)


def register(monkeypatch, origin, **changes):
    monkeypatch.setitem(TASKS, "verdict", replace(TASK, hub=origin, **changes))


def records_of(split):
    return [
        {"sentence": f'{split} {n}: naïve, "odd"', "label": n % 2, "tags": ["a", f"t{n}"]}
        for n in range(SPLITS[split])
    ]


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def write_parquet(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(records), path)


def write_files(root):
    for split in SPLITS:
        write_jsonl(root / "verdict" / f"{split}.jsonl", records_of(split))
    return str(root)


def write_clone_with_configs(root):
    """Two configurations, named by the README's YAML; labels are a ClassLabel; two parts each."""
    clone = root / "some-org" / "verdicts"
    lines = ["configs:"]
    for config in ("plain", "other"):
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in SPLITS:
            found = records_of(split)
            if config == "other":
                found = [r | {"sentence": "wrong"} for r in found]
            half = len(found) // 2
            write_parquet(clone / config / f"{split}-00000-of-00002.parquet", found[:half])
            write_parquet(clone / config / f"{split}-00001-of-00002.parquet", found[half:])
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    lines += ["dataset_info:", "- config_name: plain", "  features:"]
    lines += ["  - name: sentence", "    dtype: string", "  - name: label", "    dtype:"]
    lines += [
        "      class_label:",
        "        names:",
        "          '0': wrong",
        "          '1': right",
    ]
    lines += ["  - name: tags", "    list: string"]
    (clone / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n# About\n")
    return clone


def test_every_source_gives_the_same_documents(tmp_path, monkeypatch):
    register(monkeypatch, Origin("some-org/verdicts", config="plain"))
    files = load("verdict", data_dir=write_files(tmp_path / "files"))
    for split in SPLITS:
        write_parquet(tmp_path / "columns" / "verdict" / f"{split}.parquet", records_of(split))
    columns = load("verdict", data_dir=str(tmp_path / "columns"))
    clone = write_clone_with_configs(tmp_path / "clones")
    cloned = load("verdict", data_dir=str(tmp_path / "clones"))
    prepare("verdict", tmp_path / "ready", data_dir=str(tmp_path / "clones"))
    prepared = load("verdict", data_dir=str(tmp_path / "ready"))
    prepare("verdict", tmp_path / "too", data_dir=str(tmp_path / "files"))
    again = load("verdict", data_dir=str(tmp_path / "too"))
    found = [files, columns, cloned, prepared, again]
    assert [f.source for f in found] == ["files", "files", "hub", "tfds", "tfds"]
    assert cloned.location == str(clone)
    assert {split: len(d) for split, d in files.documents.items()} == SPLITS
    for other in found[1:]:
        assert other.documents == files.documents
        assert list(other.documents) == list(files.documents)
    # The ids of the examples do not depend on the source either.
    first, second = (
        json.loads((tmp_path / d / "verdict/1.0.0/w2s.json").read_text()) for d in ("ready", "too")
    )
    assert first["splits"] == second["splits"] and first["sha256"] == second["sha256"]


def test_records_of_a_clone(tmp_path, monkeypatch):
    clone = write_clone_with_configs(tmp_path)
    task = replace(TASK, hub=Origin("some-org/verdicts", config="plain"))
    opened = open_records(task, "hub", str(tmp_path))
    assert (opened.source, opened.location) == ("hub", str(clone))
    assert list(opened.splits) == sorted(SPLITS)
    reader = opened.splits["train"]()
    place, record = next(reader)
    assert place == f"{clone} (plain), split train, row 1"
    assert record == records_of("train")[0] and type(record["label"]) is int
    assert [r for _, r in opened.splits["test_hard"]()] == records_of("test_hard")
    # Relative paths are not names on the hub.
    monkeypatch.chdir(tmp_path)
    assert open_records(task, "hub", ".").location == "some-org/verdicts"


def test_one_file_a_split_and_other_names(tmp_path, monkeypatch):
    clone = tmp_path / "org" / "name"
    for split, count in (("train", 8), ("dev", 2)):
        found = [{"text": f"{split} {n}", "gold": ["no", "yes"][n % 2]} for n in range(count)]
        write_jsonl(clone / f"{split}.jsonl", found)
    (clone / "README.md").write_text("No YAML here.\n")

    def convert(record):
        label = ["no", "yes"].index(record["gold"])
        return {"sentence": record["text"], "label": label, "tags": []}

    origin = Origin("org/name", splits={"train": "train", "test": "validation"}, convert=convert)
    register(monkeypatch, origin)
    documents = load_task("verdict", data_dir=str(tmp_path))
    # `datasets` reads dev as validation.
    assert {split: len(found) for split, found in documents.items()} == {"train": 8, "test": 2}
    assert [(d.text, d.label) for d in documents["test"]] == [("dev 0", 0), ("dev 1", 1)]
    register(monkeypatch, replace(origin, splits={"train": "train", "test": "held_out"}))
    message = error(load_task, "verdict", data_dir=str(tmp_path))
    assert "no split 'held_out' (split 'test' of task 'verdict')" in message
    assert "train, validation" in message
    register(monkeypatch, replace(origin, convert=None))
    message = error(load_task, "verdict", data_dir=str(tmp_path))
    assert "row 1: field 'sentence' is missing; the record has: text, gold" in message
    with (clone / "train.jsonl").open("a") as file:
        file.write('{"text": "odd", "gold": "maybe"}\n')
    register(monkeypatch, origin)
    message = error(load_task, "verdict", data_dir=str(tmp_path))
    assert f"{clone}, split train, row 9: not in the expected form of org/name" in message
    assert "'maybe' is not in list" in message and "text, gold" in message


def test_folders_of_one_repository(tmp_path, monkeypatch):
    for folder in ("good", "bad"):
        for split in ("train", "test"):
            found = [
                {"sentence": f"{folder} {split} {n}", "label": n % 2, "tags": []} for n in range(4)
            ]
            write_jsonl(tmp_path / "org" / "pairs" / folder / f"{split}.jsonl", found)
    for folder in ("good", "bad"):
        register(monkeypatch, Origin("org/pairs", folder=folder))
        documents = load_task("verdict", data_dir=str(tmp_path))
        assert [d.text for d in documents["test"]] == [f"{folder} test {n}" for n in range(4)]
    register(monkeypatch, Origin("org/pairs", folder="ugly"))
    message = error(load_task, "verdict", data_dir=str(tmp_path))
    assert f"{tmp_path}/org/pairs (ugly): cannot be read" in message


def test_a_clone_of_the_converted_revision(tmp_path, monkeypatch):
    """In this revision a configuration is a folder, and there is no README."""
    for config in ("plain", "other"):
        for split in ("train", "validation"):
            found = [r | {"sentence": r["sentence"] + config} for r in records_of(split)]
            write_parquet(tmp_path / "org" / "old" / config / split / "0000.parquet", found)
    register(monkeypatch, Origin("org/old", config="plain"))
    documents = load_task("verdict", data_dir=str(tmp_path))
    assert {split: len(d) for split, d in documents.items()} == {"train": 30, "validation": 6}
    assert all(d.text.endswith("plain") for d in documents["train"])


def test_what_is_local_comes_first(tmp_path, monkeypatch):
    root = tmp_path / "root"
    register(monkeypatch, Origin("some-org/verdicts", config="plain"))
    prepare("verdict", root, data_dir=write_files(tmp_path / "files"))
    assert load("verdict", data_dir=str(root)).source == "tfds"
    write_clone_with_configs(root)
    assert load("verdict", data_dir=str(root)).source == "hub"
    write_files(root)
    assert load("verdict", data_dir=str(root)).source == "files"
    for source in ("files", "hub", "tfds"):
        assert load("verdict", source, data_dir=str(root)).source == source


def test_broken_clones(tmp_path, monkeypatch):
    clone = write_clone_with_configs(tmp_path)
    register(monkeypatch, Origin("some-org/verdicts", config="plane"))
    message = error(load_task, "verdict", data_dir=str(tmp_path))
    assert f"{clone} (plane): cannot be read" in message and "'plain'" in message
    (clone / "plain" / "train-00000-of-00002.parquet").write_bytes(b"nothing")
    register(monkeypatch, Origin("some-org/verdicts", config="plain"))
    assert f"{clone} (plain): cannot be read" in error(load_task, "verdict", data_dir=str(tmp_path))
    script = tmp_path / "org" / "script"
    script.mkdir(parents=True)
    (script / "script.py").write_text("raise SystemExit('this code must not run')")
    register(monkeypatch, Origin("org/script"))
    message = error(load_task, "verdict", data_dir=str(tmp_path))
    assert "scripts are no longer supported" in message
    assert "hf download --repo-type dataset org/script --local-dir <data_dir>/org/script" in message
    assert message.endswith("--revision refs/convert/parquet")


def test_script_only_repositories_are_read_as_converted(monkeypatch):
    from w2s_jax.data import hf_datasets

    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        if "revision" not in options:
            raise RuntimeError("Dataset scripts are no longer supported, but found old.py")
        return datasets.DatasetDict(train=datasets.Dataset.from_list(records_of("validation")))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hf_datasets, "_refuse_unreachable", lambda *_: None)
    task = replace(TASK, hub=Origin("org/old", config="plain"))
    opened = open_records(task, "auto", None)
    assert (opened.source, opened.location) == ("hub", "hub org/old (plain)")
    assert asked == [
        ("org/old", "plain", {"data_dir": None}),
        ("org/old", None, {"data_dir": "plain", "revision": "refs/convert/parquet"}),
    ]
    assert all("trust_remote_code" not in options for _, _, options in asked)
    place, record = list(opened.splits["train"]())[1]
    assert place == "hub org/old (plain), split train, row 2"
    assert record == records_of("validation")[1]


def test_an_unreachable_hub_is_one_line_within_seconds(tmp_path):
    """In its own process, where nothing is replaced: port 9 of this machine refuses."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from dataclasses import replace\n"
        "from test_data_hub import TASK, Origin, open_records\n"
        "from w2s_jax.core.errors import InputError\n"
        "import time\n"
        "task = replace(TASK, hub=Origin('nyu-mll/glue', config='sst2'))\n"
        "for source in ('hub', 'auto'):\n"
        "    start = time.monotonic()\n"
        "    try:\n"
        "        open_records(task, source, None)\n"
        "    except InputError as error:\n"
        "        print(round(time.monotonic() - start, 2), error)\n"
    )
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    env = {k: v for k, v in env.items() if k not in ("HF_HUB_OFFLINE", "W2S_DATA_DIR")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        seconds, _, message = line.partition(" ")
        assert float(seconds) < 8
        assert "nyu-mll/glue (sst2) at http://127.0.0.1:9: not reachable" in message
        assert "W2S_DATA_DIR to a folder laid out as <data_dir>/<task>/<split>.jsonl" in message
        assert "hf download --repo-type dataset nyu-mll/glue --local-dir" in message
    assert lines[0].partition(" ")[2].startswith("task.source: 'hub': no data for task 'verdict'")
    assert lines[1].partition(" ")[2].startswith("task.data_dir: no files for task 'verdict'")
    assert "tfds: task 'verdict' is not available from TFDS (its sources: files, hub)" in lines[1]


def test_a_silent_hub_is_given_up_after_the_timeout(monkeypatch):
    """A server that accepts a connection and never answers."""
    import huggingface_hub

    from w2s_jax.core import hf_hub

    monkeypatch.undo()
    server = socket.create_server(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    api = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint=endpoint))
    monkeypatch.setattr(hf_hub, "_SECONDS", 0.3)
    offline(monkeypatch, False)
    start = time.monotonic()
    with server:
        message = error(open_records, replace(TASK, hub=Origin("a/b")), "hub", None)
    assert time.monotonic() - start < 3
    assert "not reachable" in message and "imeout" in message


def answer(status, headers):
    """A server on this machine with one answer; returns its endpoint."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with server:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                lines = [f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "Connection: close"]
                connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "status, headers, words",
    [
        ("404 Not Found", ["X-Error-Code: RepoNotFound"], ["no such dataset", "HF_TOKEN"]),
        ("403 Forbidden", ["X-Error-Code: GatedRepo"], ["gated", "/datasets/a/b", "HF_TOKEN"]),
        ("503 Service Unavailable", [], ["503"]),
    ],
)
def test_what_the_hub_may_answer(monkeypatch, status, headers, words):
    import huggingface_hub

    monkeypatch.undo()
    endpoint, api = answer(status, headers), huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint=endpoint))
    offline(monkeypatch, False)
    message = error(open_records, replace(TASK, hub=Origin("a/b")), "hub", None)
    for word in ("hub: a/b at http", *words):
        assert word in message


def test_offline_mode(monkeypatch):
    offline(monkeypatch, True)
    message = error(open_records, replace(TASK, hub=Origin("a/b", config="c")), "hub", None)
    assert "a/b (c) at http" in message and "HF_HUB_OFFLINE" in message
    assert "W2S_DATA_DIR" in message


def test_without_the_package_or_an_origin(monkeypatch):
    message = error(open_records, TASK, "hub", None)
    assert "task.source: 'hub'" in message
    assert "is not available from the hub (its sources: files)" in message
    message = error(open_records, TASK, "auto", None)
    assert message.startswith("task.data_dir: no files for task 'verdict'")
    assert "hub: task 'verdict' is not available from the hub" in message
    assert "task.source: unknown value 'hubb' (did you mean 'hub'?)" in error(
        open_records, TASK, "hubb", None
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = error(open_records, replace(TASK, hub=Origin("a/b")), "hub", None)
    assert "pip install 'w2s_jax[hub]'" in message and "W2S_DATA_DIR" in message


def test_an_empty_split(monkeypatch):
    from w2s_jax.data import hf_datasets

    empty = datasets.Dataset.from_list(records_of("train")).select([])
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=empty)
    )
    monkeypatch.setattr(hf_datasets, "_refuse_unreachable", lambda *_: None)
    opened = open_records(replace(TASK, hub=Origin("a/b")), "hub", None)
    assert "hub a/b, split train: it holds no records" in error(opened.splits["train"])


@pytest.mark.parametrize("how", ["rewritten", "another clone"])
def test_a_clone_whose_files_changed_is_read_again(tmp_path, monkeypatch, how):
    """`datasets` alone would return the earlier conversion: it only checks the README."""
    register(monkeypatch, Origin("some-org/verdicts", config="plain"))
    clone = write_clone_with_configs(tmp_path)
    before = load_task("verdict", data_dir=str(tmp_path))["train"]
    root = tmp_path
    if how == "another clone":
        root = tmp_path / "other"
        shutil.copytree(clone, root / "some-org" / "verdicts")
        clone = root / "some-org" / "verdicts"
    path = clone / "plain" / "train-00000-of-00002.parquet"
    # As large as before.
    changed = [r | {"sentence": r["sentence"].replace("odd", "new")} for r in records_of("train")]
    write_parquet(path, changed[:15])
    after = load_task("verdict", data_dir=str(root))["train"]
    assert [d.text for d in after[15:]] == [d.text for d in before[15:]]
    assert [d.text for d in after[:15]] == [d.text.replace("odd", "new") for d in before[:15]]
