"""`task.unlabelled`: the student's documents come from a pool without labels."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import error
from rich.console import Console
from task_rows import ROWS

from w2s_jax import testing
from w2s_jax.cli import main
from w2s_jax.config import METHODS
from w2s_jax.config.declarations import MethodSpec
from w2s_jax.config.validation import validate
from w2s_jax.data.documents import Document
from w2s_jax.data.loading import load
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve

RECORDS = testing.tiny_records(400, seed=3)
LABELLED, HELD, TESTED, POOL = RECORDS[:120], RECORDS[120:160], RECORDS[160:200], RECORDS[200:]
#: Ways to write that a record has no label; `...`: no such field.
NO_LABEL = (..., None, -1, "", "null")


def write(folder, rows, name="train"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bare(rows, label=...):
    return [{"text": r["text"]} | ({} if label is ... else {"label": label}) for r in rows]


@pytest.fixture
def data(tmp_path):
    """A task with three labelled splits, and the file `unsupervised` of 200 texts."""
    folder = tmp_path / "data" / "mine"
    parts = {"train": LABELLED, "validation": HELD, "test": TESTED, "unsupervised": bare(POOL)}
    for name, rows in parts.items():
        write(folder, rows, name)
    return folder


def config_of(data, **changes):
    config = testing.tiny_config(data.parent)
    config.task.name = data.name
    config.pretrain.source = None
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def resolved(data, **changes):
    return resolve(validate(config_of(data, **changes)))


def refusal(data, **changes):
    return error(lambda: plan(resolved(data, **changes)).phases and [])


def texts(found, split):
    """The texts of a split of a run, whose tokens are bytes with a special token at both ends."""
    documents = found.roles["weak"].splits[split]
    tokenizer = testing.TINY_TOKENIZER
    return [tokenizer.decode(documents.document(n)[1:-1]) for n in range(len(documents))]


def text_set(rows):
    return {row["text"] for row in rows}


# --- documents -----------------------------------------------------------------------------------


def test_slice_1_is_all_that_is_labelled_and_the_pool_is_the_others(data):
    found = resolved(data, task__unlabelled="unsupervised")
    splits = found.roles["strong"].splits
    assert set(texts(found, "slice1")) == text_set(LABELLED)
    assert set(texts(found, "slice2")) == text_set(POOL)
    assert np.isnan(splits["slice2"].truth_N).all() and np.isnan(splits["slice2"].labels_N).all()
    for split in ("slice1", "validation", "test"):
        assert not np.isnan(splits[split].truth_N).any()
    (line,) = [note for note in found.notes if note.startswith("training: ")]
    assert "; unlabelled: unsupervised.jsonl; " in line and "unused: none" in line


def test_the_labelled_documents_are_those_of_a_run_without_a_pool(data):
    """Also where documents are drawn from them, and one of them is in the pool too."""
    write(data, [*bare(POOL), *bare(LABELLED[:30])], "unsupervised")
    for docs in (None, 40):
        with_pool = resolved(data, task__unlabelled="unsupervised", task__train_docs=docs)
        without = resolved(data, task__train_docs=docs)
        own, other = with_pool.roles["weak"].splits, without.roles["weak"].splits
        both = np.concatenate([other["slice1"].ids_N, other["slice2"].ids_N])
        np.testing.assert_array_equal(np.sort(own["slice1"].ids_N), np.sort(both))
        for split in ("validation", "test"):
            assert own[split].digest() == other[split].digest()


@pytest.mark.parametrize("label", NO_LABEL)
def test_spellings_of_no_label_in_every_kind_of_file(data, tmp_path, label):
    wanted = resolved(data, task__unlabelled="unsupervised").roles["weak"].splits["slice2"]
    rows = bare(POOL, label)
    columns = ["text"] if label is ... else ["text", "label"]
    kinds = {"jsonl": write(tmp_path, rows, "pool")}
    kinds["csv"] = tmp_path / "pool.csv"
    with kinds["csv"].open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    kinds["parquet"] = tmp_path / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows), kinds["parquet"])
    digests = set()
    for path in kinds.values():
        found = resolved(data, task__unlabelled=str(path)).roles["weak"].splits["slice2"]
        assert np.isnan(found.truth_N).all() and len(found) == len(wanted)
        digests.add(found.digest())
    assert len(digests) == 1


@pytest.mark.parametrize("lie", [None, 0, 1, "maybe", 7])
def test_labels_of_the_pool_are_never_read(data, lie):
    """True ones, wrong ones and bad ones change no byte of a run's input."""
    hidden = resolved(data, task__unlabelled="unsupervised")
    assert not any("ignored" in note for note in hidden.notes)
    rows = POOL if lie is None else bare(POOL, lie)
    write(data, [r | {"soft_label": 0.9} for r in rows[:50]] + rows[50:150] + bare(POOL[150:]),
          "unsupervised")  # fmt: skip
    shown = resolved(data, task__unlabelled="unsupervised")
    assert shown.digests == hidden.digests
    assert [p.name for p in plan(shown).phases] == [p.name for p in plan(hidden).phases]
    note = "unlabelled: labels of 150 of 200 records of unsupervised.jsonl are ignored"
    assert note in shown.notes


