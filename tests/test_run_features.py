"""Whole runs whose models are features of documents."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from feature_files import softmax, write, write_task
from refusals import error

import w2s_jax
from w2s_jax import models, sharding, testing
from w2s_jax.cli import main
from w2s_jax.config import default_config
from w2s_jax.config.validation import validate
from w2s_jax.data.feature_sources import FEATURES, register_features
from w2s_jax.models.convert import convert
from w2s_jax.perf.aot import programs
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.store import artifacts, trees
from w2s_jax.store.artifacts import PhaseFolder

pytestmark = [pytest.mark.medium, pytest.mark.usefixtures("no_report")]


CLASSES = (("no", "yes"), ("cat", "dog", "emu", "fox"))


def predictions(workdir, entry):
    """Return id -> (split, p) of a phase of a result."""
    table = pq.read_table(workdir / "phases" / entry["phase"] / "predictions.parquet")
    rows = zip(*(table[name].to_pylist() for name in ("id", "split", "p")), strict=True)
    return {id_: (split, p) for id_, split, p in rows}


def same_predictions(one, other, entries):
    for entry in entries:
        first, second = (
            run[0][entry] if entry in run[0] else run[0]["students"][entry] for run in (one, other)
        )
        assert predictions(one[1], first) == predictions(other[1], second), entry


# --- the features of a model, exported ------------------------------------------------------------


def test_exported_features_of_a_model_give_its_probes_bit_by_bit(tmp_path):
    """From a file in any order, with anything in slice 1, which no head of the student sees."""
    config = testing.tiny_config(testing.write_tiny_task(tmp_path / "data"))
    config.protocol.head_init = "zeros"
    config.strong.train.adapt = "probe"
    config.probe.epochs = 10.0
    config.probe.batch_size = 16
    config.pretrain.source = None
    config.losses = ("xent",)
    config.method.name = "probe_filter"
    first = w2s_jax.run(config, tmp_path / "first"), tmp_path / "first"

    (folder,) = (tmp_path / "first" / "phases").glob("features-*")
    splits = resolve(validate(config)).roles["strong"].splits
    stored = json.loads((folder / "result.json").read_text())["features"]["splits"]
    ids, rows = [splits["slice1"].ids_N], [np.ones((len(splits["slice1"]), 16))]
    for split in stored:
        ids.append(splits[split].ids_N)
        rows.append(artifacts.load_features(PhaseFolder(folder), split, ids[-1])[:, 0])
    ids, rows = np.concatenate(ids), np.concatenate(rows)
    order = np.random.default_rng(0).permutation(len(ids))
    path = write(tmp_path / "exported.safetensors", ids[order], rows[order].astype(np.float32))

    config.strong.model = f"features:{path}"
    second = w2s_jax.run(config, tmp_path / "second"), tmp_path / "second"
    students = first[0]["students"].keys()
    assert len(students) == 2
    same_predictions(first, second, ("weak", "ceiling", *students))
    assert second[0]["ceiling"]["model"] == "features:exported.safetensors"
    assert second[0]["ceiling"]["parameters"] == 16 * 2


# --- two and more classes -------------------------------------------------------------------------


def config_of(folder, name="f.npz"):
    config = default_config()
    config.task.name = "images"
    config.task.data_dir = str(folder)
    config.task.validation_docs = 40
    config.weak.model = f"features:{folder}/weak.npz"
    config.strong.model = f"features:{folder}/{name}"
    config.train.adapt = "probe"
    config.probe.epochs = 30.0
    config.probe.batch_size = 20
    config.probe.learning_rate = 1e-2
    config.losses = ("xent", "confidence")
    config.log.tensorboard = False
    return config


@pytest.fixture(scope="module", params=CLASSES)
def images(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    ids, features, labels = write_task(
        folder, train=600, test=200, classes=request.param, width=8, seed=1
    )
    write(folder / "f.npz", ids, features)
    write(folder / "weak.npz", ids, features[:, :4])
    return folder, ids, features, labels


def test_shuffled_files_of_other_formats_give_identical_results(images, tmp_path):
    folder, ids, features, _ = images
    first = w2s_jax.run(config_of(folder), tmp_path / "first"), tmp_path / "first"
    for run in ("weak", "ceiling"):
        assert first[0][run]["model"].startswith("features:")
    assert first[0]["weak"]["accuracy"] < first[0]["ceiling"]["accuracy"]
    order = np.random.default_rng(0).permutation(len(ids))
    (folder / "parts").mkdir(exist_ok=True)
    write(folder / "parts" / "a.npy", ids[order[:300]], features[order[:300]])
    write(folder / "parts" / "b.parquet", ids[order[300:]], features[order[300:]])
    config = config_of(folder, "parts")
    second = w2s_jax.run(config, tmp_path / "second"), tmp_path / "second"
    same_predictions(first, second, ("weak", "ceiling", "xent", "confidence"))
    names = [run[0]["ceiling"]["phase"] for run in (first, second)]
    assert names[0] == names[1]


def test_a_ceiling_is_a_logistic_regression(images, tmp_path):
    """Trained to the end, it agrees with scikit-learn's on the same documents."""
    from sklearn.linear_model import LogisticRegression

    folder, _, features, labels = images
    config = config_of(folder)
    config.losses = ("xent",)
    config.probe.epochs = 300.0
    config.probe.head_bias = True
    result = w2s_jax.run(config, tmp_path / "run")
    resolved = resolve(validate(config))
    loaded = resolved.roles["strong"].features.read("slice2")[:, 0]
    number = {row.tobytes(): n for n, row in enumerate(features)}
    rows = [number[row.tobytes()] for row in loaded]
    theirs = LogisticRegression(C=1e6, max_iter=2000).fit(features[rows], labels[rows])
    test = resolved.roles["strong"].splits["test"].ids_N
    p = predictions(tmp_path / "run", result["ceiling"])
    ours = np.array([p[int(id_)][1] for id_ in test])
    ours = np.stack([1 - ours, ours], axis=1) if ours.ndim == 1 else ours
    test_rows = [
        number[row.tobytes()] for row in resolved.roles["strong"].features.read("test")[:, 0]
    ]
    np.testing.assert_allclose(ours, theirs.predict_proba(features[test_rows]), atol=0.05)
    assert (ours.argmax(1) == theirs.predict(features[test_rows])).mean() > 0.95


