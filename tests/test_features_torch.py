"""Heads on features against PyTorch, by the released vision code's protocol (extra `torch`)."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from feature_files import softmax, write, write_task

import w2s_jax
from w2s_jax import sharding
from w2s_jax.config import recipes
from w2s_jax.data import packing
from w2s_jax.data.loading import load
from w2s_jax.models import heads
from w2s_jax.models.config import features_model
from w2s_jax.resolve import resolve
from w2s_jax.store import trees
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.validation import validate

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.medium

RECIPE = Path(__file__).parents[1] / "configs" / "vision.py"
TRAIN, TEST, WIDTH, EPOCHS = 1200, 300, 20, 10
NAMES = tuple("abcdefg")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the recipe on random features: its folder, and what it was given."""
    folder = tmp_path_factory.mktemp("vision")
    ids, features, labels = write_task(
        folder, train=TRAIN, test=TEST, classes=NAMES, width=WIDTH, seed=3
    )
    logits = features[:, :6] @ np.random.default_rng(4).normal(size=(6, len(NAMES)))
    soft = softmax(logits).astype(np.float32)
    order = np.random.default_rng(5).permutation(len(ids))
    config = recipes.load_config(str(RECIPE), [])
    config.task.name = "images"
    config.task.data_dir = str(folder)
    config.weak.labels = str(write(folder / "weak.npz", ids[order], soft[order], "p"))
    documents = load("images", data_dir=str(folder), keep=("id",)).documents
    every = [*documents["train"], *documents["test"]]
    number = {document.id: int(document.meta["id"][4:]) for document in every}
    # Ids of documents, in another order than the records.
    strong = write(
        folder / "strong.safetensors",
        np.array([*number], np.uint64)[order],
        features[[*number.values()]][order],
    )
    config.strong.model = f"features:{strong}"
    result = w2s_jax.run(config, folder / "run")
    return config, folder / "run", result, number, features, labels, soft


def trained(features, targets, order_SB, kernel, bias):
    """Train as `train_logreg` of the released code, from a start and with batches that are given.

    Returns the loss of each step and the head.
    """
    x, y = torch.tensor(features), torch.tensor(targets)
    model = torch.nn.Linear(*kernel.shape)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(kernel.T))
        model.bias.copy_(torch.tensor(bias))
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.0, lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer=optimizer, T_max=EPOCHS)
    losses = []
    for batch in order_SB:
        optimizer.zero_grad()
        loss = criterion(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return np.array(losses), model


@pytest.mark.parametrize("role", ["student", "ceiling"])
def test_a_head_follows_pytorch_step_by_step_to_the_same_predictions(run, role):
    config, workdir, result, number, features, labels, soft = run
    entry = result["ceiling"] if role == "ceiling" else result["students"]["xent"]
    folder = PhaseFolder(workdir / "phases" / entry["phase"])
    documents = resolve(validate(config)).roles["strong"].splits["slice2"]
    rows = np.array([number[int(id_)] for id_ in documents.ids_N])
    assert sorted(rows) == list(range(TRAIN))
    steps = EPOCHS * TRAIN // 100
    order_SB = packing.training_order(documents.ids_N, batch_size=100, num_steps=steps, seed=0)
    mesh = sharding.mesh_of((1, 1, 1))
    start = heads.init_class_head(
        "uniform", features_model("", WIDTH), {}, (), mesh, len(NAMES), bias=True, seed=0
    )
    targets = soft if role == "student" else labels
    losses, model = trained(
        features[rows],
        targets[rows],
        order_SB,
        np.asarray(start["kernel"]),
        np.asarray(start["bias"]),
    )

    ours = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    ours = [row for row in ours if row["split"] == "train"]
    assert len(ours) == steps
    np.testing.assert_allclose([row["loss"] for row in ours[:50]], losses[:50], atol=1e-5)
    np.testing.assert_allclose([row["loss"] for row in ours], losses, atol=1e-4)

    shapes = {"kernel": (WIDTH, len(NAMES)), "bias": (len(NAMES),)}
    head = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    head = trees.load_tree(folder.final, {"head": head})["head"]
    table = pq.read_table(folder.predictions)
    test = np.array([number[id_] for id_ in table["id"].to_pylist()])
    assert sorted(test) == list(range(TRAIN, TRAIN + TEST))
    with torch.no_grad():
        theirs = model(torch.tensor(features[test])).numpy()
    logits = features[test] @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, theirs, atol=1e-3)
    p = np.array(table["p"].to_pylist())
    np.testing.assert_allclose(p, softmax(theirs), atol=1e-3)
    best = np.sort(theirs, axis=1)
    clear = best[:, -1] - best[:, -2] > 2e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(p.argmax(1)[clear], theirs.argmax(1)[clear])
    assert entry["accuracy"] == pytest.approx((theirs.argmax(1) == labels[test]).mean(), abs=0.01)


def test_the_learning_rate_is_that_of_pytorch(run):
    workdir, result = run[1:3]
    path = workdir / "phases" / result["ceiling"]["phase"] / "metrics.jsonl"
    rates = [json.loads(line).get("learning_rate") for line in path.read_text().splitlines()]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer=optimizer, T_max=EPOCHS)
    for rate in rates:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()
    # It rises again, as T_max counts epochs and the schedule steps.
    assert rates[EPOCHS] == pytest.approx(0, abs=1e-9) and rates[2 * EPOCHS] == pytest.approx(1e-3)


def test_the_start_is_distributed_as_that_of_pytorch():
    """Both are uniform below 1 / sqrt(D): the same bounds, means and deviations."""
    width, columns = 64, 500
    torch.manual_seed(0)
    theirs = torch.nn.Linear(width, columns)
    ours = heads.init_class_head(
        "uniform",
        features_model("", width),
        {},
        (),
        sharding.mesh_of((1, 1, 1)),
        columns,
        bias=True,
        seed=0,
    )
    pairs = (
        (np.asarray(ours["kernel"]).T, theirs.weight.detach().numpy()),
        (np.asarray(ours["bias"]), theirs.bias.detach().numpy()),
    )
    for a, b in pairs:
        assert a.shape == b.shape
        assert np.abs(a).max() <= width**-0.5 and np.abs(b).max() <= width**-0.5
        np.testing.assert_allclose(
            np.quantile(a, [0, 0.25, 0.75, 1]), np.quantile(b, [0, 0.25, 0.75, 1]), atol=0.015
        )