def test_a_path_of_a_split_is_that_split(data, monkeypatch):
    monkeypatch.chdir(data)
    wanted = resolved(data, task__unlabelled="unsupervised").digests
    for name in (str(data / "unsupervised.jsonl"), "unsupervised.jsonl"):
        assert resolved(data, task__unlabelled=name).digests == wanted
    moved = data.rename(data.with_name("moved")) / "unsupervised.jsonl"
    for rows, name in ((LABELLED, "train"), (HELD, "validation"), (TESTED, "test")):
        write(data, rows, name)
    elsewhere = resolved(data, task__unlabelled=str(moved))
    assert set(texts(elsewhere, "slice2")) == text_set(POOL)


def test_a_test_split_without_labels_may_be_the_pool(data):
    """As the official test split of SST-2: the run is evaluated on validation."""
    write(data, bare(TESTED, -1), "test")
    found = resolved(data, task__unlabelled="test", task__validation_docs=20, train__batch_size=8)
    assert set(texts(found, "slice2")) == text_set(TESTED)
    assert set(texts(found, "test")) == text_set(HELD)


def test_grouping_removes_documents_of_labelled_groups(data):
    train = [row | {"group": f"g{n}"} for n, row in enumerate(LABELLED)]
    write(data, train)
    rows = bare(POOL)
    rows[0]["text"] = TESTED[0]["text"].upper() + "!"
    rows[1]["text"] = HELD[0]["text"]
    rows[2]["group"] = "g7"
    rows[3]["group"] = rows[4]["group"] = "own"
    write(data, rows, "unsupervised")
    found = resolved(data, task__unlabelled="unsupervised")
    assert set(texts(found, "slice2")) == {row["text"] for row in rows[3:]}
    assert any("removed by grouping: 3 of unsupervised.jsonl" in note for note in found.notes)
    # The same pool, whatever part of the labelled documents is used.
    fewer = resolved(data, task__unlabelled="unsupervised", task__train_docs=20)
    assert fewer.digests["slice2"] == found.digests["slice2"]
    kept = resolved(data, task__unlabelled="unsupervised", protocol__grouping=False)
    assert len(kept.roles["weak"].splits["slice2"]) == 200
    unused = resolved(data, task__unlabelled="unsupervised", task__validation_docs=0,
                      protocol__early_stopping="none")  # fmt: skip
    assert rows[1]["text"] in texts(unused, "slice2")


def test_a_smaller_pool_is_the_beginning_of_a_larger_one(data):
    ids = [
        resolved(data, task__unlabelled="unsupervised", task__unlabelled_docs=docs)
        .roles["weak"].splits["slice2"].ids_N.tolist()
        for docs in (None, 90, 30)
    ]  # fmt: skip
    assert ids[0][:90] == ids[1] and ids[1][:30] == ids[2] and len(ids[0]) == 200


def test_the_pool_is_never_balanced(data):
    """Nine of ten of its texts are favourable, and all are kept; training documents are cut."""
    good = [row for row in POOL if row["label"]]
    rows = [*good[:90], *[row for row in POOL if not row["label"]][:10]]
    write(data, rows, "unsupervised")
    write(data, [r for r in LABELLED if r["label"]] + [r for r in LABELLED if not r["label"]][:20])
    found = resolved(data, task__unlabelled="unsupervised")
    assert set(texts(found, "slice2")) == text_set(rows)
    truth_N = found.roles["weak"].splits["slice1"].truth_N
    assert len(truth_N) == 40 and truth_N.sum() == 20


