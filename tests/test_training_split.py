"""The split that a run trains on: one rule for every reader."""

import json
import re
from dataclasses import replace

import pytest
from refusals import error

from w2s_jax import testing
from w2s_jax.config.validation import validate
from w2s_jax.data import hf_datasets
from w2s_jax.data.documents import Document, stable_id
from w2s_jax.data.loading import load_task
from w2s_jax.data.prepare import prepare
from w2s_jax.data.task import Origin
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.execution.prepare import prepare as prepare_run
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve

ROWS = testing.tiny_records(300)
PARTS = {"train": ROWS[:100], "validation": ROWS[100:200], "test": ROWS[200:]}
CHOICE = "--config.task.train_split="


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)


def settings(data_dir, train_split=None, name="mine", **task):
    config = testing.tiny_config(data_dir)
    config.pretrain.source = None
    config.task.name, config.task.train_split = name, train_split
    config.task.test_docs, config.task.validation_docs = 20, 10
    config.task.update(task)
    if config.task.validation_docs == 0:
        config.protocol.early_stopping = "none"
    return config


def resolved(*args, **kwargs):
    return resolve(validate(settings(*args, **kwargs)))


def refusal(*args, **kwargs):
    return error(resolved, *args, **kwargs)


def origins(found, data_dir, name="mine"):
    """Part of a run -> splits of the source that its documents are from."""
    where = {
        document.id: split
        for split, documents in load_task(name, data_dir=str(data_dir)).items()
        for document in documents
    }
    splits = found.roles["weak"].splits
    return {part: {where[int(i)] for i in docs.ids_N} for part, docs in splits.items()}


def files(place, monkeypatch):
    return place


def bucket(place, monkeypatch):
    import upath

    there = upath.UPath(f"memory://{place.name}")
    for path in (place / "mine").iterdir():
        (there / "mine").mkdir(parents=True, exist_ok=True)
        (there / "mine" / path.name).write_bytes(path.read_bytes())
    return there


def hub(place, monkeypatch):
    def reader(path):
        return lambda: iter([(path.name, json.loads(line)) for line in path.open()])

    found = {path.stem: reader(path) for path in sorted((place / "mine").iterdir())}
    monkeypatch.setattr(hf_datasets, "open_hub", lambda origin: found)
    task = replace(get_task("mine", str(place)), hub=Origin("some-org/mine"))
    monkeypatch.setitem(TASKS, "mine", task)
    return place / "elsewhere"


def prepared(place, monkeypatch):
    to = place / "prepared"
    prepare("mine", to, data_dir=str(place))
    return to


def embedded(place, monkeypatch):
    def documents(split_seed):
        return {
            path.stem: [
                Document(id=stable_id(path.stem, n), **json.loads(line))
                for n, line in enumerate(path.open())
            ]
            for path in (place / "mine").iterdir()
        }

    task = replace(get_task("mine", str(place)), expand=None, load=documents)
    monkeypatch.setitem(TASKS, "mine", task)
    return place


READERS = [files, bucket, hub, prepared, embedded]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "splits,found,choice",
    [
        (("training", "validation", "test"), "test, training, validation", "validation"),
        (("train_label", "test"), "test, train_label", "test"),
        (("whole",), "whole", None),
    ],
)
def test_no_other_split_is_taken_for_training(tmp_path, monkeypatch, reader, splits, found, choice):
    write(tmp_path / "mine", **dict(zip(splits, PARTS.values(), strict=False)))
    place = reader(tmp_path, monkeypatch)
    message = refusal(place)
    assert message.startswith("task.train_split: ")
    assert re.search(f"found: {found};".replace(", ", r"(\.jsonl)?, ").replace(";", r"(\.jsonl)?;"),
                     message), message  # fmt: skip
    assert (CHOICE in message) == (choice is not None)
    if choice:
        assert message.endswith(f"{CHOICE}{choice}")
        chosen = resolved(place, choice)
        assert origins(chosen, place)["slice1"] == {choice}
        assert any(note.startswith(f"training: {choice}") for note in chosen.notes)
    assert "no such split" in refusal(place, "train")


@pytest.mark.parametrize("chosen", [None, "train", "validation", "test"])
def test_what_serves_training_serves_nothing_else(tmp_path, chosen):
    write(tmp_path / "mine", **PARTS)
    found = resolved(tmp_path, chosen)
    train = chosen or "train"
    test = "validation" if train == "test" else "test"
    validation = "validation" if train == "train" else train
    assert origins(found, tmp_path) == {
        "slice1": {train}, "slice2": {train}, "validation": {validation}, "test": {test}
    }  # fmt: skip


