"""Whole runs with `task.test_tasks`: what is predicted, stored, kept and reported."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

import w2s_jax
from w2s_jax import models, sharding, testing
from w2s_jax.core import errors
from w2s_jax.data import load_task
from w2s_jax.execution import storage_gc
from w2s_jax.store.artifacts import PhaseFolder

pytestmark = pytest.mark.medium

#: Numbers that depend on predictions and ground truth alone.
NUMBERS = (
    "accuracy", "accuracy_se", "auroc", "ece", "n", "pgr", "pgr_low", "pgr_high", "gap_low",
    "gap_high", "agreement", "agreement_when_correct", "agreement_when_wrong", "misfit",
)  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The tiny task, a copy of its test documents, and 51 others."""
    folder = testing.write_tiny_task(tmp_path_factory.mktemp("data"))
    (folder / "copy").mkdir()
    (folder / "copy" / "test.jsonl").write_bytes((folder / "tiny" / "test.jsonl").read_bytes())
    (folder / "other").mkdir()
    rows = testing.tiny_records(51, seed=5)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "other" / "validation.jsonl").write_text(lines)
    return folder


def config_of(data_dir, *sets, **changes):
    config = testing.tiny_config(data_dir)
    config.task.test_tasks = sets
    config.mesh.data = 1
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    # With other learning rates, so that the two models differ.
    changes = {"train__epochs": 6.0, "train__steps": None, "weak__train__learning_rate": 3e-3}
    config = config_of(data_dir, "copy", "other", protocol__balance_test=False, **changes)
    return w2s_jax.run(config, workdir), workdir


def predictions_of(workdir, phase):
    table = pq.read_table(workdir / "phases" / phase / "predictions.parquet").to_pydict()
    assert set(table["split"]) == {"test"}
    types = {"id": np.uint64}
    return {name: np.array(values, types.get(name)) for name, values in table.items()}


def entries_of(result):
    return {"weak": result["weak"], "ceiling": result["ceiling"], **result["students"]}


def test_predictions_are_those_of_the_final_parameters(finished, data_dir):
    """One document at a time, by the public functions."""
    result, workdir = finished
    mesh = sharding.make_mesh()
    documents = load_task("other", data_dir=str(data_dir))["validation"]
    there = entries_of(result["transfer"]["other"])
    for key, own in entries_of(result).items():
        folder = workdir / "phases" / own["phase"]
        config, params = models.load_with_head(str(folder), mesh)
        found = predictions_of(workdir, there[key]["phase"])
        p = dict(zip(found["id"].tolist(), found["p"].tolist(), strict=True))
        assert len(p) == len(documents) == 51
        for document in documents[:3]:
            tokens_T, _ = testing.TINY_TOKENIZER.encode_batch([document.text])
            ends = testing.TINY_TOKENIZER.prefix, testing.TINY_TOKENIZER.suffix
            tokens_1L = np.array([[*ends[0], *tokens_T, *ends[1]]])
            hidden_1LD = models.forward(config, params["backbone"], tokens_1L)
            logits = np.asarray(hidden_1LD)[0, -1] @ np.asarray(params["head"]["kernel"])
            by_hand = 1 / (1 + np.exp(logits[0] - logits[1]))
            assert p[document.id] == pytest.approx(by_hand, abs=2e-5)
    accuracies = {entry["accuracy"] for entry in there.values()}
    assert len(accuracies) > 1


def test_numbers_follow_from_the_stored_predictions(finished):
    result, workdir = finished
    there = result["transfer"]["other"]
    found = {k: predictions_of(workdir, e["phase"]) for k, e in entries_of(there).items()}
    accuracy = {}
    for key, entry in entries_of(there).items():
        p, truth = found[key]["p"], found[key]["ground_truth"]
        accuracy[key] = accuracy_score(truth, p > 0.5)
        assert entry["accuracy"] == pytest.approx(accuracy[key])
        se = np.sqrt(accuracy[key] * (1 - accuracy[key]) / 51)
        assert entry["accuracy_se"] == pytest.approx(se)
        assert entry["auroc"] == pytest.approx(roc_auc_score(truth, p))
        assert entry["n"] == 51
    weak = found["weak"]["p"] > 0.5
    right = weak == found["weak"]["ground_truth"]
    for key, entry in there["students"].items():
        same = (found[key]["p"] > 0.5) == weak
        assert entry["agreement"] == pytest.approx(same.mean())
        assert entry["agreement_when_correct"] == pytest.approx(same[right].mean())
        assert entry["agreement_when_wrong"] == pytest.approx(same[~right].mean())
        gap = accuracy["ceiling"] - accuracy["weak"]
        if gap > 0:
            assert entry["pgr"] == pytest.approx((accuracy[key] - accuracy["weak"]) / gap)
            assert entry["gap_low"] <= gap <= entry["gap_high"]
        else:
            assert entry["pgr"] is None and "no gap" in entry["pgr_note"]
    json.dumps(result, allow_nan=False)