def test_bootstrapping_cuts_the_pool_into_the_other_slices(data):
    found = resolved(data, task__unlabelled="unsupervised", method__name="bootstrapping")
    parts = [set(texts(found, f"slice{n}")) for n in (1, 2, 3)]
    assert parts[0] == text_set(LABELLED)
    assert parts[1] | parts[2] == text_set(POOL) and not parts[1] & parts[2]
    assert len(parts[1]) == len(parts[2]) == 100


def test_conditions_apply_to_the_pool(data):
    write(data, [row | {"stars": n % 5} for n, row in enumerate(LABELLED)])
    write(data, [row | {"stars": n % 5} for n, row in enumerate(HELD)], "validation")
    write(data, [row | {"stars": n % 5} for n, row in enumerate(bare(POOL))], "unsupervised")
    write(data, [row | {"stars": 0} for row in TESTED], "test")
    found = resolved(data, task__unlabelled="unsupervised", task__where="stars<2",
                     train__batch_size=8)  # fmt: skip
    wanted = {row["text"] for n, row in enumerate(POOL) if n % 5 < 2}
    assert set(texts(found, "slice2")) == wanted
    assert any("80 of 200 of unlabelled" in note for note in found.notes)


def test_more_classes_are_those_of_labelled_documents(tmp_path):
    rows = testing.tiny_records(300, labels=("bad", "good", "mixed"))
    folder = tmp_path / "data" / "three"
    for name, part in (
        ("train", rows[:120]),
        ("validation", rows[120:150]),
        ("test", rows[150:180]),
    ):
        write(folder, part, name)
    write(folder, [row | {"label": "never seen"} for row in rows[180:]], "unsupervised")
    found = resolved(folder, task__unlabelled="unsupervised", train__batch_size=12)
    assert found.classes == ("bad", "good", "mixed")
    documents = found.roles["weak"].splits["slice2"]
    assert documents.soft_NC.shape == (120, 3) and np.isnan(documents.soft_NC).all()
    assert not any("no document of classes" in note for note in found.notes)


def test_pairs_without_labels(tmp_path):
    """Their order is drawn as that of labelled pairs, although the record says which is better."""
    rows = [
        {"chosen": f"\n\nHuman: {n}\n\nAssistant: yes {n}", "rejected":
         f"\n\nHuman: {n}\n\nAssistant: no {n}"} for n in range(200)
    ]  # fmt: skip
    folder = tmp_path / "hh_rlhf_helpful"
    write(folder, rows[:60])
    write(folder, rows[60:], "pool")
    loaded = load("hh_rlhf_helpful", "files", str(tmp_path), unlabelled="pool")
    pool = loaded.documents["unlabelled"]
    assert len(pool) == 140 and all(d.label is None and d.soft_label is None for d in pool)
    first = sum("yes" in document.texts[0] for document in pool)
    assert 40 < first < 100
    assert any("labels of 140 of 140 records" in note for note in loaded.notes)


@pytest.mark.parametrize("name", ["sciq", "openbookqa", "gsm8k_verification"])
def test_records_with_right_and_wrong_documents_are_refused(tmp_path, name):
    write(tmp_path / name, [ROWS[name].record] * 2)
    write(tmp_path / name, [ROWS[name].record], "pool")
    message = error(load, name, "files", str(tmp_path), unlabelled="pool")
    assert message.startswith("task.unlabelled: ") and f"task {name!r} makes" in message
    assert "an unlabelled record must be one document" in message


def test_the_pool_of_embedded_data_is_one_of_its_splits(data, monkeypatch):
    def documents(split_seed):
        return {
            name: [Document(id=1000 * k + n, text=r["text"], label=r["label"]) for n, r in
                   enumerate(rows)]
            for k, (name, rows) in enumerate(
                {"train": LABELLED, "validation": HELD, "test": TESTED, "rest": POOL}.items())
        }  # fmt: skip

    task = replace(get_task("mine", str(data.parent)), expand=None, load=documents)
    monkeypatch.setitem(TASKS, "mine", task)
    found = resolved(data, task__unlabelled="rest")
    assert set(texts(found, "slice2")) == text_set(POOL)
    assert np.isnan(found.roles["weak"].splits["slice2"].truth_N).all()
    message = refusal(data, task__unlabelled="elsewhere.jsonl")
    assert "embedded" in message and "validation, test, rest" in message
    assert "labels" in refusal(data, task__unlabelled="test")