@pytest.mark.parametrize("images", CLASSES, indirect=True)
def test_heads_that_are_trained_together_are_those_trained_alone(images, tmp_path):
    """Of more than two classes, each has a table of soft labels."""
    runs = []
    for population in (1, 2):
        config = config_of(images[0])
        config.losses = ("xent",)
        config.protocol.early_stopping = "none"
        config.mesh.population = population
        workdir = tmp_path / str(population)
        runs.append((w2s_jax.run(config, workdir), workdir))
    phase = runs[1][1] / "phases" / runs[1][0]["ceiling"]["phase"]
    population = json.loads((phase / "result.json").read_text())["execution"]["population"]
    assert population["members"] == 2
    for entry in ("ceiling", "xent"):
        found = [run[0]["students"].get(entry, run[0]["ceiling"]) for run in runs]
        alone, together = (
            predictions(run[1], of_run) for run, of_run in zip(runs, found, strict=True)
        )
        a, b = (np.array([rows[id_][1] for id_ in alone]) for rows in (alone, together))
        np.testing.assert_allclose(a, b, atol=1e-5)


# --- functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [CLASSES[1]], indirect=True)
def test_a_function_gives_the_results_of_its_values_in_a_file(images, tmp_path):
    folder, ids, features, _ = images
    row_of = dict(zip(ids.tolist(), features, strict=True))
    first = w2s_jax.run(config_of(folder), tmp_path / "first"), tmp_path / "first"
    register_features(
        "table", lambda docs: [row_of[d.text.removesuffix(".png")] for d in docs], version="1"
    )
    try:
        config = config_of(folder)
        config.strong.model = "features:table"
        second = w2s_jax.run(config, tmp_path / "second"), tmp_path / "second"
        same_predictions(first, second, ("ceiling", "xent", "confidence"))
        (phase,) = (
            path.parent
            for path in (tmp_path / "second" / "phases").glob("features-*/config.json")
            if "features:table" in path.read_text()
        )
        code = json.loads((phase / "result.json").read_text())["code"]
        assert "features:table" in code
    finally:
        FEATURES.pop("table")


# --- heads with a bias, and how they start --------------------------------------------------------