def test_the_default_is_what_it_was(tmp_path):
    """A choice that is the default's has the default's phases."""
    write(tmp_path / "mine", **PARTS)
    names = [[phase.name for phase in plan(resolved(tmp_path, s)).phases] for s in (None, "train")]
    assert names[0] == names[1]
    other = [phase.name for phase in plan(resolved(tmp_path, "validation")).phases]
    assert not set(other) & set(names[0])


def test_tasks_without_a_training_split_declare_another(tmp_path):
    declared = {name: task.train_split for name, task in TASKS.items() if task.train_split}
    assert declared == dict.fromkeys(("boolq", "hellaswag", "mc_taco", "piqa"), "validation")
    rows = [
        {"passage": row["text"], "question": "good", "answer": row["label"] == 1} for row in ROWS
    ]
    write(tmp_path / "boolq", dev=rows[:200], test=rows[200:])
    note = "task boolq has no split 'train': training on dev.jsonl"
    assert note in resolved(tmp_path, name="boolq").notes
    assert note not in resolved(tmp_path, "validation", name="boolq").notes
    (tmp_path / "boolq" / "dev.jsonl").rename(tmp_path / "boolq" / "train.jsonl")
    assert note not in resolved(tmp_path, name="boolq").notes
    (tmp_path / "boolq" / "train.jsonl").unlink()
    assert "found: test.jsonl;" in refusal(tmp_path, name="boolq")


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("ready", [True, False])
def test_corpora_follow_the_rule(tmp_path, streaming, ready):
    write(tmp_path / "mine", valid=ROWS[:200], test=ROWS[200:])
    write(tmp_path / "corpus", dev=[{"text": "d"}] * 70, test=[{"text": "t"}] * 60)
    source = "corpus"
    if ready:
        source = str(prepare("corpus", tmp_path / "ready", data_dir=str(tmp_path)).folder)

    def found(train_split):
        config = settings(tmp_path, train_split)
        config.pretrain.source, config.pretrain.streaming = source, streaming
        config.pretrain.steps, config.pretrain.batch_size = 4, 8
        return resolve(validate(config))

    (note,) = [note for note in found("validation").notes if note.startswith("pretraining")]
    used = "validation" if ready else "dev.jsonl"
    assert re.search(r"\b70\b", note) and re.search(rf"{used}\b.*; unused: test", note), note
    (tmp_path / "mine" / "valid.jsonl").rename(tmp_path / "mine" / "train.jsonl")
    message = error(found, None)
    assert message.startswith("pretrain.source: ")
    assert message.endswith(f"{CHOICE}validation") == ready
    if not ready:
        # The choice would hold for the task too, which has a training file.
        assert message.endswith(f"the path of one, such as {tmp_path}/corpus/dev.jsonl")
        assert "found: dev.jsonl, test.jsonl;" in message
        write(tmp_path / "corpus", train=[{"text": "r"}] * 50)
        assert any(note.startswith("pretraining") and "50" in note for note in found(None).notes)


def test_the_line_on_files(tmp_path):
    rows = [row | {"group": f"g{n // 2}"} for n, row in enumerate(ROWS)]
    leak = [rows[0] | {"text": "another"}, *rows[181:]]
    write(tmp_path / "mine", train=rows[:120], dev=rows[119:182], test=leak, hard=rows[:2])
    (tmp_path / "mine" / "README.md").write_text("about")

    def line(**task):
        return next(n for n in resolved(tmp_path, **task).notes if n.startswith("training: "))

    assert line(test_docs=None) == (
        "training: train.jsonl; validation: dev.jsonl; test: test.jsonl; unused: README.md, "
        "hard.jsonl; removed by grouping: 4 of train.jsonl, 2 of dev.jsonl"
    )
    assert "validation: none;" in line(validation_docs=0, test_docs=None)


def test_a_run_does_not_fail_on_a_file_that_it_does_not_need(tmp_path):
    write(tmp_path / "mine", **PARTS)
    (tmp_path / "mine" / "metadata.csv").write_text("a,b\n1,2,3\n")
    line = next(n for n in resolved(tmp_path).notes if n.startswith("training: "))
    assert "unused: metadata.csv;" in line
    assert "metadata.csv, line 2" in error(load_task, "mine", data_dir=str(tmp_path))


def test_names_of_the_splits_of_a_catalogue(tmp_path, monkeypatch):
    write(tmp_path / "mine", train=ROWS[:200], DEV=ROWS[200:])
    place = hub(tmp_path, monkeypatch)
    notes = resolved(place).notes
    assert any(note.startswith("training: train; validation: taken") for note in notes)
    assert any("test: DEV; unused: none" in note for note in notes)
    two = {"dev": iter, "train": iter, "valid": iter}
    monkeypatch.setattr(hf_datasets, "open_hub", lambda origin: two)
    assert "two splits are the validation split: dev and valid" in refusal(place)