# --- what a run does with it ---------------------------------------------------------------------


def test_the_ceiling_learns_slice_1_or_there_is_none(data):
    shared = plan(resolved(data, task__unlabelled="unsupervised"))
    assert shared.ceiling is None and "ceiling" not in {phase.kind for phase in shared.phases}
    assert all(student.ceiling is None for student in shared.students.values())
    separate = plan(resolved(data, task__unlabelled="unsupervised", protocol__halves="separate"))
    assert separate.phase(separate.ceiling).inputs["train"] == "slice1"
    assert {p.name for p in shared.phases} == {p.name for p in separate.phases} - {separate.ceiling}


METHODS_OF_CLASSES = [name for name, spec in METHODS.items() if "classification" in spec.kinds]


@pytest.mark.parametrize("halves", ["shared", "separate"])
@pytest.mark.parametrize("name", METHODS_OF_CLASSES)
def test_no_method_learns_the_truth_of_the_pool(data, name, halves):
    """Every phase that trains a classifier has labels from elsewhere, or learns slice 1."""
    how = {"task__unlabelled": "unsupervised", "protocol__halves": halves, "method__name": name,
           "probe__batch_size": 32}  # fmt: skip
    needed = METHODS[name].truth_of
    if needed == "slice2" or (needed == "ceiling" and halves == "shared"):
        message = refusal(data, **how)
        assert message.startswith(f"method.name: {name!r} needs ")
        assert (needed == "slice2") == ("protocol.halves=separate" not in message)
        return
    found = plan(resolved(data, **how))
    for phase in found.phases:
        if phase.classifies and "labels" not in phase.parents:
            assert phase.inputs["train"] == "slice1"


def test_a_method_that_declares_nothing_is_refused_too(data, monkeypatch):
    def truth_of_slice2(planner):
        planner.builder.trained("ceiling", "strong", "slice2", label="mine")

    monkeypatch.setitem(METHODS._entries, "mine", MethodSpec("mine", truth_of_slice2))
    message = refusal(data, task__unlabelled="unsupervised", method__name="mine")
    assert message.startswith("task.unlabelled: 'unsupervised': slice2 has no ground truth")


def test_a_run_without_a_pool_has_no_trace_of_it(data):
    """The files beside the labelled ones change nothing."""
    before = [phase.name for phase in plan(resolved(data)).phases]
    (data / "unsupervised.jsonl").unlink()
    assert [phase.name for phase in plan(resolved(data)).phases] == before


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"task__unlabelled": "unsupervisd"}, "did you mean 'unsupervised'?); its splits: empty, "),
        ({"task__unlabelled": "{data}/unsupervised.json"},
         "there is no file '{data}/unsupervised.json' (did you mean {data}/unsupervised.jsonl?)"),
        ({"task__unlabelled": "/nowhere/pool.jsonl"}, "there is no file '/nowhere/pool.jsonl'"),
        ({"task__unlabelled": "train"}, "'train' is the training split"),
        ({"task__unlabelled": "{data}/train.jsonl"}, "is the training split"),
        ({"task__unlabelled": "validation", "task__train_split": "validation"},
         "'validation' is the training split"),
        ({"task__unlabelled": "test"}, "40 of its 40 records have labels, and runs are evaluated"),
        ({"task__unlabelled": "dev"}, "and runs are evaluated on 'validation'"),
        ({"task__unlabelled": "{data}/empty.jsonl"}, "the file is empty"),
        ({"task__unlabelled": "{data}/fields.jsonl"}, "line 1: field 'text' is missing"),
        ({"task__unlabelled": "{data}/same.jsonl"}, "has only 0 (40 have a group or text of "),
        ({"task__unlabelled": "unsupervised", "task__unlabelled_docs": 201},
         "task.unlabelled_docs: 201 documents were asked for, but task.unlabelled has only 200"),
        ({"task__unlabelled": "unsupervised", "task__unlabelled_docs": 12},
         "strong.train.batch_size: 16 exceeds the 12 documents of slice2; allowed: at most 12 "
         "(or raise task.unlabelled_docs)"),
        ({"task__unlabelled_docs": 50}, "task.unlabelled_docs: 50, but there is no unlabelled"),
    ],
)  # fmt: skip
def test_bad_pools_are_refused_in_one_line(data, changes, message):
    write(data, [], "empty")
    write(data, [{"words": "none"}], "fields")
    write(data, bare(TESTED), "same")
    here = {k: v.format(data=data) if isinstance(v, str) else v for k, v in changes.items()}
    assert message.format(data=data) in refusal(data, **here)


