"""Hidden states of several layers: features of every layer, of which probes average some."""

import dataclasses
import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from refusals import error
from test_prediction import problem
from tiny_sweeps import write_sweep

import w2s_jax
from w2s_jax import sharding, testing
from w2s_jax.cli.main import main
from w2s_jax.config.validation import validate
from w2s_jax.models import network
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.planning.role_settings import with_read_out_layers
from w2s_jax.sweep.planning import plan_sweep
from w2s_jax.sweep.points import load_points
from w2s_jax.training.prediction import Predictor

LAYERS = 5


def deep(**changes):
    """A model of five layers with random parameters, norms included."""
    config = testing.tiny_model(vocab_size=32, num_layers=LAYERS, **changes)
    params = jax.device_get(network.init_params(config, 0, sharding.mesh_of((1, 1, 1))))
    draw = np.random.default_rng(1)
    return config, jax.tree.map(lambda x: x + 0.3 * draw.normal(size=x.shape).astype("f"), params)


def features(config, params, **how):
    documents = problem(2)[1]
    mesh = sharding.make_mesh()
    placed = jax.device_put(params, sharding.replicated(mesh))
    return Predictor(config, documents, mesh, **how)({"backbone": placed})


def first_layers(config, params, count):
    """The model cut after some blocks, with its final norm."""
    blocks = jax.tree.map(lambda x: x[:count], params["blocks"])
    local = config.local_layers[:count]
    cut = dataclasses.replace(config, num_layers=count, local_layers=local)
    return cut, params | {"blocks": blocks}