def test_a_head_with_a_bias_is_stored_and_starts_as_asked(images, tmp_path):
    """A bias is what a constant feature would give: Adam treats each weight alone."""
    folder, ids, features, _ = images
    config = config_of(folder)
    config.losses = ("xent",)
    config.probe.head_bias = True
    first = w2s_jax.run(config, tmp_path / "first"), tmp_path / "first"
    head = {"kernel": np.zeros((8, (first[0].get("classes") and 4) or 2), np.float32)}
    head["bias"] = np.zeros(head["kernel"].shape[1], np.float32)
    folder_of = PhaseFolder(tmp_path / "first" / "phases" / first[0]["ceiling"]["phase"])
    bias = np.asarray(trees.load_tree(folder_of.final, {"head": head})["head"]["bias"])
    assert np.abs(bias).max() > 1e-3

    constant = np.concatenate([features, np.ones((len(ids), 1), np.float32)], axis=1)
    write(folder / "constant.npz", ids, constant)
    write(folder / "weak_constant.npz", ids, constant[:, [0, 1, 2, 3, 8]])
    config = config_of(folder, "constant.npz")
    config.weak.model = f"features:{folder}/weak_constant.npz"
    config.losses = ("xent",)
    second = w2s_jax.run(config, tmp_path / "second"), tmp_path / "second"
    for entry in ("weak", "ceiling"):
        ours, theirs = (predictions(run[1], run[0][entry]) for run in (first, second))
        a, b = (np.array([rows[id_][1] for id_ in ours]) for rows in (ours, theirs))
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("images", [CLASSES[1]], indirect=True)
def test_a_start_at_random_is_that_of_the_seed(images, tmp_path):
    folder = images[0]
    p = []
    for seed, how in ((0, "uniform"), (1, "uniform"), (0, "zeros")):
        config = config_of(folder)
        config.losses = ("xent",)
        config.seed = seed
        config.protocol.head_init = how
        config.probe.steps = 1
        config.probe.learning_rate = 1e-9
        workdir = tmp_path / f"{seed}{how}"
        result = w2s_jax.run(config, workdir)
        p.append(np.array([row[1] for row in predictions(workdir, result["ceiling"]).values()]))
    assert np.abs(p[0] - p[1]).max() > 0.01
    # Zeros: the classes are equally likely.
    np.testing.assert_allclose(p[2], 1 / (p[2].shape[1] if p[2].ndim == 2 else 2), atol=1e-6)


# --- without slice 1 ------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [CLASSES[1]], indirect=True)
def test_with_given_labels_the_student_may_have_all_documents(images, tmp_path):
    folder, ids, features, labels = images
    classes = labels.max() + 1
    soft = softmax(2 * np.eye(classes)[labels] + features[:, :classes]).astype(np.float32)
    config = config_of(folder)
    config.losses = ("xent",)
    config.weak.labels = str(write(tmp_path / "labels.npz", ids, soft, "p"))
    config.protocol.name = "released"
    config.protocol.halves = "none"
    config.task.validation_docs = 0
    result = w2s_jax.run(config, tmp_path / "run")
    assert result["weak"]["model"] == "labels of labels.npz"
    stored = artifacts.stored_labels(
        PhaseFolder(tmp_path / "run" / "phases" / result["weak"]["phase"])
    )
    assert len(stored["slice2"][0]) == 600 and set(stored) == {"slice2", "test"}
    right = softmax(2 * np.eye(classes)[labels] + features[:, :classes])[600:].argmax(1)
    assert result["weak"]["accuracy"] == pytest.approx((right == labels[600:]).mean())
    assert result["ceiling"]["n"] == 200


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    ids, features, _ = write_task(folder, train=300, test=100, width=8, seed=2)
    write(folder / "f.npz", ids, features)
    write(folder / "weak.npz", ids, features[:, :4])
    recipe = folder / "recipe.py"
    recipe.write_text(
        "from w2s_jax.config import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.task.name = 'images'\n"
        f"    config.task.data_dir = {str(folder)!r}\n"
        "    config.task.validation_docs = 40\n"
        f"    config.weak.model = {f'features:{folder}/weak.npz'!r}\n"
        f"    config.strong.model = {f'features:{folder}/f.npz'!r}\n"
        "    config.train.adapt = 'probe'\n"
        "    config.probe.steps = 20\n"
        "    config.probe.batch_size = 20\n"
        "    return config\n"
    )
    assert main.main(["run", f"--config={recipe}", f"--workdir={folder / 'run'}"]) == 0
    return folder, recipe, folder / "run"


