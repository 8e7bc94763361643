"""Meshes and rules: what is split where, that it changes no result, and what is refused."""

import dataclasses
import functools
import itertools
import logging
import re
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from interrupting import interrupted_run
from rich.console import Console
from training_problem import (
    BATCH,
    flat,
    forget_programs,
    make_spec,
    order,
    placed,
    plain_descent,
    problem,
    relative,
)

from w2s_jax import sharding, testing
from w2s_jax.config import MeshSettings, mesh_shapes, validation
from w2s_jax.core import errors
from w2s_jax.core.files import read_json
from w2s_jax.data import packing
from w2s_jax.execution import execute
from w2s_jax.models import adapting, network
from w2s_jax.planning import mesh_fit
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.sharding import RULES, ShardingRules
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training import optimizer, programs
from w2s_jax.training import state as state_module
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.prediction import Predictor
from w2s_jax.training.state import init_state

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2))

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(autouse=True)
def fresh_programs():
    yield
    forget_programs()
    network.abstract_params.cache_clear()


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields,devices,wanted",
    [
        ({}, 8, (8, 1, 1)),
        ({"fsdp": 4}, 8, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, 8, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, 8, (2, 2, 2)),
        ({"data": 2}, 8, (2, 1, 1)),
        ({"data": 1, "fsdp": 256}, 256, (1, 256, 1)),
    ],
)
def test_one_axis_fills_the_devices(fields, devices, wanted):
    assert mesh_shapes.mesh_shape(MeshSettings(**fields), devices) == wanted


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"data": 16}, ["mesh.data: 16", "at most 8 of the 8 devices"]),
        ({"data": 4, "fsdp": 4}, ["mesh.fsdp: 4", "data=4", "at most 2 of the 8"]),
        ({"fsdp": 3}, ["mesh.fsdp: 3", "does not divide the 8", "1, 2, 4, 8", "mesh.data"]),
        ({"fsdp": 2, "tensor": 3}, ["mesh.tensor: 3", "1, 2, 4, 8"]),
        ({"fsdp": 4, "tensor": 4}, ["mesh.tensor: 4", "fsdp=4", "at most 2 of the 8"]),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(fields, words):
    with pytest.raises(errors.InputError) as error:
        mesh_shapes.mesh_shape(MeshSettings(**fields), 8)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"fsdp": -1}, ["mesh.fsdp: -1", "mesh.data is -1 too"]),
        ({"data": 1, "fsdp": -1, "tensor": -1}, ["mesh.tensor: -1", "mesh.fsdp is -1 too"]),
        ({"tensor": 0}, ["mesh.tensor: 0", "at least 1, or -1"]),
        ({"fsdp": 2, "population": 4}, ["mesh.population: 4", "fsdp=2", "-1 or 1"]),
    ],
)
def test_mesh_fields_that_contradict_each_other_are_refused(tmp_path, fields, words):
    config = testing.tiny_config(tmp_path)
    config.mesh.update(fields)
    with pytest.raises(errors.InputError) as error:
        validation.validate(config)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("num_slices", [2, 4])
@pytest.mark.parametrize("shape", list(itertools.product((1, 2, 4), (1, 2, 4), (1, 2))))
def test_slices_are_crossed_by_data_first_and_never_by_tensor(shape, num_slices):
    if shape[0] * shape[1] % num_slices:
        with pytest.raises(errors.InputError, match=rf"mesh.data: {shape[0]} .*{num_slices} sl"):
            mesh_shapes.hybrid_shapes(shape, num_slices)
        return
    within, across = mesh_shapes.hybrid_shapes(shape, num_slices)
    assert tuple(np.multiply(within, across)) == shape
    assert np.prod(across) == num_slices and across[2] == 1
    assert across[0] == np.gcd(shape[0], num_slices)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "fake"

    @property
    def process_index(self):
        return self.slice_index


