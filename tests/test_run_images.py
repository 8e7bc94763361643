"""Whole runs on images: convolutional networks, frozen functions, and the recipes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_problem import shapes, write_split, write_task

import w2s_jax
from w2s_jax import testing
from w2s_jax.config import recipes
from w2s_jax.data.feature_sources import FEATURES, register_features

pytestmark = pytest.mark.medium

RECIPES = Path(__file__).parents[1] / "configs"


def config_of(data_dir, **changes):
    config = testing.tiny_config(data_dir)
    config.task.name = "shapes"
    config.task.train_docs, config.task.validation_docs = 160, 40
    config.pretrain.source = None
    config.weak.model, config.strong.model = "cnn-4", "cnn-8"
    config.train.steps = 60
    config.train.learning_rate = 3e-3
    config.losses = ("xent",)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("data"), kind="idx.gz", train=200, test=60)


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return w2s_jax.run(config_of(data_dir), workdir), workdir


def test_a_folder_of_images_is_learnt_from_pixels(finished):
    result, workdir = finished
    assert result["weak"]["model"] == "cnn-4" and result["ceiling"]["model"] == "cnn-8"
    assert result["ceiling"]["accuracy"] > 0.8 and result["weak"]["n"] == 60
    assert result["students"]["xent"]["agreement"] > 0.6
    table = pq.read_table(workdir / "phases" / result["weak"]["phase"] / "predictions.parquet")
    assert table["split"].to_pylist().count("test") == 60
    page = (workdir / "report" / "report.html").read_text()
    assert "cnn-4" in page and "cnn-8" in page
    record = json.loads((workdir / "phases" / result["weak"]["phase"] / "config.json").read_text())
    assert record["spec"]["model"] == {
        "name": "cnn-4",
        "architecture": "convolutional",
        "image_shape": [8, 8, 1],
        "first_token": 0,
        "pixel_values": 256,
        "channels": 4,
    }


def test_a_run_again_and_microbatches_have_the_same_result(finished, data_dir, tmp_path):
    result, _ = finished
    again = w2s_jax.run(config_of(data_dir), tmp_path / "again")
    assert again["weak"] == result["weak"] and again["students"] == result["students"]
    micro = w2s_jax.run(config_of(data_dir, train__microbatch_size=4), tmp_path / "micro")
    assert micro["weak"]["phase"] == result["weak"]["phase"]
    assert micro["ceiling"]["accuracy"] == pytest.approx(result["ceiling"]["accuracy"], abs=0.06)


def test_phases_that_are_trained_together_have_the_same_result(data_dir, tmp_path):
    from w2s_jax.config import add_loss

    def run(population):
        config = config_of(data_dir, mesh__population=population, train__steps=20)
        add_loss(config, "bold", kind="confidence", alpha_max=0.9)
        config.losses = ("xent", "confidence", "bold")
        config.protocol.early_stopping = "none"
        folder = tmp_path / f"population{population}"
        return w2s_jax.run(config, folder), folder / "phases"

    def predicted(phase):
        return np.array(pq.read_table(phase / "predictions.parquet")["p"].to_pylist())

    (alone, apart), (together, group) = run(1), run(4)
    for label, student in alone["students"].items():
        name = student["phase"]
        assert together["students"][label]["phase"] == name
        record = json.loads((group / name / "result.json").read_text())
        assert record["execution"].get("population", {}).get("members", 1) > 1, record["execution"]
        np.testing.assert_allclose(predicted(group / name), predicted(apart / name), atol=1e-3)


def test_a_phase_is_no_pretrained_model(finished, data_dir, tmp_path):
    result, workdir = finished
    phase = workdir / "phases" / result["weak"]["phase"]
    with pytest.raises(w2s_jax.core.errors.InputError, match="cnn-4 is a convolutional network"):
        w2s_jax.run(config_of(data_dir, strong__model=str(phase)), tmp_path / "run")


def test_a_function_of_images_is_a_strong_model(data_dir, tmp_path):
    """Whose features show the class: bright pixels beside each other, or not."""
    sizes = []

    def level(images):
        sizes.append(images.shape[1:])
        bright = images[..., 0] > 200
        found = (bright[:, :, 1:] & bright[:, :, :-1]).any((1, 2))
        return np.stack([found, ~found], 1).astype(np.float32)

    register_features("level", level, version=1, images=True)
    try:
        changes = {"strong.model": "features:level", "strong.train.adapt": "probe"}
        changes |= {"probe.steps": 60, "probe.batch_size": 16, "probe.learning_rate": 0.1}
        result = w2s_jax.run(config_of(data_dir, **changes), tmp_path / "run")
    finally:
        FEATURES.pop("level")
    assert set(sizes) == {(8, 8, 1)}
    assert result["ceiling"]["accuracy"] == 1.0


def test_random_features_of_a_fresh_network_are_probed(data_dir, tmp_path):
    changes = {"strong.train.adapt": "probe", "probe.steps": 60, "probe.batch_size": 16}
    result = w2s_jax.run(config_of(data_dir, **changes), tmp_path / "run")
    assert result["ceiling"]["accuracy"] > 0.5


def test_a_transformer_reads_the_pixels_as_tokens(data_dir, tmp_path):
    changes = {"strong.model": "gpt-d8", "train.steps": 4}
    result = w2s_jax.run(config_of(data_dir, **changes), tmp_path / "run")
    assert result["ceiling"]["model"] == "gpt-d8" and 0 <= result["ceiling"]["accuracy"] <= 1


def test_the_recipe_of_digits_has_a_strong_function(tmp_path):
    config = recipes.load_config(f"{RECIPES}/image_digits.py", [])
    config.losses = ("xent",)
    result = w2s_jax.run(config, tmp_path / "run")
    assert result["ceiling"]["accuracy"] > 0.88 > result["weak"]["accuracy"] > 0.5


def test_the_recipe_of_fashion_mnist_reads_its_files(tmp_path):
    images, _ = shapes(400, side=28)
    labels = np.arange(400) % 10
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 6] = 255
    folder = tmp_path / "fashion_mnist"
    write_split(folder, "train", images[:300], labels[:300].astype(np.uint8), "idx.gz")
    write_split(folder, "test", images[300:], labels[300:].astype(np.uint8), "idx.gz")
    config = recipes.load_config(f"{RECIPES}/fashion_mnist.py", [])
    config.task.data_dir = str(tmp_path)
    config.task.train_docs, config.task.validation_docs = 200, 100
    config.train.batch_size = config.probe.batch_size = 50
    config.weak.train.epochs = 15.0
    config.losses = ("xent",)
    result = w2s_jax.run(config, tmp_path / "run")
    assert result["classes"][0] == "T-shirt/top" and result["ceiling"]["accuracy"] > 0.5


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")
def test_pictures_of_three_classes_are_resized(tmp_path):
    images, _ = shapes(150, side=12, channels=3)
    labels = np.arange(150) % 3
    for image, label in zip(images, labels, strict=True):
        image[..., label] //= 2
        image[..., label] += 128
    write_split(tmp_path / "colours", "train", images[:100], labels[:100], "png")
    write_split(tmp_path / "colours", "test", images[100:], labels[100:], "png")
    changes = {"task.name": "colours", "task.image_size": 6, "task.train_docs": 80}
    changes |= {"task.validation_docs": 20}
    result = w2s_jax.run(config_of(tmp_path, **changes), tmp_path / "run")
    assert result["classes"] == ["class0", "class1", "class2"]
    assert result["ceiling"]["accuracy"] > 0.8