def said(capsys, *command, status=0):
    """Return the standard output of a command, or the one line of an error."""
    capsys.readouterr()
    assert main.main(list(command)) == status
    out, err = capsys.readouterr()
    if status:
        assert err.startswith("w2s: ") and err.count("\n") == 1, err
        return err
    return out


def test_a_dry_run_counts_the_features(finished, capsys):
    folder, recipe, _ = finished
    text = said(capsys, "run", f"--config={recipe}", f"--workdir={folder / 'x'}", "--dry_run")
    assert "features:weak.npz" in text and "6 of 6 phases" in text
    assert not (folder / "x").exists()


def test_commands_that_need_a_network_say_so(finished, capsys):
    folder, recipe, workdir = finished
    (phase,) = (workdir / "phases").glob("ceiling-*")
    head = "is a head on features:f.npz, without a network"
    for command in (
        ("convert", f"--from={phase}", f"--to={folder / 'out'}", "--format=huggingface"),
        ("generate", f"--from={phase}", "--prompt=x"),
        ("models", str(phase)),
        ("run", f"--config={recipe}", f"--workdir={folder / 'y'}", f"--config.weak.model={phase}"),
    ):
        assert head in said(capsys, *command, status=2)
    text = said(capsys, "bench", "train", f"--config={recipe}", status=2)
    assert "strong.model: features:f.npz has no network to measure" in text


def test_compilation_leaves_heads_on_features_out(finished):
    resolved = resolve(validate(_config(finished)))
    mesh = sharding.mesh_of((1, 1, 1))
    found, left_out = programs.programs_of(
        plan(resolved), resolved, mesh, 2**34, list(mesh.devices.flat)
    )
    assert found == []
    assert left_out == [
        *("features features:weak.npz", "features features:f.npz"),
        *("weak", "ceiling", "student xent", "student confidence"),
    ]


def test_labels_of_a_head_are_exported(finished, capsys, tmp_path):
    _, _, workdir = finished
    (phase,) = (workdir / "phases").glob("weak-*")
    to = tmp_path / "labels.parquet"
    text = said(capsys, "labels", str(phase), f"--to={to}")
    rows = pq.read_table(to).num_rows
    assert sum(map(int, re.findall(r"(\d+) (?:slice2|test|validation)", text))) == rows > 200


def test_a_finished_run_is_shown_again_and_other_features_are_another_run(finished, capsys):
    folder, recipe, workdir = finished
    command = ("run", f"--config={recipe}", f"--workdir={workdir}")
    assert "features:f.npz" in said(capsys, *command)
    kept = (folder / "f.npz").read_bytes()
    with np.load(folder / "f.npz") as file:
        write(folder / "f.npz", file["ids"], file["features"] * 2)
    try:
        text = said(capsys, *command, status=2)
        assert re.search(r"contains a run that differs in .*slice2:strong", text), text
    finally:
        (folder / "f.npz").write_bytes(kept)


def test_the_page_shows_features_and_heads(finished):
    text = (finished[2] / "report" / "report.html").read_text()
    assert "features:f.npz" in text and "features:weak.npz" in text


def _config(finished):
    from w2s_jax.config import recipes

    return recipes.load_config(str(finished[1]), [])


@pytest.mark.parametrize("adapt", ["full", "last_layers", "probe_then_full"])
def test_heads_of_networks_may_have_a_bias(tmp_path, adapt):
    """It is trained, stored, loaded with the model, and goes through `w2s convert`."""
    config = testing.tiny_config(testing.write_tiny_task(tmp_path / "data"))
    config.pretrain.source = None
    config.losses = ("xent",)
    config.train.adapt = adapt
    config.train.head_bias = True
    config.probe.head_bias = adapt == "probe_then_full"
    config.probe.steps = config.train.steps = 10
    config.probe.batch_size = 16
    result = w2s_jax.run(config, tmp_path / "run")
    phase = tmp_path / "run" / "phases" / result["ceiling"]["phase"]
    convert(str(phase), tmp_path / "out", "orbax")
    mesh = sharding.mesh_of((1, 1, 1))
    for folder in (phase, tmp_path / "out"):
        head = models.load_with_head(folder, mesh)[1]["head"]
        bias = np.asarray(head["bias"])
        assert bias.shape == (2,) and np.abs(bias).max() > 1e-3
    text = error(convert, str(phase), tmp_path / "hf", "huggingface")
    assert "its head has a bias" in text