def test_a_mesh_of_several_slices_keeps_each_tensor_group_in_one():
    devices = [FakeDevice(i, i % 2) for i in range(8)]
    mesh = sharding.make_mesh(MeshSettings(fsdp=2, tensor=2), devices)
    slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and slices.shape == (2, 2, 2)
    assert (slices[0] == slices[0, 0, 0]).all() and (slices[1] == 1 - slices[0, 0, 0]).all()
    with pytest.raises(errors.InputError, match="4 and 3 devices of the slices"):
        sharding.mesh_of((7, 1, 1), devices[:7])


def test_no_process_is_left_without_a_device():
    devices = [FakeDevice(i, i // 4) for i in range(8)]
    with pytest.raises(errors.InputError, match=r"mesh.data: 2 .* leaves process 1 without"):
        sharding.make_mesh(MeshSettings(data=2), devices)


# --- rules ---------------------------------------------------------------------------------------


def test_rules_that_split_two_axes_of_an_array_alike_are_refused():
    assert RULES.spec(("layers", "embed", "mlp")) == jax.P(None, "fsdp", "tensor")
    with pytest.raises(errors.InputError, match=r"'embed' and 'mlp' .* sharded over 'tensor'"):
        dataclasses.replace(RULES, embed="tensor").spec(("layers", "embed", "mlp"))
    with pytest.raises(errors.InputError, match="logical axis: .*'embedd'.*did you mean 'embed'"):
        RULES.spec(("embedd",))
    with pytest.raises(errors.InputError, match=r"'mlp'.*'tensr'.*did you mean 'tensor'"):
        ShardingRules(mlp="tensr")


def test_an_axis_that_does_not_divide_is_whole_and_explained():
    mesh = sharding.mesh_of((1, 2, 4))
    where = RULES.sharding((30, 16), ("vocab", "embed"), mesh)
    assert where.shard_shape((30, 16)) == (30, 8)
    told = RULES.explain((30, 16), ("vocab", "embed"), mesh)
    assert told == (
        "'vocab' of 30 is not split over mesh.tensor=4, which does not divide it (nearest that "
        "does: 3)"
    )
    assert RULES.explain((32, 16), ("vocab", "embed"), mesh) == ""
    assert RULES.explain((30, 16), ("vocab", "embed"), sharding.mesh_of((8, 1, 1))) == ""


def test_large_parameters_that_are_not_split_are_told_once(monkeypatch, caplog):
    monkeypatch.setattr(network, "UNSPLIT_WARNING_SIZE", 400)
    config = testing.tiny_model(vocab_size=31)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            network.abstract_params(config, sharding.mesh_of((2, 2, 2)))
    assert [record.getMessage() for record in caplog.records] == [
        "tiny: embedding: 'vocab' of 31 is not split over mesh.tensor=2, which does not divide it "
        "(nearest that does: 1)"
    ]


# --- the same result on every mesh ---------------------------------------------------------------


def state_on(spec, mesh, params=None):
    """A fresh state, its parameters where the rules say."""
    where = adapting.abstract_trained(spec.train, spec.model, mesh, 1)
    params = jax.tree.map(
        lambda x, a: jax.device_put(np.asarray(x, np.float32), a.sharding),
        problem()[2] if params is None else params,
        where,
    )
    return init_state(params, optimizer.make_optimizer(spec.train), spec.total_steps, mesh)


def one_step(spec, shape, **options):
    mesh = sharding.mesh_of(shape)
    batches = placed(spec, mesh, **options)
    return programs.compile_step(spec, mesh)(state_on(spec, mesh), batches.at(0))


@pytest.mark.medium
@pytest.mark.parametrize(
    "kind,micro", [("xent", BATCH), pytest.param("confidence", 4, marks=pytest.mark.slow)]
)
def test_one_step_is_the_same_on_every_mesh(monkeypatch, kind, micro):
    """To 1e-5 of the gradient's norm, in float32; -s prints the table of docs/pods.md."""
    plain_descent(monkeypatch)
    before = flat(problem()[2])
    spec = make_spec((kind, ()), learning_rate=1.0, microbatch_size=micro)
    alone = one_step(spec, (1, 1, 1))
    gradient = before - flat(alone.params)
    for shape in MESHES:
        after = one_step(spec, shape)
        off = relative(before - flat(after.params), gradient)
        loss = abs(float(np.asarray(after.history)[0, 0]) - float(alone.history[0, 0]))
        print(f"| {kind} | {micro} of {BATCH} | {' x '.join(map(str, shape))} | {off:.0e} |")
        assert off < 1e-5 and loss < 1e-6, (shape, off, loss)


def test_label_passes_are_the_same_on_every_mesh():
    """Class logits to 1e-5; -s prints rows of the same table."""
    config, documents, _ = problem()
    logits = {}
    for shape in ((1, 1, 1), *MESHES):
        mesh = sharding.mesh_of(shape)
        mine = state_on(make_spec(), mesh).params
        predict = Predictor(config, documents, mesh, per_device=False, batch_size=8)
        logits[shape] = predict(mine)
    for shape in MESHES:
        off = np.abs(logits[shape] - logits[1, 1, 1]).max()
        print(f"| labels | - | {' x '.join(map(str, shape))} | {off:.0e} |")
        assert off < 1e-5
    assert np.ptp(logits[1, 1, 1]) > 0.1


def test_a_batch_smaller_than_the_mesh_gives_the_same_step(monkeypatch):
    """4 documents on 8 devices: empty rows fill up, and the plan says how many."""
    plain_descent(monkeypatch)
    spec = make_spec(batch_size=4, learning_rate=1.0)
    few = order()[:, :4]
    before = flat(problem()[2])
    gradient = before - flat(one_step(spec, (1, 1, 1), order_SB=few).params)
    after = one_step(spec, (2, 4, 1), order_SB=few)
    assert relative(before - flat(after.params), gradient) < 1e-5
    packed = packing.pack(problem()[1], few, row_multiple=8)
    empty = (packed.buckets[0].segment_ids_SMRL == 0).all(axis=(1, 3)).mean()
    assert empty == 0.5 and packed.real_token_share < 0.5


def dropped_key_bias(params):
    flat = traverse_util.flatten_dict(params, sep=".")
    return {name: x for name, x in flat.items() if not name.endswith("key.bias")}


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_goes_on_on_another(tmp_path):
    """Saved on data=8 and restored on fsdp=8: the next step agrees to 1e-5, moments included."""
    spec = make_spec(learning_rate=1e-2)
    meshes = [sharding.mesh_of(shape) for shape in ((8, 1, 1), (1, 8, 1))]
    state = state_on(spec, meshes[0])
    for number in range(2):
        state = programs.compile_step(spec, meshes[0])(state, placed(spec, meshes[0]).at(number))
    saved = Checkpoints(tmp_path / "steps", 1)
    saved.save(2, {"state": state}, {})
    saved.finish()
    target = state_on(spec, meshes[1])
    restored = saved.restore(2, {"state": target})[0]["state"]
    saved.close()
    up = restored.params["backbone"]["blocks"]["mlp"]["up"]["kernel"]
    assert up.sharding.shard_shape(up.shape) == (1, 2, 32)
    afters = [
        programs.compile_step(spec, mesh)(start, placed(spec, mesh).at(2))
        for mesh, start in zip(meshes, (state, restored), strict=True)
    ]
    rows = [np.asarray(after.history)[2] for after in afters]
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5)
    assert relative(flat(afters[1].opt_state.mu), flat(afters[0].opt_state.mu)) < 1e-5
    # Keys' biases add the same to all scores of a softmax: their gradient is rounding, which Adam
    # makes as large as any other.
    mine, other = (dropped_key_bias(after.params) for after in afters)
    assert relative(flat(mine), flat(other)) < 1e-5
    assert int(afters[1].step) == 3


# --- nothing is replicated in silence ------------------------------------------------------------

#: Shape of one device's part of every parameter with 256 numbers or more, by hand: the model has
#: width 16, an MLP of 32, 2 heads of 8, 32 tokens, 64 positions and one layer.
PARTS = {
    (1, 8, 1): {
        "attention.key.kernel": (1, 2, 2, 8),
        "attention.query.kernel": (1, 2, 2, 8),
        "attention.value.kernel": (1, 2, 2, 8),
        "attention.out.kernel": (1, 2, 8, 2),
        "mlp.up.kernel": (1, 2, 32),
        "mlp.down.kernel": (1, 32, 2),
        "embedding": (32, 2),
        "position_embedding": (64, 2),
    },
    (2, 2, 2): {
        "attention.key.kernel": (1, 8, 1, 8),
        "attention.query.kernel": (1, 8, 1, 8),
        "attention.value.kernel": (1, 8, 1, 8),
        "attention.out.kernel": (1, 1, 8, 8),
        "mlp.up.kernel": (1, 8, 16),
        "mlp.down.kernel": (1, 16, 8),
        "embedding": (16, 8),
        "position_embedding": (64, 8),
    },
}


@functools.cache
def compiled_step(shape):
    """(the state, the compiled train step) of Adam on a mesh."""
    spec, mesh = make_spec(), sharding.mesh_of(shape)
    state = state_on(spec, mesh)
    program = programs.compile_step(spec, mesh)
    bucket = placed(spec, mesh, rows=8).at(0)
    return state, program.func.lower(*program.args, state, bucket).compile()


def parts(state, shardings):
    """Name -> the shapes of one device's part, of parameters, averages and moments alike."""
    found = {}
    paths = jax.tree.flatten_with_path(state)[0]
    for (path, x), where in zip(paths, jax.tree.leaves(shardings), strict=True):
        if x.size >= 256:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            name = name.split("backbone.")[-1].removeprefix("blocks.")
            found.setdefault(name, []).append(where.shard_shape(x.shape))
    return found


def gathered(program):
    """Shapes that an all-gather of the program results in."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", program.as_text())
    return {tuple(int(n) for n in shape.split(",") if n) for shape in shapes}


def moments(state):
    """Shapes of large moments, of all layers together; less those that a layer's kernel has."""
    shapes = {x.shape for x in jax.tree.leaves(state.opt_state) if x.size >= 256}
    return shapes - {shape[1:] for shape in shapes}


@pytest.mark.parametrize("shape", PARTS)
def test_the_compiled_step_keeps_every_large_array_split(shape):
    """A parameter and its two moments, as they come in and as they go out."""
    state, program = compiled_step(shape)
    wanted = {name: [part] * 3 for name, part in PARTS[shape].items()}
    assert parts(state, program.input_shardings[0][2]) == wanted
    assert parts(state, program.output_shardings) == wanted


@pytest.mark.parametrize("shape", PARTS)
def test_no_moment_is_gathered_nor_are_the_activations_of_all_rows(shape):
    state, program = compiled_step(shape)
    found = gathered(program)
    assert found and not found & moments(state)
    batch = placed(make_spec(), sharding.mesh_of(shape), rows=8).at(0)
    rows, length = batch.batches.microbatches.tokens_RL.shape[-2:]
    assert not {(rows * length, 16), (rows, length, 16)} & found


@pytest.mark.slow
def test_moments_that_were_gathered_would_be_seen(monkeypatch):
    split = state_module._opt_state_shardings
    monkeypatch.setattr(
        state_module,
        "_opt_state_shardings",
        lambda *args: jax.tree.map(lambda _: sharding.replicated(args[2]), split(*args)),
    )
    state, program = compiled_step.__wrapped__((1, 8, 1))
    assert gathered(program) & moments(state)


@pytest.mark.parametrize("dropped", ["embed", "mlp", "heads", "kv_heads", "vocab"])
def test_a_rule_that_is_dropped_shows(monkeypatch, dropped):
    monkeypatch.setattr(sharding, "RULES", dataclasses.replace(RULES, **{dropped: None}))
    network.abstract_params.cache_clear()
    spec, mesh = make_spec(), sharding.mesh_of((2, 2, 2))
    state = state_on(spec, mesh)
    found = parts(state, jax.tree.map(lambda x: x.sharding, state))
    assert found != {name: [part] * 3 for name, part in PARTS[2, 2, 2].items()}


# --- what a plan says of a mesh ------------------------------------------------------------------


def phases_of(data_dir, **train):
    config = testing.tiny_config(data_dir)
    config.train.update(train)
    return plan(resolve(validation.validate(config))).phases


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


def test_the_plan_tells_of_devices_without_a_document(data_dir):
    planned = phases_of(data_dir, batch_size=4)
    assert mesh_fit.explain(planned, (4, 1, 2)) == []
    (idle,) = mesh_fit.idle_slots(planned, (2, 4, 1))
    assert (idle.texts, idle.row_shards, idle.share) == (4, 8, 0.5)
    assert set(idle.phases) == {"weak", "ceiling", "student xent", "student confidence"}
    (line,) = mesh_fit.explain(planned, (2, 4, 1))
    assert "at least 50% of the slots are empty" in line
    assert "mesh.data=1 (frees 4 of 8 devices)" in line and "mesh.population" not in line
    (line,) = mesh_fit.explain(planned, (8, 1, 1))
    assert "mesh.data=4 (frees 4 of 8 devices)" in line and "mesh.population" in line
    (line,) = mesh_fit.explain(planned, (1, 8, 1))
    assert "mesh.fsdp=4 or less" in line
    # A microbatch counts, not the batch.
    assert mesh_fit.idle_slots(phases_of(data_dir, microbatch_size=2), (4, 1, 1))[0].texts == 2


def test_a_tensor_axis_that_splits_nothing_is_refused(data_dir):
    planned = phases_of(data_dir)
    mesh_fit.refuse_idle_tensor(planned, (1, 1, 2))
    with pytest.raises(errors.InputError, match=r"mesh.tensor: 3 divides neither .*allowed: [24]"):
        mesh_fit.refuse_idle_tensor(planned, (1, 1, 3))


# --- whole runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_three_axes_agrees_with_one_on_data(data_dir, tmp_path):
    """Accuracies within one standard error; so does a phase begun on data=8, ended on fsdp=8."""
    results = {}
    for name, fields in {"data": {"data": 8}, "all": dict(data=2, fsdp=2, tensor=2)}.items():
        config = testing.tiny_config(data_dir)
        config.losses = ("xent",)
        config.mesh.update(fields)
        results[name] = execute.run(config, tmp_path / name, console=Console(quiet=True))
    for role in ("weak", "ceiling"):
        a, b = (results[name][role] for name in ("data", "all"))
        assert abs(a["accuracy"] - b["accuracy"]) <= a["accuracy_se"]
    for label, student in results["data"]["students"].items():
        other = results["all"]["students"][label]
        assert abs(student["accuracy"] - other["accuracy"]) <= student["accuracy_se"]
    # Meshes have no part in fingerprints.
    assert [s["phase"] for s in results["data"]["stages"]] == [
        s["phase"] for s in results["all"]["stages"]
    ]
    weak = PhaseFolder(tmp_path / "all" / "phases" / results["all"]["weak"]["phase"])
    assert read_json(weak.result)["execution"]["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}

    ceiling = PhaseFolder(tmp_path / "data" / "phases" / results["data"]["ceiling"]["phase"])
    shutil.rmtree(ceiling.path)
    config.mesh.update(dict(data=8, fsdp=1, tensor=1))
    interrupted_run(config, tmp_path / "data", 2)
    assert [p.name for p in ceiling.steps.iterdir() if p.is_dir()] == ["10"]
    config.mesh.update(dict(data=1, fsdp=8))
    again = execute.run(config, tmp_path / "data", console=Console(quiet=True))["ceiling"]
    wanted = results["data"]["ceiling"]
    assert abs(again["accuracy"] - wanted["accuracy"]) <= wanted["accuracy_se"]
    assert read_json(ceiling.result)["execution"]["mesh"]["fsdp"] == 8