def test_a_run_of_the_same_split_goes_on(tmp_path):
    """Working directories of a time without `task.train_split` are found by its new value."""
    write(tmp_path / "mine", **PARTS)

    def prepared_with(train_split):
        return prepare_run(settings(tmp_path, train_split), tmp_path / "run")

    first = prepared_with(None)
    del first.record["config"]["task"]["train_split"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(first.record))
    assert prepared_with("train").plan == first.plan
    assert "task.train_split (None there, 'validation' now)" in error(prepared_with, "validation")


def test_training_documents_of_one_class_are_refused_whatever_their_split(tmp_path):
    write(tmp_path / "mine", dev=[row | {"label": 1} for row in ROWS])
    assert "dev.jsonl: field 'label': all " in refusal(tmp_path, "validation")


def test_too_few_documents_because_of_grouping(tmp_path):
    write(tmp_path / "mine", train=ROWS, test=ROWS)
    message = refusal(tmp_path)
    assert f"protocol.grouping removed {len(ROWS)} of 'train', because their groups" in message
    # A group of which one document is taken for the test set is lost for training.
    (tmp_path / "mine" / "test.jsonl").unlink()
    write(tmp_path / "mine", train=[row | {"group": 7} for row in ROWS])
    assert "protocol.grouping removed " in refusal(tmp_path)


@pytest.mark.parametrize("reader", [files, bucket, hub, prepared])
def test_the_layout_of_public_harnesses(tmp_path, monkeypatch, reader):
    """`train_label` is the training split and `train_unlabel` the pool, whatever reads them."""
    parts = dict(zip(("train_label", "test", "train_unlabel"), PARTS.values(), strict=True))
    write(tmp_path / "mine", **parts)
    known = {row["text"]: name for name, rows in parts.items() for row in rows}
    wanted = resolved(tmp_path)
    place = reader(tmp_path, monkeypatch)
    found = resolved(place)
    assert found.digests == wanted.digests
    assert found.settings.task.unlabelled == "train_unlabel"
    where = {
        document.id: known[document.text]
        for documents in load_task("mine", data_dir=str(place)).values()
        for document in documents
    }
    splits = found.roles["weak"].splits
    assert {part: {where[int(i)] for i in docs.ids_N} for part, docs in splits.items()} == {
        "slice1": {"train_label"}, "slice2": {"train_unlabel"}, "validation": {"train_label"},
        "test": {"test"},
    }  # fmt: skip
    assert len(splits["slice2"]) == 100
    named = resolved(place, unlabelled="train_unlabel")
    assert named.digests == wanted.digests


def test_a_split_of_the_hub_that_a_task_does_not_use_may_be_the_pool(tmp_path, monkeypatch):
    """As 'unsupervised' of IMDB, which is not among the task's splits."""

    def reader(rows):
        return lambda: iter([(f"row {n}", dict(row)) for n, row in enumerate(rows)])

    hidden = [row | {"label": -1} for row in PARTS["validation"]]
    there = {"train": PARTS["train"], "test": PARTS["test"], "unsupervised": hidden}
    readers = {name: reader(rows) for name, rows in there.items()}
    monkeypatch.setattr(hf_datasets, "open_hub", lambda origin: readers)
    how = {"name": "imdb", "source": "hub"}
    found = resolved(tmp_path, unlabelled="unsupervised", **how)
    assert len(found.roles["weak"].splits["slice2"]) == 100
    line = next(note for note in found.notes if note.startswith("training: "))
    assert "; unlabelled: unsupervised; " in line and "unused: none" in line
    plain = next(n for n in resolved(tmp_path, **how).notes if n.startswith("training: "))
    assert "unused: unsupervised" in plain
    assert "did you mean 'unsupervised'?" in refusal(tmp_path, unlabelled="unsupervise", **how)


def test_a_pool_in_a_bucket(tmp_path, monkeypatch):
    write(tmp_path / "mine", train=PARTS["train"], test=PARTS["test"], pool=PARTS["validation"])
    there = bucket(tmp_path, monkeypatch)
    wanted = resolved(there, unlabelled="pool")
    assert len(wanted.roles["weak"].splits["slice2"]) == 100
    assert resolved(there, unlabelled=f"{there}/mine/pool.jsonl").digests == wanted.digests
    other = resolved(tmp_path, unlabelled=f"{there}/mine/pool.jsonl")
    assert len(other.roles["weak"].splits["slice2"]) == 100
    assert "there is no file" in refusal(there, unlabelled=f"{there}/mine/none.jsonl")