SUMS = [{"prompt": f"{n} + 1 =", "target": f" {n + 1}"} for n in range(200)]


@pytest.mark.parametrize("target", [..., None, " 7", 3])
def test_prompts_without_targets(tmp_path, capsys, target):
    """Targets that are there are ignored; prompts of labelled documents are left out."""
    folder = tmp_path / "data" / "sums"
    for name, rows in (("train", SUMS[:60]), ("validation", SUMS[60:80]), ("test", SUMS[80:120])):
        write(folder, rows, name)
    rows = [{"prompt": r["prompt"]} | ({} if target is ... else {"target": target})
            for r in SUMS[110:]]  # fmt: skip
    write(folder, rows, "asked")
    found = resolved(folder, task__unlabelled="asked")
    documents = found.roles["strong"].splits["slice2"]
    decode = testing.TINY_TOKENIZER.decode
    prompts = [decode(documents.document(n)[1:-1]) for n in range(len(documents))]
    assert set(prompts) == {row["prompt"] for row in SUMS[120:]}
    np.testing.assert_array_equal(documents.piece_lengths_P - documents.prompt_lengths_P, 1)
    assert any("removed by grouping: 10 of asked.jsonl" in note for note in found.notes)
    assert any("ignored" in n for n in found.notes) == (target not in (..., None))
    # "200" and the end, of the longest target of slice 1.
    assert found.roles["strong"].completion.max_new_tokens == len(" 59") + 1
    assert plan(found).ceiling is None
    for name in [name for name, spec in METHODS.items() if "generation" in spec.kinds]:
        how = {"losses": ("xent", "dpo")} if METHODS[name].pairs else {}
        planned = plan(resolved(folder, task__unlabelled="asked", method__name=name, **how))
        for phase in planned.phases:
            if phase.targets == "tokens" and "labels" not in phase.parents:
                assert phase.inputs["train"] == "slice1"
    how = [f"--data_dir={folder.parent}", "--unlabelled=asked"]
    assert main.main(["data", "check", "sums", *how]) == 0
    assert "unlabelled vs test: 10 duplicate texts" in capsys.readouterr().out
    assert main.main(["data", "show", "sums", "--n=1", "--split=unlabelled", *how]) == 0
    out = capsys.readouterr().out
    assert ", no target" in out and "(target" not in out
    # Labelled records still need a target.
    write(folder, rows[:1] if target in (..., None) else [{"prompt": "1"}], "test")
    assert "target" in refusal(folder, task__unlabelled="asked")


def test_questions_of_a_task_with_code(tmp_path):
    write(tmp_path / "gsm8k", [ROWS["gsm8k"].record])
    question = {"question": "How many are 2 and 3?"}
    write(tmp_path / "gsm8k", [question, {**question, "answer": "Five.\n#### 5"}], "pool")
    loaded = load("gsm8k", "files", str(tmp_path), unlabelled="pool")
    pool = loaded.documents["unlabelled"]
    assert [(d.text, d.target) for d in pool] == [(question["question"], "")] * 2
    assert any("labels of 1 of 2 records" in note for note in loaded.notes)
    write(tmp_path / "gsm8k", [question], "test")
    assert "field 'answer' is missing" in error(load, "gsm8k", "files", str(tmp_path))


def test_external_labels_are_needed_for_the_pool(data, tmp_path):
    ids, labels = tmp_path / "ids.csv", tmp_path / "labels.csv"
    arguments = ["data", "ids", "mine", f"--data_dir={data.parent}", f"--to={ids}"]
    assert main.main([*arguments, "--unlabelled=unsupervised"]) == 0
    with ids.open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "train"]
    assert sum(row["split"] == "unlabelled" for row in rows) == 200
    labels.write_text("id,p\n" + "".join(f"{row['id']},0.75\n" for row in rows))
    how = {"task__unlabelled": "unsupervised", "weak__labels": str(labels)}
    assert plan(resolved(data, **how)).phases[0].kind == "labels"
    some = [row for row in rows if row["split"] != "unlabelled"]
    labels.write_text("id,p\n" + "".join(f"{row['id']},0.75\n" for row in some))
    assert "slice2: no label for 200 of 200 documents" in refusal(data, **how)


