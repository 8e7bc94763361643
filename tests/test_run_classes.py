"""Whole runs on a folder of rows with three named classes, without code."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import w2s_jax
from w2s_jax import models, sharding, testing
from w2s_jax.config import METHODS, recipes
from w2s_jax.core import errors
from w2s_jax.core.files import TABLES
from w2s_jax.execution import labels as exported
from w2s_jax.models.convert import convert
from w2s_jax.store.artifacts import PhaseFolder, load_labels, stored_labels

pytestmark = pytest.mark.medium

RECIPES = Path(__file__).parents[1] / "configs"
NAMES = ("bad", "good", "mixed")
#: With hard labels by shares, by thresholds of their own, and by the likeliest class.
KINDS = ("xent", "confidence", "logconf", "window", "adaptive_confidence")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"), train=320, labels=NAMES)


def config_of(data_dir, *losses, **changes):
    config = testing.tiny_config(data_dir)
    config.losses = losses
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return w2s_jax.run(config_of(data_dir, *KINDS), workdir), workdir


def test_metrics_are_those_of_the_stored_predictions(finished):
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    result, workdir = finished
    assert result["classes"] == list(NAMES)
    for entry in (result["weak"], result["ceiling"], *result["students"].values()):
        table = pq.read_table(workdir / "phases" / entry["phase"] / "predictions.parquet")
        test = np.array(table["split"].to_pylist()) == "test"
        p_NC = np.array(table["p"].to_pylist())[test]
        p_NC /= p_NC.sum(1, keepdims=True)
        truth_N = np.array(table["ground_truth"].to_pylist())[test]
        assert p_NC.shape == (63, 3) and sorted(set(truth_N.tolist())) == [0, 1, 2]
        predicted_N = p_NC.argmax(1)
        assert entry["accuracy"] == pytest.approx(accuracy_score(truth_N, predicted_N))
        assert entry["macro_f1"] == pytest.approx(f1_score(truth_N, predicted_N, average="macro"))
        assert entry["log_loss"] == pytest.approx(log_loss(truth_N, p_NC), rel=1e-5)


def test_digits_are_learnt(tmp_path):
    config = recipes.load_config(f"{RECIPES}/ten_digits.py", [])
    config.losses = ("xent",)
    config.strong.model, config.strong.pretrain.source, config.strong.train.steps = (
        "gpt-d8",
        None,
        2,
    )
    result = w2s_jax.run(config, tmp_path / "run")
    # Chance is 0.1.
    assert result["weak"]["accuracy"] > 0.35 and result["weak"]["n"] == 400


def test_losses_differ(finished):
    result, _ = finished
    assert len({s["log_loss"] for s in result["students"].values()}) == len(KINDS)


def test_the_report_has_a_confusion_matrix_with_names(finished):
    _, workdir = finished
    page = (workdir / "report" / "report.html").read_text()
    assert "onfusion" in page and all(name in page for name in NAMES)


@pytest.mark.parametrize("suffix", TABLES)
def test_exported_labels_give_the_same_student(finished, data_dir, tmp_path, suffix):
    result, workdir = finished
    weak = PhaseFolder(workdir / "phases" / result["weak"]["phase"])
    file = tmp_path / f"labels{suffix}"
    exported.export(weak.path, file)
    config = config_of(data_dir, "xent", weak__labels=str(file))
    again = w2s_jax.run(config, tmp_path / "again")
    (made,) = (tmp_path / "again" / "phases").glob("labels-*")
    for split, (ids_N, soft_NC) in stored_labels(weak).items():
        np.testing.assert_array_equal(load_labels(PhaseFolder(made), split, ids_N), soft_NC)
    for name in ("accuracy", "macro_f1", "log_loss", "agreement"):
        assert again["students"]["xent"][name] == result["students"]["xent"][name]


def test_an_exported_classifier_keeps_the_names(finished, tmp_path):
    result, workdir = finished
    phase = workdir / "phases" / result["ceiling"]["phase"]
    convert(str(phase), tmp_path / "out", "huggingface")
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["id2label"] == {"0": "bad", "1": "good", "2": "mixed"}
    mesh = sharding.make_mesh()
    (ours, theirs) = (
        models.load_with_head(path, mesh)[1]["head"] for path in (phase, tmp_path / "out")
    )
    assert ours["kernel"].shape == (16, 3)
    np.testing.assert_array_equal(ours["kernel"], theirs["kernel"])


def test_a_loss_and_a_method_of_two_classes_are_refused(data_dir, tmp_path):
    with pytest.raises(errors.InputError, match="buffered_confidence"):
        w2s_jax.run(config_of(data_dir, "buffered_confidence"), tmp_path / "run")
    with pytest.raises(errors.InputError, match=r"method.name: 'em_posterior' works with two"):
        config = config_of(data_dir, "xent", method__name="em_posterior")
        w2s_jax.run(config, tmp_path / "run")
    with pytest.raises(errors.InputError, match="argmax"):
        w2s_jax.run(config_of(data_dir, "confidence", train__batch_size=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_methods_run_with_three_classes(data_dir, tmp_path):
    kinds = [
        kind
        for kind, spec in METHODS.items()
        if not spec.two_classes and "classification" in spec.kinds and kind != "bootstrapping"
    ]
    config = config_of(data_dir, "xent", method__name=",".join(kinds))
    config.method.bagging.members = config.method.boosting.members = 2
    config.method.prompting.shots = 1
    config.method.probe_filter.neighbours = config.method.probe_relabel.neighbours = 5
    config.probe.steps, config.probe.batch_size = 20, 16
    result = w2s_jax.run(config, tmp_path / "run")
    assert len(result["students"]) > len(kinds)
    for entry in result["students"].values():
        assert 0 <= entry["accuracy"] <= 1 and entry["macro_f1"] is not None