def test_a_copy_of_the_own_test_documents_gives_the_own_numbers(finished):
    result, _ = finished
    copied = entries_of(result["transfer"]["copy"])
    for key, own in entries_of(result).items():
        for name in NUMBERS:
            assert copied[key].get(name) == pytest.approx(own.get(name), abs=1e-6), (key, name)
        assert copied[key]["phase"] != own["phase"]


def test_the_report_and_the_terminal_show_the_sets(finished, capsys):
    result, workdir = finished
    w2s_jax.report.print_result(result)
    text = capsys.readouterr().out
    assert text.index("the same models on copy") < text.index("the same models on other")
    assert text.count("confidence") >= 3 and text.count(" 51") == 4
    page = (workdir / "report" / "report.html").read_text()
    section = page[page.index('<section id="transfer"') :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 2 and section.count("<table") == 2
    for entry in entries_of(result["transfer"]["other"]).values():
        assert f"<td>{entry['accuracy']:.3f}<br>" in section
    assert "Labels of these sets are never learnt" in section
    rows = (workdir / "report" / "transfer.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 4 and rows[0].startswith("run,test_task,")
    assert (workdir / "report" / "transfer.png").stat().st_size > 5000


def test_sets_are_added_to_a_finished_run_without_training(data_dir, tmp_path):
    workdir = tmp_path / "run"
    before = w2s_jax.run(config_of(data_dir, losses=("xent",)), workdir)
    assert "transfer" not in before
    old = {p: p.read_bytes() for p in (workdir / "phases").glob("*/result.json")}
    after = w2s_jax.run(config_of(data_dir, "copy", losses=("xent",)), workdir)
    assert {p: p.read_bytes() for p in old} == old
    assert list(after["transfer"]) == ["copy"]
    assert after["weak"] == before["weak"] and after["students"] == before["students"]
    # As losses, sets of a working directory stay; and others join them.
    w2s_jax.run(config_of(data_dir, losses=("xent",)), workdir)
    again = w2s_jax.run(config_of(data_dir, "other", losses=("xent",)), workdir)
    assert list(again["transfer"]) == ["copy", "other"]
    assert again["transfer"]["copy"] == after["transfer"]["copy"]
    lines = (data_dir / "other" / "validation.jsonl").read_text()
    try:
        (data_dir / "other" / "validation.jsonl").write_text(lines.replace("0}", "1}", 2))
        with pytest.raises(errors.InputError, match="the documents of test:other .*have changed"):
            w2s_jax.run(config_of(data_dir, losses=("xent",)), workdir)
    finally:
        (data_dir / "other" / "validation.jsonl").write_text(lines)


@pytest.mark.parametrize(
    ("weak", "strong"), [("last_layers", "lora"), ("probe", "probe_then_full")]
)
def test_partly_trained_models_are_evaluated(data_dir, tmp_path, weak, strong):
    changes = {"weak__train__adapt": weak, "strong__train__adapt": strong}
    changes |= {"probe__batch_size": 16, "probe__epochs": 20.0, "strong__train__ema": 0.5}
    config = config_of(data_dir, "copy", losses=("xent",), **changes)
    result = w2s_jax.run(config, tmp_path / "run")
    copied = entries_of(result["transfer"]["copy"])
    for key, own in entries_of(result).items():
        for name in ("accuracy", "auroc", "ece", "agreement"):
            assert copied[key].get(name) == pytest.approx(own.get(name), abs=1e-6), (key, name)


def test_students_without_a_model_are_null_with_a_reason(data_dir, tmp_path):
    methods = "bagging,prompting,imitation,generative"
    config = config_of(data_dir, "copy", losses=("xent",), method__name=methods)
    config.method.bagging.members = 2
    result = w2s_jax.run(config, tmp_path / "run")
    there = result["transfer"]["copy"]
    missing = {key for key, entry in there["students"].items() if entry is None}
    assert missing == {
        "prompting_zero_shot", "prompting_few_shot_truth", "prompting_few_shot_weak",
        "xent+imitation",
    }  # fmt: skip
    assert set(there["notes"]) == missing and "weak labels" in there["notes"]["xent+imitation"]
    bagged = there["students"]["xent+bagging"]
    assert bagged["agreement"] is None and "without training" in bagged["agreement_note"]
    assert bagged["accuracy"] == result["students"]["xent+bagging"]["accuracy"]
    own = result["students"]["xent+generative"]
    for name in ("accuracy", "pgr", "pgr_low", "gap_high"):
        assert there["students"]["xent+generative"][name] == own[name]
    assert there["students"]["xent+generative"]["ceiling"]["accuracy"] == own["ceiling"]["accuracy"]
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert re.search(r"Not evaluated \(labels made without training.*prompting_zero_shot", page)


def test_without_a_weak_model_there_is_no_pgr(data_dir, tmp_path, capsys):
    ids = load_task("tiny", data_dir=str(data_dir))
    lines = [json.dumps({"id": f"{d.id:#018x}", "p": 0.9 if d.label else 0.1})
             for documents in ids.values() for d in documents]  # fmt: skip
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    labels = str(tmp_path / "labels.jsonl")
    config = config_of(data_dir, "copy", losses=("xent",), weak__labels=labels)
    there = w2s_jax.run(config, tmp_path / "run")["transfer"]["copy"]
    assert there["weak"] is None and "file" in there["notes"]["weak"]
    student = there["students"]["xent"]
    assert student["pgr"] is None and "weak model was not evaluated" in student["pgr_note"]
    assert student["agreement"] is None and student["accuracy"] > 0
    assert "Not evaluated (labels from a file" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_parameters_are_kept_as_long_as_sets_need_them(data_dir, tmp_path):
    unkept = {"losses": ("xent",), "checkpoint__keep_final": False}
    first = w2s_jax.run(config_of(data_dir, "copy", **unkept), tmp_path / "first")
    phases = [PhaseFolder(tmp_path / "first" / "phases" / e["phase"])
              for e in entries_of(first).values()]  # fmt: skip
    assert all(folder.final.exists() for folder in phases)
    found, _ = storage_gc.find(tmp_path / "first", finals=True)
    assert found == []
    w2s_jax.run(config_of(data_dir, **unkept), tmp_path / "second")
    config = tmp_path / "second" / "config.json"
    before = config.read_bytes()
    with pytest.raises(errors.InputError) as caught:
        w2s_jax.run(config_of(data_dir, "copy", **unkept), tmp_path / "second")
    message = str(caught.value)
    assert "were not kept" in message and "weak-" in message and "\n" not in message
    assert config.read_bytes() == before
    # Another run may remove them while this one waits.
    weak = PhaseFolder(tmp_path / "first" / "phases" / first["weak"]["phase"])
    weak.final.rename(weak.path / "aside")
    place = tmp_path / "first" / "phases" / first["transfer"]["copy"]["weak"]["phase"]
    (place / "result.json").unlink()
    with pytest.raises(errors.InputError, match="were not kept"):
        w2s_jax.run(config_of(data_dir, "copy", **unkept), tmp_path / "first")
    assert "transfer" not in w2s_jax.run(config_of(data_dir, **unkept), tmp_path / "second")


def test_completions_are_judged_by_the_other_task(tmp_path):
    letters = "abcdefgh"
    rows = [{"prompt": a + b, "target": b} for a in letters for b in letters]
    for name, splits in {
        "letters": {"train": rows[:44], "validation": rows[44:52], "test": rows[52:]},
        "copied": {"test": rows[52:]},
        "numbers": {"test": [{"prompt": f"{a}{a}", "target": f" {a} "} for a in range(9)]},
    }.items():
        (tmp_path / name).mkdir()
        for split, part in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in part)
            (tmp_path / name / f"{split}.jsonl").write_text(lines)
    config = w2s_jax.config.default_config()
    config.task.name, config.task.data_dir = "letters", str(tmp_path)
    config.task.test_tasks = ("copied", "numbers")
    config.weak.model, config.strong.model = "gpt-d8", "gpt-d16"
    config.train.batch_size, config.train.learning_rate, config.train.epochs = 8, 1e-2, 4.0
    config.task.max_new_tokens = 4
    config.losses, config.mesh.data = ("xent",), 1
    result = w2s_jax.run(config, tmp_path / "run")
    copied = entries_of(result["transfer"]["copied"])
    for key, own in entries_of(result).items():
        assert copied[key]["accuracy"] == own["accuracy"] and copied[key]["n"] == 12
        assert copied[key].get("agreement") == own.get("agreement")
    phase = result["transfer"]["numbers"]["ceiling"]["phase"]
    table = pq.read_table(tmp_path / "run" / "phases" / phase / "predictions.parquet").to_pydict()
    assert sorted(table["target"]) == sorted(f" {a} " for a in range(9))
    right = [a == t.strip() for a, t in zip(table["answer"], table["target"], strict=True)]
    assert table["correct"] == right