# --- the layout of public harnesses, and the commands --------------------------------------------


def test_the_public_layout_is_read_as_it_is(tmp_path, data):
    folder = data.with_name("harness")
    write(folder, LABELLED, "train_label")
    write(folder, POOL, "train_unlabel")
    write(folder, TESTED, "test")
    found = resolved(folder, task__validation_docs=20)
    assert found.settings.task.unlabelled == "train_unlabel"
    assert set(texts(found, "slice1")) | set(texts(found, "validation")) == text_set(LABELLED)
    assert set(texts(found, "slice2")) == text_set(POOL)
    assert set(texts(found, "test")) == text_set(TESTED)
    assert any("training: train_label.jsonl; unlabelled: train_unlabel.jsonl; " in note
               for note in found.notes)  # fmt: skip
    # Another pool may be named, and so may another training split.
    pool = str(data / "unsupervised.jsonl")
    other = resolved(folder, task__validation_docs=20, task__unlabelled=pool)
    assert other.digests["slice1"] == found.digests["slice1"]
    plain = resolved(folder, task__train_split="test", task__validation_docs=4, task__test_docs=4,
                     train__batch_size=8)  # fmt: skip
    assert plain.settings.task.unlabelled is None


def test_check_and_show_know_the_pool(data, capsys):
    write(data, [*bare(POOL[:50]), *bare(LABELLED[:3]), *bare(POOL[:2])], "unsupervised")
    how = [f"--data_dir={data.parent}", "--unlabelled=unsupervised"]
    assert main.main(["data", "check", "mine", *how]) == 0
    out = capsys.readouterr().out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("unlabelled  ")]
    assert row[1:] == ["55", "-", "-", "55", "1", "2", "0"]
    assert "unlabelled vs train: 3 duplicate texts" in out
    assert "unlabelled: unsupervised.jsonl" in out
    assert main.main(["data", "show", "mine", "--n=1", "--split=unlabelled", *how]) == 0
    assert ", no label" in capsys.readouterr().out
    assert main.main(["data", "check", "mine", how[0], "--unlabelled=nothing"]) == 2


def test_a_recipe_may_name_the_pool_of_the_commands(data, tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from w2s_jax import testing\n\n"
        "def get_config():\n"
        f"    config = testing.tiny_config({str(data.parent)!r})\n"
        "    config.task.unlabelled = 'unsupervised'\n"
        "    return config\n"
    )
    assert main.main(["data", "check", "mine", f"--config={recipe}"]) == 0
    assert "unlabelled  " in capsys.readouterr().out


def test_a_dry_run_and_a_sweep_have_no_ceiling(data, capsys):
    from w2s_jax.execution import execute
    from w2s_jax.sweep.planning import SharedResolver

    config = config_of(data, task__unlabelled="unsupervised")
    console = Console(width=200)
    assert execute.run(config, data.parent / "run", dry_run=True, console=console) == {}
    out = capsys.readouterr().out
    assert "4 of 4 phases to run" not in out and "3 of 3 phases to run" in out
    assert "ceiling" not in out
    # The layout's pool is known to all runs of a sweep, also those whose data are shared.
    folder = data.with_name("harness")
    for rows, name in ((LABELLED, "train_label"), (POOL, "train_unlabel"), (TESTED, "test")):
        write(folder, rows, name)
    resolver = SharedResolver()
    for seed in (0, 1):
        settings = validate(config_of(folder, seed=seed, task__validation_docs=20))
        assert plan(resolver(settings)).ceiling is None


def test_the_bench_of_a_recipe_without_a_ceiling_is_refused(data):
    from w2s_jax.perf.recipes import recipe_workload

    config = config_of(data, task__unlabelled="unsupervised")
    assert "protocol.halves=separate" in error(recipe_workload, config)
    config.protocol.halves = "separate"
    assert math.isfinite(len(recipe_workload(config).documents))


def test_synthetic_documents_of_the_compiler_have_the_sizes_of_a_pool(data):
    from w2s_jax.perf.aot.inputs import find_inputs

    config = config_of(data, task__unlabelled="unsupervised", task__unlabelled_docs=96)
    found = find_inputs(validate(config), documents=64, tokens=16)
    sizes = {name: len(docs) for name, docs in found.roles["strong"].splits.items()}
    assert sizes["slice1"] == 64 and sizes["slice2"] == 96
    assert plan(found).ceiling is None