def layer_norm(x, norm):
    """LayerNorm in float64."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * norm["scale"] + norm["bias"]


@pytest.mark.parametrize("read_out", ["last", "first", "mean"])
def test_encoder_features_of_each_layer_are_those_of_its_first_layers(read_out):
    config, params = deep(bidirectional=True, token_types=1, read_out=read_out)
    config = dataclasses.replace(config, tied_embeddings=True)
    pair = [features(config, params, features="layers", per_device=own) for own in (True, False)]
    for count in (1, 3, LAYERS):
        alone = features(*first_layers(config, params, count), features=True)
        for found in pair:
            assert found.shape == (37, LAYERS, 2, 16)
            np.testing.assert_allclose(found[:, count - 1], alone, rtol=1e-5, atol=1e-5)


def test_decoder_features_before_the_last_layer_lack_only_the_final_norm(monkeypatch):
    config, params = deep(window=3, local_layers=(True, False, True, True, False))
    pair = []
    for scan in (True, False):
        monkeypatch.setattr(network, "scan_by_default", lambda config, scan=scan: scan)
        # Another config, as a compiled program is found by it.
        other = dataclasses.replace(config, norm_epsilon=1e-5 + scan * 1e-12)
        pair.append(features(other, params, features="layers"))
    for count in range(1, LAYERS + 1):
        alone = features(*first_layers(config, params, count), features=True)
        for found in pair:
            ours = found[:, count - 1]
            if count < LAYERS:
                assert np.abs(ours - alone).max() > 0.1
                ours = layer_norm(ours, params["final_norm"])
            np.testing.assert_allclose(ours, alone, rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_some_layers_has_their_mean():
    config, params = deep()
    every = features(config, params, features="layers").astype(np.float64)
    some = dataclasses.replace(config, read_out_layers=(2, 4, 5))
    wanted = (every[:, 1] + every[:, 3] + every[:, 4]) / 3
    np.testing.assert_allclose(features(some, params, features=True), wanted, rtol=1e-5, atol=1e-6)
    last = dataclasses.replace(config, read_out_layers=(LAYERS,))
    np.testing.assert_allclose(
        features(last, params, features=True), features(config, params, features=True), atol=1e-6
    )


def test_the_first_and_only_layer_is_the_last():
    config, params = first_layers(*deep(), 1)
    found = features(config, params, features="layers")
    np.testing.assert_allclose(found[:, 0], features(config, params, features=True), atol=1e-6)


@pytest.mark.parametrize(
    "layers,depths,blocks",
    [
        (12, (1.0,), (12,)),
        (12, (0.5, 0.75), (6, 9)),
        (12, (0.51,), (7,)),
        (30, (0.1,), (3,)),  # 3.0000000000000004 in floating point
        (2, (1e-300, 0.4, 0.6), (1, 2)),
        (12, (), ()),
    ],
)
def test_relative_depths_are_rounded_up_to_blocks(layers, depths, blocks):
    notes = []
    model = with_read_out_layers("strong", testing.tiny_model(num_layers=layers), depths, notes)
    assert model.read_out_layers == blocks
    repeated = len(depths) > len(blocks)
    assert len(notes) == repeated
    if repeated:
        assert notes[0].startswith("strong: read_out_layers") and "layers 1, 1, 2 of 2" in notes[0]


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


#: Changes to the tiny recipe: a probe of a model of three layers; little else takes time.
PROBING = {
    "strong.model": "gpt-d48",
    "strong.train.adapt": "probe",
    "probe.steps": 20,
    "probe.batch_size": 16,
    "losses": ("xent",),
    "pretrain.steps": 2,
    "train.steps": 2,
    "mesh.data": 1,
}


def probing(data_dir, depths=()):
    config = testing.tiny_config(data_dir)
    config.update_from_flattened_dict(PROBING | {"strong.read_out_layers": depths})
    return config


def phases(config):
    return {phase.kind: phase for phase in plan(resolve(validate(config))).phases}


def test_features_do_not_depend_on_the_depths_and_probes_do(data_dir):
    last = phases(probing(data_dir))
    a, b, same = (phases(probing(data_dir, d)) for d in ((0.5,), (0.3, 1.0), (0.6, 0.5)))
    assert "layers" not in last["features"].spec
    assert a["features"].name == b["features"].name != last["features"].name
    for kind in ("ceiling", "student"):
        assert len({found[kind].name for found in (last, a, b)}) == 3
        # 0.5 and 0.6 of three layers are both the second.
        assert a[kind].name == same[kind].name
        assert b[kind].spec["model"]["read_out_layers"] == [1, 3]
    assert a["pretrain"].name == last["pretrain"].name and a["weak"].name == last["weak"].name


def sweep_of(data_dir, tmp_path, depths):
    """A sweep over the layers that probes read."""
    changes = PROBING | {"mesh.population": 4}
    points = f"over('strong.read_out_layers', {depths})"
    return write_sweep(tmp_path / "layers.py", data_dir, points, changes)


def test_a_sweep_over_layers_has_one_features_phase(data_dir, tmp_path):
    file = sweep_of(data_dir, tmp_path, [(0.3,), (0.6,), (0.3, 1.0)])
    made = plan_sweep(load_points(str(file), ()), tmp_path / "new", tmp_path / "new" / "phases")
    kinds = [phase.kind for phase in made.phases.values()]
    assert kinds.count("features") == 1 and kinds.count("ceiling") == 3


@pytest.mark.medium
def test_probes_learn_from_the_layers_that_are_chosen(data_dir, tmp_path):
    """Phases of a sweep may be trained together; a run of its own trains each alone."""
    depths = [(1.0,), (0.3,)]
    file, workdir = sweep_of(data_dir, tmp_path, depths), tmp_path / "sweep"
    assert main(["sweep", f"--config={file}", f"--workdir={workdir}"]) == 0
    assert len(list((workdir / "phases").glob("features-*"))) == 1
    swept = [
        json.loads((workdir / "runs" / point.name / "result.json").read_text())
        for point in load_points(str(file), ())
    ]
    for number, depth in ((1, (0.3,)), (2, ())):
        config = probing(data_dir, depth)
        config.mesh.population = 1
        result = w2s_jax.run(config, tmp_path / str(number))
        if depth:
            # Equal phases have equal names, and here equal results.
            assert result["ceiling"] == swept[number]["ceiling"]
            assert result["students"] == swept[number]["students"]
            continue
        p, last = (
            pq.read_table(store / "phases" / found["ceiling"]["phase"] / "predictions.parquet")
            for store, found in ((workdir, swept[0]), (tmp_path / str(number), result))
        )
        np.testing.assert_allclose(p["p"].to_numpy(), last["p"].to_numpy(), atol=1e-5)
    assert swept[0]["ceiling"] != swept[1]["ceiling"]


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"strong.read_out_layers": (0.0,)}, ["strong.read_out_layers", "0.0", "above 0"]),
        ({"weak.read_out_layers": (1.5,)}, ["weak.read_out_layers", "1.5", "at most 1"]),
        ({"strong.read_out_layers": ("half",)}, ["'half'", "numbers above 0"]),
        ({"strong.read_out_layers": (float("nan"),)}, ["nan", "numbers above 0"]),
        ({"strong.read_out_layers": (True,)}, ["True", "numbers above 0"]),
        (
            {"strong.read_out_layers": (0.5,), "strong.train.adapt": "lora"},
            ["strong.read_out_layers", "(0.5,)", "strong.train.adapt='lora'", "'probe'"],
        ),
        (
            {"weak.read_out_layers": (0.5,)},
            ["weak.read_out_layers", "weak.train.adapt='full'", "allowed: (), or adapt 'probe'"],
        ),
    ],
)
def test_what_is_refused(data_dir, changes, words):
    config = probing(data_dir)
    config.update_from_flattened_dict(changes)
    message = error(lambda: resolve(validate(config)))
    for word in words:
        assert word in message


def test_the_command_line_takes_depths_and_names_blocks_that_are_counted_once(
    data_dir, tmp_path, capsys
):
    recipe = write_sweep(tmp_path / "recipe.py", data_dir, "[{}]")
    overrides = {
        "strong.model": "gpt-d48",
        "strong.train.adapt": "probe",
        "strong.read_out_layers": "0.5,0.6",
        "probe.batch_size": 16,
    }
    flags = [f"--config.{field}={value}" for field, value in overrides.items()]
    arguments = ["run", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", *flags]
    assert main([*arguments, "--dry_run"]) == 0
    assert "read_out_layers 0.5, 0.6 are layers 2, 2 of 3" in capsys.readouterr().out
    assert main([*arguments, "--config.strong.read_out_layers=2"]) == 2
    assert "strong.read_out_layers: 2; allowed: numbers above 0" in capsys.readouterr().err


@pytest.mark.medium
def test_a_head_on_several_layers_is_not_exported(data_dir, tmp_path, capsys):
    result = w2s_jax.run(probing(data_dir, (0.3, 1.0)), tmp_path / "run")
    phase = tmp_path / "run" / "phases" / result["students"]["xent"]["phase"]
    record = json.loads((phase / "config.json").read_text())
    assert record["spec"]["model"]["read_out_layers"] == [1, 3]
    target = f"--to={tmp_path / 'exported'}"
    arguments = ["convert", f"--from={phase}", target, "--format=huggingface"]
    assert main(arguments) == 2
    assert "reads the layers 1, 3" in capsys.readouterr().err
    assert main([*arguments, "--without_head"]) == 0
